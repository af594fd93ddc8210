"""torch optimizers that libraries lack, or that checkpoints need in another form."""
