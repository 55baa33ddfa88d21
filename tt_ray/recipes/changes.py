"""How a recipe is made from another one."""

from collections.abc import Mapping

from tt_ray.config import Config


def change(config: Config, name: str, values: Mapping[str, object]) -> Config:
    """A configuration with another run name and other values.

    Args:
        config: The recipe to start from.
        name: The new recipe's name.
        values: New values by dotted path, such as "optim.lr".
    """
    for path, value in {**values, "run.name": name}.items():
        config = config.override(path, value)
    return config
