"""The body of a search's trial: the real training loop, for one seed after the other.

A trial with one worker trains in its own process; with several, each training is a Ray Train run of its own. Every
seed has a run folder, so a trial that is started again resumes from its checkpoints by itself.
"""

import itertools
import json
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from tt_ray.cluster.messages import Messages, send_pulls
from tt_ray.config import Config
from tt_ray.data.sources.base import Pixels, Source
from tt_ray.terminal.errors import Interrupted, NonFiniteLoss, UserError, one_line
from tt_ray.terminal.gpu import gpu
from tt_ray.tune.space import METRICS, apply

_POLL_S = 0.5
_POINTER = "trial.json"
# Attempts at the checkpoints of a donor that trains meanwhile, and may prune one that has just been listed.
_LOOKS = 10


@dataclass(frozen=True)
class TrialPlan:
    """Settings that the trials of a search share."""

    base: Config
    """Base configuration, which the trials' values change; its `run` says where and on what they run."""
    meetings: tuple[int, ...]
    """Epochs that all seeds must have reached before any continues; the last is the end of training."""
    store: str
    """Embedding store of all trials; empty where each finds its own, or needs none."""
    hands_over: bool = False
    """Whether trials may continue from each other's checkpoints (population-based training)."""


def run_trial(
    config: dict[str, Any],
    plan: TrialPlan,
    pixels: Mapping[str, Pixels],
    tracker: Mapping[str, str] | None = None,
    pulls: Messages | None = None,
) -> None:
    """Trains as `config["job"]` says: the trial's name, values and seeds, and the epochs it has reported already.

    Reports the means over seeds after every validation. A failure is a last report with the reason under `failed`,
    so that Ray does not try again. `tracker` has the command's environment variables for run.logger;
    `pulls` hear what is pulled from object storage.
    """
    from ray import tune

    from tt_ray.training.tracker import take_environment

    take_environment(tracker or {})
    if pulls is not None:
        send_pulls(pulls)
    trial = _Trial(config["job"], plan, pixels, tune.report, pulls)
    try:
        if checkpoint := tune.get_checkpoint():
            with checkpoint.as_directory() as folder:
                trial.follow(json.loads((Path(folder) / _POINTER).read_text()))
        trial.run()
    except Exception as error:
        tune.report({"failed": _reason(error), "epoch": trial.reported})


def _reason(error: Exception) -> str:
    from tt_ray.models.trial_pass import out_of_memory

    text = one_line(error)
    if isinstance(error, UserError | NonFiniteLoss):
        return text
    if out_of_memory(error):
        return f"out of memory: {text}"
    return f"{type(error).__name__}: {text}"


