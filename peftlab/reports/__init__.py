"""From a suite's results to what a paper prints: tables, figures, one HTML page. No torch."""
