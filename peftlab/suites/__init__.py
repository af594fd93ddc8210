"""Suites: their plan, the scheduler that runs it, and the stored results."""
