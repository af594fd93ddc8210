"""The training loop and its parts: batches, gradients, checks, checkpoints, callbacks, predictions."""
