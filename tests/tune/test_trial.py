"""A trial without Ray: what it reports, where it goes on, and how it hands over checkpoints."""

import json
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from tests.io.pulled_here import Sent, copy_of_one_file
from tests.toy import largest_difference, run_toy, toy_config, weights
from tt_ray.config import Config
from tt_ray.data.loader import hold_pixels
from tt_ray.data.prepare import open_data, open_images
from tt_ray.terminal.errors import Interrupted
from tt_ray.training.metrics_log import read_rows
from tt_ray.training.run_folder import start_run
from tt_ray.training.tracker import tracker_environment
from tt_ray.training.trainer import train
from tt_ray.tune.runner import TrialResources, Trials, run_trials
from tt_ray.tune.trial import Held, TrialPlan, _Trial, run_trial, takeovers


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Tune:
    """Stands in for Ray Tune: keeps reports, and ends the trial after `limit` of them as Tune does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit: int = 99) -> None:
        self.rows: list[dict[str, Any]] = []
        self.limit = limit
        self.pointer: Any = None
        monkeypatch.setattr("ray.tune.report", self.report)
        monkeypatch.setattr("ray.tune.get_checkpoint", lambda: self.pointer)

    def report(self, row: dict[str, Any], checkpoint: Any = None) -> None:
        self.rows.append(row)
        if len(self.rows) == self.limit:
            raise SystemExit


class Pointer:
    """A checkpoint of Tune's that names a trial and its epochs."""

    def __init__(self, folder: Path, name: str, epoch: int) -> None:
        self.folder = folder
        (folder / "trial.json").write_text(json.dumps({"name": name, "epoch": epoch}))

    def as_directory(self) -> "Pointer":
        return self

    def __enter__(self) -> str:
        return str(self.folder)

    def __exit__(self, *_: object) -> None:
        pass


def job(name: str, values: dict[str, Any], seeds: tuple[int, ...] = (0,), reported: int = 0) -> dict[str, Any]:
    return {"job": {"name": name, "values": values, "seeds": seeds, "reported": reported}}


def plan(config: Config, *meetings: int) -> TrialPlan:
    return TrialPlan(config, meetings or (config.train.epochs,), config.text.embeddings)


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = toy_config(tmp_path, train__epochs=3)
    parts = whole.override("run.name", "parts")
    run_toy(whole)
    start_run(parts)
    data = open_data(parts, Path(parts.text.embeddings))
    from tt_ray.training.context import LocalContext

    context = LocalContext.start(use_gpu=False)
    for until in (1, 2):
        with pytest.raises(Interrupted) as stop:
            train(parts, data, context, until)
        assert (stop.value.request, stop.value.step) == ("until", 6 * until)
    with pytest.raises(Interrupted):  # it is there already
        train(parts, data, context, 2)
    train(parts, data, context)
    assert largest_difference(weights(whole), weights(parts)) == 0


