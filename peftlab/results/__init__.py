"""Records of finished runs and of the environment they ran in."""
