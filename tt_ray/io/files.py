"""Checksums of files, and the one way to write: next to the path, to disk, and then in its place."""

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tt_ray.terminal.errors import UserError


def sha256(file: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Waits until the file or folder is on disk: a manifest must not outlive the data through a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def new_file(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yields a name in the same folder to write to, which takes the place of `path` at the end.

    No reader sees half a file, and two writers do not write to the same name. On an exception the partial file is
    removed and `path` is what it was. Folders that are missing are created.

    Args:
        path: The file to write or replace.
        durable: Wait until file and name are on disk; leave out for what a command writes again anyway.

    Raises:
        OSError: The disk is full, or the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _own_partial(path)
    try:
        yield partial
        if durable:
            sync(partial)  # before the rename: a name that is on disk must not stand for bytes that are not
        partial.replace(path)
        if durable:
            sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, first_wins: bool = False) -> Iterator[Path]:
    """Yields a folder next to `path` to fill; at the end it is on disk and takes the place of `path`.

    On an exception it is removed, and `path` is what it was.

    Args:
        path: The folder to write or replace; of a link, what it leads to.
        first_wins: Several writers may write it at once, and a `path` that another one has filled meanwhile stays;
            `partials` finds what killed ones have left. Otherwise there is one writer at a time, and what a killed one
            has left is removed first.

    Raises:
        UserError: The command runs in `path` or below it.
        OSError: The disk is full, or the folder cannot be written to.
    """
    refuse_own_place(path)
    path = _followed(path)
    partial = _own_partial(path) if first_wins else path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in [*partial.iterdir(), partial]:  # before the rename, as in new_file
            sync(file)
        if first_wins:
            _rename_unless_filled(partial, path)
        else:
            shutil.rmtree(path, ignore_errors=True)
            partial.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_own_place(path: Path) -> None:
    """Raises UserError where a folder that is to be replaced is the one that the command runs in, or holds it.

    Whoever called it would stand in a folder that is gone, and see nothing of the new one.
    """
    with suppress(FileNotFoundError):
        if Path.cwd().is_relative_to(path.resolve()):
            raise UserError(
                f"{path} is the folder that this command runs in, or holds it, and would be replaced: name another "
                "folder, or run the command elsewhere"
            )


def partials(path: Path) -> list[Path]:
    """What writers of `path` are writing to, or have left when they were killed: files and folders next to it."""
    path = _followed(path)
    name = re.compile(rf"\.{re.escape(path.name)}\.(\d+-[0-9a-f]{{8}}\.)?partial")
    return [entry for entry in path.parent.iterdir() if name.fullmatch(entry.name)] if path.parent.is_dir() else []


def _followed(path: Path) -> Path:
    """What a link leads to: a folder cannot take the place of the link itself."""
    return path.resolve() if path.is_symlink() else path


def _own_partial(path: Path) -> Path:
    """A name next to `path` that no other writer has."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")


def _rename_unless_filled(partial: Path, path: Path) -> None:
    """Gives the folder its name; where another one with something in it has the name, that one stays."""
    try:
        partial.rename(path)
    except OSError:
        if not path.is_dir() or not any(path.iterdir()):
            raise
