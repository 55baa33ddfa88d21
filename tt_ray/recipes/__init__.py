"""Named runs: plain functions that return complete configurations."""

from tt_ray.recipes.registry import RECIPES

__all__ = ["RECIPES"]
