"""The run folder: who may write to it, what it was started with, and how far it is."""

import errno
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from tt_ray.config import Config
from tt_ray.io.checkpoint_folder import checkpoints, newest_intact
from tt_ray.io.files import new_file
from tt_ray.io.one_writer import beside, one_writer
from tt_ray.io.storage import Storage, is_uri
from tt_ray.terminal.errors import UserError, one_line, reason, some

_DISK_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EISDIR, errno.ENOTDIR),
}
# May differ when a run resumes: where and how fast it runs, not what it computes (but for batch-norm statistics).
_FREE = (
    *("run.", "data.num_loaders", "data.cache_gb", "data.local_cache", "data.index"),
    *(_PARTS := "train.max_batch_per_worker", "train.compile", "train.activation_checkpointing"),
)


def sole_writer(config: Config, say: Callable[[str], None]) -> AbstractContextManager[None]:
    """Makes this command the run's only writer while the context lasts; to be entered before `check_run`.

    Raises UserError when another command writes the run, or where the storage cannot hold the run.
    """
    _check_name(config)
    _check_lasting(config)
    if not config.run_dir.exists():
        _check_writable(config.run_dir)
    what, otherwise = f"run {config.run_place}", "choose another --run.name or --run.storage"
    return one_writer(beside(config.run_dir), what, otherwise, config.run.storage, say)


def check_run(config: Config) -> bool:
    """Whether an unfinished run of this name resumes; nothing is written.

    Raises UserError for a finished run, for one that has a checkpoint of another configuration, and for a folder
    that is no run, or that would be deleted with the job that writes it.
    """
    folder = config.run_dir
    _check_name(config)
    _check_lasting(config)
    fetch_run(config)
    if not folder.exists():
        _check_writable(folder)
        return False
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another --run.name or --run.storage")
    if config.run.overwrite:
        _must_be_run(folder)
        return False
    if (folder / "result.json").exists():
        top1 = read_result(folder)["top1"]
        raise UserError(
            f"run {folder} is finished (top-1 {top1:.2f} %{_other(folder, config)}): choose another --run.name, or "
            "--run.overwrite True"
        )
    if not (folder / "config.yaml").exists():
        if any(folder.iterdir()):
            raise UserError(
                f"{folder} is not a run of tt-ray and not empty: choose another --run.name or --run.storage"
            )
        return False
    before = Config.from_yaml(folder / "config.yaml")
    changed = changed_paths(before, config)
    if changed and not has_checkpoint(config):
        return False
    if changed:
        raise UserError(
            f"unfinished run {folder} was started with {differences(before, config)}: choose another --run.name, or "
            "--run.overwrite True"
        )
    return True


def differences(before: Config, now: Config, paths: Sequence[str] | None = None) -> str:
    """The first few of these fields, or of `changed_paths`, with both values; empty where there are none."""
    chosen = changed_paths(before, now) if paths is None else paths
    return some([f"{path} {_shown(before.get(path))} (now {_shown(now.get(path))})" for path in chosen])


def _shown(value: object) -> object:
    return "empty" if value == "" else value


def _other(folder: Path, config: Config) -> str:
    """What a finished run has been trained with that is asked for otherwise now."""
    try:
        before = Config.from_yaml(folder / "config.yaml")
    except UserError:  # of another version, or gone: it is finished all the same
        return ""
    found = differences(before, config)
    return f", trained with {found}" if found else ""


def next_time(config: Config) -> str:
    """What the same command would do with the run after this one has been ended."""
    if any((path / "manifest.json").exists() for path in checkpoints(config.run_dir / "checkpoints")):
        return f"the same command resumes run {config.run.name} from its last checkpoint"
    if is_uri(config.run.storage):  # to look there could take long
        return f"the same command resumes run {config.run.name} from its last checkpoint, if it has one"
    return f"run {config.run.name} has no checkpoint yet: the same command starts it from the beginning"


def has_checkpoint(config: Config) -> bool:
    """Whether the run folder holds a checkpoint, damaged ones included."""
    names = Storage.open(config.run.storage).names(config.run_dir / "checkpoints")
    return any(name.startswith("step-") for name in names)


def starts_over(config: Config) -> bool:
    """Whether a run of this name was started with another configuration, and wrote no checkpoint worth keeping."""
    path = config.run_dir / "config.yaml"
    return path.exists() and bool(changed_paths(Config.from_yaml(path), config)) and not has_checkpoint(config)


