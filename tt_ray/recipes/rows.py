"""Recipes as rows of a table: another recipe, what is different, and what the docstring says of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tt_ray.config import Config
from tt_ray.recipes.changes import change


@dataclass(frozen=True)
class Row:
    """One recipe."""

    name: str
    about: str
    """First line of the docstring."""
    base: Callable[[], Config]
    """The recipe that it starts from."""
    changes: Mapping[str, object] = field(default_factory=dict[str, object])
    """Values over the base's, by dotted path."""
    needs: str = "--data.root IMAGENET --text.embeddings STORE"
    """What a user adds to the command."""
    hardware: str = "8 GPUs"
    source: str = "We do not know the paper's figure (arXiv 2605.22098)."
    """Where settings or results come from, in sentences."""


def recipes(rows: tuple[Row, ...]) -> tuple[Callable[[], Config], ...]:
    """A function for each row, named and documented as one that is written out."""
    return tuple(_recipe(row) for row in rows)


def _recipe(row: Row) -> Callable[[], Config]:
    def build() -> Config:
        return change(row.base(), row.name, row.changes)

    build.__name__ = build.__qualname__ = row.name
    build.__module__ = row.base.__module__
    command = f"python -m tt_ray.train {row.name} {row.needs}"
    build.__doc__ = f"{row.about}.\n\n{command}\n{row.hardware}; not run by us. {row.source}\n"
    return build
