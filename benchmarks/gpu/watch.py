"""Sections in a process beside this one, which outlives whatever happens to that one: errors, hangs, crashes."""

import contextlib
import gc
import importlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from benchmarks.gpu.record import DONE, Record
from benchmarks.gpu.sections import Row, Section

_START_S = 120.0
"""For a process to import torch and find the GPU."""
_LEAST = 0.5
"""Share of a section's seconds that must be left to begin it."""


class Lost(Exception):
    """The process is not there any more, or has been ended because it took too long."""


class Worker:
    """The process of sections.

    Args:
        tiny: Toy sizes on a CPU.
        folder: For files of sections.
        bench: The module whose `Bench` sections are called with; imported in the process alone.
    """

    def __init__(self, tiny: bool, folder: Path, bench: str = "benchmarks.gpu.bench") -> None:
        self.tiny, self.folder, self.bench = tiny, folder, bench
        self._process: Any = None
        self._pipe: Any = None
        self._ready = False

    def start(self) -> dict[str, Any]:
        """Starts the process; returns what it says of the machine. Raises Lost where it does not come so far."""
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads or CUDA can hang
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=work, args=(other, self.bench, self.tiny, self.folder))
        self._process.start()
        other.close()  # so that the pipe ends with the process
        machine = self._receive(time.monotonic() + _START_S)
        self._ready = True
        return machine

    def end(self, patience_s: float = 10.0) -> None:
        """Ends the process and all that it has started."""
        if self._process is None:
            return
        self._pipe.close()  # which it takes as the end
        wait([self._process.sentinel], patience_s)
        if self._ready:  # its group's number is its own until it is joined
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()
        self._process, self._ready = None, False

    def run(self, sections: Sequence[Section], seconds: float, record: Record) -> None:
        """Runs the sections one by one; all together take the seconds at most."""
        deadline = time.monotonic() + seconds
        for section in sections:
            record.begin(section)
            began, left = time.monotonic(), deadline - time.monotonic()
            if section.missing:
                record.end(f"skipped: {', '.join(section.missing)} not installed")
            elif left < _LEAST * section.seconds:
                record.end(f"skipped: {max(left, 0):.0f} s were left, and it may take {section.seconds:g}")
            else:
                outcome = self._ask(section, min(section.seconds, left), record)
                record.end(outcome, time.monotonic() - began)

    def _ask(self, section: Section, seconds: float, record: Record) -> str:
        began = time.monotonic()
        try:
            if self._process is None:
                self.start()
            until = time.monotonic() + seconds
            self._pipe.send((section.module, section.name))
            while isinstance(found := self._receive(until), Row):
                record.add(found)
        except (Lost, BrokenPipeError) as error:
            self.end(0)
            return f"{error}, after {time.monotonic() - began:.0f} s"
        outcome, usable = found
        if not usable:
            self.end(0)
        return outcome

    def _receive(self, until: float) -> Any:
        left = until - time.monotonic()
        try:
            if self._pipe.poll(max(left, 0)):
                return self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            raise Lost(f"failed: its process ended with status {self._process.exitcode}") from None
        raise Lost("cut off: no answer in time")


def work(pipe: Connection, bench_module: str, tiny: bool, folder: Path) -> None:
    """The process: does what it is asked for until the pipe ends."""
    os.setsid()  # loader processes and runs of sections end with it
    bench = importlib.import_module(bench_module).Bench.make(tiny, folder)
    pipe.send(bench.machine())
    while True:
        try:
            module, name = pipe.recv()
        except EOFError:
            gc.unfreeze()  # libraries that count what is left at the end would complain
            return
        outcome = DONE
        try:
            measure = getattr(importlib.import_module(module), name)
            gc.freeze()  # after the last section's `free`: collections pass over what has been imported
            for row in measure(bench):
                pipe.send(row)
        except Exception as error:
            traceback.print_exc()
            outcome = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            # Its frames hold tensors of the section.
            error.__traceback__ = None
        try:
            bench.free()
        except Exception:  # after an error in a kernel the process has no use of the GPU any more
            pipe.send((outcome if outcome != DONE else "failed: the GPU reports an error", False))
            sys.exit(1)
        pipe.send((outcome, True))