class _Trial:
    def __init__(
        self,
        job: dict[str, Any],
        plan: TrialPlan,
        pixels: Mapping[str, Pixels],
        report: Callable[..., None],
        pulls: Messages | None = None,
    ) -> None:
        self.name, self.values, self.seeds = job["name"], job["values"], job["seeds"]
        self.reported: int = job["reported"]
        self.plan, self.pixels, self.report, self.pulls = plan, pixels, report, pulls
        self.base = plan.base
        self.scores: dict[int, dict[int, dict[str, float]]] = {seed: {} for seed in self.seeds}
        self._began, self._spent = 0.0, 0.0

    def config(self, seed: int) -> Config:
        """Configuration of one seed's run; raises UserError for values that do not go together."""
        own = {"train.seed": seed, "run.name": run_name(self.name, seed)}
        return apply(self.base, {**self.values, **own})

    def run(self) -> None:
        """Trains from where the run folders are to the end."""
        configs = {seed: self.config(seed) for seed in self.seeds}
        for seed, config in configs.items():
            self.scores[seed] = validations(config.run_dir)
        for epochs in self.plan.meetings:
            for seed, config in configs.items():
                self._train(seed, config, epochs)
            self._report(epochs)

    def _train(self, seed: int, config: Config, until: int) -> None:
        from tt_ray.training.run_folder import disk_problems, start_run

        if (config.run_dir / "result.json").exists() or until in self.scores[seed]:
            return
        start_run(config)
        self._began = time.perf_counter()
        try:
            with disk_problems(config.run_dir):
                workers = config.workers[1] > 1
                result = (self._by_workers if workers else self._here)(seed, config, until)
        finally:
            self._spent += time.perf_counter() - self._began
            self._began = 0.0
        if result is not None:
            self.scores[seed][until] = {name: result[name] for name in METRICS if name in result}

    def _here(self, seed: int, config: Config, until: int) -> dict[str, Any] | None:
        import torch

        from tt_ray.cluster.run_metrics import RunMetrics
        from tt_ray.training.context import LocalContext
        from tt_ray.training.trainer import train

        trial, metrics = self, RunMetrics(config.run.name)

        class TrialContext(LocalContext):
            def measured(self, row: Mapping[str, float]) -> None:
                metrics.show(row)

            def validated(self, epochs: int, scores: dict[str, float], kept: Callable[[], None]) -> None:
                kept()  # a trial that continues from here needs the checkpoint
                trial._hear(seed, {epochs: scores})

        torch.set_num_threads(max(config.run.cpus_per_worker, 1))
        device = gpu() if config.run.use_gpu else torch.device("cpu")
        try:
            return train(config, self._data(config), TrialContext(0, 1, device), until)
        except Interrupted:
            return None

    def _by_workers(self, seed: int, config: Config, until: int) -> dict[str, Any] | None:
        from tt_ray.cluster.connect import join_ray
        from tt_ray.cluster.launch import train_on_ray

        join_ray()
        messages = Messages()
        store = self._store(config)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(train_on_ray, config, store, messages, until)
            try:
                while not wait([answer], timeout=_POLL_S).done:
                    if self.pulls is not None and (news := messages.get("preparing")) is not None:
                        self.pulls.send("pulling", news)
                    self._hear(seed, {int(epoch): row for epoch, row in (messages.get("validations") or {}).items()})
            finally:
                if not answer.done():  # the trial is being ended: its workers must go, or the next one finds no room
                    messages.put("request", "stop")
        self._hear(seed, {int(epoch): row for epoch, row in (messages.get("validations") or {}).items()})
        result = answer.result()
        return None if "stopped" in result else result

    def _hear(self, seed: int, rows: dict[int, dict[str, float]]) -> None:
        """Keeps validations; with one seed all but the last are reported at once, and that one after the export."""
        self.scores[seed].update(rows)
        if len(self.seeds) == 1:
            self._report(self.plan.meetings[-1] - 1)

    def _report(self, until: int) -> None:
        """Reports the epochs that all seeds have and that have not been reported, up to `until`."""
        common = set.intersection(*(set(rows) for rows in self.scores.values()))
        for epoch in sorted(each for each in common if self.reported < each <= until):
            rows = {str(seed): self.scores[seed][epoch] for seed in self.seeds}
            names = [name for name in METRICS if all(name in row for row in rows.values())]
            means = {name: mean(row[name] for row in rows.values()) for name in names}
            row = {**means, "epoch": epoch, "seeds": rows, "seconds": self._seconds()}
            self.reported = epoch
            self._send({**row, "finished": epoch == self.plan.meetings[-1], **self._origin()})

    def _send(self, row: dict[str, Any]) -> None:
        if not self.plan.hands_over:
            self.report(row)
            return
        from ray import tune

        with TemporaryDirectory() as folder:
            # The checkpoints themselves are in the run folders.
            (Path(folder) / _POINTER).write_text(json.dumps({"name": self.name, "epoch": row["epoch"]}))
            self.report(row, checkpoint=tune.Checkpoint.from_directory(folder))

    def follow(self, pointer: dict[str, Any]) -> None:
        """Continues from where `pointer` says: from this trial's own checkpoint, or from a copy of another trial's."""
        self.reported = pointer["epoch"]
        if pointer["name"] == self.name:
            return
        for seed in self.seeds:
            donor, own = (self.config(seed).run_dir.with_name(run_name(n, seed)) for n in (pointer["name"], self.name))
            self.reported = take_over(donor, own, pointer["epoch"], self.plan.meetings[-1])
            with (own / "takeovers.jsonl").open("a") as file:
                file.write(json.dumps({"from": pointer["name"], "epoch": self.reported, "values": self.values}) + "\n")

    def _seconds(self) -> float:
        """Seconds that this process has trained."""
        return self._spent + (time.perf_counter() - self._began if self._began else 0.0)

    def _origin(self) -> dict[str, Any]:
        """How often this trial has continued from another one, and from which the last time."""
        rows = takeovers(self.config(self.seeds[0]).run_dir)
        return {"generation": len(rows), "donor": rows[-1]["from"] if rows else ""}

    def _store(self, config: Config, train: Source | None = None) -> Path | None:
        from tt_ray.data.prepare import find_store, open_images
        from tt_ray.embeddings.ensure import fetch_store

        if not config.teaches:
            return None
        if self.plan.store:
            return fetch_store(config, Path(self.plan.store))
        return find_store(config, train or open_images(config)[0])

    def _data(self, config: Config) -> Any:
        from tt_ray.data.prepare import join
        from tt_ray.embeddings.store import open_store

        train, val, notes = _images(config.to_dict())
        train, val = (
            replace(split, pixels=Held(self.pixels[name], split.pixels)) if name in self.pixels else split
            for name, split in (("train", train), ("val", val))
        )
        store = self._store(config, train)
        return join(config, train, val, None if store is None else open_store(store), list(notes))


