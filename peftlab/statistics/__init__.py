"""Statistics of scores: aggregates, bootstrap, intervals, hypothesis tests, power."""
