"""Suites: what there is to run, who runs it, and what is kept of it."""
