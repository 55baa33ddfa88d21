"""Claims: a store of 1.3 M embeddings opens in under 1 s and joins 1.28 M images in under 5 s; against the obvious
alternative, a zip of .npy files cached in a dict, it opens 100 times faster and four processes take a tenth of the
memory.

    python -m benchmarks.embedding_store            # 1.3 M x 1024 float16: 3 GB of disk, some minutes on two cores

Every figure is taken in fresh processes. The alternative has --zip-rows rows of float32, as TextTeacher's files have;
its seconds and bytes are multiplied up to --rows. The store has float16: half of the difference in memory is precision,
which a dict could have too. Each process fills a dict of its own, as the ranks of a training do. The zip's "open" reads
the names of its members, the store's reads no ids, which is left to its join: "until ready" is all of open, fill and
join. What is not needed any more then is let go of on both sides: ids, names, the dict's keys. Memory is the growth of
PSS, which shares a page out among the processes that map it, so that a sum over processes is what they take of the
machine: RSS would count the store's pages once for each of them. All rows have been read then. Of the store's PSS
nearly all is clean pages of a file, which the kernel drops when it needs them; "must stay" is the rest (Pss_Anon),
which it cannot.
"""

import argparse
import io
import json
import multiprocessing
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from tt_ray.embeddings.build import write_store
from tt_ray.embeddings.store import open_store

_BLOCK = 8192
_SPAWN = multiprocessing.get_context("spawn")
STORE, ZIP = "embedding store", "zip and dict"


def image_ids(rows: int) -> pa.StringArray:
    """Ids like ImageNet's."""
    return pa.array([f"n{row % 1000:08d}/n{row % 1000:08d}_{row}.JPEG" for row in range(rows)], pa.string())


