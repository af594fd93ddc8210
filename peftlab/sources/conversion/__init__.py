"""Models in formats that transformers cannot train from, converted once to safetensors."""
