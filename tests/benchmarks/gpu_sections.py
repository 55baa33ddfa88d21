"""Sections for tests of `benchmarks.gpu`: what can go wrong in one, without torch."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.sections import Row


class Bench:
    """What sections get."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.broken = folder, False

    @classmethod
    def make(cls, tiny: bool, folder: Path) -> "Bench":
        return cls(folder)

    def machine(self) -> dict[str, Any]:
        return {"card": "card", "process": os.getpid()}

    def free(self) -> None:
        if self.broken:
            raise RuntimeError("device-side assert triggered")


def good(bench: Bench) -> Iterator[Row]:
    yield Row("process", float(os.getpid()), at_least=0.0)


def fails(bench: Bench) -> Iterator[Row]:
    yield Row("before", 1.0, at_most=0.5)
    raise ValueError("no such kernel")


def breaks(bench: Bench) -> Iterator[Row]:
    yield Row("before", 1.0)
    bench.broken = True


def dies(bench: Bench) -> Iterator[Row]:
    yield Row("before", 1.0)
    os._exit(9)


def hangs(bench: Bench) -> Iterator[Row]:
    yield Row("before", 1.0)
    threading.Event().wait()
