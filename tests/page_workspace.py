"""A folder in which commands of pages run as they stand, in this process: ROOT, SHARDS, RUN and others are there.

What Ray would do is done here: trainings as a process of torchrun, actors, jobs and trials one after the other.
"""

import io
import json
import shutil
import sys
import zipfile
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from eval.jobs.scheduler import JobResources
from eval.jobs.worker import work
from tests.command_here import draw
from tests.pages import ROOT, blocks
from tt_ray.cluster.actor_pool import Pool
from tt_ray.training.torchrun import train_under_torchrun
from tt_ray.tune.runner import TrialResources, Trials, _JournalCallback
from tt_ray.tune.trial import run_trial

HEADER = "import torch.nn.functional as F\nfrom torch import Tensor\n\n\n"
"""Of my_losses.py: what docs/extending.md leaves out."""


def fill(folder: Path) -> None:
    """Images of two classes under both names that pages have, captions of all kinds, a module and a space."""
    shards, archive = list[str](), folder / "all_encodings.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for split, count in (("train", 12), ("test", 4)):
            rows = list[dict[str, str]]()
            for number in range(count):
                label = ("cat", "dog")[number % 2]
                name = f"{label}/{label}_{number}.png"
                draw(folder / "ROOT" / split / name, number)
                caption = f"a {label} number {number}"
                rows.append({"file_name": name, "label": label, "caption": caption, "name": f"{label} {number // 4}"})
                if split == "train":
                    shards.append(f"{Path(name).name}:\t{caption}\n")
                    content = io.BytesIO()
                    np.save(content, np.random.default_rng(number).normal(size=8).astype(np.float32))
                    file.writestr(f"{Path(name).name}.emb.npy", content.getvalue())
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / "ROOT" / split / "metadata.jsonl").write_text(lines)
    (folder / "SHARDS").mkdir()
    (folder / "SHARDS" / "in_coca_0_of_1.csv").write_text("".join(shards))
    (folder / "my_losses.py").write_text(HEADER + blocks(ROOT / "docs" / "extending.md", "python")[0])
    shutil.copy(ROOT / "tune_spaces" / "loss_weight.py", folder / "mine.py")
    shutil.copytree(folder / "ROOT", folder / "EMOJI")
    run = folder / "runs" / "shapes_textteacher"
    for name, target in {"RUN": run, "RUN1": run.with_name("base"), "RUN2": run.with_name("taught")}.items():
        (folder / name).symlink_to(target)


def do_here(shards: Any, items: Sequence[Sequence[Any]], make: Callable[[Pool], Any], *_: object) -> None:
    """`actor_pool.do_missing`."""
    worker = make(Pool(1, 1, False))
    shards.check(worker.about)
    for shard in shards.missing():
        shards.add(shard, worker.about, worker(list(items[shard])))


def jobs_here(requests: Sequence[Any], resources: object, ended: Callable[..., None], *_: object) -> None:
    """`scheduler.schedule`."""
    for request in requests:
        ended(request.job, work(request))


def trials_here(trials: Trials, records: Any, scheduler: object, journal: Any, watch: Any, stop: object) -> None:
    """`runner.run_trials`."""
    journal_keeper = _JournalCallback(journal, watch)
    for record in records:
        trial: Any = SimpleNamespace(config={"job": record.job()})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ray.tune.get_checkpoint", lambda: None)
            patch.setattr("ray.tune.report", lambda row, trial=trial: journal_keeper.on_trial_result(0, [], trial, row))
            run_trial(trial.config, trials.plan, trials.pixels)


class Workspace:
    """Runs commands in `folder`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        fill(folder)
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(str(folder))
        for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "1", "RANK": "0", "MPLBACKEND": "agg"}.items():
            monkeypatch.setenv(name, value)
        for module in ("pack", "embed_captions", "caption_images"):
            monkeypatch.setattr(f"tt_ray.{module}.do_missing", do_here)
        monkeypatch.setattr("tt_ray.compare.runs._train", train_under_torchrun)
        monkeypatch.setattr("eval.jobs.evaluation.start_ray", lambda *_: ("this machine", JobResources()))
        monkeypatch.setattr("eval.jobs.evaluation.schedule", jobs_here)
        monkeypatch.setattr("tt_ray.cluster.messages.Messages", lambda: SimpleNamespace(get=lambda name: None))
        monkeypatch.setattr("tt_ray.tune.__main__.join_ray", lambda *_: False)
        monkeypatch.setattr("tt_ray.tune.search.Search._fit", lambda self: (TrialResources(1, 1, 0.0), 1))
        monkeypatch.setattr("tt_ray.tune.runner.run_trials", trials_here)
        self._patch = monkeypatch

    def run(self, module: str, arguments: Sequence[str]) -> None:
        """As `python -m MODULE ARGUMENTS`."""
        found = import_module(module)
        command = import_module(f"{module}.__main__") if hasattr(found, "__path__") else found
        self._patch.setattr(sys, "argv", [module, *arguments])
        command.main(list(arguments))
