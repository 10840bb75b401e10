"""All recipes, by the class that they are for."""

from . import helios, ltx2, upsampler, vae, zimage
from .recipe import Recipe, name_of

__all__ = ["RECIPES", "SUPPORTED", "recipe_above", "recipe_for"]

SUPPORTED = (
    "LTX-2 (2.0, 2.3, 2.5), its latent upsampler, Helios, Z-Image and their VAEs, of diffusers"
)

RECIPES: dict[str, Recipe] = {
    recipe.cls: recipe
    for module in (ltx2, upsampler, vae, helios, zimage)
    for recipe in module.RECIPES
}


def recipe_for(cls: type) -> Recipe | None:
    """The recipe for instances of exactly this class: a subclass may compute something else."""
    return RECIPES.get(name_of(cls))


def recipe_above(cls: type) -> Recipe | None:
    """The recipe for the nearest class that this one is a subclass of."""
    known = (recipe_for(parent) for parent in cls.__mro__[1:])
    return next((recipe for recipe in known if recipe is not None), None)
