"""All recipes, by the class that they are for."""

from . import helios, ltx2, upsampler, vae, zimage
from .recipe import Recipe, name_of

__all__ = ["RECIPES", "recipe_for"]

RECIPES: dict[str, Recipe] = {
    recipe.cls: recipe
    for module in (ltx2, upsampler, vae, helios, zimage)
    for recipe in module.RECIPES
}


def recipe_for(cls: type) -> Recipe | None:
    """The recipe for instances of exactly this class: a subclass may compute something else."""
    return RECIPES.get(name_of(cls))
