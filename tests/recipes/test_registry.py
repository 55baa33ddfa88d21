"""Named runs: every one is complete, documented, and called as its function is."""

import inspect

import pytest

from tt_ray.recipes import RECIPES, backbones, imagenet, published, shapes
from tt_ray.recipes.changes import change


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_itself_its_command_and_what_it_needs(name: str) -> None:
    text = " ".join((RECIPES[name].__doc__ or "").split())
    assert RECIPES[name]().run.name == name
    assert "python -m tt_ray.train" in text and (name == "shapes_textteacher" or f"train {name}" in text)
    assert name.startswith("shapes_") or "not run by us" in text, "what we have not measured says so"


def test_every_public_function_of_the_recipe_files_is_a_recipe() -> None:
    found = {
        name
        for module in (shapes, imagenet)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    }
    tables = {row.__name__ for module in (backbones, published) for row in module.RECIPES}
    assert found | tables == set(RECIPES) and not found & tables


def test_a_changed_recipe_differs_in_what_was_asked_for_alone() -> None:
    base = RECIPES["shapes_textteacher"]()
    other = change(base, "other", {"optim.lr": 1.0})
    assert {path for path in base.paths() if base.get(path) != other.get(path)} == {"optim.lr", "run.name"}
