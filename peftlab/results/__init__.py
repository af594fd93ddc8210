"""The record of a run, and the environment it ran in."""
