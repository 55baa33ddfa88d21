"""Reading object storage with patience: which answers are worth another try, and what is read after one."""

import re
from pathlib import Path

import pytest

from tt_ray.io import remote
from tt_ray.io.remote import Remote, RemoteReader, patiently
from tt_ray.terminal.errors import UserError


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (OSError("AWS Error NETWORK_CONNECTION"), 4),
        (OSError("AWS Error SLOW_DOWN, HTTP status 503"), 4),
        (OSError("AWS Error ACCESS_DENIED during HeadObject"), 1),
        (OSError("AWS Error NO_SUCH_BUCKET"), 1),
        (OSError("HTTP status 404"), 1),
        (FileNotFoundError("no such file"), 1),
        (PermissionError("not yours"), 1),
    ],
)
def test_what_may_pass_is_tried_again(error: OSError, tries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSES_S", (0.0,) * 3)
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        patiently(fail)
    assert len(calls) == tries


def test_files_are_read_in_blocks_and_as_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BLOCK", 7)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.bin").write_bytes(bytes(range(40)))
    (tmp_path / "empty").touch()
    there = Remote.open(f"file://{tmp_path}", "data.root")
    assert {name: info.size for name, info in there.files().items()} == {"deep/a.bin": 40, "empty": 0}
    assert [len(block) for block in there.blocks("deep/a.bin", 30)] == [7, 3] and there.read("empty") == b""
    reader = RemoteReader(there, "deep/a.bin")
    assert reader.read(3) == b"\0\1\2" and reader.read() == bytes(range(3, 40)) and reader.read(5) == b""
    there.upload("new/b.bin", b"123")
    assert (tmp_path / "new" / "b.bin").read_bytes() == b"123" and there.info("none") is None


def test_keys_and_options_are_not_shown() -> None:
    assert Remote.open("gs://anonymous@bucket/x/?scheme=http", "data.root").uri == "gs://bucket/x"


@pytest.mark.parametrize("uri", ["no://x", "s3://", "s3://?region=eu-west-1", "file:///", "://x"])
def test_uris_of_no_folder_are_refused(uri: str) -> None:
    with pytest.raises(UserError, match=f"data.root {re.escape(uri)} (names no folder|cannot be used)"):
        Remote.open(uri, "data.root")
