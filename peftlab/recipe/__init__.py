"""Recipes: their schema, their files, and the errors in them."""

from peftlab.recipe.errors import file_errors
from peftlab.recipe.load import load_recipe
from peftlab.recipe.recipe import NAME, Recipe, recipe_schema

__all__ = ["NAME", "Recipe", "file_errors", "load_recipe", "recipe_schema"]
