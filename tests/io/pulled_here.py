"""A file behind a URI, to be pulled, and messages that remember what a process of Ray's sends."""

from pathlib import Path
from typing import Any

import pytest

from tt_ray.io import local_copy
from tt_ray.io.local_copy import LocalCopy, Piece
from tt_ray.io.remote import Remote


def copy_of_one_file(folder: Path, name: str = "x.tar") -> LocalCopy:
    """Of 3 MB, pulled from `folder/bucket` to `folder/cache`."""
    (folder / "bucket").mkdir(exist_ok=True)
    (folder / "bucket" / name).write_bytes(bytes(3 * 10**6))
    remote = Remote.open(f"file://{folder / 'bucket'}", "data.root")
    return LocalCopy(remote, folder / "cache", {name: Piece(name, 3 * 10**6)})


class Sent:
    """Messages that remember those of what is pulled; the process's way to show pulls is put back after the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(local_copy, "_shown_by", None)
        self.pulls: list[Any] = []

    def send(self, name: str, message: Any) -> None:
        self.pulls += [message] * (name == "pulling")

    put = send

    def get(self, name: str) -> Any:
        return None

    def assert_pulled(self, folder: Path) -> None:
        """All of the file of `copy_of_one_file`."""
        assert self.pulls[-1] == [f"MB pulled from file://{folder / 'bucket'}", 3, 3]
