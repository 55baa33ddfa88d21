"""Files of object storage on the disk of this machine: pulled once, in parallel, checked, and resumed after a kill.

All processes of a machine share a folder. One of them pulls, under a lock that the kernel releases when the process
dies; the others wait. A file has its name when it is whole and checked, and ends in `.unfinished` before. What was
checked is noted with size and time of change, so that a file that was changed afterwards is read and checked again.
"""

import fcntl
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tt_ray.io.files import sha256
from tt_ray.io.remote import Remote, unreadable
from tt_ray.io.resumable import disk_problems
from tt_ray.terminal.errors import UserError

Show = Callable[[str, int, int], None]
THREADS = 16
_CHECKED = "checked.jsonl"
_UNFINISHED = ".unfinished"
_LOOK_S = 0.2
_SAID_EVERY_S = 30.0
_ANOTHER_FOLDER = "fix this, or name another folder with --data.local_cache: the same command continues"


@dataclass(frozen=True)
class Piece:
    """A file to pull."""

    name: str
    """Its path in the remote folder."""
    size: int
    sha256: str = ""
    """Empty where it is not known: then the size alone is checked."""


def cache_folder(cache: str, uri: str) -> Path:
    """The folder of copies from a URI: in `cache`, or in the user's own where that is empty."""
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tt-ray" / "data"
    name = re.sub(r"[^\w.-]+", "-", uri.rpartition("://")[2])[-40:].strip("-")
    digest = blake2b(uri.encode(), digest_size=6).hexdigest()
    return (Path(cache).expanduser() if cache else own).absolute() / f"{name}-{digest}"