def test_seeds_are_trained_side_by_side_and_reported_by_their_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune, config = Tune(monkeypatch), toy_config(tmp_path)
    run_trial(job("t", {"text.weight": 0.3}, (1, 2)), plan(config, 1, 2), {})
    assert [row["epoch"] for row in tune.rows] == [1, 2]
    assert [row["finished"] for row in tune.rows] == [False, True]
    for row in tune.rows:
        assert row["top1"] == pytest.approx(np.mean([row["seeds"][seed]["top1"] for seed in ("1", "2")]))
    alone = toy_config(tmp_path, train__seed=2, text__weight=0.3, run__name="alone")
    assert run_toy(alone)["val_loss"] == tune.rows[-1]["seeds"]["2"]["val_loss"], "it is the real loop"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_trial_elsewhere_has_the_trackers_variables_of_the_command(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its own process before it trains, or asks its workers to, who get them from there."""
    tune, seen = Tune(monkeypatch), dict[str, str]()
    look = lambda *_: seen.update(tracker_environment("wandb"))  # noqa: E731
    monkeypatch.setattr(_Trial, "_by_workers" if workers > 1 else "_here", look)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    config = toy_config(tmp_path, run__num_workers=workers, run__logger="wandb")
    run_trial(job("t", {}), plan(config), {}, {"WANDB_PROJECT": "pets"})
    assert tune.rows == [] and seen["WANDB_PROJECT"] == os.environ.pop("WANDB_PROJECT") == "pets"


def test_what_a_trial_pulls_is_sent_to_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its own process; that of its workers comes by their messages."""
    sent, copy = Sent(monkeypatch), copy_of_one_file(tmp_path)
    Tune(monkeypatch)
    monkeypatch.setattr(_Trial, "_here", lambda *_: copy.pull())
    run_trial(job("t", {}), plan(toy_config(tmp_path)), {}, None, cast(Any, sent))
    sent.assert_pulled(tmp_path)


@pytest.mark.parametrize("logger", ["none", "wandb"])
def test_a_search_sends_the_trackers_variables_to_its_trials(
    logger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr("ray.tune.with_parameters", lambda function, **parameters: sent.append(parameters))
    monkeypatch.setattr("ray.tune.with_resources", lambda *_: None)
    monkeypatch.setattr("ray.tune.Tuner", lambda *_, **__: SimpleNamespace(fit=lambda: None))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://here")
    trials = Trials(plan(toy_config(tmp_path, run__logger=logger)), TrialResources(1, 1, 0), 1, 0, {}, tmp_path)
    run_trials(trials, [], None, cast(Any, None), cast(Any, None), threading.Event())
    assert (sent[0]["tracker"].get("MLFLOW_TRACKING_URI") == "http://here") == (logger == "wandb")


def test_all_seeds_are_as_far_when_the_scheduler_ends_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Tune(monkeypatch, limit=1)
    config = toy_config(tmp_path)
    with pytest.raises(SystemExit):
        run_trial(job("t", {}, (1, 2)), plan(config, 1, 2), {})
    for seed in (1, 2):
        rows = read_rows(tmp_path / f"t-seed{seed}" / "metrics.jsonl")
        assert max(row["step"] for row in rows if row["kind"] == "step") == 5, "one epoch each, no more"


def test_a_trial_goes_on_where_it_was_and_reports_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(tmp_path, train__epochs=3)
    before = Tune(monkeypatch, limit=2)
    with pytest.raises(SystemExit):
        run_trial(job("t", {}), plan(config), {})
    # The report after epoch 2 was lost on its way: only the first was written down.
    after = Tune(monkeypatch)
    run_trial(job("t", {}, reported=1), plan(config), {})
    assert [row["epoch"] for row in before.rows + after.rows] == [1, 2, 2, 3]
    steps = [row["step"] for row in read_rows(tmp_path / "t-seed0" / "metrics.jsonl") if row["kind"] == "step"]
    assert steps == list(range(18)), "no step was taken twice"
    run_toy(config)
    assert largest_difference(weights(config), weights(config.override("run.name", "t-seed0"))) == 0
    again = Tune(monkeypatch)
    run_trial(job("t", {}, reported=2), plan(config), {})
    assert [row["epoch"] for row in again.rows] == [3], "a finished run is not trained again"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"head.out_dim": 4000}, "out_dim"),
        ({"optim.lr": 1e30, "optim.grad_clip": 0.0, "optim.warmup_epochs": 0.0}, "the loss is not finite at step"),
        ({"text.weight": 0.9, "text.schedule": "jump-1-2-1.5"}, "is above 1"),
    ],
)
def test_what_goes_wrong_is_reported_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], reason: str
) -> None:
    tune = Tune(monkeypatch)
    run_trial(job("t", values), plan(toy_config(tmp_path)), {})
    (row,) = [row for row in tune.rows if "failed" in row]
    assert reason in row["failed"] and row is tune.rows[-1]


def test_running_out_of_memory_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    tune = Tune(monkeypatch)
    monkeypatch.setattr("tt_ray.training.trainer.train", full)
    run_trial(job("t", {}), plan(toy_config(tmp_path)), {})
    assert tune.rows[-1]["failed"].startswith("out of memory: CUDA")


