"""Fields that do nothing beside the others: who sets one is told so, and nobody else."""

from typing import Any

import pytest
from torch import nn

from tt_ray.cli import read_config
from tt_ray.config import Config
from tt_ray.config.idle import IDLE, note_on_warm_up, notes_on_idle_fields
from tt_ray.recipes import RECIPES
from tt_ray.training.optim import build_optimizer, build_scheduler, learning_rate

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
    (
        {"text.temperature": 0.1},
        {"teacher.model": "timm:test_vit", "teacher.target": "logits"},
        "text.temperature does nothing with teacher.target logits",
    ),
    (
        {"text.encoder": "x", "text.normalize_std": "full"},
        {"teacher.model": "timm:test_vit"},
        "text.encoder, text.normalize_std do nothing with teacher.model timm:test_vit",
    ),
    ({"text.weight": 0.3}, {"text.schedule": "vl2"}, "text.weight does nothing with text.schedule vl2"),
    (
        {"text.mixed_class": "argmax"},
        {"text.loss": "borlan", "data.cutmix": 0.0},
        "text.mixed_class does nothing with data.cutmix 0.0",
    ),
    ({"text.loss_precision": "autocast"}, {}, "text.loss_precision does nothing with train.precision auto"),
    (
        {"text.loss_precision": "autocast"},
        {"run.use_gpu": True, "train.precision": "fp32"},
        "text.loss_precision does nothing with train.precision fp32",
    ),
    ({"text.scope": "worker"}, {"data.cutmix": 1.0}, "text.scope does nothing with run.num_workers 1"),
    ({"text.negatives": "local"}, {"run.num_workers": 1}, "text.negatives does nothing with run.num_workers 1"),
    ({"train.sync_batchnorm": True}, {"run.num_workers": "1:1"}, "train.sync_batchnorm does nothing with run.num_w"),
    (
        {"text.scope": "worker"},
        {"text.weight": 0.0, "run.num_workers": 2},
        "text.scope does nothing with text.weight 0.0",
    ),
    ({"data.label_noise_kind": "pair"}, {"data.label_noise": 0.0}, "data.label_noise_kind does nothing with data.lab"),
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
    assert not notes_on_idle_fields(read_config([*words, "--text.schedule", "vl2"], "prog")), "0 turns vl2 off"
    words[0] = "shapes_baseline"
    assert notes_on_idle_fields(read_config(words[:-2], "prog")) == [
        "text.captions, head.freeze do nothing with text.weight 0.0"
    ]


@pytest.mark.parametrize("field", ["text.loss_precision", "text.scope", "text.mixed_class", "text.normalize_std"])
def test_fields_that_do_something_are_not_called_idle(field: str) -> None:
    values = {"text.loss_precision": "autocast", "text.scope": "worker", "text.mixed_class": "argmax"}
    others = {"run.num_workers": 2, "data.mixup": 0.8, "train.precision": "fp16", "text.loss": "borlan"}
    assert not notes_on_idle_fields(of_a_user(Config().override(others), {field: values.get(field, "full")}))


@pytest.mark.parametrize(
    ("per", "epochs", "warm", "reaches"),
    [
        ("step", 2, 5.0, "4e-04"),
        ("step", 1, 1.0, ""),  # all but the last step of the way
        ("step", 2, 0.0, ""),
        ("epoch", 1, 1.0, "0"),
        ("epoch", 2, 1.0, "0"),
        ("epoch", 3, 1.0, ""),
        ("epoch", 4, 5.0, "4e-04"),
        ("epoch", 7, 5.0, ""),
        ("epoch", 1, 0.0, ""),
    ],
)
def test_a_training_that_ends_in_its_warm_up_says_which_rate_it_reaches(
    per: str, epochs: int, warm: float, reaches: str
) -> None:
    """The rates are those of the schedule itself."""
    rate = {"optim.lr": 1e-3, "optim.warmup_lr": 0.0, "optim.warmup_epochs": warm, "optim.schedule_per": per}
    config = Config().override({**rate, "train.epochs": epochs})
    assert (
        f"the rate reaches {float(reaches):.2g}, " in note_on_warm_up(config)
        if reaches
        else not note_on_warm_up(config)
    )
    optimizer = build_optimizer(config.optim, nn.Linear(2, 2))
    scheduler, rates = build_scheduler(config.optim, optimizer, epochs, 1000), list[float]()
    for step in range(epochs * 1000):
        scheduler.step_update(step)
        rates.append(learning_rate(optimizer))
    assert max(rates) == pytest.approx(float(reaches or 1e-3), rel=0.5 if per == "epoch" and not reaches else 2e-3)


def test_a_source_of_a_user_s_own_may_read_any_field() -> None:
    fields = {"data.source": "mine:pets", "data.index": "i", "data.name": "n", "data.shapes.seed": 1}
    assert not notes_on_idle_fields(of_a_user(Config(), fields))


def test_every_row_is_about_fields_that_exist() -> None:
    for row in IDLE:
        assert row.due_to in Config.paths()
        for each in row.fields:
            assert any(path.startswith(each) if each.endswith(".") else path == each for path in Config.paths()), each
