"""Files that are pulled from object storage once for a machine, whatever happens to server, process or disk."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from tests.io.flaky_s3 import Bucket, flaky_bucket
from tests.io.pulled_here import copy_of_one_file
from tests.test_train_command import wait_until
from tt_ray.io import local_copy, remote
from tt_ray.io.local_copy import Announced, LocalCopy, Piece, cache_folder, pull_together, show_pulls_by
from tt_ray.io.remote import Remote
from tt_ray.terminal.errors import UserError

NAMES = [f"a/{number}.tar" for number in range(6)]
CONTENT = {name: os.urandom(40_000 + number) for number, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def started() -> Iterator[Bucket]:
    with flaky_bucket() as bucket:
        for name, content in CONTENT.items():
            bucket.put(f"set/{name}", content)
        yield bucket


@pytest.fixture
def bucket(started: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """The files in it; requests of 16 kB, and no pauses."""
    monkeypatch.setattr(remote, "BLOCK", 16_384)
    monkeypatch.setattr(remote, "PAUSES_S", (0.0,) * 3)
    started.proxy.counts.clear(), started.proxy.sent.clear()
    yield started
    started.proxy.fault = lambda method, path, number: ""


def pieces(checked: bool = True) -> dict[str, Piece]:
    return {
        name: Piece(name, len(content), sha256(content).hexdigest() if checked else "")
        for name, content in CONTENT.items()
    }


def copy_of(bucket: Bucket, folder: Path, checked: bool = True) -> LocalCopy:
    return LocalCopy(Remote.open(bucket.uri("set"), "data.root"), folder, pieces(checked))


def is_whole(folder: Path) -> bool:
    left = [path for path in folder.rglob("*") if path.name.endswith(".unfinished")]
    return not left and all((folder / name).read_bytes() == content for name, content in CONTENT.items())


def test_files_are_pulled_once_and_progress_is_shown(bucket: Bucket, tmp_path: Path) -> None:
    shown: list[tuple[str, int, int]] = []
    copy = copy_of(bucket, tmp_path)
    copy.pull(lambda *news: shown.append(news))
    assert is_whole(tmp_path) and shown[-1][0] == "MB pulled from s3://bucket/set"
    assert sum(bucket.proxy.sent.values()) == sum(map(len, CONTENT.values()))
    bucket.proxy.counts.clear()
    copy.pull(), pickle.loads(pickle.dumps(copy)).pull(), copy_of(bucket, tmp_path, False).pull()
    assert not bucket.proxy.counts, "nothing is asked for again"


@pytest.mark.parametrize("fault", ["busy", "drop"])
def test_a_server_that_is_busy_or_drops_connections_is_asked_again(fault: str, bucket: Bucket, tmp_path: Path) -> None:
    bucket.proxy.fault = lambda method, path, number: fault if method == "GET" and number % 2 else ""  # type: ignore
    copy_of(bucket, tmp_path).pull()
    assert is_whole(tmp_path)


def test_a_server_that_never_answers_is_given_up(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PAUSES_S", ())
    bucket.proxy.fault = lambda method, path, number: "busy" if path.endswith("3.tar") else ""
    with pytest.raises(UserError, match="data.root s3://bucket/set/a/3.tar cannot be read"):
        copy_of(bucket, tmp_path).pull()
    bucket.proxy.fault = lambda method, path, number: ""
    copy_of(bucket, tmp_path).pull()
    assert is_whole(tmp_path)


def test_what_is_not_there_is_refused_at_once(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("it waits"))
    lost = LocalCopy(Remote.open(bucket.uri("set"), "data.root"), tmp_path, {"x": Piece("x.tar", 3)})
    with pytest.raises(UserError, match="s3://bucket/set/x.tar cannot be read"):
        lost.pull()


@pytest.mark.parametrize("where", ["size", "content"])
def test_what_was_damaged_in_the_store_is_refused_by_name(where: str, bucket: Bucket, tmp_path: Path) -> None:
    wrong = Piece(NAMES[2], 3) if where == "size" else Piece(NAMES[2], len(CONTENT[NAMES[2]]), "0" * 64)
    copy = LocalCopy(Remote.open(bucket.uri("set"), "data.root"), tmp_path, pieces() | {NAMES[2]: wrong})
    with pytest.raises(UserError, match=r"s3://bucket/set/a/2.tar has .*(instead of 3|another checksum).*damaged"):
        copy.pull()
    assert not (tmp_path / NAMES[2]).exists()


def test_what_was_damaged_here_is_pulled_again(
    bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_of(bucket, tmp_path).pull()
    (tmp_path / NAMES[0]).write_bytes(b"x" * len(CONTENT[NAMES[0]]))
    (tmp_path / NAMES[1]).unlink()
    (tmp_path / NAMES[2]).write_bytes(b"short")
    os.utime(tmp_path / NAMES[3])  # touched, and the same: it is read and stays
    bucket.proxy.sent.clear()
    copy_of(bucket, tmp_path).pull()
    assert is_whole(tmp_path)
    assert {path[-5:] for path in bucket.proxy.sent if bucket.proxy.sent[path]} == {"0.tar", "1.tar", "2.tar"}
    assert f"{tmp_path / NAMES[0]} has been damaged" in capsys.readouterr().err


def test_what_a_kill_has_left_is_continued_or_taken_again(bucket: Bucket, tmp_path: Path) -> None:
    """Right bytes are continued where a checksum is known; wrong ones, and those nobody could check, are not."""
    for checked in (True, False):
        folder = tmp_path / str(checked)
        (folder / "a").mkdir(parents=True)
        (folder / f"{NAMES[0]}.unfinished").write_bytes(CONTENT[NAMES[0]][:30_000])
        (folder / f"{NAMES[1]}.unfinished").write_bytes(b"x" * 30_000)
        (folder / f"{NAMES[2]}.unfinished").write_bytes(b"x" * 300_000)
        bucket.proxy.sent.clear()
        copy_of(bucket, folder, checked).pull()
        assert is_whole(folder)
        sizes = [bucket.proxy.sent[f"/bucket/set/{name}"] for name in NAMES[:2]]
        assert sizes == ([10_000, 10_001 + 40_001] if checked else [40_000, 40_001])


def test_a_disk_that_is_too_small_is_noticed_before(bucket: Bucket, mounted: Path) -> None:
    """Only what is missing counts."""
    (mounted / "full").write_bytes(bytes(4 * 2**20 - 150_000 - os.statvfs(mounted).f_frsize * 4))
    with pytest.raises(UserError, match=r"s3://bucket/set needs 240,015 more bytes in .*, where 1\d\d,\d{3} are free"):
        copy_of(bucket, mounted / "cache").pull()
    assert not bucket.proxy.sent
    (mounted / "full").unlink()
    copy_of(bucket, mounted / "cache").pull()
    (mounted / "full").write_bytes(bytes(os.statvfs(mounted).f_bavail * os.statvfs(mounted).f_frsize))
    copy_of(bucket, mounted / "cache").pull()


def test_a_disk_that_fills_up_meanwhile_is_one_line(
    bucket: Bucket, mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mounted / "full").write_bytes(bytes(4 * 2**20 - 150_000))
    monkeypatch.setattr(LocalCopy, "_check_room", lambda *_: None)
    with pytest.raises(UserError, match=r"cannot write .*(No space left|disk).*--data.local_cache"):
        copy_of(bucket, mounted / "cache").pull()


def test_threads_of_several_processes_pull_once(bucket: Bucket, tmp_path: Path) -> None:
    """One pulls, under the lock; the others wait, and say so."""
    shown: list[str] = []
    copies = [copy_of(bucket, tmp_path) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda copy: copy.pull(lambda what, *_: shown.append(what)), copies))
    assert is_whole(tmp_path) and set(shown) == {"MB pulled from s3://bucket/set"}
    assert sum(bucket.proxy.sent.values()) == sum(map(len, CONTENT.values()))


@pytest.mark.parametrize("by", ["lines", "the process's own"])
def test_what_nobody_is_given_to_show_is_shown(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, shown = list[str](), list[tuple[str, int, int]]()
    monkeypatch.setattr(local_copy, "_shown_by", None)
    monkeypatch.setattr(local_copy, "_print", lines.append)
    if by != "lines":
        show_pulls_by(lambda *news: shown.append(news))
    copy_of_one_file(tmp_path).pull()
    what = f"MB pulled from file://{tmp_path / 'bucket'}"
    assert lines == ([f"{what}: 3 of 3"] if by == "lines" else [])
    assert set(shown) == (set() if by == "lines" else {(what, 3, 3)})


def test_a_line_is_said_at_once_and_every_half_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    said, clock = list[str](), iter((100.0, 129.0, 131.0, 140.0, 162.0))
    monkeypatch.setattr(local_copy.time, "monotonic", lambda: next(clock))
    show = Announced(said.append)
    for done in (10, 20, 320, 350, 630):
        show("MB pulled", done, 900)
    assert said == ["MB pulled: 10 of 900", "MB pulled: 320 of 900, 10 MB/s", "MB pulled: 630 of 900, 10 MB/s"]


PULL = """
import sys
from pathlib import Path
from tests.io.test_local_copy import pieces_of
from tt_ray.io.local_copy import LocalCopy
from tt_ray.io.remote import Remote
LocalCopy(Remote.open(sys.argv[1], "data.root"), Path(sys.argv[2]), pieces_of(sys.argv[3])).pull()
"""


def pieces_of(text: str) -> dict[str, Piece]:
    import json

    return {name: Piece(*piece) for name, piece in json.loads(text).items()}


@pytest.mark.slow
def test_killed_it_continues_and_the_lock_dies_with_it(bucket: Bucket, tmp_path: Path) -> None:
    """Killed with some files whole and one half there, while another process waits, which then takes over."""
    import json

    hold = {"on": True}
    bucket.proxy.fault = lambda method, path, number: (
        "busy" if hold["on"] and method == "GET" and path.endswith("5.tar") and number > 1 else ""
    )
    text = json.dumps({name: list(vars(piece).values()) for name, piece in pieces().items()})
    command = [sys.executable, "-c", PULL, bucket.uri("set"), str(tmp_path), text]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    first = subprocess.Popen(command, env=environment)
    wait_until(lambda: all((tmp_path / name).exists() for name in NAMES[:5]) or first.poll() is not None, 60)
    second = multiprocessing.get_context("spawn").Process(target=_pull_in, args=(bucket.uri("set"), tmp_path, text))
    second.start()
    assert first.poll() is None and second.is_alive()
    first.send_signal(signal.SIGKILL)
    first.wait()
    bucket.proxy.sent.clear()
    hold["on"] = False
    second.join(60)
    assert second.exitcode == 0 and is_whole(tmp_path)
    assert {path for path, count in bucket.proxy.sent.items() if count} <= {"/bucket/set/a/5.tar"}


def _pull_in(uri: str, folder: Path, text: str) -> None:
    LocalCopy(Remote.open(uri, "data.root"), folder, pieces_of(text)).pull()


def test_several_copies_are_pulled_together(bucket: Bucket, tmp_path: Path) -> None:
    whole = copy_of(bucket, tmp_path)
    halves = [
        LocalCopy(whole.remote, tmp_path, {name: pieces()[name] for name in names}) for names in (NAMES[:2], NAMES[2:])
    ]
    pull_together([halves[0], None, halves[1]])
    assert is_whole(tmp_path)


def test_folders_of_the_cache_have_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    one, other = cache_folder("", "s3://bucket/a"), cache_folder("", "s3://bucket/b")
    assert one != other and one.parent == tmp_path / "tt-ray" / "data" and one.name.startswith("bucket-a-")
    assert cache_folder("~/x", "s3://bucket/a").parent == Path.home() / "x"
    assert local_copy.THREADS >= 8
