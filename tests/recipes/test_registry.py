"""Named runs: every one is complete, documented, and called as its function is."""

import inspect
from typing import Any

import pytest
import timm
import torch

from tt_ray.recipes import RECIPES, backbones, clipart, imagenet, published, shapes
from tt_ray.recipes.changes import change


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_itself_its_command_and_what_it_needs(name: str) -> None:
    text = " ".join((RECIPES[name].__doc__ or "").split())
    assert RECIPES[name]().run.name == name
    assert "python -m tt_ray.train" in text and (name == "shapes_textteacher" or f"train {name}" in text)
    assert name.startswith(("shapes_", "clipart_")) or "not run by us" in text, "what we have not measured says so"


def test_every_public_function_of_the_recipe_files_is_a_recipe() -> None:
    found = {
        name
        for module in (shapes, clipart, imagenet)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    }
    tables = {row.__name__ for module in (backbones, published) for row in module.RECIPES}
    assert found | tables == set(RECIPES) and not found & tables


def test_a_changed_recipe_differs_in_what_was_asked_for_alone() -> None:
    base = RECIPES["shapes_textteacher"]()
    other = change(base, "other", {"optim.lr": 1.0})
    assert {path for path in base.paths() if base.get(path) != other.get(path)} == {"optim.lr", "run.name"}


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith(("in1k_", "in21k_", "cub_"))])
def test_every_model_is_one_of_timms_with_the_arguments_that_the_recipe_names(name: str) -> None:
    """On the meta device, where weights have shapes and no memory."""
    config = RECIPES[name]()
    kwargs = {**config.model.kwargs, **({"drop_path_rate": config.model.drop_path} if config.model.drop_path else {})}
    classes = {"in21k_vit_b_textteacher": 10450, "cub_vit_s_textteacher": 200}.get(name, 1000)
    with torch.device("meta"):
        model: Any = timm.create_model(config.model.name, num_classes=classes, **kwargs)
    features = model.get_classifier()
    assert isinstance(features, torch.nn.Linear) and features.out_features == classes
    if "vit_" in config.model.name and "xcit" not in config.model.name and "next" not in config.model.name:
        widths = {"_s_": (384, 12, 6), "_b_": (768, 12, 12), "_l_": (1024, 24, 16)}
        width, depth, heads = next(value for key, value in widths.items() if key in name)
        assert (model.embed_dim, len(model.blocks), model.blocks[0].attn.num_heads) == (width, depth, heads)


def test_teachers_are_those_of_the_paper() -> None:
    teachers = {
        name: RECIPES[f"in1k_vit_s_{name}"]().teacher.model for name in ("dino_b", "clip_b", "clip_l", "coca_l")
    }
    assert teachers["dino_b"] == "timm:vit_base_patch8_224.dino" and timm.is_model("vit_base_patch8_224.dino")
    assert all(teachers[f"clip_{size}"].endswith("+projection") for size in "bl")
    assert teachers["coca_l"].startswith("open_clip:coca_ViT-L-14/")
