"""Captions -> store by actors on a real Ray: the same as by one process, whoever is killed."""

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.embedding_here import (
    SHARD,
    WITH_RAY,
    Recorder,
    arguments,
    contents,
    do_here,
    interrupted,
    spoil,
    table,
    unfinished,
)
from tests.embedding_here import cluster as cluster
from tests.embedding_here import encoder as encoder
from tests.embedding_here import no_ray as no_ray
from tests.embedding_here import one_thread as one_thread
from tests.embedding_here import small_shards as small_shards
from tests.test_train_command import REPOSITORY, processes_with, wait_until
from tests.text.toy_encoders import WORDS
from tt_ray import embed_captions
from tt_ray.cluster.actor_pool import PoolOptions
from tt_ray.embed_captions import Arguments, embed
from tt_ray.terminal.errors import UserError


@WITH_RAY
@pytest.mark.slow
def test_two_actors_make_the_store_that_one_process_makes(
    tmp_path: Path, encoder: str, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arguments(tmp_path, encoder, pool=PoolOptions(actors=2))
    display = Recorder()
    embed(given, display)
    assert display.embedded[0] == (0, 60) and display.embedded[-1] == (60, 60)
    monkeypatch.setattr(embed_captions, "do_missing", do_here)
    here = arguments(tmp_path, encoder, "here")
    embed(here, Recorder())
    assert contents(given.out) == contents(here.out)


@WITH_RAY
@pytest.mark.slow
def test_what_an_actor_refuses_reaches_the_user(tmp_path: Path, encoder: str, cluster: None) -> None:
    copy = shutil.copytree(encoder, tmp_path / "encoder")
    given = arguments(tmp_path, str(copy), pool=PoolOptions(actors=1))
    spoil(copy)
    with pytest.raises(UserError, match="not finite as float16"):
        embed(given, Recorder())
    assert not list(unfinished(given).glob("*.shard"))


@WITH_RAY
@pytest.mark.slow
def test_an_actor_with_another_encoder_does_nothing(
    tmp_path: Path, encoder: str, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(encoder, tmp_path / "encoder")
    given = arguments(tmp_path, str(copy), pool=PoolOptions(actors=1))
    with monkeypatch.context() as patch:
        patch.setattr(embed_captions, "do_missing", do_here)
        kept = interrupted(given, SHARD)
    spoil(copy)  # it would say so if it encoded anything
    with pytest.raises(UserError, match="was begun with other revision"):
        embed(given, Recorder())
    assert kept.items() <= contents(unfinished(given)).items() and len(list(unfinished(given).glob("*.shard"))) == 1


@pytest.mark.slow
def test_too_many_actors_are_refused(tmp_path: Path, encoder: str, cluster: None) -> None:
    with pytest.raises(UserError, match="3 actors with 1 CPUs each do not fit the cluster, which has 2 CPUs"):
        embed(arguments(tmp_path, encoder, pool=PoolOptions(actors=3)), Recorder())


def only_progress(lines: list[str]) -> None:
    """Nothing of Ray's on stderr."""
    assert all(re.match(r"(captions embedded|starting Ray): \d+ of \d+", line) for line in lines), lines


@pytest.mark.slow
@pytest.mark.release
def test_killed_drivers_and_workers_cost_only_what_was_in_flight(
    tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the driver is killed the same command goes on; a worker that is killed is started again."""
    monkeypatch.undo()  # shards as they are for users
    many = [" ".join(words) for words in itertools.product(WORDS[4:], repeat=6)][: 8 * embed_captions._SHARD]
    captions, out = table(tmp_path / "captions.parquet", many), tmp_path / "store"
    words = [str(captions), "--out", str(out), "--encoder", encoder, "--batch_size", "16"]
    unfinished, mark = tmp_path / "store.unfinished", f"TT_RAY_TEST={tmp_path}"

    def finished() -> set[str]:
        return {path.name for path in unfinished.glob("0*.shard")}

    def start(*more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tt_ray.embed_captions", *words, *more]
        environment = {**os.environ, "TT_RAY_TEST": str(tmp_path)}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, start_new_session=True, stdout=pipe, stderr=pipe, text=True
        )

    first = start("--actors", "1")
    try:
        wait_until(lambda: len(finished()) >= 2 or first.poll() is not None, 120)
        assert first.poll() is None, "it must be killed before its end"
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        out_text, err = first.communicate()
    assert not out_text and not out.exists()
    only_progress(err.splitlines())
    kept = finished()
    wait_until(lambda: not processes_with(mark), 60)

    again = start("--actors", "1")
    try:
        wait_until(lambda: len(finished()) > len(kept) or again.poll() is not None, 120)
        (worker,) = (pid for pid in processes_with(mark) if b"(Actor)" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(int(worker), signal.SIGKILL)
        out_text, err = again.communicate(timeout=240)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(again.pid, signal.SIGKILL)
    assert again.returncode == 0, err
    assert out_text == f"embedding store {out}: {len(many)} images, {len(many)} distinct captions\n"
    lines = err.splitlines()
    assert lines[0] == f"continuing {unfinished}: {len(kept)} of 8 shards are done"
    only_progress(lines[1:])
    monkeypatch.setattr(embed_captions, "do_missing", do_here)
    whole = tmp_path / "whole"
    embed(Arguments(captions, whole, encoder, batch_size=16), Recorder())
    assert contents(out) == contents(whole)