@dataclass(frozen=True)
class Held:
    """Stands in for `Source.pixels`: images that are in memory already, shared by the trials of a machine."""

    array: Pixels
    """All images of the split, (N, size, size, 3)."""
    otherwise: Callable[[npt.NDArray[np.int64], int], Pixels]

    def __call__(self, rows: npt.NDArray[np.int64], size: int) -> Pixels:
        if size != self.array.shape[1]:
            return self.otherwise(rows, size)
        if len(rows) == len(self.array) and (rows == np.arange(len(rows))).all():
            return self.array  # no copy
        return self.array[rows]


_opened: dict[str, Any] = {}


def _images(tree: dict[str, Any]) -> Any:
    """Opens the images once in a process, which serves several trials, or for each seed, where it draws from them."""
    from tt_ray.data.prepare import open_images

    data, text = tree["data"], tree["text"]
    seed = tree["train"]["seed"] if data["subset"] < 1 or data["unlabelled"] else None
    key = json.dumps([data, seed, text["weight"] > 0, text["captions"], text["embeddings"]])
    if key not in _opened:
        _opened.clear()
        _opened[key] = open_images(Config.from_dict(tree))
    return _opened[key]


def run_name(trial: str, seed: int) -> str:
    """Name of a trial's run folder."""
    return f"{trial}-seed{seed}"


def validations(run_dir: Path) -> dict[int, dict[str, float]]:
    """A run's logged validations, by epochs done, up to its newest checkpoint, from which it resumes."""
    from tt_ray.io.checkpoint_folder import checkpoints, newest_intact, step_of
    from tt_ray.training.metrics_log import read_rows

    path, _ = newest_intact(checkpoints(run_dir / "checkpoints"))
    rows = read_rows(run_dir / "metrics.jsonl") if path is not None else []
    done = 0 if path is None else step_of(path)
    found = [row for row in rows if row["kind"] == "validation" and row["step"] <= done]
    return {row["epoch"]: {name: row[name] for name in METRICS if name in row} for row in found}


def takeovers(run_dir: Path) -> list[dict[str, Any]]:
    """Trials whose checkpoints a run has continued from (`from`), epochs that were done, own values since then."""
    path = run_dir / "takeovers.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def take_over(donor: Path, own: Path, epoch: int, end: int) -> int:
    """Replaces a run's training state and rows by another's after `epoch` epochs; returns the epochs it then has.

    Where the donor has pruned that checkpoint, takes the nearest that it has, but not that of `end`, the last epoch,
    from which nothing is left to train. Raises UserError when it has none.
    """
    from tt_ray.io.checkpoint_folder import newest_intact

    partial = own / ".takeover.partial"
    for number, path in itertools.chain.from_iterable(_nearest(donor, epoch, end) for _ in range(_LOOKS)):
        shutil.rmtree(partial, ignore_errors=True)
        copy = partial / path.name
        try:
            shutil.copytree(path, copy)
        except OSError:  # pruned just now
            continue
        if newest_intact([copy])[0] is None:
            continue
        for name in ("checkpoints", "tensorboard", "export"):
            shutil.rmtree(own / name, ignore_errors=True)
        (own / "result.json").unlink(missing_ok=True)
        shutil.copy(donor / "metrics.jsonl", own / "metrics.jsonl")
        partial.rename(own / "checkpoints")
        return number
    raise UserError(f"{donor} has no intact checkpoint to continue from")


def _nearest(donor: Path, epoch: int, end: int) -> list[tuple[int, Path]]:
    """Epochs and checkpoints before `end` that exist now: those from `epoch` on first, by nearness."""
    from tt_ray.io.checkpoint_folder import checkpoints

    found: dict[int, Path] = {}
    for path in checkpoints(donor / "checkpoints"):
        with suppress(OSError):  # pruned since it was listed
            found[_epoch(path)] = path
    order = sorted(found, key=lambda each: (each < epoch, abs(each - epoch)))
    return [(number, found[number]) for number in order if number < end]


def _epoch(checkpoint: Path) -> int:
    return json.loads((checkpoint / "state.json").read_text())["position"]["epoch"]
