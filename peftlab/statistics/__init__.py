"""Statistics of scores: aggregates, intervals, tests."""
