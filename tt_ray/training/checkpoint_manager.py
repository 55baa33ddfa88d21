"""A run's checkpoints: written and uploaded during training, one at a time; the newest intact one is found."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tt_ray.io.checkpoint_folder import checkpoint_name, newest_intact
from tt_ray.io.files import sync
from tt_ray.io.storage import Storage
from tt_ray.terminal.errors import NonFiniteLoss, UserError
from tt_ray.training.checkpoint import Position, save_checkpoint
from tt_ray.training.collectives import from_worker_0
from tt_ray.training.snapshot import Snapshot

# pyarrow itself has tried for seconds by then.
_PAUSES_S = (1.0, 10.0, 60.0, 120.0)


class CheckpointManager:
    """Checkpoints of the run folder `run_dir`, in `run_dir/checkpoints`."""

    def __init__(self, run_dir: Path, storage: Storage, keep: int) -> None:
        self.run_dir, self.storage, self.keep = run_dir, storage, keep
        self.folder = run_dir / "checkpoints"
        self.in_use: set[str] = set()
        """Names of checkpoints that are still being read: they are not pruned."""
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self._where: Path | None = None

    def save(self, position: Position, state: Snapshot, extra: dict[str, Any], then: Callable[[Path], None]) -> None:
        """Starts to write `state`, which must not change any more; calls `then` with the finished checkpoint."""
        path = self._where = self.folder / checkpoint_name(position.step)
        yaml = (self.run_dir / "config.yaml").read_text()

        def write() -> None:
            # A checkpoint must not know of more steps than the rows and scalars next to it.
            sync(self.run_dir / "metrics.jsonl")
            save_checkpoint(path, position, state, extra, yaml)
            for name in ("metrics.jsonl", "tensorboard"):
                self.push(self.run_dir / name)
            self.push(path)
            then(path)
            for old in self.names()[self.keep :] if self.keep else ():
                if old not in self.in_use:
                    self.storage.remove(self.folder / old)

        self._writing = self._writer.submit(write)

    def push(self, path: Path) -> None:
        """Uploads; a storage that fails is tried again for some minutes, while training continues."""
        for pause in _PAUSES_S:
            try:
                self.storage.push(path)
                return
            except OSError as error:
                if error.errno is not None:  # of this machine: a full disk, say
                    raise
            time.sleep(pause)
        self.storage.push(path)

    def wait(self) -> None:
        """Waits until the last checkpoint is written, or has failed."""
        if self._writing is not None:
            self._writing.exception()

    def failure(self) -> UserError | NonFiniteLoss | None:
        """Why the last checkpoint could not be written; None while it is being written, and when it was."""
        error = self._writing.exception() if self._writing is not None and self._writing.done() else None
        if error is None or isinstance(error, NonFiniteLoss):
            return error
        return UserError(f"cannot write checkpoint {self._where}: {getattr(error, 'strerror', None) or error}")

    def kept(self) -> None:
        """Waits as `wait` does; raises what `failure` returns."""
        self.wait()
        if failure := self.failure():
            raise failure

    def names(self) -> list[str]:
        """Names of all checkpoints, newest first, complete or not."""
        found = set(self.storage.names(self.folder))
        return sorted((name for name in found if name.startswith("step-")), reverse=True)

    def newest(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that agrees with its manifest, on this machine, and what is wrong with newer ones."""
        return newest_intact(self._fetched())

    def agree(self, rank: int) -> tuple[Path | None, list[str]]:
        """`newest` as worker 0 finds it, on every worker; all must call. The others need not see it.

        Raises:
            UserError: Worker 0 does not see the run at all: it would start from the beginning. On all workers.
        """
        lost, path, problems = "", None, list[str]()
        if rank == 0:
            with self.storage.alone():
                self.storage.pull(self.run_dir, skip=("checkpoints", "export"))
            if not (self.run_dir / "config.yaml").exists():  # which the command has written before it started workers
                lost = (
                    f"the machine of worker 0 does not see {self.run_dir}, which the command has begun: "
                    "choose a --run.storage that all nodes share, or a URI (s3://, gs://)"
                )
            path, problems = self.newest()
        lost, path, problems = from_worker_0((lost, path, problems))
        if lost:
            raise UserError(lost)
        return path, problems

    def _fetched(self) -> Iterator[Path]:
        for name in self.names():
            self.storage.fetch(self.folder / name)
            yield self.folder / name

    def last_good(self) -> str:
        """Half a sentence on the last good checkpoint, for errors."""
        self.wait()
        path, _ = self.newest()
        return f"the last good checkpoint is {path}" if path else "there is no checkpoint yet"
