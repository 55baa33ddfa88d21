"""Captions of a training in a pool of actors: the store of one process, resumed, made once, and by whom."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.embedding_here import CAPTIONS, WITH_RAY, Recorder, contents, do_here, spoil
from tests.embedding_here import cluster as cluster
from tests.embedding_here import encoder as encoder
from tests.embedding_here import one_thread as one_thread
from tests.toy import toy_config
from tt_ray.cluster import caption_actors, launch, run
from tt_ray.cluster.actor_pool import PoolOptions
from tt_ray.cluster.caption_actors import embed_in_actors
from tt_ray.embeddings import build
from tt_ray.embeddings.store import open_store
from tt_ray.io.one_writer import beside, one_writer
from tt_ray.terminal.command import in_background
from tt_ray.terminal.errors import UserError
from tt_ray.text.encoder import load_text_encoder
from tt_ray.training import preflight

IDS = pa.array([f"{number}.jpg" for number in range(len(CAPTIONS))], pa.string())
TEXTS = pa.array(CAPTIONS, pa.string())
TWO = PoolOptions(actors=2, device="cpu")


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that there are several."""
    for module, name in ((caption_actors, "_SHARD"), (build, "_BLOCK")):
        monkeypatch.setattr(module, name, 16)


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_actors, "do_missing", do_here)


def embed(encoder: str, path: Path, display: Recorder | None = None) -> dict[str, bytes]:
    embed_in_actors(IDS, TEXTS, encoder, path, TWO, display or Recorder())
    return contents(path)


def by_one_process(encoder: str, path: Path) -> dict[str, bytes]:
    build.embed_captions(IDS, TEXTS, load_text_encoder(encoder), path)
    return contents(path)


def same(one: dict[str, bytes], other: dict[str, bytes]) -> bool:
    """Whether stores are the same byte for byte, but for the precision, which a pool notes."""
    manifests = [json.loads(files.pop("manifest.json")) for files in (one, other)]
    for manifest in manifests:
        manifest["encoder"].pop("precision", None)
    return one == other and manifests[0] == manifests[1]


@WITH_RAY
@pytest.mark.slow
def test_actors_make_the_store_of_one_process_and_leave_the_cluster_free(
    tmp_path: Path, encoder: str, cluster: None
) -> None:
    import ray

    found = in_background(embed, encoder, tmp_path / "pool")  # as a training's preparation is
    assert same(found.result(), by_one_process(encoder, tmp_path / "one"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "pool"]

    # Workers of the training find their GPUs free: actors do not outlive their work.
    @ray.remote(num_cpus=2)
    def worker() -> bool:
        return True

    assert ray.get(worker.remote(), timeout=60)


def test_a_kill_costs_what_was_in_flight(tmp_path: Path, encoder: str, no_ray: None) -> None:
    path = tmp_path / "store"
    with pytest.raises(KeyboardInterrupt):
        embed(encoder, path, Recorder(stop_at=32))
    assert not path.exists() and len(list((tmp_path / "store.unfinished").glob("*.shard"))) == 2
    display = Recorder()
    assert same(embed(encoder, path, display), by_one_process(encoder, tmp_path / "one"))
    assert "2 of 4 shards are done" in display.said[0] and display.embedded[-1] == (28, 28)
    assert not (tmp_path / "store.unfinished").exists()


def test_of_two_commands_one_embeds_and_the_other_waits(
    tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, display, other = tmp_path / "store", Recorder(), ExitStack()
    other.enter_context(one_writer(beside(tmp_path / "store.unfinished"), "store"))
    stores: list[dict[str, bytes]] = []

    def finish(seconds: float) -> None:
        stores.append(by_one_process(encoder, path))
        other.close()

    monkeypatch.setattr(caption_actors.time, "sleep", finish)
    monkeypatch.setattr(caption_actors, "do_missing", lambda *_: pytest.fail("embedded twice"))
    assert embed(encoder, path, display) == stores[0] and len(display.said) == 1
    assert "is being written by process" in display.said[0] and "--out" not in display.said[0]
    assert [file.name for file in tmp_path.iterdir()] == ["store"]


def test_an_embedding_that_is_not_finite_is_named_as_by_one_process(tmp_path: Path, encoder: str, no_ray: None) -> None:
    copy = shutil.copytree(encoder, tmp_path / "encoder")
    spoil(copy)
    lines = []
    for make in (embed, by_one_process):
        with pytest.raises(UserError, match=r"the embedding of image \d+.jpg is not finite as float16") as error:
            make(str(copy), tmp_path / "store")
        lines.append(str(error.value))
    assert lines[0] == lines[1] and [path.name for path in tmp_path.iterdir()] == ["encoder"]


# Which process embeds


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """A training up to its workers, on a Ray that is not there; what has embedded its captions."""
    by: list[Any] = []

    def actors(ids: Any, captions: Any, encoder: str, path: Path, options: PoolOptions, display: Any) -> None:
        by.append(options)
        build.embed_captions(ids, captions, load_text_encoder(encoder), path)

    def here(*arguments: Any) -> None:
        by.append("this process")
        build.embed_captions(*arguments)

    monkeypatch.setattr(caption_actors, "embed_in_actors", actors)
    monkeypatch.setattr("tt_ray.embeddings.ensure.embed_captions", here)
    monkeypatch.setattr(launch, "start_ray", lambda config, say: by.append("Ray") or False)
    monkeypatch.setattr(launch, "train_on_ray", lambda *_, **__: {"top1": 1.0})
    monkeypatch.setattr(preflight, "try_model", lambda *_: None)
    monkeypatch.setattr(run, "Messages", lambda: SimpleNamespace(send=print))
    monkeypatch.setattr(run, "ProgressThread", lambda *_: ExitStack())
    yield by


@pytest.mark.parametrize("use_gpu", [False, True])
def test_a_training_on_gpus_has_the_cluster_embed(
    tmp_path: Path, encoder: str, started: list[Any], use_gpu: bool
) -> None:
    config = toy_config(tmp_path, run__use_gpu=use_gpu).override({"text.embeddings": "", "text.encoder": encoder})
    run.train_run(config)
    assert set(started) == {"Ray", PoolOptions(device="gpu") if use_gpu else "this process"}
    assert not use_gpu or started[0] == "Ray", "actors need it"
    (store,) = (tmp_path / "embeddings").iterdir()
    assert np.isfinite(open_store(store, verify=True).embeddings).all()
    del started[:]
    run.train_run(config.override("run.name", "other"))
    assert started == ["Ray"], "once for all runs"


def test_without_a_cluster_nothing_waits_for_it(
    tmp_path: Path, encoder: str, started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_small(config: Any, say: Any) -> bool:
        raise UserError("too small")

    threads: list[Any] = []
    monkeypatch.setattr(launch, "start_ray", too_small)
    monkeypatch.setattr(run, "in_background", lambda *given: threads.append(in_background(*given)) or threads[0])
    config = toy_config(tmp_path, run__use_gpu=True).override({"text.embeddings": "", "text.encoder": encoder})
    with pytest.raises(UserError, match="too small"):
        run.train_run(config)
    with pytest.raises(UserError, match="too small"):
        threads[0].result(60)
    assert not started
