"""Fine-tuning by the project's loop: where it starts, what it selects on, what it leaves behind."""

import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from eval.contract import EvalConfig, Result
from eval.protocols.finetune import Options, Tuner, evaluate, model_config, start_from
from eval.protocols.finetune_data import hold, joined, repeated
from eval.protocols.finetune_recipes import RECIPES
from tests.eval.toy_task import SIZE, ToyTask, coloured, toy_backbone
from tests.io.pulled_here import copy_of_one_file
from tt_ray.models.classifier import build_backbone
from tt_ray.terminal.errors import UserError

SHORT: dict[str, Any] = {"steps": 6, "batch_size": 8, "rates": (1e-4, 3e-3)}


def config(seed: int = 0, **options: Any) -> EvalConfig:
    torch.set_num_threads(1)
    return EvalConfig(Options(**{**SHORT, **options}), Path(), seed, batch_size=16)


def run(task: Any, given: EvalConfig) -> Result:
    return evaluate(toy_backbone(), task, given)


def test_learns_selects_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    task = ToyTask()
    result = run(task, config(steps=30))
    assert result.metrics["top1"] > 90 and result.metrics.keys() == {"top1", "mean_per_class", "ece"}
    assert result.predictions is not None and result.labels is not None and result.n == 45
    assert 100 * (result.predictions == result.labels).mean() == pytest.approx(result.metrics["top1"])
    found = result.chosen["validation"]
    assert found.keys() == {1e-4, 3e-3} and found[result.chosen["lr"]] == max(found.values())
    assert result.chosen["recipe"]["steps"] == 30 and result.chosen["at_edge"]
    assert not list(tmp_path.iterdir())
    assert "".join(capfd.readouterr()) == ""


def test_the_seed_decides_everything_and_test_labels_nothing() -> None:
    first, again = run(ToyTask(), config()), run(ToyTask(shift=1), config())
    assert first.predictions is not None and again.predictions is not None
    assert first.chosen == again.chosen and (first.predictions == again.predictions).all()
    assert first.metrics["top1"] != again.metrics["top1"]


@pytest.mark.parametrize("train_on", ["train", "train+val"])
@pytest.mark.parametrize("has_val", [False, True])
def test_selection_holds_images_out_and_the_last_training_does_not(
    has_val: bool, train_on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, set[str]]] = []

    def train(self: Tuner, source: Any) -> Any:
        seen.append((self.rate, set(source.ids.to_pylist())))
        return SimpleNamespace(predict=lambda other, *_: np.tile([0.5, 0.3, 0.2], (len(other), 1)).astype("f4"))

    monkeypatch.setattr(Tuner, "train", train)
    task = ToyTask(has_val=has_val)
    result = run(task, config(train_on=train_on))
    (low, first), (high, second), (last, everything) = seen
    assert (low, high, last) == (1e-4, 3e-3, 1e-4) == (1e-4, 3e-3, result.chosen["lr"])  # equally good: the lower one
    assert first == second <= everything and len(everything) == (90 if has_val and train_on == "train+val" else 45)
    assert len(first) == (45 if has_val else 36)
    assert task.log == ["train", *["val"] * has_val, "test"]


def test_one_rate_needs_no_validation() -> None:
    result = run(ToyTask(), config(rates=(1e-3,)))
    assert result.chosen["lr"] == 1e-3 and result.chosen["validation"] == {}


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t"])
def test_training_starts_from_the_backbone(name: str) -> None:
    backbone = toy_backbone() if name.startswith("vit") else toy_backbone(name=name)
    still = {"optim.min_lr": 0.0, "optim.warmup_lr": 0.0}
    recipe = config(steps=1, overrides=still).options.resolved
    before = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    tuned = Tuner(backbone, recipe, 0.0, config()).train(coloured(20, 0))
    after = tuned.model.backbone.state_dict()
    same = {key for key, value in after.items() if value.shape == before[key].shape and torch.equal(before[key], value)}
    assert {key for key in after.keys() - same if "running" not in key and "tracked" not in key} == {
        key for key in before if key in ("head.weight", "head.bias", "fc.weight", "fc.bias")
    }
    assert all(torch.equal(before[key], value) for key, value in backbone.model.state_dict().items())


