"""Loader processes, for training, validation and evaluation: what they start from, and what they share.

They are forked from a server that has imported what they need and nothing else has touched (multiprocessing's
"forkserver"): a process that is forked from one that holds CUDA, NCCL or Ray can hang or abort. What a data set keeps
in arrays (ids, labels, places in shards, captions) is in memory once, whatever the number of processes.
"""

import mmap
import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Iterable, Iterator
from multiprocessing import forkserver, reduction
from typing import Any, Generic, Protocol, TypeVar, cast

import cloudpickle
from torch.utils.data import DataLoader, Dataset

from tt_ray.terminal.errors import UserError

B_co = TypeVar("B_co", covariant=True)
B = TypeVar("B")
# Of each loader process, ahead of what is asked for.
_PREFETCH = 4
_PRELOADED = "tt_ray.data.loader"
# Smaller arrays travel in the pickle; each of the others begins at a multiple of it.
_PAGE = 4096


class Batches(Protocol[B_co]):
    """What loaders prepare: batches by number."""

    def __getitem__(self, index: int, /) -> B_co: ...


def start_server() -> None:
    """Starts the server that loader processes are forked from; returns before it has imported anything.

    `prepared` does so itself: called early, the imports happen while the caller builds its model.
    """
    # A loader process runs the main module of its parent again; that of Ray's workers imports Ray.
    of_main = ["ray"] if hasattr(sys.modules["__main__"], "ray") else []
    multiprocessing.set_forkserver_preload([_PRELOADED, *of_main])
    forkserver.ensure_running()


def prepared(batches: Batches[B], order: range, processes: int, pin: bool, kept: bool = False) -> Iterable[B]:
    """The batches of `order`, each time that this is iterated, prepared ahead by loader processes.

    Args:
        batches: Its `[number]` is a batch. It is copied to the processes, arrays excepted, which all of them share.
        order: Numbers of the batches.
        processes: 0 prepares each batch in this process when it is asked for.
        pin: Into memory from which a GPU copies while the host goes on.
        kept: The processes live until this object is gone, for more than one iteration.

    Raises:
        UserError: As raised by `batches`, from the iteration.
    """
    options: dict[str, Any] = {}
    if processes:
        start_server()
        context = multiprocessing.get_context("forkserver")
        options = {"num_workers": processes, "prefetch_factor": _PREFETCH, "persistent_workers": kept}
        options |= {"multiprocessing_context": context, "worker_init_fn": _watch_the_user}
    dataset: Any = Shared(_ReportsMistakes(batches)) if processes else batches
    # Without a batch size, collate_fn gets what the data set returns: a whole batch, to be left as it is.
    loader = DataLoader(dataset, batch_size=None, sampler=order, collate_fn=_as_is, pin_memory=pin, **options)
    return _Raising(loader)


def _as_is(batch: B) -> B:
    return batch


class _Raising(Generic[B]):
    """Batches of a loader, whose mistakes are raised as they were in the process that met them."""

    def __init__(self, loader: "DataLoader[Any]") -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[B]:
        for batch in self.loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch


class _ReportsMistakes(Dataset[Any]):
    """Batches, or the user's mistakes as results: DataLoader would wrap them in a traceback."""

    def __init__(self, batches: Batches[Any]) -> None:
        self.batches = batches

    def __getitem__(self, index: int) -> Any:
        try:
            return self.batches[index]
        except UserError as error:
            return error


class Shared(Dataset[Any]):
    """A data set of loader processes, which have its arrays in one memory.

    Pickled once, when it is made: with `pickle`'s protocol 5 arrays of numpy and Arrow do not become part of the
    pickle, but are written one after the other to a file without a name (`memfd_create`), which processes map. It is
    gone with the last of them, however they end. A change of an array in one process is not seen by the others.
    """

    def __init__(self, dataset: "Dataset[Any]") -> None:
        arrays: list[memoryview] = []

        def keep(buffer: pickle.PickleBuffer) -> bool:
            small = buffer.raw().nbytes < _PAGE
            if not small:
                arrays.append(buffer.raw())
            return small

        # cloudpickle: a source may hold functions that users wrote in a notebook, or in a function.
        self._pickle = cloudpickle.dumps(dataset, protocol=5, buffer_callback=keep)
        self._sizes = [array.nbytes for array in arrays]
        self._file = os.memfd_create("tt-ray-loaders")
        with os.fdopen(os.dup(self._file), "wb") as file:
            for array in arrays:
                file.write(array)
                file.write(bytes(-array.nbytes % _PAGE))

    def __del__(self) -> None:
        os.close(self._file)

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive, (self._pickle, self._sizes, reduction.DupFd(self._file))


def _receive(pickled: bytes, sizes: list[int], file: Any) -> "Dataset[Any]":
    """The data set that a `Shared` was made of, in a loader process."""
    number = file.detach()
    try:
        length = os.fstat(number).st_size
        # Copied where it is written to: torch warns of arrays that it cannot write to.
        memory = memoryview(mmap.mmap(number, length, access=mmap.ACCESS_COPY)) if length else memoryview(b"")
    finally:
        os.close(number)
    arrays, start = list[memoryview](), 0
    for size in sizes:
        arrays.append(memory[start : start + size])
        start += size + -size % _PAGE
    return cast("Dataset[Any]", pickle.loads(pickled, buffers=arrays))


def _watch_the_user(_: int) -> None:
    """Ends a loader process once the one that uses it is gone, which may have been killed.

    torch looks whether its parent is another, but that is the server, which itself lives as long as any loader does.
    """
    user = multiprocessing.parent_process()
    assert user is not None, "this is a loader process"

    def end() -> None:
        user.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
