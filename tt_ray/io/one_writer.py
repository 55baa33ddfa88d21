"""One writer at a time for a folder: on a disk, on a folder that hosts share, in object storage.

Every command that wants to write puts a claim of its own, a small JSON file, into a folder of claims, and then lists
what claims are there. It writes if it finds no other claim of a living command, and removes its own otherwise. Of two
commands that start at once, the later one to list sees both claims, so at most one of them finds itself alone. This
needs only that a file is listed once it has been written, which disks, NFS (after one's own write), S3 and GCS do;
object storage has no lock that pyarrow could take.

How a claim is known to be dead:

- On the machine that wrote it (same boot, same PID namespace) by its process, at once: it is gone, or its PID has been
  given to a process that started at another time.
- On any other machine by its heartbeat: the writer rewrites its claim every 10 seconds. Both ages are read off the
  storage's own clock (the claim's modification time against that of the claim written last), so hosts' clocks need
  not agree. A second command waits until the claim has been rewritten, which proves it alive, or is 60 seconds old.

A writer that was cut off for longer (a suspended machine) finds at its next heartbeat that its claim has been replaced,
and ends at once without writing anything more.
"""

import json
import os
import shlex
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pyarrow import fs

from tt_ray.io.storage import Storage
from tt_ray.terminal.errors import UserError, reason
from tt_ray.terminal.signals import at_end

BEAT_S = 10.0
DEAD_S = 60.0
"""Age at which a claim of another machine counts as dead: six heartbeats."""
_LOOK_S = 0.5


class Taken(UserError):
    """Another command writes this.

    Args:
        fact: Which one, in a sentence.
        way: What to do instead of waiting for it.
    """

    def __init__(self, fact: str, way: str) -> None:
        super().__init__(f"{fact}: wait for it, or {way}")
        self.fact = fact


@dataclass(frozen=True)
class Claim:
    """A command that writes, or wants to."""

    host: str
    machine: str
    """Boot id and PID namespace: where `pid` means something."""
    pid: int
    started: int
    """Start of the process in clock ticks after boot; distinguishes it from a later one with the same PID."""
    since: str
    command: str
    holds: bool = False
    """False while the command has yet to find itself alone."""
    replaces: tuple[str, ...] = ()
    """Names of dead claims that this one has taken the place of. They are void, even if they are written again."""

    @classmethod
    def own(cls) -> "Claim":
        """The claim of this process."""
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        since = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
        return cls(socket.gethostname(), _machine(), os.getpid(), _started(os.getpid()) or 0, since, command[:200])

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host} since {self.since} ({self.command})"