class LocalCopy:
    """Files of a remote folder, and where they are on this machine; pickled, each process looks for itself."""

    def __init__(self, remote: Remote, folder: Path, pieces: Mapping[str, Piece], field: str = "data.root") -> None:
        self.remote, self.folder, self.field = remote, folder, field
        self.pieces = dict(pieces)
        """By their path in `folder`."""
        self._here = False

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_here": False}  # it may be opened on another machine

    def joined(self, other: "LocalCopy") -> "LocalCopy":
        """The files of both, of one remote folder."""
        assert self.folder == other.folder
        return LocalCopy(self.remote, self.folder, self.pieces | other.pieces, self.field)

    def pull(self, show: Show | None = None) -> None:
        """Returns when all files are here and checked; costs nothing where this object has seen them.

        Args:
            show: Called with what is counted, the megabytes done, and all of them; None takes that of the process
                (`show_pulls_by`).

        Raises:
            UserError: The disk is too small, the storage cannot be read, or a file there is not the expected one.
        """
        if self._here:
            return
        if self._unchecked():
            show = show or _shown_by or Announced(_print)
            with disk_problems(self.folder, _ANOTHER_FOLDER), self._alone(show):
                if missing := self._unchecked():  # another process may have pulled them meanwhile
                    self._check_room(missing)
                    self._pull(missing, show)
        self._here = True

    def _unchecked(self) -> list[str]:
        """Files that are not here, or have not been checked since they were changed."""
        noted: dict[str, list[int]] = {}
        log = self.folder / _CHECKED
        for line in log.read_text().splitlines() if log.exists() else []:
            try:
                name, *state = json.loads(line)
            except ValueError:  # a line that a kill has cut
                continue
            noted[name] = state
        return [
            name
            for name, piece in self.pieces.items()
            if noted.get(name) != _state(self.folder / name) or noted[name][0] != piece.size
        ]

    def _check_room(self, missing: list[str]) -> None:
        """Raises UserError when what is to be written does not fit."""
        needed = 0
        for name in missing:
            size, path = self.pieces[name].size, self.folder / name
            if _size(path) != size:
                needed += max(size - _size(path) - _size(_unfinished(path)), 0)
        if needed > (free := shutil.disk_usage(self.folder).free):
            raise UserError(
                f"{self.remote.uri} needs {needed:,} more bytes in {self.folder}, where {free:,} are free: free some, "
                "or name a folder on a larger disk with --data.local_cache"
            )

    @contextmanager
    def _alone(self, show: Show) -> Iterator[None]:
        """Waits for another process that pulls into the folder, and shows how far that is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("a") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    paths = [self.folder / name for name in self.pieces]
                    done = sum(_size(path) or _size(_unfinished(path)) for path in paths)
                    self._show(show, done, sum(piece.size for piece in self.pieces.values()))
                    time.sleep(_LOOK_S)
            yield

    def _show(self, show: Show, done: int, of: int) -> None:
        show(f"MB pulled from {self.remote.uri}", done // 10**6, max(of // 10**6, 1))

    def _pull(self, missing: list[str], show: Show) -> None:
        stop, of = threading.Event(), sum(self.pieces[name].size for name in missing)
        done = dict.fromkeys(missing, 0)
        pool = ThreadPoolExecutor(THREADS)
        try:
            left: set[Future[None]] = {pool.submit(self._pull_one, name, done, stop) for name in missing}
            while left:
                finished, left = wait(left, _LOOK_S, "FIRST_EXCEPTION")
                for future in finished:
                    future.result()
                self._show(show, sum(done.values()), of)
        finally:
            stop.set()  # the first error ends the others
            pool.shutdown(cancel_futures=True)

    def _pull_one(self, name: str, done: dict[str, int], stop: threading.Event) -> None:
        """Pulls a file, unless the one that is here is right, and notes it.

        What a kill has left is continued where a checksum will tell whether it fits, and taken again otherwise.
        """
        piece, path = self.pieces[name], self.folder / name
        if piece.sha256 and path.is_file():
            if not _problem(path, piece):
                self._note(name)
                return
            print(f"note: {path} has been damaged: it is pulled again", file=sys.stderr)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial, problem = _unfinished(path), ""
        for _ in range(2):
            if not piece.sha256 or _size(partial) > piece.size:
                partial.unlink(missing_ok=True)
            done[name] = _size(partial)
            with partial.open("ab") as file:
                for block in self._blocks(piece, done[name]):
                    if stop.is_set():
                        return
                    file.write(block)
                    done[name] += len(block)
                file.flush()
                os.fsync(file.fileno())
            if not (problem := _problem(partial, piece)):
                partial.replace(path)
                self._note(name)
                return
            partial.unlink()
        raise UserError(
            f"{self.remote.uri}/{piece.name} {problem}: it has been damaged or replaced; upload it again, or write the "
            "index again if it is meant to be so"
        )

    def _blocks(self, piece: Piece, start: int) -> Iterator[bytes]:
        try:
            yield from self.remote.blocks(piece.name, start)
        except OSError as error:  # told apart from those of the disk
            raise unreadable(self.field, f"{self.remote.uri}/{piece.name}", error) from None

    def _note(self, name: str) -> None:
        line = json.dumps([name, *_state(self.folder / name)]) + "\n"
        handle = os.open(self.folder / _CHECKED, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, b"\n" + line.encode())  # in one piece, after whatever a kill has left
        finally:
            os.close(handle)


def pull_together(copies: list[LocalCopy | None], show: Show | None = None) -> None:
    """Pulls several copies; those of one folder at once, so that a disk that is too small for all is noticed first."""
    joined: dict[Path, LocalCopy] = {}
    for copy in copies:
        if copy is not None:
            joined[copy.folder] = joined[copy.folder].joined(copy) if copy.folder in joined else copy
    for copy in joined.values():
        copy.pull(show)


_shown_by: Show | None = None


def show_pulls_by(show: Show | None) -> None:
    """Sets what shows the pulls of this process that are given no `show`; None prints lines, as in the beginning."""
    global _shown_by
    _shown_by = show


class Announced:
    """In place of a display, where none is at hand: one line when pulling begins, and one every half a minute."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._began, self._before, self._next = say, 0.0, 0, 0.0

    def __call__(self, what: str, done: int, of: int) -> None:
        now = time.monotonic()
        if not self._next:
            self._began, self._before = now, done
        if now >= self._next:
            self._next = now + _SAID_EVERY_S
            rate = (done - self._before) / max(now - self._began, 1e-9)
            self._say(f"{what}: {done} of {of}" + (f", {rate:.0f} MB/s" if rate else ""))


def _print(line: str) -> None:
    print(line, file=sys.stderr)


def _problem(path: Path, piece: Piece) -> str:
    """How a file differs from the expected one; empty where it does not."""
    if _size(path) != piece.size:
        return f"has {_size(path):,} bytes instead of {piece.size:,}"
    if piece.sha256 and sha256(path) != piece.sha256:
        return "has another checksum than the index"
    return ""


def _state(path: Path) -> list[int]:
    """Size and time of change; empty where there is no file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _unfinished(path: Path) -> Path:
    return path.with_name(path.name + _UNFINISHED)
