"""The run folder: who may write to it, what it was started with, and how far it is."""

import json
import shutil
from pathlib import Path
from typing import Any

from tt_ray.config import Config
from tt_ray.errors import UserError

# May differ when a run goes on: where and how fast it runs, not what it computes.
_FREE = ("run.", "data.num_loaders", "data.cache_gb", "train.max_batch_per_worker", "train.compile")


def check_run(config: Config) -> bool:
    """Whether an unfinished run of this name goes on; nothing is written.

    Raises UserError for a finished run, for one that was started with another configuration, and for a folder that
    is no run.
    """
    folder = config.run_dir
    if config.run.overwrite or not folder.exists():
        return False
    if (folder / "result.json").exists():
        top1 = read_result(folder)["top1"]
        raise UserError(
            f"run {folder} is finished (top-1 {top1:.2f} %): give another --run.name, or --run.overwrite True"
        )
    if not (folder / "config.yaml").exists():
        if any(folder.iterdir()):
            raise UserError(f"{folder} is not a run of tt-ray and not empty: give another --run.name or --run.storage")
        return False
    before = Config.from_yaml(folder / "config.yaml")
    changed = [path for path in Config.paths() if not path.startswith(_FREE) and before.get(path) != config.get(path)]
    if changed:
        values = ", ".join(f"{path} {before.get(path)} (now {config.get(path)})" for path in changed[:5])
        raise UserError(
            f"unfinished run {folder} was started with {values}: give another --run.name, or --run.overwrite True"
        )
    return True


def start_run(config: Config) -> None:
    """Makes the folder and writes config.yaml; deletes a run of this name first when told to."""
    folder = config.run_dir
    if config.run.overwrite and folder.exists():
        if any(folder.iterdir()) and not (folder / "config.yaml").exists():
            raise UserError(f"{folder} is not a run of tt-ray: it will not be deleted")
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / ".config.partial"
        config.to_yaml(partial)
        partial.replace(folder / "config.yaml")
    except OSError as error:
        raise UserError(f"cannot write the run folder {folder}: {error.strerror}") from None


def read_result(folder: Path) -> dict[str, Any]:
    """result.json of a finished run."""
    return json.loads((folder / "result.json").read_text())
