"""Fields that do nothing beside the others: who sets one is told so, and nobody else."""

from typing import Any

import pytest

from tt_ray.cli import read_config
from tt_ray.config import Config
from tt_ray.config.idle import IDLE, notes_on_idle_fields
from tt_ray.recipes import RECIPES

CASES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"head.freeze": True}, {"text.weight": 0.0}, "head.freeze does nothing with text.weight 0.0"),
    (
        {"head.depth": 3, "head.hidden_dim": 8},
        {"head.kind": "linear"},
        "head.hidden_dim, head.depth do nothing with head.kind linear",
    ),
    ({"teacher.temperature": 2.0}, {}, "teacher.temperature does nothing with teacher.model empty"),
    (
        {"teacher.temperature": 2.0},
        {"teacher.model": "timm:test_vit"},
        "teacher.temperature does nothing with teacher.target embedding",
    ),
    (
        {"head.kind": "mlp"},
        {"teacher.model": "timm:test_vit", "teacher.target": "logits"},
        "head.kind does nothing with teacher.target logits",
    ),
    ({"text.negatives": "local"}, {"text.loss": "cos"}, "text.negatives does nothing with text.loss cos"),
    ({"text.encoder": "x"}, {"text.embeddings": "store"}, "text.encoder does nothing with text.embeddings store"),
    ({"data.index": "i"}, {"data.source": "imagefolder"}, "data.index does nothing with data.source imagefolder"),
    ({"data.shapes.seed": 1}, {"data.source": "clipart"}, "data.shapes.seed does nothing with data.source clipart"),
    ({"data.color_jitter": 0.1}, {"data.augment": "deit"}, "data.color_jitter does nothing with data.augment deit"),
    ({"data.decoder": "pillow"}, {"data.augment": "crop"}, "data.decoder does nothing with data.augment crop"),
    ({"data.val_split": "dev"}, {"data.val_share": 0.1}, "data.val_split does nothing with data.val_share 0.1"),
    (
        {"train.compile_mode": "max-autotune"},
        {"train.compile": False},
        "train.compile_mode does nothing with train.compile False",
    ),
    ({"optim.warmup_lr": 1e-5}, {"optim.warmup_epochs": 0.0}, "optim.warmup_lr does nothing with optim.warmup_epochs"),
    ({"run.resize_every": 9.0}, {"run.num_workers": "2:2"}, "run.resize_every does nothing with run.num_workers 2:2"),
]


@pytest.mark.parametrize(("idle", "others", "note"), CASES, ids=[note.partition(" do")[0] for *_, note in CASES])
def test_who_sets_a_field_that_does_nothing_is_told_why(
    idle: dict[str, Any], others: dict[str, Any], note: str
) -> None:
    recipe = RECIPES["shapes_textteacher"]().override(others)
    (found,) = notes_on_idle_fields(of_a_user(recipe, idle))
    assert found.startswith(note)
    assert not notes_on_idle_fields(of_a_user(recipe, {})), "a recipe's own values are not the user's"


def of_a_user(recipe: Config, fields: dict[str, Any]) -> Config:
    """The recipe, of which a user has set these fields alone."""
    return Config.from_dict(recipe.to_dict()).override(fields)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_alone_says_nothing(name: str) -> None:
    assert not notes_on_idle_fields(read_config([name], "prog"))


def test_a_command_that_is_made_its_own_baseline_says_nothing() -> None:
    words = ["shapes_textteacher", "--text.captions", "t.csv", "--head.freeze", "True", "--text.weight", "0"]
    assert not notes_on_idle_fields(read_config(words, "prog"))
    words[0] = "shapes_baseline"
    assert notes_on_idle_fields(read_config(words[:-2], "prog")) == [
        "text.captions, head.freeze do nothing with text.weight 0.0"
    ]


def test_a_source_of_a_user_s_own_may_read_any_field() -> None:
    fields = {"data.source": "mine:pets", "data.index": "i", "data.name": "n", "data.shapes.seed": 1}
    assert not notes_on_idle_fields(of_a_user(Config(), fields))


def test_every_row_is_about_fields_that_exist() -> None:
    for row in IDLE:
        assert row.due_to in Config.paths()
        for each in row.fields:
            assert any(path.startswith(each) if each.endswith(".") else path == each for path in Config.paths()), each
