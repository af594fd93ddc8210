"""Conversion to safetensors of model formats that transformers cannot train."""
