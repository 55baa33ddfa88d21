"""How a recipe is made from another one."""

from collections.abc import Mapping
from dataclasses import replace

from tt_ray.config import Config


def change(config: Config, name: str, values: Mapping[str, object]) -> Config:
    """A configuration with another run name and other values.

    Args:
        config: The recipe to start from.
        name: The new recipe's name.
        values: New values by dotted path, such as "optim.lr".
    """
    # Copied, as it is a recipe again: nothing in it was set by a user (see Config.override).
    return replace(config.override({**values, "run.name": name}))
