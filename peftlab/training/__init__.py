"""The loop and what it stands on: batches, gradients, the step, what of it is kept, how it ends."""