def test_the_classifier_is_fresh_and_small() -> None:
    source = toy_backbone(3).model
    models = [toy_backbone(3).model for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        start_from(model, source, seed)
    first, again, other = (model.get_classifier().weight for model in models)  # type: ignore[operator]
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert 0.015 < first.std() < 0.025 and first.abs().max() <= 2
    assert all(not model.get_classifier().bias.any() for model in models)  # type: ignore[operator]


def test_weights_of_another_architecture_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"cannot start from these weights: .*Unexpected key.*blocks\.2\."):
        start_from(toy_backbone().model, toy_backbone(depth=3).model, 0)


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"global_pool": "avg", "class_token": False}, {"name": "resnet10t"}],
)
def test_the_configuration_builds_the_same_model(kwargs: dict[str, Any]) -> None:
    backbone = toy_backbone(**kwargs)
    tuner = Tuner(backbone, RECIPES["paper"], 0.1, config())
    run = tuner._run(Path("x"), 45)
    assert run.model == replace(model_config(backbone), drop_path=0.05)
    model = build_backbone(run, 5)
    start_from(model, backbone.model, 0)
    model.eval()
    images = torch.rand(2, 3, SIZE, SIZE)
    with torch.inference_mode():
        features = model.forward_head(model.forward_features(images), pre_logits=True)  # type: ignore[operator]
        assert torch.equal(features, backbone.pooled(images))


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_train(name: str) -> None:
    result = run(ToyTask(), config(recipe=name, steps=2, batch_size=6, rates=()))
    recipe = RECIPES[name]
    assert result.chosen["recipe"]["optimizer"] == recipe.config["optim.name"] and result.chosen["lr"] in recipe.rates


def test_a_rate_that_diverges_has_lost() -> None:
    result = run(ToyTask(), config(rates=(1e-3, 1e30)))
    assert result.chosen["lr"] == 1e-3 and result.chosen["validation"][1e30] is None
    with pytest.raises(UserError, match=r"diverged at every rate of \(1e\+30, 1e\+35\)"):
        run(ToyTask(), config(rates=(1e30, 1e35)))


@pytest.mark.parametrize("count", [7, 45, 100])
def test_images_are_repeated_evenly(count: int) -> None:
    images = repeated(coloured(45, 0), count, 3)
    occurrences = np.unique(images.ids.to_pylist(), return_counts=True)[1]
    assert len(images) == count == occurrences.sum()
    assert occurrences.max() - (occurrences.min() if count >= 45 else 0) <= 1


@pytest.mark.parametrize("behind", [0, 1, 2])
def test_joined_splits_are_pulled_together(behind: int, tmp_path: Path) -> None:
    copies = [copy_of_one_file(tmp_path, name) if number < behind else None for number, name in enumerate("ab")]
    joined(*(replace(coloured(5, 0), copy=copy) for copy in copies)).pull()
    assert all((tmp_path / "cache" / name).exists() for name in "ab"[:behind])


def test_splits_are_joined_and_held_unchanged() -> None:
    first, second = coloured(5, 0), coloured(7, 1)
    both = joined(first, second)
    rows = np.array([11, 0, 4, 5, 4])
    expected = np.concatenate([first.pixels(np.arange(5), 8), second.pixels(np.arange(7), 8)])
    assert both.labels.tolist() == [*first.labels, *second.labels] and len(both.ids) == 12
    for source in (both, hold(both, 8)):
        assert (source.pixels(rows, 8) == expected[rows]).all()
        assert (
            source.read(6).tobytes() == second.read(1).tobytes() and source.read(4).tobytes() == first.read(4).tobytes()
        )
        assert source.pixels(rows, 4).shape == (5, 4, 4, 3)


def test_what_is_given_goes_before_the_recipe() -> None:
    assert Options().resolved == RECIPES["builtin"]
    changed = Options("paper", steps=5, rates=(0.1,), layer_decay=0.5, overrides={"optim.eps": 1e-6}).resolved
    assert changed.train_on == "train" and Options().resolved.train_on == "train+val"
    over = {**RECIPES["paper"].overrides, "optim.layer_decay": 0.5, "optim.eps": 1e-6}
    assert changed == replace(RECIPES["paper"], steps=5, rates=(0.1,), overrides=over)


@pytest.mark.parametrize(
    "options", [{"steps": -1}, {"rates": (-0.1,)}, {"layer_decay": 1.5}, {"overrides": {"optim.epss": 1}}]
)
def test_numbers_that_cannot_train_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="finetune"):
        Options(**options)


def test_published_recipes_count_the_steps_of_epochs_without_their_last_batch() -> None:
    for name, images, size, steps in (("paper", 1020, 256, 6000), ("paper_cars", 8144, 1024, 14000)):
        recipe = Options(name).resolved  # type: ignore[arg-type]
        assert (recipe.batch_size, recipe.steps) == (size, steps) == (size, images // size * 2000)
        assert recipe.config["model.drop_path"] == 0.05 and recipe.config["data.crop_pct"] == 1.0
    deit = Options("deit").resolved.config
    assert (deit["model.drop_path"], deit["data.crop_pct"], deit["data.repeats"]) == (0.05, 1.0, 3)
