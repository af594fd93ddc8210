"""Runs: training a recipe, its checkpoints and result, and using the tuned model."""
