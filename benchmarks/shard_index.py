"""What opening ImageNet's shards costs: an index of 1,281,167 rows, each with a caption of 40 words.

    python -m benchmarks.shard_index            # a minute on one core, 0.4 GB of disk

Aim: under 2 s and 0.5 GB. Each figure is of a fresh process that opens the training split as a run does, with its
captions, and of its peak memory over what it took before, when all was imported. Words are drawn from 20,000 of
different lengths, so that captions do not compress better than real ones: they are four fifths of what is held.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from tt_ray.config import DataConfig
from tt_ray.data.sources.registry import open_source
from tt_ray.data.sources.tar_index import FIELDS, INDEX, ShardFile, index_table, write_index

pc: Any = pyarrow.compute
AIM_S, AIM_GB = 2.0, 0.5
CLASSES, WORDS, VOCABULARY, LENGTH = 1000, 40, 20_000, 32_000
_SPAWN = multiprocessing.get_context("spawn")


def captions(images: int, rng: np.random.Generator) -> pa.StringArray:
    """Texts of WORDS words, letters and lengths at random: 4.5 letters on average, as in English."""
    letters = "".join(map(chr, rng.integers(ord("a"), ord("z") + 1, 12 * VOCABULARY)))
    vocabulary = pa.array([letters[12 * n : 12 * n + 1 + (5 * n) % 8] for n in range(VOCABULARY)])
    words = vocabulary.take(pa.array(rng.integers(0, VOCABULARY, images * WORDS)))
    return pc.binary_join(pa.ListArray.from_arrays(pa.array(range(0, (images + 1) * WORDS, WORDS)), words), " ")


def make_shards(folder: Path, images: int, per_shard: int) -> None:
    """An index as `tt_ray.pack` writes it, and shards of the right size that hold nothing."""
    rng, tables, shards = np.random.default_rng(0), list[pa.Table](), dict[str, ShardFile]()
    labels = np.sort(rng.integers(0, CLASSES, images))
    for number, start in enumerate(range(0, images, per_shard)):
        rows = min(per_shard, images - start)
        name = f"train-{number:05d}.tar"
        classes = [f"n{label:08d}" for label in labels[start : start + rows]]
        columns = {
            "image_id": [f"{name}/{name}_{start + row}.JPEG" for row, name in enumerate(classes)],
            "label": classes,
            "caption": captions(rows, rng),
            "shard": [name] * rows,
            "offset": np.arange(rows) * LENGTH,
            "length": rng.integers(LENGTH // 2, LENGTH, rows),
            "width": rng.integers(256, 400, rows).astype(np.int32),
            "height": np.full(rows, 256, np.int32),
            "bad": pa.nulls(rows, pa.string()),
            "group": pa.nulls(rows, pa.string()),
        }
        tables.append(pa.table(columns, schema=FIELDS))
        shards[name] = ShardFile(rows * LENGTH, "0" * 64)
        with (folder / name).open("wb") as file:
            file.truncate(rows * LENGTH)
    write_index(index_table(pa.concat_tables(tables), shards), folder / INDEX)


def memory(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most (getrusage's maximum may be that of the process before it)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def opened(folder: str, answers: Any) -> None:
    """Seconds, CPU-seconds and peak memory of opening the training split; sent to `answers`."""
    config = DataConfig(source="webdataset", root=folder)
    open_source(DataConfig(source="shapes"), "train", False)  # imports what opening needs
    import tt_ray.data.sources.webdataset

    assert tt_ray.data.sources.webdataset.SOURCE.takes_uris
    before, began, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    source = open_source(config, "train", True)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = memory("VmHWM")
    assert source.captions is not None and not source.captions.null_count
    held = source.captions.nbytes + source.ids.nbytes
    answers.put(
        {
            "images": len(source),
            "seconds": seconds,
            "cpu seconds": cpu,
            "peak GB": (peak - before) / 1e9,
            "texts GB": held / 1e9,
        }
    )


def measure(folder: Path) -> dict[str, float]:
    """`opened` in a process of its own."""
    answers = _SPAWN.SimpleQueue()
    process = _SPAWN.Process(target=opened, args=(str(folder), answers))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError("the process that opens the index failed")
    return answers.get()


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--per-shard", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "shard_index.json")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_shards(folder, given.images, given.per_shard)
        rounds = [measure(folder) for _ in range(given.repeats)]
        size = (folder / INDEX).stat().st_size / 1e9
    middle = {key: median(each[key] for each in rounds) for key in rounds[0]}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"aim": {"seconds": AIM_S, "peak GB": AIM_GB}, "file GB": size, "median": middle, "rounds": rounds}
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    print("| images | file | open | CPU | peak | ids and captions |\n| --- | --- | --- | --- | --- | --- |")
    print(
        f"| {middle['images']:,.0f} | {size:.2f} GB | {middle['seconds']:.2f} s | {middle['cpu seconds']:.2f} s | "
        f"{middle['peak GB']:.2f} GB | {middle['texts GB']:.2f} GB |"
    )


if __name__ == "__main__":
    main()