def make_store(path: Path, rows: int, dim: int) -> None:
    """Random embeddings: one block of them, shifted by a column each time, as drawing all would take long."""

    def blocks() -> Iterator[np.ndarray]:
        block = np.random.default_rng(0).standard_normal((_BLOCK, dim), np.float32).astype(np.float16)
        for start in range(0, rows, _BLOCK):
            yield np.roll(block, start // _BLOCK, axis=1)[: rows - start]

    write_store(path, image_ids(rows), blocks(), dim, "float16", {"id": "random"})


def make_zip(path: Path, rows: int, dim: int) -> None:
    """`<image id>.emb.npy` members, stored, float32."""
    table = np.random.default_rng(0).standard_normal((rows, dim), np.float32)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for image, vector in zip(image_ids(rows).to_pylist(), table, strict=True):
            content = io.BytesIO()
            np.save(content, vector)
            file.writestr(f"{image}.emb.npy", content.getvalue())


def use_store(path: Path, images: pa.StringArray, batch: int) -> tuple[dict[str, float], Any]:
    """Seconds of opening, of joining and of a random batch after all rows have been read; and what is to be kept."""
    seconds = {}
    began = time.perf_counter()
    store = open_store(path)
    seconds["open"] = time.perf_counter() - began
    rng = np.random.default_rng(1)
    wanted = images.take(pa.array(rng.permutation(len(images))))
    began = time.perf_counter()
    index = store.rows_of(wanted).astype(np.int32)  # as training keeps it
    seconds["join"] = time.perf_counter() - began
    del wanted
    read = [store.embeddings[rows].astype(np.float32).sum() for rows in _batches(rng, len(store), batch)]
    times = _times(lambda rows: store.embeddings[index[rows]].astype(np.float32), rng, len(index), batch)
    seconds["batch"] = median(times)
    return seconds, (store, index, sum(read))


def use_zip(path: Path, images: pa.StringArray, batch: int) -> tuple[dict[str, float], Any]:
    """The same for the dict, which joins by looking up; filling it is what makes its batches fast.

    Kept is a reference to each image's embedding.
    """
    seconds = {}
    began = time.perf_counter()
    file = zipfile.ZipFile(path)
    names = file.namelist()
    seconds["open"] = time.perf_counter() - began
    began = time.perf_counter()
    cache: dict[str, np.ndarray] = {}
    for name in names:
        cache[name.removesuffix(".emb.npy")] = np.load(io.BytesIO(file.read(name)), allow_pickle=False)
    seconds["fill"] = time.perf_counter() - began
    rng = np.random.default_rng(1)
    wanted = images.take(pa.array(rng.permutation(len(images)))).to_pylist()
    began = time.perf_counter()
    found = [cache[image] for image in wanted]
    seconds["join"] = time.perf_counter() - began
    file.close()
    del file, names, cache, wanted
    times = _times(lambda rows: np.stack([found[row] for row in rows]), rng, len(found), batch)
    seconds["batch"] = median(times)
    return seconds, found


def _batches(rng: np.random.Generator, rows: int, batch: int) -> list[np.ndarray]:
    order = rng.permutation(rows)
    return [order[start : start + batch] for start in range(0, rows, batch)]


def _times(read: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator, images: int, batch: int) -> list[float]:
    times = []
    for rows in _batches(rng, images, batch)[:200]:
        began = time.perf_counter()
        read(rows)
        times.append(time.perf_counter() - began)
    return times


def memory() -> dict[str, int]:
    """This process's bytes: PSS, and the part of it that is not of files."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
    return {"pss": kilobytes["Pss"] * 1024, "must stay": kilobytes["Pss_Anon"] * 1024}


def reader(side: str, path: Path, images: int, batch: int, barrier: Barrier, answers: Any) -> None:
    """One process: what it took, in seconds, and by how many bytes it grew, while all others hold theirs as well."""
    use = use_store if side == STORE else use_zip
    wanted = image_ids(images)  # training has them anyway
    pa.default_memory_pool().release_unused()
    before = memory()
    seconds, held = use(path, wanted, batch)
    barrier.wait()
    grown = {name: value - before[name] for name, value in memory().items()}
    barrier.wait()
    del held, wanted
    answers.put((seconds, grown))


def processes(count: int, side: str, path: Path, images: int, batch: int) -> list[tuple[dict[str, float], Any]]:
    """The answers of as many readers side by side."""
    barrier, answers = _SPAWN.Barrier(count), _SPAWN.Queue()
    jobs = [_SPAWN.Process(target=reader, args=(side, path, images, batch, barrier, answers)) for _ in range(count)]
    for job in jobs:
        job.start()
    given = [answers.get(timeout=1800) for _ in jobs]
    for job in jobs:
        job.join()
    return given


def measure(given: argparse.Namespace, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Values per round of each figure, for the store and for the alternative, multiplied up to `rows`."""
    began = time.perf_counter()
    make_store(folder / "store", given.rows, given.dim)
    values: dict[str, dict[str, list[float]]] = {"write (s)": {STORE: [time.perf_counter() - began]}}
    make_zip(folder / "all.zip", given.zip_rows, given.dim)
    paths = {STORE: (folder / "store", given.images, 1.0)}
    paths[ZIP] = (folder / "all.zip", given.zip_rows, given.rows / given.zip_rows)

    def add(what: str, side: str, value: float) -> None:
        values.setdefault(what, {}).setdefault(side, []).append(value)

    for _ in range(given.repeats):
        for side, (path, images, factor) in paths.items():
            ((seconds, grown),) = processes(1, side, path, images, given.batch)
            parts = [name for name in ("open", "fill", "join") if name in seconds]
            for name in parts:
                add(f"{name} (s)", side, seconds[name] * factor)
            add("until ready (s)", side, sum(seconds[name] for name in parts) * factor)
            add(f"batch of {given.batch} (ms)", side, seconds["batch"] * 1e3)
            for name, size in grown.items():
                add(f"memory of 1 process, {name} (GB)", side, size * factor / 1e9)
        for side, (path, images, factor) in paths.items():
            answers = processes(given.processes, side, path, images, given.batch)
            for name in ("pss", "must stay"):
                total = sum(grown[name] for _, grown in answers)
                add(f"memory of {given.processes} processes, {name} (GB)", side, total * factor / 1e9)
    return values


AIMS = {"open (s)": "<= 0.01, < 1 s", "join (s)": "< 5 s", "processes, pss": "<= 0.1"}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    given = read_arguments(arguments)
    folder = Path(tempfile.mkdtemp(dir=given.folder))
    try:
        values = measure(given, folder)
    finally:
        shutil.rmtree(folder)
    from benchmarks.step_cost import Side, compare  # torch comes with it, which the readers must not have

    settings = {key: value for key, value in vars(given).items() if key not in ("out", "folder")}
    result: dict[str, Any] = {"settings": settings, "aims": AIMS}
    print(
        f"| | {STORE} | {ZIP}, times {given.rows / given.zip_rows:.0f} | ratio | aim |\n| --- | --- | --- | --- | --- |"
    )
    for what, sides in values.items():
        cells = [f"{median(sides[side]):.3g}" if side in sides else "" for side in (STORE, ZIP)]
        result[what], ratio = sides, ""
        if len(sides) == 2:
            result[what] = compare(Side(STORE, sides[STORE]), Side(ZIP, sides[ZIP]), what)
            ratio = f"{result[what]['ratio']['median']:.3g}"
        aim = next((text for name, text in AIMS.items() if name in what), "")
        print(f"| {what} | {' | '.join(cells)} | {ratio} | {aim} |")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n")


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_300_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--images", type=int, default=1_280_000, help="images that are joined with the store")
    parser.add_argument("--zip-rows", type=int, default=50_000, help="rows that the alternative is measured with")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, help="where the files are made and deleted; a temporary one if not given"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "embedding_store.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
