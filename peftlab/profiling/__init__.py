"""Cost of a training step in bytes, FLOPs and seconds: measured, or estimated from tensor shapes."""
