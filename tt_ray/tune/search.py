"""A search: its checks before anything starts, its trials, the comparison of its winner, and its results."""

import dataclasses
import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import tyro

from tt_ray.cluster.messages import Messages, pulls_announced
from tt_ray.config import Config
from tt_ray.data.sources.base import Pixels
from tt_ray.io.files import new_file
from tt_ray.io.one_writer import INSIDE
from tt_ray.io.storage import is_uri
from tt_ray.terminal.errors import UserError, nearest, reason
from tt_ray.terminal.progress import Display
from tt_ray.training.run_folder import differences
from tt_ray.training.same_data import check_data, keep_data
from tt_ray.tune.journal import Journal, Record
from tt_ray.tune.live_table import SearchTable, winner
from tt_ray.tune.space import (
    SEARCHERS,
    TOP5_CLASSES,
    Space,
    check_space,
    drawn_in_vain,
    grid_points,
    identity,
    random_points,
)
from tt_ray.tune.trial import TrialPlan

if TYPE_CHECKING:
    from tt_ray.tune.runner import Suggestions, TrialResources, Trials

VAL_SHARE = 0.2
"""Share of the training images that trials validate on, unless data.val_share sets another."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Searches a space of configurations. Any --dotted.path value changes the base. The same command resumes it."""

    space: tyro.conf.Positional[str]
    """A file of tune_spaces/ (loss_weight, projection, alignment_loss, joint, optim, pbt_weight) or of your own."""
    base: str = "shapes_textteacher"
    """Recipe or YAML file that trials start from, and that the winner is compared with."""
    out: Path | None = None
    """Folder of journal, results and trials' run folders; the default is tune/SPACE."""
    num_samples: int = 0
    """Number of trials; 0 is the space's own number, and for the grid searcher all combinations."""
    max_concurrent: int = 0
    """Trials at a time; 0 is as many as fit the cluster."""
    workers_per_trial: int = 1
    """Workers of each trial's training; above 1 through Ray Train."""
    gpus_per_trial: float = 0.0
    """GPUs of each trial; a fraction lets trials of one worker share one."""
    searcher: str = ""
    """random (evenly spread), grid (all combinations, 5 points of a range) or optuna; empty is the space's own."""
    scheduler: str = ""
    """fifo (all to the end), asha (bad trials end early) or pbt (population-based training); empty is the space's."""
    time_budget: float = 0.0
    """Seconds after which the search's trials are ended; 0 is no limit. The final comparison follows them."""
    seeds: tuple[int, ...] = (100,)
    """train.seed of the search: each configuration is trained on all and judged by their mean."""
    final_seeds: tuple[int, ...] = (0, 1, 2)
    """train.seed of the comparison of the winner with the base recipe."""


class Jobs(NamedTuple):
    """The trials of a search."""

    todo: "list[Record] | Suggestions"
    """Trials to run."""
    left: int
    """Number of trials to run."""
    of: int
    """Number of trials in all, those that have ended included."""


