"""Recipes: what they hold, and what is said of one that is wrong."""

from peftlab.recipe.errors import bad_input
from peftlab.recipe.recipe import NAME, Recipe, load_recipe, recipe_schema

__all__ = ["NAME", "Recipe", "bad_input", "load_recipe", "recipe_schema"]
