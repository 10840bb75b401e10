"""Recipes for the VAEs, as diffusers has them: one file for each family."""

from . import vae_kl, vae_ltx2, vae_wan
from .recipe import Recipe

__all__ = ["RECIPES"]

RECIPES: tuple[Recipe, ...] = (*vae_ltx2.RECIPES, *vae_wan.RECIPES, *vae_kl.RECIPES)
