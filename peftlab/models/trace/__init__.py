"""Facts about an architecture, found by one forward and backward pass of a tiny model of it."""
