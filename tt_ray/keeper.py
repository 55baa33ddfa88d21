"""A run's checkpoints: written and uploaded beside the training, one at a time; the newest intact one is found."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tt_ray.checkpoint import Position, Snapshot, checkpoint_name, newest_intact, save_checkpoint
from tt_ray.files import sync
from tt_ray.storage import Storage


class Keeper:
    """Checkpoints of the run folder `run_dir`, in `run_dir/checkpoints`."""

    def __init__(self, run_dir: Path, storage: Storage, keep: int) -> None:
        self.run_dir, self.storage, self.keep = run_dir, storage, keep
        self.folder = run_dir / "checkpoints"
        self.in_use: set[str] = set()
        """Names of checkpoints that somebody still reads: they are not pruned."""
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self._where: Path | None = None

    def save(self, position: Position, state: Snapshot, extra: dict[str, Any], then: Callable[[Path], None]) -> None:
        """Starts to write `state`, which nobody may change any more; `then` is called with the finished checkpoint."""
        path = self._where = self.folder / checkpoint_name(position.step)
        yaml = (self.run_dir / "config.yaml").read_text()

        def write() -> None:
            # A checkpoint must not know of more steps than the rows and scalars beside it.
            sync(self.run_dir / "metrics.jsonl")
            save_checkpoint(path, position, state, extra, yaml)
            for name in ("metrics.jsonl", "tensorboard"):
                self.storage.push(self.run_dir / name)
            self.storage.push(path)
            then(path)
            for old in self.names()[self.keep :] if self.keep else ():
                if old not in self.in_use:
                    self.storage.remove(self.folder / old)

        self._writing = self._writer.submit(write)

    def wait(self) -> None:
        """Until the last checkpoint is written, or has failed."""
        if self._writing is not None:
            self._writing.exception()

    def problem(self) -> str:
        """Why the last checkpoint could not be written; empty while it is being written, and when it was."""
        if self._writing is None or not self._writing.done():
            return ""
        error = self._writing.exception()
        return (error and f"cannot write checkpoint {self._where}: {getattr(error, 'strerror', None) or error}") or ""

    def names(self) -> list[str]:
        """Of all checkpoints, newest first, complete or not."""
        found = set(self.storage.names(self.folder))
        return sorted((name for name in found if name.startswith("step-")), reverse=True)

    def newest(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that agrees with its manifest, on this machine, and what is wrong with newer ones."""
        return newest_intact(self._fetched())

    def _fetched(self) -> Iterator[Path]:
        for name in self.names():
            self.storage.pull(self.folder / name)
            yield self.folder / name

    def last_good(self) -> str:
        """Half a sentence for errors."""
        self.wait()
        path, _ = self.newest()
        return f"the last good checkpoint is {path}" if path else "there is no checkpoint yet"
