"""The Loop contract of the design: what a step sees, and what a run ends with."""

import os
import shutil
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler

from tests.toy import DIM, FORKS, TOY, largest_difference, run_toy, toy_config, toy_teacher, weights
from tt_ray.config import Config
from tt_ray.data.augment import normalize
from tt_ray.data.loader import TrainBatches
from tt_ray.data.mixing import _MIXING_SEED
from tt_ray.data.prepare import open_data
from tt_ray.data.sampling import train_order
from tt_ray.models.classifier import _BACKBONE_SEED, build_model
from tt_ray.stateless_random import seed_of
from tt_ray.terminal.errors import Interrupted, NonFiniteLoss
from tt_ray.training.context import LocalContext
from tt_ray.training.metrics_log import read_rows
from tt_ray.training.run_folder import start_run
from tt_ray.training.step import _STEP_SEED
from tt_ray.training.trainer import Trainer, train

MIXED: dict[str, Any] = {"data__mixup": 0.8, "data__cutmix": 1.0, "model__drop_path": 0.2}


def test_weight_zero_is_plain_timm_bit_for_bit(tmp_path: Path) -> None:
    config = toy_config(tmp_path, text__weight=0.0, **MIXED)
    run_toy(config)
    ours = {name.removeprefix("backbone."): value for name, value in weights(config).items()}
    assert largest_difference(ours, plain_timm(config)) == 0


