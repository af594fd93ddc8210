"""Which base models there are: where their files are, and their shapes."""
