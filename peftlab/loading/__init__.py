"""What a recipe names, loaded: its data encoded, its base with the task's head, the method attached."""