def plain_timm(config: Config) -> dict[str, torch.Tensor]:
    """The same training written out with timm and torch alone; only the batches and seeds are the project's."""
    data = open_data(config, None)
    batches = TrainBatches(data.train, None, train_order(config, len(data.train), 0, 1), config)
    torch.manual_seed(seed_of(config.train.seed, _BACKBONE_SEED))
    model = timm.create_model(config.model.name, num_classes=16, img_size=16, drop_path_rate=0.2, **TOY["model.kwargs"])
    optimizer = create_optimizer_v2(model, "adamw", lr=config.optim.lr, weight_decay=config.optim.weight_decay)
    scheduler = CosineLRScheduler(
        optimizer, t_initial=12, lr_min=1e-5, warmup_t=6, warmup_lr_init=1e-6, t_in_epochs=False
    )
    mixup = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=16)
    model.train()
    for step in range(12):
        scheduler.step_update(step)
        batch = batches[step]
        np.random.seed(seed_of(config.train.seed, _MIXING_SEED, step))
        images, labels = mixup(normalize(batch.images, config.data.mean, config.data.std), batch.labels)
        torch.manual_seed(seed_of(config.train.seed, _STEP_SEED, step, 0, 0))
        F.cross_entropy(model(images), labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


@pytest.mark.parametrize("loss", ["clip", "siglip", "dist", "cos"])
def test_parts_of_a_batch_add_up_to_the_whole(tmp_path: Path, loss: str) -> None:
    # SGD, since AdamW's first steps turn a rounding error of a tiny gradient into a full step.
    settings = {"text__loss": loss, "data__cutmix": 1.0, "optim__name": "sgd", "optim__lr": 0.1}
    whole = toy_config(tmp_path / "whole", **settings)
    parts = toy_config(tmp_path / "parts", **settings, train__max_batch_per_worker=3)
    run_toy(whole), run_toy(parts)
    assert 0 < largest_difference(weights(whole), weights(parts)) < 1e-5


NEW: list[dict[str, Any]] = [
    {"teacher__model": "TEACHER", "data__cutmix": 1.0},
    {"teacher__model": "TEACHER", "teacher__target": "logits", "data__unlabelled": 0.5},
    {"text__loss": "borlan", "data__label_noise": 0.5, "data__subset": 0.7},
    {"text__loss": "vl2litetext", "data__unlabelled": 0.7, "data__mixup": 0.8},
    {"data__sampling": "balanced", "head__freeze": True, "data__repeats": 2},
    {"optim__schedule_per": "epoch", "optim__warmup_epochs": 0.0, "train__activation_checkpointing": True},
    {"optim__small_loss": 0.4, "data__label_noise": 0.4, "data__label_noise_kind": "pair", "text__weight": 0.0},
]


@pytest.mark.parametrize(
    "settings", NEW, ids=["teacher", "logits", "borlan", "unlabelled", "balanced", "by epoch", "small loss"]
)
def test_comparisons_in_parts_and_cut_off_end_as_undisturbed(tmp_path: Path, settings: dict[str, Any]) -> None:
    if "teacher__model" in settings:
        settings = {**settings, "teacher__model": str(toy_teacher(tmp_path / "teacher"))}
    settings = {**settings, "optim__name": "sgd", "optim__lr": 0.05, "run__checkpoint_every": 2}
    whole, parts = (
        toy_config(tmp_path / str(limit), train__max_batch_per_worker=limit, **settings) for limit in (0, 3)
    )
    run_toy(whole), run_toy(parts)
    assert 0 < largest_difference(weights(whole), weights(parts)) < 1e-5
    again = toy_config(tmp_path / "0", train__max_batch_per_worker=0, **settings)
    finished = weights(again)
    newest = max((again.run_dir / "checkpoints").iterdir())
    shutil.rmtree(newest)  # as a run that was cut off after the step before
    (again.run_dir / "result.json").unlink()
    run_toy(again)
    assert largest_difference(finished, weights(again)) == 0


def test_a_frozen_head_stays_as_it_was_and_teaches_all_the_same(tmp_path: Path) -> None:
    frozen, learned = (
        toy_config(tmp_path / str(freeze), head__freeze=freeze, text__loss="siglip") for freeze in (True, False)
    )
    run_toy(frozen), run_toy(learned)
    names = [name for name in weights(frozen) if name.startswith("text_head.layers")]
    initial = build_model(frozen, 16, DIM).state_dict()
    assert names and all(torch.equal(weights(frozen)[name], initial[name]) for name in names)
    assert not any(torch.equal(weights(learned)[name], initial[name]) for name in names)
    assert not torch.equal(weights(frozen)["text_head.scalars"], initial["text_head.scalars"]), "the loss's own"
    plain = toy_config(tmp_path / "plain", text__weight=0.0)
    run_toy(plain)
    backbone = {name: value for name, value in weights(frozen).items() if name.startswith("backbone.")}
    assert largest_difference(backbone, weights(plain)) > 1e-3


def test_text_changes_the_backbone(tmp_path: Path) -> None:
    taught, plain = toy_config(tmp_path / "a"), toy_config(tmp_path / "b", text__weight=0.0)
    run_toy(taught), run_toy(plain)
    backbone = {name: value for name, value in weights(taught).items() if name.startswith("backbone.")}
    assert largest_difference(backbone, weights(plain)) > 1e-3


def _slow_run(file: Path) -> None:
    """A training of which each step takes long enough to be killed in."""
    step = Trainer.step

    def slow(self: Trainer, *arguments: Any) -> Any:
        time.sleep(0.05)
        return step(self, *arguments)

    Trainer.step = slow
    run_toy(Config.from_yaml(file))


@pytest.mark.slow
def test_killed_at_any_step_ends_bit_identical(tmp_path: Path) -> None:
    settings = {**MIXED, "train__ema": 0.9, "run__checkpoint_every": 4, "train__epochs": 6, "run__log_every": 1}
    undisturbed = toy_config(tmp_path / "undisturbed", **settings)
    run_toy(undisturbed)
    killed = toy_config(tmp_path / "killed", **settings)
    killed.to_yaml(tmp_path / "killed.yaml")
    for kill_after in (7, 18, None):
        process = FORKS.Process(target=_slow_run, args=(tmp_path / "killed.yaml",))
        process.start()
        while process.is_alive() and kill_after is not None:
            if sum(row["kind"] == "step" for row in read_rows(killed.run_dir / "metrics.jsonl")) > kill_after:
                process.kill()
            time.sleep(0.01)
        process.join(240)
        assert process.exitcode == (0 if kill_after is None else -signal.SIGKILL)
    steps = [row["step"] for row in read_rows(killed.run_dir / "metrics.jsonl") if row["kind"] == "step"]
    assert steps == list(range(36))
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        assert largest_difference(weights(undisturbed, name), weights(killed, name)) == 0


def _run_as(environment: dict[str, str], files: list[Path]) -> None:
    """One worker's share of runs, as torchrun would start it, with two workers on each node."""
    os.environ.update(environment)
    socket.gethostname = lambda: f"node-{int(environment['RANK']) // 2}"
    for file in files:
        run_toy(Config.from_yaml(file))
    torch.distributed.destroy_process_group()
    assert "ray" not in sys.modules, "the loop and what it uses import no Ray"


RESNET = {"model__name": "test_resnet", "model__kwargs": {}, "data__image_size": 32, "train__sync_batchnorm": True}
FROZEN: dict[str, Any] = {"head__freeze": True}
WEIGHED: dict[str, Any] = {"optim__class_weights": "balanced"}
# SGD, since AdamW's first steps turn a rounding error of a tiny gradient into a full step. Nine epochs are 54 steps.
WIDE: dict[str, tuple[int, dict[str, Any]]] = {
    "two": (2, {"text__loss": "clip", "data__cutmix": 1.0, "train__epochs": 9}),
    "two, in parts": (2, {"text__loss": "siglip", "train__max_batch_per_worker": 3, "text__schedule": "jump-0-1-0"}),
    "two, repeated": (2, {"text__loss": "l2", "data__repeats": 2}),
    "two, sharded": (2, {"text__loss": "clip", "run__strategy": "fsdp", "train__ema": 0.9}),
    "three, uneven": (3, {"text__loss": "clip", "data__mixup": 0.8, "train__epochs": 9}),
    "three, sharded, in parts": (3, {"text__loss": "cos", "run__strategy": "fsdp", "train__max_batch_per_worker": 3}),
    "two, teacher": (2, {"teacher__model": "TEACHER", "data__cutmix": 1.0, "train__max_batch_per_worker": 3}),
    "three, logits": (3, {"teacher__model": "TEACHER", "teacher__target": "logits", "data__mixup": 0.8}),
    "two, sharded, teacher": (2, {"teacher__model": "TEACHER", "text__loss": "vl2lite", "run__strategy": "fsdp"}),
    "three, borlan": (3, {"text__loss": "borlan", "data__label_noise": 0.5, "data__cutmix": 1.0}),
    "two, vl2litetext": (2, {"text__loss": "vl2litetext", "train__max_batch_per_worker": 3}),
    "three, unlabelled": (3, {"data__unlabelled": 0.7, "data__cutmix": 1.0, "train__epochs": 9}),
    "two, unlabelled": (2, {"data__unlabelled": 0.3, "data__subset": 0.7, "train__max_batch_per_worker": 3, **WEIGHED}),
    "two, balanced": (2, {"data__sampling": "balanced", "data__cutmix": 1.0}),
    "three, small loss": (3, {"optim__small_loss": 0.4, "data__cutmix": 1.0, "train__max_batch_per_worker": 3}),
    "four": (4, {"text__loss": "clip", "data__cutmix": 1.0, "train__epochs": 9}),
    "four, by node": (4, {"text__loss": "clip", "run__strategy": "hsdp", "train__ema": 0.9, "data__mixup": 0.8}),
    "two, computed again": (2, {"train__activation_checkpointing": True, "run__strategy": "fsdp"}),
    "three, one batch norm": (3, {**RESNET, "text__weight": 0.0, "train__ema": 0.9}),
    "four, one batch norm, sharded": (4, {**RESNET, "text__loss": "cos", "run__strategy": "fsdp", "train__epochs": 1}),
    "four, sharded": (4, {"text__loss": "siglip", "run__strategy": "fsdp", "optim__grad_clip": 0.0, **FROZEN}),
}


@pytest.fixture(scope="module")
def wide_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Config]:
    """The runs of WIDE; importing takes most of their time, so those of one width share their processes."""
    folder = tmp_path_factory.mktemp("wide")
    teacher = str(toy_teacher(folder / "teacher"))
    for _, settings in WIDE.values():
        settings.update({key: teacher for key, value in settings.items() if value == "TEACHER"})
    configs = {
        name: toy_config(folder / name, optim__name="sgd", optim__lr=0.05, run__num_workers=workers, **settings)
        for name, (workers, settings) in WIDE.items()
    }
    for workers in (2, 3, 4):
        files = [folder / f"{name}.yaml" for name, config in configs.items() if config.workers[1] == workers]
        for file in files:
            configs[file.stem].to_yaml(file)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        environment = {"WORLD_SIZE": str(workers), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes = [
            FORKS.Process(target=_run_as, args=({**environment, "RANK": str(rank)}, files)) for rank in range(workers)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(240)
        assert [process.exitcode for process in processes] == [0] * workers
    return configs


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDE)
def test_any_number_of_workers_is_one(name: str, wide_runs: dict[str, Config], tmp_path: Path) -> None:
    wide = wide_runs[name]
    one = wide
    for path, value in {"run.num_workers": 1, "run.storage": str(tmp_path), "run.strategy": "ddp"}.items():
        one = one.override(path, value)
    result = run_toy(one)
    for file in ("model.safetensors", "ema.safetensors") if one.train.ema else ("model.safetensors",):
        assert largest_difference(weights(one, file), weights(wide, file)) < 2e-5
    rows_one, rows_wide = (read_rows(config.run_dir / "metrics.jsonl") for config in (one, wide))
    for first, second in zip(rows_one, rows_wide, strict=True):
        for key in ("loss", "loss_cls", "loss_text", "balance", "grad_norm", "top1", "val_images"):
            assert (key in first) == (key in second)
            assert first.get(key, 0) == pytest.approx(second.get(key, 0), rel=1e-3)
    assert result["val_images"] == 37


def test_every_step_has_a_row_and_every_epoch_a_validation(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    result = run_toy(config)
    rows = read_rows(config.run_dir / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "step"] == list(range(12))
    assert [(row["step"], row["epoch"]) for row in rows if row["kind"] == "validation"] == [(6, 1), (12, 2)]
    assert result["top1"] == rows[-1]["top1"]
    named = [row for row in rows if "lr" in row]
    assert all({"images_per_s", "data_wait_share", "balance", "text_weight"} <= row.keys() for row in named)


def test_validation_beside_the_training_leaves_no_epoch_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"run__checkpoint_every": 4, "train__epochs": 3}
    plain = toy_config(tmp_path / "plain", **settings)
    run_toy(plain)
    beside = toy_config(tmp_path / "beside", **settings, run__async_validation=True)
    alone = LocalContext(0, 1, torch.device("cpu"), has_others=True)
    monkeypatch.setattr(LocalContext, "start", lambda **_: alone)
    monkeypatch.setattr(LocalContext, "beside", lambda _, function, *given: lambda wait: function(*given))
    run_toy(beside)
    rows = [read_rows(config.run_dir / "metrics.jsonl") for config in (plain, beside)]
    expected, found = ({row["step"]: row["top1"] for row in each if row["kind"] == "validation"} for each in rows)
    assert list(expected) == [6, 12, 18] and found == expected


def test_a_damaged_checkpoint_is_passed_over_and_reported(tmp_path: Path) -> None:
    config = toy_config(tmp_path, run__checkpoint_every=4)
    run_toy(config)
    before = weights(config)
    newest = max((config.run_dir / "checkpoints").iterdir())
    data = bytearray((newest / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (newest / "model.safetensors").write_bytes(data)
    (config.run_dir / "result.json").unlink()
    result = run_toy(config)
    assert any("damaged" in note and "step-00000008" in note for note in result["notes"])
    assert largest_difference(before, weights(config)) == 0


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config(tmp_path, run__checkpoint_every=4)
    original = Trainer.on_device

    def poisoned(self: Trainer, batch: Any, step: int) -> Any:
        images, labels, text = original(self, batch, step)
        return images * (float("nan") if step == 9 else 1), labels, text

    monkeypatch.setattr(Trainer, "on_device", poisoned)
    with pytest.raises(NonFiniteLoss, match=r"step 9 .*loss_cls nan.*step-00000008"):
        run_toy(config)
    assert not (config.run_dir / "result.json").exists()


@pytest.mark.parametrize("bad", [7, 11], ids=["at a checkpoint", "at the end"])
def test_a_gradient_that_is_not_finite_spoils_no_checkpoint(
    bad: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(tmp_path, "shapes_baseline", run__checkpoint_every=4)
    original = Trainer._backward

    def poisoned(self: Trainer, *arguments: Any) -> torch.Tensor:
        parts = original(self, *arguments)
        if arguments[-1] == bad:
            weight = next(self.model.parameters())
            assert weight.grad is not None
            weight.grad.view(-1)[0] = float("inf")
        return parts

    monkeypatch.setattr(Trainer, "_backward", poisoned)
    with pytest.raises(NonFiniteLoss, match=rf"gradient is not finite at step {bad} .*step-0000000{bad - 3}$"):
        run_toy(config)
    assert all(value.isfinite().all() for value in weights(config).values())
    assert not (config.run_dir / "export").exists() and not (config.run_dir / "result.json").exists()


@pytest.mark.parametrize(("bad", "what"), [(7, r"weights \(.+\) are"), (11, "the validation loss is")])
def test_weights_that_overflow_are_neither_kept_nor_exported(
    bad: int, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a learning rate without measure, after a loss and a gradient that were finite."""
    config = toy_config(tmp_path, "shapes_baseline", run__checkpoint_every=4)
    original = Trainer.step

    def overflowing(self: Trainer, batch: Any, step: int) -> torch.Tensor:
        columns = original(self, batch, step)
        if step == bad:
            with torch.no_grad():
                next(self.model.parameters()).fill_(float("inf"))
        return columns

    monkeypatch.setattr(Trainer, "step", overflowing)
    with pytest.raises(NonFiniteLoss, match=rf"^{what} not finite after step {bad}; .*step-0000000{bad - 3}$"):
        run_toy(config)
    assert all(value.isfinite().all() for value in weights(config).values())
    assert not (config.run_dir / "export").exists() and not (config.run_dir / "result.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"train__precision": "bf16"},
        {"train__precision": "fp16"},
        {"train__channels_last": True, "model__name": "resnet18", "model__kwargs": {}, "data__image_size": 32},
        {"optim__name": "lamb", "optim__grad_clip": 0.0},
        {"optim__name": "sgd", "head__kind": "mlp", "head__depth": 3, "head__out_dim": 5},
        {"data__augment": "three_augment", "data__num_loaders": 0, "data__repeats": 2},
        {"data__augment": "deit", "data__num_loaders": 1, "data__mixup": 0.8},
        {"text__loss": "clip_learned", "text__schedule": "cos", "text__balance": False},
        {"text__normalize_std": "full", "text__control": "shuffle", "data__label_noise": 0.5},
    ],
    ids=lambda settings: next(iter(settings.values())),
)
def test_settings_train_to_the_end_and_are_exported(tmp_path: Path, settings: dict[str, Any]) -> None:
    config = toy_config(tmp_path, **settings)
    result = run_toy(config)
    rows = [row for row in read_rows(config.run_dir / "metrics.jsonl") if row["kind"] == "step"]
    assert np.isfinite([row["loss"] for row in rows]).all()
    assert (config.run_dir / "export" / "model.safetensors").exists()
    assert 0 <= result["top1"] <= 100


@pytest.mark.parametrize(("first", "then"), [("bf16", "fp32"), ("fp32", "fp16"), ("fp16", "bf16")])
def test_resuming_in_another_precision_is_said(
    first: str, then: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As train.precision auto does on a device of another kind."""
    config, result = toy_config(tmp_path, "shapes_baseline"), dict[str, Any]()
    start_run(config)
    for epochs, precision in ((1, first), (2, then)):
        monkeypatch.setattr("tt_ray.training.step.precision_on", lambda *_, precision=precision: precision)
        with suppress(Interrupted):
            result = train(config, open_data(config, None), LocalContext.start(False), until=epochs % 2)
    assert result["precision"] == then
    assert f"trained in {first} up to step 6, and in {then} from there on" in result["notes"]


def test_loader_processes_do_not_change_batches(tmp_path: Path) -> None:
    settings = {"data__augment": "three_augment", "data__repeats": 3, "data__image_size": 32}
    alone, helped = (toy_config(tmp_path / str(loaders), data__num_loaders=loaders, **settings) for loaders in (0, 2))
    run_toy(alone), run_toy(helped)
    assert largest_difference(weights(alone), weights(helped)) == 0
