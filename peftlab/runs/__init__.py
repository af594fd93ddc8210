"""From a recipe to a result, and back from it: what a run reads, does, shows and leaves behind."""
