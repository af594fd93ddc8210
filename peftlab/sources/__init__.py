"""Sources of models and datasets: registry packages, the Hub, conversion from other formats."""