class Search:
    """One command's search."""

    def __init__(self, given: Arguments, base: Config, space: Space) -> None:
        self.given, self.base, self.space = given, base, space
        self.out = (given.out or Path("tune") / space.name).expanduser().absolute()
        self.searcher = given.searcher or space.searcher
        self.scheduler = given.scheduler or space.scheduler
        self.journal: Journal = None  # type: ignore[assignment]  # opened by run
        self.store = ""
        self.record: pa.Table = None  # type: ignore[assignment]  # what the base trains on, known when it is open
        self.said: list[str] = []
        self.notes: list[str] = []

    # --- before anything starts -----------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises UserError on mistakes that can be seen without data and Ray."""
        from tt_ray.tune.schedulers import options_of

        given = self.given
        if is_uri(str(self.given.out or "").replace(":/", "://", 1)):
            raise UserError(f"--out {given.out} must be a folder on this machine or one that all nodes share")
        if self.searcher not in SEARCHERS:
            raise UserError(f"no searcher {self.searcher!r}; {nearest(self.searcher, SEARCHERS)}")
        for name, low in (("num_samples", 0), ("max_concurrent", 0), ("workers_per_trial", 1), ("time_budget", 0)):
            if getattr(given, name) < low:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(given, name)}, but must be at least {low}")
        if not given.seeds or len({*given.seeds, *given.final_seeds}) < len(given.seeds) + len(given.final_seeds):
            raise UserError("--seeds needs at least one seed, and none may be there twice or among --final-seeds")
        gpus, workers = given.gpus_per_trial, given.workers_per_trial
        if not 0 <= gpus <= 1 if workers == 1 else gpus not in (0, workers):
            raise UserError(f"--gpus-per-trial is {gpus:g}: choose up to 1 for one worker, or one each for several")
        if self.scheduler == "pbt" and (self.searcher != "random" or given.max_concurrent):
            raise UserError("--scheduler pbt draws values and runs trials itself: no --searcher, --max-concurrent")
        check_space(self.space, self.base)
        base = self._on(self.base)
        self.space, idle = self.space.on(base)
        self.notes += [*idle, *drawn_in_vain(self.space, base)]
        self.options = options_of(self.space, self.scheduler, self.base.train.epochs)
        self.settings = self._settings()
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"--out {self.out} is a file: choose a folder")

    def _settings(self) -> dict[str, Any]:
        """Settings that identify a search: a command with the same settings resumes it."""
        tree = self.base.to_dict()
        tree.pop("run")
        return {
            "space": {path: self._described(path) for path in self.space.domains},
            "metric": f"{self.space.mode} {self.space.metric}",
            "searcher": self.searcher,
            "scheduler": {self.scheduler: self.options},
            "seeds": list(self.given.seeds),
            "final_seeds": list(self.given.final_seeds),
            "base": tree,
        }

    def _described(self, path: str) -> str:
        """A dimension's domain and condition."""
        domain, needs = self.space.domains[path], self.space.when.get(path, {})
        # A set has no order of its own.
        told = [f"{other} in {', '.join(sorted(map(repr, allowed)))}" for other, allowed in needs.items()]
        return str(domain.domain_str) + (f" when {' and '.join(told)}" if told else "")

    def check_out(self) -> None:
        """Raises UserError where the folder holds anything but an earlier part of this search."""
        path = self.out / "search.json"
        if not path.exists():
            if self.out.exists() and {each.name for each in self.out.iterdir()} - {INSIDE}:
                raise UserError(f"{self.out} is no search and not empty: choose another --out")
            return
        before = json.loads(path.read_text())
        changed = [name for name, value in self.settings.items() if before.get(name) != value]
        if changed:
            other = f"{', '.join(changed)}{self._other_base(before)}"
            raise UserError(f"{self.out} holds a search with another {other}: choose another --out")

    def _other_base(self, before: Mapping[str, Any]) -> str:
        """Fields of the base configuration that an earlier command has searched with other values."""
        try:
            base = Config.from_dict(before["base"])
        except (KeyError, UserError):  # of another version
            return ""
        fields = [path for path in Config.paths() if not path.startswith("run.")]
        found = differences(base, self.base, [path for path in fields if base.get(path) != self.base.get(path)])
        return found and f" ({found})"

    # --- the search -----------------------------------------------------------------------------------------------

    def run(self, display: Display, stop: threading.Event, joined: bool) -> None:
        """Runs the search, then the comparison of its winner with the base recipe. Ray must run already.

        Args:
            display: Shows the progress.
            stop: Ends the search when it is set; unfinished trials can be resumed.
            joined: Whether Ray is a cluster that was there before the command.
        """
        from tt_ray.cluster.connect import cluster_address

        self.resources, self.slots = self._fit()
        pixels = self._prepare(display)
        self._open()
        display.notes([*self.said, *self.notes])
        place = f"the Ray cluster at {cluster_address()}" if joined else "this machine"
        jobs = self._jobs()
        display.say(f"{jobs.of} trials of {self.space.name} on {place}, {self.slots} at a time, results in {self.out}")
        if jobs.left:
            self._try_all(jobs, pixels, display, stop)
        if stop.is_set() or not self.given.final_seeds:
            return
        if finals := self._finals():
            self._compare(finals, display, stop)

    def _try_all(self, jobs: Jobs, pixels: dict[str, Pixels], display: Display, stop: threading.Event) -> None:
        """Runs the search's trials under its scheduler and its time budget."""
        from tt_ray.tune.runner import run_trials
        from tt_ray.tune.schedulers import meetings, search_scheduler

        epochs, budget = self.base.train.epochs, self.given.time_budget or None
        several = len(self.given.seeds) > 1
        meets = meetings(self.scheduler, self.options, epochs) if several else (epochs,)
        plan = TrialPlan(self._selection(), meets, self.store, hands_over=self.scheduler == "pbt")
        past = self.journal.of("search")
        scheduler = search_scheduler(self.space, self.scheduler, self.options, epochs, past)
        began = time.monotonic()
        with (
            SearchTable(self.journal, "search", jobs.of, epochs, self.space, display) as table,
            pulls_announced(display) as pulls,
        ):
            trials = self._trials(plan, pixels, pulls, budget)
            run_trials(trials, jobs.todo, scheduler, self.journal, table, stop)
        unfinished = sum(not record.ended for record in self.journal.of("search"))
        if unfinished and budget and not stop.is_set() and time.monotonic() - began >= budget:
            self.notes.append(
                f"the time budget of {budget:g} s, which starts with the first trial's process, ended the search with "
                f"{unfinished} trials unfinished"
            )

    def _compare(self, finals: list[Record], display: Display, stop: threading.Event) -> None:
        """Trains winner and base on all training images, all of them to the end."""
        from ray.tune.schedulers import FIFOScheduler

        from tt_ray.tune.runner import run_trials

        base, epochs = self._on(self.base), self.base.train.epochs
        plan, pixels = TrialPlan(base, (epochs,), self.store), self._pixels(base, display)
        of = len(self.journal.of("final"))
        with (
            SearchTable(self.journal, "final", of, epochs, self.space, display) as table,
            pulls_announced(display) as pulls,
        ):
            trials = self._trials(plan, pixels, pulls)
            run_trials(trials, finals, FIFOScheduler(), self.journal, table, stop)

    def _trials(
        self, plan: TrialPlan, pixels: dict[str, Pixels], pulls: Messages, budget: float | None = None
    ) -> "Trials":
        from tt_ray.tune.runner import Trials

        failures = self.base.run.max_failures
        return Trials(plan, self.resources, self.slots, failures, pixels, self.out, budget, pulls)

    def _fit(self) -> "tuple[TrialResources, int]":
        """Resources of each trial, and how many trials run at a time."""
        import ray

        from tt_ray.tune.runner import TrialResources

        given = self.given
        cpus = self.base.run.cpus_per_worker or 1
        resources = TrialResources(given.workers_per_trial, cpus, given.gpus_per_trial / given.workers_per_trial)
        fits = resources.slots([node["Resources"] for node in ray.nodes() if node["Alive"]])
        population = given.num_samples or self.space.num_samples
        if self.scheduler == "pbt" and given.workers_per_trial > 1 and population > fits:
            raise UserError(
                f"--scheduler pbt trains all {population} trials side by side, but the cluster has room for {fits} of "
                f"{given.workers_per_trial} workers each: choose a lower --num-samples or --workers-per-trial"
            )
        return resources, min(given.max_concurrent or fits, fits)

    def _selection(self) -> Config:
        """Base configuration of the search's trials."""
        config = self._on(self.base)
        return config.override("data.val_share", self.base.data.val_share or VAL_SHARE)

    def _on(self, base: Config) -> Config:
        """Base configuration, run as a trial is, on all training images."""
        given = self.given
        run = {"storage": str(self.out / "trials"), "num_workers": given.workers_per_trial}
        run |= {"use_gpu": given.gpus_per_trial > 0, "async_validation": False, "overwrite": False}
        run |= {"checkpoint_every": 0, "keep_checkpoints": 4 if self.scheduler == "pbt" else 2}
        run |= {"cpus_per_worker": base.run.cpus_per_worker or 1}
        return base.override({**{f"run.{name}": value for name, value in run.items()}, "data.val_share": 0.0})

    def _prepare(self, display: Display) -> dict[str, Pixels]:
        """Makes the embedding store, opens both pairs of splits, and holds the images of the first."""
        from tt_ray.training.preflight import prepare
        from tt_ray.training.trainable import check_model

        searched = self.space.domains
        base = self._on(self.base).override("run.storage", self.base.run.storage)
        if "text.weight" in searched and not base.teaches:
            base = base.override("text.weight", 0.5)
        if self.space.metric == "top5":
            self._check_top5(base)  # before captions are embedded, which can take long
        embed = None
        if base.run.use_gpu:
            from tt_ray.cluster.caption_actors import embed_on_gpus

            embed = embed_on_gpus(base.text.encoder, display)
        data = prepare(base, display, embed)
        self.record, self.said, store = data.record, data.notes, data.store
        display.show("trying the model", 0, 1)
        check_model(base, data.classes)  # here once, rather than in each trial
        own = ("data.", "text.encoder", "text.captions", "text.embeddings", "text.max_missing")
        # Each run draws its subset by its seed, of what is not held out: captions of one are not those of another.
        alike = base.data.subset == 1 or base.text.embeddings
        if alike and not any(path.startswith(own) for path in searched):
            self.store = "" if store is None else str(store)
        return self._pixels(self._selection(), display)

    def _check_top5(self, base: Config) -> None:
        from tt_ray.data.prepare import open_images

        if (count := len(open_images(base)[0].classes)) < TOP5_CLASSES:
            raise UserError(
                f"METRIC top5 needs data of at least {TOP5_CLASSES} classes, but these have {count}: "
                "search by top1 or val_loss"
            )

    def _pixels(self, config: Config, display: Display) -> dict[str, Pixels]:
        from tt_ray.data.loader import hold_pixels
        from tt_ray.data.prepare import open_images

        display.show("preparing images", 0, 1)
        train, val, _ = open_images(config)
        if config.data.subset < 1 or any(path.startswith("data.") for path in self.space.domains):
            return {}
        held = {name: hold_pixels(split, config) for name, split in (("train", train), ("val", val))}
        return {name: array for name, array in held.items() if array is not None}

    def _open(self) -> None:
        begun = any(record.reports for record in Journal(self.out).records.values())
        notes = check_data(self.out, self.record, self.base.run.accept_changed_data) if begun else []
        self.notes += notes
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            with new_file(self.out / "search.json") as partial:
                partial.write_text(json.dumps(self.settings, indent=2))
            keep_data(self.out, self.record, notes)
            self.journal = Journal(self.out)
        except OSError as error:
            raise UserError(f"cannot write to {self.out}: {reason(error)}: choose another --out") from None

    def _jobs(self) -> Jobs:
        from tt_ray.tune.runner import Suggestions

        records, count = self.journal.of("search"), self.given.num_samples or self.space.num_samples
        if self.searcher == "optuna":
            suggestions = Suggestions(self.space, records, count, self._add)
            return Jobs(suggestions, suggestions.count, max(count, len(records)))
        if self.searcher == "grid":
            points = list(grid_points(self.space))[: self.given.num_samples or None]
            count = len(points)
        else:
            # Members of a population are not configurations: they start somewhere, and move.
            points = random_points(self.space, count, distinct=self.scheduler != "pbt")
        if len(points) < count:
            self.notes.append(f"the space has {len(points)} different configurations, not {count}")
        known = {identity(record.values) for record in records} if self.scheduler != "pbt" else set[str]()
        new = points[len(records) :] if self.scheduler == "pbt" else [v for v in points if identity(v) not in known]
        for values in new[: max(count - len(records), 0)]:
            self._add(values)
        records = self.journal.of("search")
        todo = [record for record in records if not record.ended]
        return Jobs(todo, len(todo), len(records))

    def _add(self, values: Mapping[str, Any]) -> Record:
        name = f"t{len(self.journal.of('search')):03d}"
        return self.journal.add(name, "search", dict(values), list(self.given.seeds))

    def _finals(self) -> list[Record]:
        """Winner and base, a record for each seed."""
        best = self.best()
        if best is None:
            return []
        records = []
        for seed in self.given.final_seeds:
            for name, values in ((f"final-{best.name}", best.job()["values"]), ("final-base", {})):
                key = f"{name}-{seed}"
                known = self.journal.records.get(key)
                records.append(known or self.journal.add(key, "final", values, [seed]))
        return [record for record in records if not record.ended]

    def best(self) -> Record | None:
        """The trial with the best mean over seeds, among finished ones if there are any."""
        return winner(self.journal.of("search"), self.space)

    # --- afterwards -----------------------------------------------------------------------------------------------

    def write(self) -> str:
        """Writes results.parquet, best.yaml, plots and summary.md; returns what the command prints."""
        if self.journal is None:
            return ""
        from tt_ray.tune.results import write_results

        return write_results(self.out, self.space, self.base, self.journal, self.best(), self.notes)
