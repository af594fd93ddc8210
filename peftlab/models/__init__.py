"""Base models: location of their files, known configs, tiny models of any architecture, code from the Hub."""
