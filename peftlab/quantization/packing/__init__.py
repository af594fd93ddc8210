"""Linear layers with packed weights in plain torch, and their loading by transformers."""