def test_a_trial_goes_on_from_its_donors_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config(tmp_path, train__epochs=4, run__keep_checkpoints=4)
    donor, own = Tune(monkeypatch, limit=3), Tune(monkeypatch, limit=1)
    monkeypatch.setattr("ray.tune.report", donor.report)
    with pytest.raises(SystemExit):
        run_trial(job("good", {"text.weight": 0.2}), plan(config), {})
    monkeypatch.setattr("ray.tune.report", own.report)
    with pytest.raises(SystemExit):
        run_trial(job("bad", {"text.weight": 0.9}), plan(config), {})

    tune = Tune(monkeypatch)
    tune.pointer = Pointer(tmp_path, "good", 2)
    run_trial(job("bad", {"text.weight": 0.25}), plan(config), {})
    assert [(row["epoch"], row["generation"], row["donor"]) for row in tune.rows] == [(3, 1, "good"), (4, 1, "good")]
    folder = tmp_path / "bad-seed0"
    rows = [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "step"]
    assert [row["step"] for row in rows] == list(range(24))
    assert [row["text_weight"] for row in rows] == [0.2] * 12 + [0.25] * 12, "the donor's past, its own future"
    assert takeovers(folder) == [{"from": "good", "epoch": 2, "values": {"text.weight": 0.25}}]
    # The same as if one run had changed its weight after two epochs.
    straight = config.override("run.name", "straight").override("text.weight", 0.2)
    start_run(straight)
    data = open_data(straight, Path(straight.text.embeddings))
    from tt_ray.training.context import LocalContext

    context = LocalContext.start(use_gpu=False)
    with pytest.raises(Interrupted):
        train(straight, data, context, 2)
    straight = straight.override("text.weight", 0.25)
    start_run(straight)
    train(straight, data, context)
    assert largest_difference(weights(straight), weights(config.override("run.name", "bad-seed0"))) == 0


def test_a_pruned_checkpoint_gives_way_to_the_donors_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config(tmp_path, train__epochs=4, run__keep_checkpoints=1)
    Tune(monkeypatch, limit=3)
    with pytest.raises(SystemExit):
        run_trial(job("good", {}), plan(config), {})
    tune = Tune(monkeypatch)
    tune.pointer = Pointer(tmp_path, "good", 1)
    run_trial(job("bad", {}), plan(config), {})
    assert [row["epoch"] for row in tune.rows] == [4]


def test_no_trial_goes_on_from_a_donors_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The donor may have got there before its follower starts."""
    config = toy_config(tmp_path, train__epochs=3, run__keep_checkpoints=2)
    Tune(monkeypatch)
    run_trial(job("good", {}), plan(config), {})
    tune = Tune(monkeypatch)
    tune.pointer = Pointer(tmp_path, "good", 3)
    run_trial(job("bad", {}), plan(config), {})
    assert [(row["epoch"], row["finished"]) for row in tune.rows] == [(3, True)]
    assert takeovers(tmp_path / "bad-seed0")[0]["epoch"] == 2
    assert (tmp_path / "bad-seed0" / "export" / "model.safetensors").exists()


def test_a_donor_may_prune_what_its_follower_looks_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config(tmp_path, train__epochs=4, run__keep_checkpoints=4)
    Tune(monkeypatch, limit=3)
    with pytest.raises(SystemExit):
        run_trial(job("good", {}), plan(config), {})
    (first, second, third) = sorted((tmp_path / "good-seed0" / "checkpoints").iterdir())
    (first / "state.json").unlink()
    copytree, left = shutil.copytree, [second, third]

    def copy(source: Path, target: Path) -> None:
        """Each folder is half gone when it is first copied; the last comes back, as a newer one would."""
        if source in left:
            left.remove(source)
            copytree(source, tmp_path / "aside" / source.name)
            (source / "model.safetensors").unlink()
        copytree(source, target)
        if source == third:
            copytree(tmp_path / "aside" / third.name, third, dirs_exist_ok=True)

    monkeypatch.setattr("shutil.copytree", copy)
    tune = Tune(monkeypatch)
    tune.pointer = Pointer(tmp_path, "good", 1)
    run_trial(job("bad", {}), plan(config), {})
    assert not left and [row["epoch"] for row in tune.rows] == [4]


def test_held_images_are_shared_and_the_same(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    train, _, _ = open_images(config)
    array = hold_pixels(train, config)
    assert array is not None
    held = Held(array, train.pixels)
    assert held(np.arange(48), 16) is array
    rows = np.array([5, 3, 40])
    assert (held(rows, 16) == train.pixels(rows, 16)).all()
    assert (held(rows, 8) == train.pixels(rows, 8)).all()
