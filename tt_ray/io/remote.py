"""A folder in object storage, read with patience: busy servers and dropped connections are tried again."""

import io
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from pyarrow import fs

from tt_ray.io.storage import file_system
from tt_ray.terminal.errors import UserError, one_line

T = TypeVar("T")
PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between tries of one request, drawn between half of them and one and a half."""
_FIRST = 3
"""Pauses of a command's first requests: a server that is not there is most often a name typed wrong."""
_SAID_S = 2.0
"""Pauses that a user would notice are announced."""
BLOCK = 8 * 2**20
"""Bytes of one request: what a dropped connection costs at most."""
_FINAL = re.compile("ACCESS_DENIED|NO_SUCH|INVALID_ACCESS_KEY|SIGNATURE|HTTP status 40[0134]", re.I)
"""Answers that another try would repeat."""


def patiently(work: Callable[[], T], times: int | None = None) -> T:
    """Returns what `work` does, after pauses where it failed in a way that may pass. Raises OSError.

    Args:
        work: Called until it succeeds.
        times: Number of pauses; None takes all.
    """
    for pause in PAUSES_S[:times]:
        try:
            return work()
        except OSError as error:
            if isinstance(error, FileNotFoundError | PermissionError) or _FINAL.search(str(error)):
                raise
            if pause >= _SAID_S:
                print(f"note: trying again: {one_line(error)}", file=sys.stderr)
            time.sleep(pause * random.uniform(0.5, 1.5))
    return work()


@dataclass(frozen=True)
class Remote:
    """A folder behind a URI. Can be pickled."""

    uri: str
    """As errors show it: without the user and the options that it may hold."""
    system: fs.FileSystem
    base: str

    @classmethod
    def open(cls, uri: str, field: str) -> "Remote":
        """The folder of a URI that `field` of the configuration holds; raises UserError when it cannot be used."""
        system, base = file_system(uri, field)
        if not base.strip("/"):
            raise UserError(f"{field} {uri} names no folder: add one, such as s3://bucket/images")
        return cls(re.sub("//[^/@]*@", "//", uri.partition("?")[0]).rstrip("/"), system, base.rstrip("/"))

    def files(self) -> dict[str, fs.FileInfo]:
        """All files in it, by their path in it. Raises OSError."""
        selector = fs.FileSelector(self.base, recursive=True, allow_not_found=True)
        found = patiently(lambda: self.system.get_file_info(selector), _FIRST)
        return {info.path[len(self.base) :].lstrip("/"): info for info in found if info.is_file}

    def info(self, name: str) -> fs.FileInfo | None:
        """Size and time of change of a file; None where there is none. Raises OSError."""
        found = patiently(lambda: self.system.get_file_info(f"{self.base}/{name}"), _FIRST)
        return found if found.is_file else None

    def blocks(self, name: str, start: int = 0) -> Iterator[bytes]:
        """The content of a file from `start` on; after a dropped connection it continues where it was. Raises OSError.

        A server that drops the connection now and then costs pauses; one that never answers is given up after those of
        PAUSES_S.
        """
        file = None

        def read() -> bytes:
            nonlocal file
            try:
                if file is None:
                    file = self.system.open_input_file(f"{self.base}/{name}")
                wanted = min(BLOCK, file.size() - start)
                block = file.read_at(wanted, start) if wanted > 0 else b""
            except OSError:
                file = None  # opened again for the next try
                raise
            if len(block) < wanted:
                raise OSError(f"{name}: the connection ended after {len(block)} of {wanted} bytes")
            return block

        while block := patiently(read):
            yield block
            start += len(block)

    def read(self, name: str) -> bytes:
        """The content of a small file. Raises OSError."""
        return b"".join(self.blocks(name))

    def upload(self, name: str, content: bytes) -> None:
        """Writes a file, which appears when it is whole. Raises OSError."""

        def write() -> None:
            path = f"{self.base}/{name}"
            self.system.create_dir(path.rpartition("/")[0], recursive=True)
            with self.system.open_output_stream(path) as stream:
                stream.write(content)

        patiently(write)


class RemoteReader(io.RawIOBase):
    """A remote file as one that can be read once, from its beginning to its end."""

    def __init__(self, remote: Remote, name: str) -> None:
        self._blocks, self._rest = remote.blocks(name), memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        if not self._rest:
            self._rest = memoryview(next(self._blocks, b""))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def unreadable(field: str, uri: str, error: Exception) -> UserError:
    """The error of a URI in `field` whose server does not answer, or refuses."""
    return UserError(f"{field} {uri} cannot be read: {one_line(error)}")
