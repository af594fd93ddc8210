"""Does a combination really work? Tried on a small model of the same architecture, in seconds."""
