"""Where models and data sets come from: the hub, registry packages, conversion."""
