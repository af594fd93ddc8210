"""What a training step takes: bytes, operations and seconds, measured or forecast from shapes."""
