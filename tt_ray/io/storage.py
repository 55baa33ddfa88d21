"""Where runs live: a folder, or a URI of pyarrow.fs (s3://, gs://, ...) of which each machine keeps a local copy."""

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyarrow import ArrowException, fs

from tt_ray.terminal.errors import UserError, one_line

_LAST = ("manifest.json", "result.json")
_SECRET = re.compile(r"^(s3|gs|gcs|abfss?)://[^/@?]*:[^@?]*@")


def is_uri(storage: str) -> bool:
    """Whether `storage` names a file system of pyarrow's rather than a folder."""
    return "://" in storage


def local_root(storage: str) -> Path:
    """The folder of runs on this machine, absolute: `storage` itself, or the local copy of a URI."""
    if not is_uri(storage):
        return Path(storage).expanduser().absolute()
    digest = hashlib.blake2b(storage.encode(), digest_size=6).hexdigest()
    return Path(tempfile.gettempdir()) / f"tt-ray-{os.getuid()}" / digest


@dataclass(frozen=True)
class Storage:
    """Moves files and folders between the local copy and the file system behind it; for a plain folder, nothing."""

    root: Path
    """Root of the local copy."""
    remote: fs.FileSystem | None = None
    base: str = ""
    """Root of the runs in `remote`."""

    @classmethod
    def open(cls, storage: str) -> "Storage":
        """The storage of a folder or URI; raises UserError when the URI cannot be used."""
        root = local_root(storage)
        if not is_uri(storage):
            return cls(root)
        remote, base = file_system(storage, "run.storage")
        if not base.strip("/"):
            raise UserError(f"run.storage {storage} names no folder: add one, such as s3://bucket/runs")
        _own(root.parent)
        return cls(root, remote, base)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Admits one process of this machine at a time, since all share the local copy. Not to be nested."""
        if self.remote is None:
            yield
            return
        self.root.parent.mkdir(parents=True, exist_ok=True)
        with (self.root.parent / f".{self.root.name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, by the kernel if need be
            yield

    def fetch(self, path: Path, last: str = "manifest.json") -> None:
        """Pulls a folder that is not complete here, once for all processes of this machine; `last` completes it."""
        with self.alone():
            if not (path / last).exists():
                self.pull(path)

    def push(self, path: Path) -> None:
        """Uploads a file or a folder below `root`; files whose presence means completeness go last. Raises OSError."""
        if self.remote is None:
            return
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        for file in sorted(files, key=lambda file: (file.name in _LAST, file)):
            self.remote.create_dir(self.there(file.parent), recursive=True)
            fs.copy_files(
                str(file), self.there(file), source_filesystem=fs.LocalFileSystem(), destination_filesystem=self.remote
            )

    def pull(self, path: Path, skip: tuple[str, ...] = ()) -> bool:
        """Replaces the local file or folder by the remote one, without sub-folders `skip`; False when there is none."""
        if self.remote is None:
            return path.exists()
        there = self.there(path)
        kind = self.remote.get_file_info(there).type
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            if kind == fs.FileType.Directory:
                self._pull_folder(there, partial, skip)
            elif kind == fs.FileType.File:
                self._copy(there, partial)
            _remove(path)
            if kind != fs.FileType.NotFound:
                partial.rename(path)
        finally:
            _remove(partial)
        return kind != fs.FileType.NotFound

    def remove(self, path: Path) -> None:
        """Deletes a file or folder here and there."""
        if self.remote is not None:
            info = self.remote.get_file_info(self.there(path))
            if info.type == fs.FileType.Directory:
                self.remote.delete_dir(self.there(path))
            elif info.type == fs.FileType.File:
                self.remote.delete_file(self.there(path))
        _remove(path)

    def names(self, folder: Path) -> list[str]:
        """Names in a folder, there or here."""
        if self.remote is None:
            return [path.name for path in folder.iterdir()] if folder.is_dir() else []
        # All that is below: on gs:// a folder that another program has copied is no entry, but what is in it is.
        there = self.there(folder)
        found = self.remote.get_file_info(fs.FileSelector(there, recursive=True, allow_not_found=True))
        return sorted({info.path[len(there) + 1 :].partition("/")[0] for info in found})

    def there(self, path: Path) -> str:
        """The path in `remote` of one below `root`."""
        return f"{self.base}/{path.relative_to(self.root).as_posix()}"

    def _pull_folder(self, there: str, to: Path, skip: tuple[str, ...]) -> None:
        assert self.remote is not None
        to.mkdir()
        for info in self.remote.get_file_info(fs.FileSelector(there, recursive=True)):
            relative = Path(info.path).relative_to(there)
            if info.type == fs.FileType.File and relative.parts[0] not in skip:
                (to / relative).parent.mkdir(parents=True, exist_ok=True)
                self._copy(info.path, to / relative)

    def _copy(self, there: str, to: Path) -> None:
        fs.copy_files(there, str(to), source_filesystem=self.remote, destination_filesystem=fs.LocalFileSystem())


def fetch_data(uri: str) -> Path:
    """A copy on this machine of the file or folder at a URI; made once, and again when something there has changed.

    Raises UserError when there is nothing, or it cannot be read.
    """
    remote, base = file_system(uri, "data.root")
    storage = Storage(local_root(uri), remote, base)
    _own(storage.root.parent)
    try:
        top = remote.get_file_info(base)
        files = [top]
        if top.type != fs.FileType.File:
            found = remote.get_file_info(fs.FileSelector(base, recursive=True, allow_not_found=True))
            files = [info for info in found if info.type == fs.FileType.File]
        if not files:
            raise UserError(f"data.root {uri}: there is nothing; check --data.root")
        state = repr(sorted((info.path, info.size, info.mtime_ns) for info in files))
        folder = storage.root / hashlib.blake2b(state.encode(), digest_size=6).hexdigest()
        # `datasets` knows the format of a single file by its name.
        target = folder / Path(base).name
        with storage.alone():
            if not target.exists():
                Storage(folder, remote, str(Path(base).parent)).pull(target)
    except OSError as error:
        raise UserError(f"data.root {uri} cannot be read: {one_line(error)}") from None
    return target


def file_system(uri: str, field: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URI and the path in it; raises UserError, starting with `field`, when there is none."""
    if _SECRET.search(uri):
        raise UserError(
            f"{field} holds a key and its secret, which config.yaml would keep: leave both out of the URI, and set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    try:
        return fs.FileSystem.from_uri(uri)
    except (ArrowException, OSError, ValueError) as error:
        raise UserError(f"{field} {uri} cannot be used: {one_line(error)}") from None


def _own(folder: Path) -> None:
    """Makes the folder of local copies, readable by its owner alone: others could put false weights there."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder} belongs to another user: set TMPDIR to a folder of your own")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
