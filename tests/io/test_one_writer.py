"""Of two commands at once one writes; dead ones are in nobody's way. With real processes, one on "another host"."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tt_ray.io import one_writer as module
from tt_ray.io.one_writer import beside, inside, one_writer
from tt_ray.terminal.errors import UserError

HOLD = """
import sys
from pathlib import Path
from tt_ray.io import one_writer
one_writer.BEAT_S = 0.2
with one_writer.one_writer(Path(sys.argv[1]), "run x", "give another name", sys.argv[2]):
    print("holds", flush=True)
    sys.stdin.read()
"""
CONTEST = """
import sys, time
from pathlib import Path
from tt_ray.terminal.errors import UserError
from tt_ray.io.one_writer import one_writer
sys.stdin.readline()
try:
    with one_writer(Path(sys.argv[1]), "run x", "give another name", sys.argv[2]):
        print("holds", flush=True)
        sys.stdin.read()
except UserError as error:
    print(error, flush=True)
"""
APART = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts", "sh", "-c")
APART = (*APART, 'hostname elsewhere; exec "$0" "$@"')
"""A process with process numbers and a host name of its own, as in another container or on another host."""


@contextmanager
def holder(place: Path, *before: str, storage: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that holds `place` until its input ends."""
    command = [*before, sys.executable, "-c", HOLD, str(place), storage]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "holds\n":
                pytest.skip("needs the right to make namespaces")
            yield process
        finally:
            process.kill()


def refused(place: Path, storage: str = "") -> str:
    with pytest.raises(UserError) as caught, one_writer(place, "run x", "give another name", storage):
        pytest.fail("there are two writers")
    return str(caught.value)


def age(place: Path, seconds: float) -> None:
    """Makes all claims so much older."""
    for path in place.glob("*.json"):
        os.utime(path, (time.time() - seconds,) * 2)


def claims(place: Path) -> list[Path]:
    return sorted(place.glob("*.json"))


def test_the_second_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    place = beside(tmp_path / "runs" / "x")
    with holder(place) as first:
        text = refused(place)
        (claim,) = (json.loads(path.read_text()) for path in claims(place))
        assert claim["pid"] == first.pid
        assert f"run x is being written by process {first.pid} on host {claim['host']} since {claim['since']}" in text
        assert text.endswith("wait for it, or give another name") and "\n" not in text
        assert len(claims(place)) == 1, "the refused one leaves its claim"
        first.communicate()
    assert not (tmp_path / "runs").exists(), "something is left"
    with one_writer(place, "run x", "give another name"):
        assert len(claims(place)) == 1


def test_a_killed_writer_is_in_nobodys_way(tmp_path: Path) -> None:
    with holder(inside(tmp_path)) as first:
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert claims(inside(tmp_path))
        with one_writer(inside(tmp_path), "run x", "give another name"):
            assert len(claims(inside(tmp_path))) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_writer_lives(tmp_path: Path) -> None:
    with holder(inside(tmp_path)) as first:
        first.send_signal(signal.SIGSTOP)
        age(inside(tmp_path), 1000)
        assert f"process {first.pid} " in refused(inside(tmp_path))


def test_a_later_process_of_the_same_number_is_another(tmp_path: Path) -> None:
    with holder(inside(tmp_path)) as first:
        (path,) = claims(inside(tmp_path))
        tree = json.loads(path.read_text())
        first.kill()
        first.wait()
    path.write_text(json.dumps(tree | {"pid": os.getpid()}))
    with one_writer(inside(tmp_path), "run x", "give another name"):
        assert path not in claims(inside(tmp_path))


def test_a_writer_on_another_host_lives_while_its_heart_beats(tmp_path: Path) -> None:
    with holder(inside(tmp_path), *APART):
        assert "on host elsewhere since" in refused(inside(tmp_path))


def test_a_writer_on_another_host_is_dead_when_its_heart_has_not_beaten_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = list[str]()
    with holder(inside(tmp_path), *APART) as first:
        os.kill(_child(first.pid), signal.SIGKILL)
        first.wait()
        (path,) = claims(inside(tmp_path))
    monkeypatch.setattr(module, "DEAD_S", 3.0)
    with one_writer(inside(tmp_path), "run x", "give another name", say=said.append):
        assert path not in claims(inside(tmp_path))
    assert len(said) == 1 and "on host elsewhere since" in said[0] and "waiting up to 3 s" in said[0]
    assert list(tmp_path.iterdir()) == []