def changed_paths(before: Config, now: Config) -> list[str]:
    """Fields that differ between two configurations and change what a run computes."""
    free = tuple(path for path in _FREE if path != _PARTS or not _drops(now))
    # On a CPU auto is fp32.
    same = ("train.precision",) if {before.train.precision, now.train.precision} == {"auto", "fp32"} else ()
    free += same if not now.run.use_gpu else ()
    found = [path for path in Config.paths() if not path.startswith(free) and before.get(path) != now.get(path)]
    return found + ["run.num_workers"] * (now.by_worker and before.workers != now.workers)


def _drops(config: Config) -> bool:
    """Whether the model draws random numbers, which each part of a batch does for itself."""
    model = config.model
    return bool(model.drop or model.drop_path or any("drop" in key and value for key, value in model.kwargs.items()))


def start_run(config: Config) -> None:
    """Makes the folder and writes config.yaml; deletes a run of this name when asked to, or when it starts over."""
    folder, storage = config.run_dir, Storage.open(config.run.storage)
    _check_name(config)
    if config.run.overwrite and folder.exists():
        _must_be_run(folder)
        storage.remove(folder)
    elif starts_over(config):
        storage.remove(folder)
    try:
        # On an exception new_file leaves nothing: alone in the folder a file would look like another program's.
        with new_file(folder / "config.yaml") as partial:
            config.to_yaml(partial)
        storage.push(folder / "config.yaml")
    except OSError as error:
        raise UserError(
            f"cannot write the run folder {config.run_place}: {reason(error)}: choose another --run.storage"
        ) from None


def discard_run(config: Config) -> None:
    """Removes a new run's folder where training never reached its first checkpoint."""
    storage = Storage.open(config.run.storage)
    if not has_checkpoint(config):
        storage.remove(config.run_dir)


def fetch_run(config: Config) -> None:
    """Brings what a URI holds of the run to this machine, without weights. Raises UserError when it cannot be read."""
    try:
        storage = Storage.open(config.run.storage)
        with storage.alone():
            storage.pull(config.run_dir, skip=("checkpoints", "export"))
    except OSError as error:
        raise UserError(f"cannot read run.storage {config.run.storage}: {one_line(error)}") from None


@contextmanager
def disk_problems(folder: Path) -> Iterator[None]:
    """Turns the error of a full or read-only disk into a UserError that names the last checkpoint."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors has no error numbers, only Rust's text.
        found = re.search(r"\(os error (\d+)\)", str(error))
        number = int(found[1]) if found else getattr(error, "errno", None)
        if number not in _DISK_ERRORS:
            raise
        path, _ = newest_intact(checkpoints(folder / "checkpoints"))
        last = f"the last good checkpoint is {path}" if path else "there is no checkpoint yet"
        where = getattr(error, "filename", None) or folder
        raise UserError(
            f"cannot write {where}: {os.strerror(number)}; {last}; fix this and run the same command to resume"
        ) from error


def _check_writable(folder: Path) -> None:
    there = next(path for path in folder.parents if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        problem = "not writable" if there.is_dir() else "a file"
        raise UserError(f"cannot write the run folder {folder}: {there} is {problem}: choose another --run.storage")


def _check_lasting(config: Config) -> None:
    # Where Ray unpacks the working directory of a job, on each node, and again for each upload.
    if "working_dir_files" in config.run_dir.parts and "runtime_resources" in config.run_dir.parts:
        raise UserError(
            f"run.storage {config.run.storage} lies in this job's copy of the working directory, which other nodes do "
            "not see and later jobs do not find: choose the full path of a folder that all nodes share, or a URI"
        )


def _check_name(config: Config) -> None:
    if config.run.name in ("", ".", "..") or "/" in config.run.name:
        raise UserError(f"run.name is {config.run.name!r}, but must name one folder below run.storage")


def _must_be_run(folder: Path) -> None:
    """Refuses to delete what is not a run: anything but an empty folder or one with a configuration of tt-ray."""
    if not any(folder.iterdir()):
        return
    try:
        Config.from_yaml(folder / "config.yaml")
    except UserError as error:
        raise UserError(f"{folder} is not a run of tt-ray and will not be deleted ({error})") from None


def read_result(folder: Path) -> dict[str, Any]:
    """result.json of a finished run."""
    return json.loads((folder / "result.json").read_text())
