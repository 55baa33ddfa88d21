"""Loader processes: the same batches as without, arrays in one memory, and nothing of the process that starts them."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.data.sources.test_webdataset import jpeg, write
from tests.test_train_command import wait_until
from tests.toy import random_store, toy_config
from tt_ray.data.loader import EvalBatches, TrainBatches
from tt_ray.data.loader_processes import prepared
from tt_ray.data.prepare import open_data
from tt_ray.data.sampling import train_order
from tt_ray.terminal.errors import UserError

_MANY = 1 << 20


class Large:
    """Batches that say where they were made, and what memory of the shared arrays is that process's own."""

    def __init__(self) -> None:
        self.numbers, self.texts = np.arange(_MANY), pa.array([f"image {number}" for number in range(1000)])
        self.small, self.double = np.arange(5), lambda number: 2 * number

    def __getitem__(self, index: int) -> Any:
        total = int(self.numbers.sum())
        before = (self.double(int(self.numbers[index])), self.texts[index].as_py(), int(self.small[index % 5]))
        return os.getpid(), os.getppid(), before, total, own_kilobytes(), torch.get_num_threads()


def own_kilobytes() -> int:
    """Memory of the mapped file that was copied for this process."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        inside = "tt-ray-loaders" in line if "-" in line.split(" ")[0] else inside
        found += int(line.split()[1]) if inside and line.startswith("Anonymous:") else 0
    return found


def test_arrays_are_in_memory_once_and_nothing_is_forked_from_this_process() -> None:
    batches = prepared(Large(), range(3, 9), 2, pin=False)
    found = list(batches)
    assert [before for _, _, before, *_ in found] == [(2 * i, f"image {i}", i % 5) for i in range(3, 9)]
    pids, parents, _, totals, own, threads = (set(values) for values in zip(*found, strict=True))
    assert len(pids) == 2 and len(parents) == 1 and not {os.getpid()} & (pids | parents)
    assert totals == {_MANY * (_MANY - 1) // 2} and own == {0} and threads == {1}


@pytest.mark.parametrize("kept", [False, True])
def test_a_pool_that_is_kept_serves_every_iteration(kept: bool) -> None:
    batches = prepared(Large(), range(4), 1, pin=False, kept=kept)
    first, second = ({pid for pid, *_ in batches} for _ in range(2))
    assert (first == second) is kept


class Damaged(Large):
    def __getitem__(self, index: int) -> Any:
        if index == 2:
            raise UserError("image 2 cannot be read: remove it")
        return index


def test_mistakes_arrive_as_they_were_raised() -> None:
    found = []
    with pytest.raises(UserError, match=r"^image 2 cannot be read: remove it$"):
        found += prepared(Damaged(), range(4), 2, pin=False)
    assert list(prepared(Damaged(), range(2), 0, pin=False)) == [0, 1]


def _folder(root: Path) -> None:
    for split in ("train", "test"):
        for number in range(12):
            path = root / split / f"class{number % 2}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(number, (24, 20)))


def _parquet(root: Path) -> None:
    import pyarrow.parquet as pq

    for split in ("train", "test"):
        rows = [{"image": {"bytes": jpeg(number), "path": None}, "label": number % 2} for number in range(12)]
        pq.write_table(pa.Table.from_pylist(rows), root / f"{split}.parquet")


def _shards(root: Path) -> None:
    for split in ("train", "test"):
        files = [({f"{n}.jpg": jpeg(n), f"{n}.cls": str(n % 2)}) for n in range(12)]
        write(root / f"{split}-0.tar", {name: content for pair in files for name, content in pair.items()})


def _torchvision(root: Path) -> None:
    """The files of Country211."""
    for split in ("train", "valid"):
        for number in range(12):
            path = root / "country211" / split / ("AD", "AE")[number % 2] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(number, (24, 20)))


SOURCES: dict[str, Any] = {
    "shapes": (None, {}),
    "imagefolder": (_folder, {"val_split": "test"}),
    "datasets": (_parquet, {"val_split": "test"}),
    "webdataset": (_shards, {"val_split": "test"}),
    "torchvision": (_torchvision, {"name": "Country211", "val_split": "valid"}),
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_can_be_sent_to_loader_processes(source: str, tmp_path: Path) -> None:
    make, fields = SOURCES[source]
    settings = {f"data__{name}": value for name, value in fields.items()}
    if make is not None:
        make(tmp_path)
        settings["data__root"] = str(tmp_path)
    shared = {"data__source": source, "data__augment": "three_augment", "text__weight": 0.0, "train__batch_size": 4}
    config = toy_config(tmp_path, **shared, **settings)
    data = open_data(config, None)
    order = train_order(config, len(data.train), 0, 1)
    for batches in (TrainBatches(data.train, None, order, config), EvalBatches(data.val, config, 0, 1, 5)):
        here, there = (list(prepared(batches, range(2), number, pin=False)) for number in (0, 1))
        assert_equal(here, there)


def test_targets_of_a_store_come_with_the_images(tmp_path: Path) -> None:
    config = toy_config(tmp_path, data__cache_gb=0.0)
    data = open_data(config, random_store(config, tmp_path / "store"))
    batches = TrainBatches(data.train, data.targets, train_order(config, len(data.train), 0, 1), config)
    assert_equal(*(list(prepared(batches, range(3), number, pin=False)) for number in (0, 1)))


def assert_equal(here: Iterable[Any], there: Iterable[Any]) -> None:
    for one, other in zip(here, there, strict=True):
        for mine, sent in zip(one[:4], other[:4], strict=True):
            assert mine is sent is None or torch.equal(mine, sent)


@pytest.mark.slow
def test_loaders_end_with_the_process_that_uses_them(tmp_path: Path) -> None:
    """However it ends: killed, it can tell nobody."""
    (tmp_path / "script.py").write_text(
        textwrap.dedent("""
        import time
        from tests.data.test_loader_processes import Large
        from tt_ray.data.loader_processes import prepared
        if __name__ == "__main__":
            for pid, parent, *_ in prepared(Large(), range(1000), 1, pin=False):
                print(pid, parent, flush=True)
                time.sleep(600)
        """)
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, tmp_path / "script.py"], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2 and all(Path(f"/proc/{pid}").exists() for pid in pids)
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() and alive(pid) for pid in pids), 30)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