def _child(pid: int) -> int:
    """The process that unshare has forked."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def test_a_claim_of_long_ago_makes_nobody_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda _: pytest.fail("it waits"))
    for content in ('{"of": "another version"}', "", _elsewhere()):
        inside(tmp_path).mkdir()
        (inside(tmp_path) / "0.json").write_text(content)
        age(inside(tmp_path), 61)
        with one_writer(inside(tmp_path), "run x", "give another name"):
            assert "0.json" not in [path.name for path in claims(inside(tmp_path))]


def _elsewhere(**changes: object) -> str:
    own = module.asdict(module.Claim.own())
    return json.dumps(own | {"machine": "another", "holds": True} | changes)


def test_a_writer_that_was_taken_for_dead_ends_before_it_writes_more(tmp_path: Path) -> None:
    with holder(inside(tmp_path), *APART) as first:
        first.send_signal(signal.SIGSTOP)
        os.kill(_child(first.pid), signal.SIGSTOP)
        age(inside(tmp_path), 61)
        with one_writer(inside(tmp_path), "run x", "give another name"):
            os.kill(_child(first.pid), signal.SIGCONT)
            first.send_signal(signal.SIGCONT)
            assert first.wait(20) == 1
            assert len(claims(inside(tmp_path))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_of_many_at_once_one_writes(number: int, tmp_path: Path) -> None:
    place = beside(tmp_path / "x")
    with ExitStack() as stack:
        start = [sys.executable, "-c", CONTEST, str(place), ""]
        processes = [
            stack.enter_context(subprocess.Popen(start, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(6)
        ]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = [_line(process) for process in processes]
        assert sorted(answer == "holds\n" for answer in answers) == [False] * 5 + [True], answers
        for process in processes:
            process.communicate()
    assert list(tmp_path.iterdir()) == []


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize("make", [lambda path: path.write_text(""), lambda path: path.mkdir(mode=0o500)])
def test_a_place_that_cannot_be_written_is_named(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "out")
    if os.access(tmp_path / "out", os.W_OK) and (tmp_path / "out").is_dir():
        pytest.skip("root may write everywhere")
    place, line = inside(tmp_path / "out"), "cannot write results out .*: fix this, or choose another --out"
    with pytest.raises(UserError, match=line), one_writer(place, "results out", "choose another --out"):
        pytest.fail("it was written")


def test_an_error_inside_frees_the_place(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), one_writer(inside(tmp_path), "run x", "give another name"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


# Every command that writes


ARMS = ["a=shapes_baseline", "b=shapes_textteacher"]
COMMANDS: dict[str, tuple[list[str], Callable[[Path], Path]]] = {
    "tt_ray.train": (["shapes_baseline", "--run.storage", "OUT", "--run.name", "r"], lambda out: beside(out / "r")),
    "tt_ray.train overwrite": (
        ["shapes_baseline", "--run.storage", "OUT", "--run.name", "r", "--run.overwrite", "True"],
        lambda out: beside(out / "r"),
    ),
    "tt_ray.tune": (["loss_weight", "--out", "OUT"], inside),
    "tt_ray.compare": (["--arms", *ARMS, "--tasks", "none", "--out", "OUT"], inside),
    "tt_ray.embed_captions": (["captions.csv", "--out", "OUT"], beside),
    "tt_ray.caption_images": (["--data.root", ".", "--template", "a {label}", "--out", "OUT"], beside),
    "tt_ray.convert_captions": (["captions.csv", "--out", "OUT"], beside),
    "tt_ray.embeddings.__main__": (["import-zip", "a.zip", "--out", "OUT"], beside),
    "tt_ray.export": (["run", "--out", "OUT"], beside),
    "eval.__main__": (["--models", "a=random:resnet18", "--out", "OUT"], inside),
    "eval.text_until": (["--out", "OUT"], inside),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_refused_what_another_writes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, place = COMMANDS[name]
    module = importlib.import_module(name.split()[0])
    main = importlib.import_module(
        f"{module.__name__}.__main__" if hasattr(module, "__path__") else module.__name__
    ).main
    with holder(place(tmp_path / "out")) as first:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UserError, match=f"is being written by process {first.pid} on host"):
            main([word.replace("OUT", str(tmp_path / "out")) for word in arguments])
        assert sorted(tmp_path.rglob("*")) == before
