"""Work that continues where it was killed: a folder with a plan and one file for each finished shard."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from tt_ray.io.files import new_file, partials
from tt_ray.io.one_writer import beside, one_writer
from tt_ray.terminal.errors import UserError, reason

_SHARD = re.compile(r"(\d{7})-([0-9a-f]{32})\.shard")
_PLAN = "plan.json"
_FORMAT_VERSION = 1
OTHERWISE = "choose another --out"
"""For `disk_problems`, of commands that cannot continue."""


class Shards:
    """Finished shards, numbered 0..count-1, each a file of bytes; made by `open_shards`.

    A file's name holds the hash of its content: a shard that a power cut or a bad disk has damaged does not count.
    """

    def __init__(self, folder: Path, work: dict[str, Any], count: int) -> None:
        self.folder = folder
        self.work = work
        """Description of the work; shards of other work are refused."""
        self.count = count
        self.about: dict[str, Any] | None = None
        """What made the shards, and how, the same for all; None before the first one."""
        self._files: dict[int, Path] = {}

    @property
    def done(self) -> int:
        """Number of finished shards."""
        return len(self._files)

    def missing(self) -> list[int]:
        """Shards that are still to do, in order."""
        return [shard for shard in range(self.count) if shard not in self._files]

    def check(self, about: dict[str, Any]) -> None:
        """Raises UserError unless the shards were made like this."""
        if self.about is not None:
            self._compare(self.about, about)

    def add(self, shard: int, about: dict[str, Any], content: bytes) -> None:
        """Keeps a finished shard; it is on disk when this returns. Raises UserError when the disk is full."""
        self.check(about)
        path = self.folder / f"{shard:07d}-{_hash(content)}.shard"
        with disk_problems(self.folder):
            if self.about is None:
                self._write_plan(about)
            with new_file(path) as partial:
                partial.write_bytes(content)
        self._files[shard] = path

    def read(self, shard: int) -> bytes:
        """The content of a finished shard; raises UserError when it has been damaged since this was opened."""
        path = self._files[shard]
        content = path.read_bytes()
        if _hash(content) != _SHARD.fullmatch(path.name)[2]:  # type: ignore[index]
            raise UserError(f"{path} is damaged: the same command makes it again")
        return content

    def remove(self) -> None:
        """Deletes the folder, once its work is done."""
        shutil.rmtree(self.folder)

    def _load(self) -> None:
        """Reads the plan and finds finished shards; deletes whatever else a killed command has left."""
        plan = _read_plan(self.folder / _PLAN)
        if plan is None:
            self._write_plan(None)
        else:
            self._compare(plan["work"], self.work)
            self.about = plan["about"]
        for path in sorted(self.folder.iterdir()):
            match = _SHARD.fullmatch(path.name)
            if match and int(match[1]) < self.count and self.about and _hash(path.read_bytes()) == match[2]:
                self._files[int(match[1])] = path
            elif match or path.suffix == ".partial":
                path.unlink()

    def _write_plan(self, about: dict[str, Any] | None) -> None:
        plan = {"format_version": _FORMAT_VERSION, "work": self.work, "about": about}
        with new_file(self.folder / _PLAN) as partial:
            partial.write_text(json.dumps(plan, indent=2))
        self.about = about

    def _compare(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        for key in old | new:
            if old.get(key) != new.get(key):
                raise UserError(
                    f"{self.folder} was begun with other {key} ({old.get(key)}, now {new.get(key)}): pass what it was "
                    "begun with, delete the folder to start again, or choose another --out"
                )


@contextmanager
def open_shards(folder: Path, work: dict[str, Any], count: int) -> Iterator[Shards]:
    """Begins `count` shards of some work in `folder`, or continues them; no other process may do so meanwhile.

    `work` describes it, in JSON's types. Raises UserError when the folder was begun for other work, when
    another process writes it, or cannot be written.
    """
    with one_writer(beside(folder), str(folder)):
        shards = Shards(folder, work, count)
        with disk_problems(folder):
            folder.mkdir(parents=True, exist_ok=True)
            shards._load()
        try:
            yield shards
        except BaseException:
            if not shards.done and folder.exists():
                shards.remove()  # a plan alone is worth nothing, and would bind the next command to it
            raise


def remove_halves(path: Path) -> None:
    """Deletes what a kill left of writing `path`; for the one writer that holds the shards that it is written from."""
    for half in partials(path):
        if half.is_dir():
            shutil.rmtree(half)
        else:
            half.unlink()


@contextmanager
def disk_problems(path: Path, way: str = "fix this and run the same command to continue") -> Iterator[None]:
    """Turns what goes wrong with a disk into a UserError that says where, and a `way` to continue."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {error.filename or path}: {reason(error)}; {way}") from error


def make_room(out: Path) -> None:
    """Makes the folder of a file that a command is going to write, before it computes what to write.

    Raises:
        UserError: `out` is a folder, or its own cannot be made.
    """
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: give a file")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {out}: {reason(error)}; {OTHERWISE}") from None


def digest_of(*columns: pa.StringArray) -> str:
    """A hash of all strings in their order: 32 hex digits."""
    digest = hashlib.sha256()
    for column in columns:
        for buffer in pa.concat_arrays([column]).buffers():
            digest.update(b"" if buffer is None else buffer)
    return digest.hexdigest()[:32]


def _read_plan(path: Path) -> dict[str, Any] | None:
    """None where there is none; raises UserError when it is not a plan of this version."""
    if not path.exists():
        return None
    try:
        plan = json.loads(path.read_bytes())
        if plan["format_version"] == _FORMAT_VERSION and isinstance(plan["work"], dict) and "about" in plan:
            return plan
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path} is not a plan of this tt-ray: delete its folder to start again, or choose another --out")


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
