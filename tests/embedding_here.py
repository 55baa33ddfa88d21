"""Captions that are embedded in this process by a toy encoder, in small shards; and what interrupts that."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.cluster.ray_here import stop_ray
from tests.text.toy_encoders import WORDS, bert
from tt_ray import embed_captions
from tt_ray.cluster.actor_pool import Pool, PoolOptions, Worker
from tt_ray.embed_captions import Arguments, embed
from tt_ray.io.resumable import Shards
from tt_ray.terminal.progress import Display

CPU = Pool(1, 1, False)
SENTENCES = [" ".join(words) for length in (1, 2, 3) for words in itertools.product(WORDS[4:], repeat=length)]
# Some captions come twice, side by side and far apart.
CAPTIONS = [*SENTENCES[:30], *SENTENCES[29:60], *SENTENCES[:7]]
SHARD = 16


class Recorder(Display):
    """Keeps what is shown; stops at a given number of captions or images, as a kill would."""

    def __init__(self, stop_at: float = float("inf"), what: str = "captions embedded") -> None:
        super().__init__()
        self.what = what
        self.shown: list[tuple[str, int, int]] = []
        self.said: list[str] = []
        self.stop_at = stop_at

    def show(self, what: str, done: int, of: int, detail: str = "") -> None:
        self.shown.append((what, done, of))
        if what == self.what and done >= self.stop_at:
            raise KeyboardInterrupt

    def say(self, text: str) -> None:
        self.said.append(text)

    @property
    def embedded(self) -> list[tuple[int, int]]:
        return [(done, of) for what, done, of in self.shown if what == "captions embedded"]


def do_here(
    shards: Shards,
    items: Sequence[Sequence[Any]],
    make: Callable[[Pool], Worker],
    options: PoolOptions,
    display: Display,
    what: str,
) -> None:
    """What a pool does, without Ray and in order."""
    worker, missing = make(CPU), shards.missing()
    done, of = 0, sum(len(items[shard]) for shard in missing)
    for shard in missing:
        shards.check(worker.about)
        shards.add(shard, worker.about, worker(list(items[shard])))
        done += len(items[shard])
        display.show(what, done, of)


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_captions, "do_missing", do_here)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As actors have; two for such small models are far slower than one on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_captions, "_SHARD", SHARD)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all tests of this file; two actors take all of its CPUs."""
    ray = pytest.importorskip("ray")
    ray.init(address="local", num_cpus=2, log_to_driver=False)
    yield
    stop_ray()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    bert(folder)
    return str(folder)


def table(path: Path, captions: list[str] = CAPTIONS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = [f"{number}.jpg" for number in range(len(captions))]
    pq.write_table(pa.table({"image_id": ids, "caption": captions}), path)
    return path


def arguments(folder: Path, encoder: str, out: str = "store", **options: Any) -> Arguments:
    return Arguments(table(folder / "captions.parquet"), folder / out, encoder, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def interrupted(given: Arguments, captions: int) -> dict[str, bytes]:
    """Does a part of the work; returns the finished shards."""
    with pytest.raises(KeyboardInterrupt):
        embed(given, Recorder(stop_at=captions))
    assert not given.out.exists()
    return {name: data for name, data in contents(unfinished(given)).items() if name.endswith(".shard")}


def unfinished(given: Arguments) -> Path:
    return given.out.with_name(f"{given.out.name}.unfinished")


def spoil(folder: Path) -> None:
    """Makes the embeddings of all captions with a dog NaN."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    (name,) = (name for name in weights if name.endswith("word_embeddings.weight"))
    weights[name][WORDS.index("dog")] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


# Ray Data's own settings warn of each other.
WITH_RAY = pytest.mark.filterwarnings("ignore::DeprecationWarning")
