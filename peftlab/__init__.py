"""Parameter-efficient fine-tuning: from a recipe to a tuned model, from a suite to a table."""