@dataclass
class Claims:
    """The claims on one folder."""

    system: fs.FileSystem
    folder: str

    def write(self, name: str, claim: Claim) -> None:
        """Writes a claim, which appears complete or not at all. Raises OSError."""
        content, path = json.dumps(asdict(claim)).encode(), f"{self.folder}/{name}"
        local = isinstance(self.system, fs.LocalFileSystem)
        target = self._partial(name) if local else path  # an object appears when it is whole
        if local:  # each time: a command that ends deletes the folder if it looks empty
            Path(self.folder).mkdir(parents=True, exist_ok=True)
        with self.system.open_output_stream(target) as stream:
            stream.write(content)
        if local:
            self.system.move(target, path)

    def ages(self) -> dict[str, int]:
        """Modification times in nanoseconds by the storage's clock, by name. Raises OSError."""
        found = self.system.get_file_info(fs.FileSelector(self.folder, allow_not_found=True))
        return {info.base_name: info.mtime_ns for info in found if info.base_name.endswith(".json") and info.is_file}

    def read(self, name: str) -> Claim | None:
        """A claim; None where it has just been removed, or is not of this version."""
        try:
            with self.system.open_input_stream(f"{self.folder}/{name}") as stream:
                tree = json.loads(stream.read())
            known: dict[str, Any] = {field.name: tree[field.name] for field in fields(Claim)}
            return replace(Claim(**known), replaces=tuple(known["replaces"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def remove(self, name: str) -> None:
        """Removes a claim, if there is one."""
        partial = [self._partial(name)] if isinstance(self.system, fs.LocalFileSystem) else []
        for path in (f"{self.folder}/{name}", *partial):
            with suppress(OSError):
                self.system.delete_file(path)

    def _partial(self, name: str) -> str:
        return f"{self.folder}/.{name}.partial"


INSIDE = ".writer"


def inside(folder: Path) -> Path:
    """Folder of claims on a folder that may be a disk of its own, all that hosts have in common."""
    return folder.expanduser().absolute() / INSIDE


def beside(path: Path) -> Path:
    """Folder of claims on a file or folder that appears, or is deleted, as a whole."""
    path = path.expanduser().absolute()
    return path.with_name(f".{path.name}.writer")


@contextmanager
def one_writer(
    place: Path,
    what: str,
    otherwise: str = "choose another --out",
    storage: str = "",
    say: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Makes this command the only one that writes something, until the body of the `with` statement ends.

    Args:
        place: Folder of the claims: `inside` or `beside` what is to be written.
        what: Name of what is to be written, for errors.
        otherwise: What to do instead of waiting.
        storage: The run.storage that `place` lies in, where that may be a URI.
        say: Called with a sentence while it is unknown whether another writer lives; prints to stderr by default.

    Raises:
        Taken: Another command writes this.
        UserError: `place` cannot be written.
    """
    opened = Storage.open(storage) if storage else None
    remote = None if opened is None else opened.remote
    folder = str(place) if opened is None or remote is None else opened.there(place)
    claims, name = Claims(remote or fs.LocalFileSystem(), folder), f"{uuid.uuid4().hex}.json"
    made = [path for path in place.parents if not path.exists()]
    stop, beats = threading.Event(), None

    def release() -> None:
        claims.remove(name)
        if remote is None:
            # Only what is empty, and nothing that was there before: a refused command leaves no trace.
            with suppress(OSError):
                for path in (place, *made):
                    path.rmdir()

    at_end.append(release)
    try:
        try:
            own = _acquire(claims, name, what, otherwise, say or _print)
        except OSError as error:
            raise UserError(f"cannot write {what} ({folder}: {reason(error)}): fix this, or {otherwise}") from None
        beats = threading.Thread(target=_beat, args=(claims, name, own, what, stop), daemon=True)
        beats.start()
        yield
    finally:
        stop.set()
        if beats is not None:
            beats.join(BEAT_S)  # or it might write the claim again
        release()
        at_end.remove(release)


def _print(text: str) -> None:
    print(text, file=sys.stderr)


def _acquire(claims: Claims, name: str, what: str, otherwise: str, say: Callable[[str], None]) -> Claim:
    """Waits until every other claim is known to be dead; returns the claim that now holds."""
    own, seen, told = Claim.own(), dict[str, int](), False
    while True:
        claims.write(name, own)  # before the others are listed: one of two commands then sees the other
        others = {other: claims.read(other) for other in claims.ages() if other != name}
        ages = claims.ages()  # after reading: NFS may answer with the age of a minute ago until a file is opened
        if name not in ages:
            continue  # deleted together with a folder that was being emptied
        others = {other: claim for other, claim in others.items() if other in ages}
        void = {dead for claim in others.values() if claim for dead in claim.replaces}
        unsure: list[Claim | None] = []
        dead = [*void.intersection(others)]
        for other, claim in others.items():
            if other in void:
                continue
            lives = _lives(claim, ages[name] - ages[other], ages[other] != seen.setdefault(other, ages[other]))
            if lives is False:
                dead.append(other)
            elif lives and (claim is None or claim.holds or other < name):
                raise Taken(f"{what} is being written by {claim or 'another command'}", otherwise)
            else:
                unsure.append(claim)  # or another newcomer, which gives way since its name is larger
        if not unsure:
            own = replace(own, holds=True, replaces=tuple(dead))
            claims.write(name, own)
            for other in dead:
                claims.remove(other)
            return own
        if not told and unsure[0] is not None:
            say(f"{what} was being written by {unsure[0]}: waiting up to {DEAD_S:.0f} s for a sign of life from it")
            told = True
        time.sleep(_LOOK_S)


def _lives(claim: Claim | None, age_ns: int, rewritten: bool) -> bool | None:
    """Whether the command behind a claim lives; None where that is not known yet."""
    if claim is not None and claim.machine == _machine():
        return _started(claim.pid) == claim.started
    if rewritten:
        return True
    return False if age_ns >= DEAD_S * 1e9 else None


def _beat(claims: Claims, name: str, own: Claim, what: str, stop: threading.Event) -> None:
    while not stop.wait(BEAT_S):
        with suppress(OSError):  # a share that cannot be reached now may be there at the next beat
            others = claims.ages()
            replaced = name not in others or any(
                name in claim.replaces for other in others if other != name and (claim := claims.read(other))
            )
            if stop.is_set():
                return
            if replaced:
                print(
                    f"error: {what} has a new writer, as this command gave no sign of life for {DEAD_S:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)  # whatever Python would still do at its end might write
            claims.write(name, own)


def _machine() -> str:
    """The scope in which process numbers mean the same: one boot of one kernel, and in it one container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{socket.gethostname()}/{uuid.uuid4().hex}"  # unknown: known to live by its heartbeat alone


def _started(pid: int) -> int | None:
    """When a process started, in clock ticks after boot; None where it does not run (or is only yet to be reaped)."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else int(rest[18])
