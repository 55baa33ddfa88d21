"""Claim: whatever dies, the run ends complete, with each step once and the weights of an undisturbed run, bit for bit.

    python -m benchmarks.faults --times 10

Each fault strikes the command that users give, at a random moment of its training, as often as `--times` says; where
the command itself dies the same command is given again. One worker on CPU, a fixed width, so that weights can be
compared bit for bit. The disk that fills up is a small file system in memory, which takes the right to mount one.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tt_ray.checkpoint import checkpoints
from tt_ray.cli import read_config
from tt_ray.config import Config
from tt_ray.errors import UserError
from tt_ray.files import sha256
from tt_ray.logbook import read_rows
from tt_ray.run_folder import read_result

_FIELDS = {
    "data.shapes.train_size": "256",
    "data.shapes.val_size": "64",
    "train.batch_size": "64",
    "train.epochs": "120",
    "train.eval_every": "1000",
    "run.checkpoint_every": "20",
    "run.log_every": "5",
    "run.cpus_per_worker": "1",
}
_MARK = "TT_RAY_FAULTS"
_LIMIT_S = 300.0


@dataclass
class Command:
    """A run's command, and its process while it runs."""

    folder: Path
    name: str
    address: str = "local"
    process: subprocess.Popen[str] | None = None

    @property
    def mark(self) -> str:
        """In the environment of all processes of this run, Ray's too."""
        return str(self.folder / self.name)

    @property
    def arguments(self) -> list[str]:
        """What follows `python -m tt_ray.train`."""
        fields = {**_FIELDS, "run.storage": str(self.folder), "run.name": self.name}
        return ["shapes_baseline", *(word for path, value in fields.items() for word in (f"--{path}", value))]

    @property
    def config(self) -> Config:
        return read_config(self.arguments, "benchmark")

    def start(self) -> None:
        """In a session of its own; all its processes, Ray's too, are found by their environment."""
        environment = os.environ | {"RAY_ADDRESS": self.address, _MARK: self.mark}
        command = [sys.executable, "-m", "tt_ray.train", *self.arguments]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def finish(self) -> tuple[int, str]:
        """Exit status, and all that was printed."""
        assert self.process is not None
        out, err = self.process.communicate(timeout=_LIMIT_S)
        return self.process.returncode, out + err

    def kill(self) -> None:
        """SIGKILL; returns when its workers, where Ray was the command's own, have ended as well."""
        assert self.process is not None
        self.process.kill()
        self.process.communicate()
        if self.address == "local":
            until(lambda: not processes(self.mark, b"RayTrainWorker"), 60)

    def steps(self) -> int:
        """Steps written down, once there is a checkpoint."""
        if not any((path / "manifest.json").exists() for path in checkpoints(self.config.run_dir / "checkpoints")):
            return 0
        return sum(row["kind"] == "step" for row in read_rows(self.config.run_dir / "metrics.jsonl"))

    def until_step(self, step: int) -> None:
        """Returns when the run has come so far; raises RuntimeError when it ends before."""
        assert self.process is not None
        until(lambda: self.steps() >= step or self.process is None or self.process.poll() is not None, _LIMIT_S)
        if self.process.poll() is not None:
            raise RuntimeError(f"the run ended before step {step}: {self.finish()[1][-500:]}")


def processes(mark: str, having: bytes = b"") -> list[int]:
    """Process ids with `mark` in their environment and `having` in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            marked = f"{_MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0")
            if marked and having in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def until(reached: Callable[[], Any], seconds: float) -> None:
    """Waits; raises RuntimeError when it takes longer."""
    end = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > end:
            raise RuntimeError(f"waited {seconds:.0f} s in vain")
        time.sleep(0.02)


@contextmanager
def cluster(run: Command, nodes: int) -> Iterator[Any]:
    """Ray's own cluster for tests: a head without CPUs, and `nodes` of one CPU. `run` is to join it."""
    from ray.cluster_utils import Cluster

    # It lives on this machine, for a minute, and its processes are found like the command's.
    settings = {"RAY_AUTH_MODE": "disabled", _MARK: run.mark}
    os.environ |= settings
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "dashboard_port": None})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1)
        run.address = str(cluster.address)
        yield cluster
    finally:
        cluster.shutdown()
        for name in settings:
            os.environ.pop(name)


def worker_killed(run: Command, step: int) -> str:
    run.start()
    run.until_step(step)
    for pid in processes(run.mark, b"RayTrainWorker"):
        os.kill(pid, signal.SIGKILL)
    return expect(run, 0, "workers were started again")


def node_removed(run: Command, step: int) -> str:
    with cluster(run, 2) as nodes:
        run.start()
        run.until_step(step)
        (worker,) = processes(run.mark, b"RayTrainWorker")
        parent = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
        (node,) = (node for node in nodes.worker_nodes if node.all_processes["raylet"][0].process.pid == parent)
        nodes.remove_node(node, allow_graceful=False)
        return expect(run, 0, "workers were started again")


def driver_killed(run: Command, step: int) -> str:
    run.start()
    run.until_step(step)
    run.kill()
    run.start()
    return expect(run, 0, "going on with run")


def cluster_gone(run: Command, step: int) -> str:
    with cluster(run, 1):
        run.start()
        run.until_step(step)
    run.kill()
    with cluster(run, 1):
        run.start()
        return expect(run, 0, "going on with run")


def checkpoint_truncated(run: Command, step: int) -> str:
    def truncate(file: Path) -> None:
        os.truncate(file, random.randrange(file.stat().st_size))

    return damaged(run, step, truncate)


def byte_flipped(run: Command, step: int) -> str:
    def flip(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        file.write_bytes(content)

    return damaged(run, step, flip)


def damaged(run: Command, step: int, damage: Callable[[Path], None]) -> str:
    """The newest checkpoint suffers between two commands."""
    run.start()
    run.until_step(max(step, 60))  # so that there is one before
    run.kill()
    newest = checkpoints(run.config.run_dir / "checkpoints")[0]
    damage(random.choice([file for file in newest.iterdir() if file.name != "config.yaml"]))
    run.start()
    return expect(run, 0, f"{newest.name}.*went on from step-")


def disk_full(run: Command, step: int) -> str:
    run.start()
    run.until_step(step)
    filler = run.folder / "filler"
    with filler.open("wb") as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    code, text = run.finish()
    filler.unlink()
    if code != 2 or "No space left" not in text or "step-" not in text:
        return f"on the full disk: exit {code}: {text[-300:]}"
    run.start()
    return expect(run, 0, "going on with run")


FAULTS = {
    "worker killed": worker_killed,
    "node removed": node_removed,
    "driver killed": driver_killed,
    "cluster gone": cluster_gone,
    "checkpoint truncated": checkpoint_truncated,
    "byte of a checkpoint flipped": byte_flipped,
    "disk full": disk_full,
}


def expect(run: Command, code: int, text: str) -> str:
    """What differs from the expected end of a command; empty where nothing does."""
    found, printed = run.finish()
    if found != code:
        return f"exit {found}: {printed[-500:]}"
    return "" if re.search(text, printed) else f"did not say {text!r}: {printed[-500:]}"


def compare(run: Command, undisturbed: Config) -> str:
    """What differs from the undisturbed run; empty where nothing does."""
    config = run.config
    steps = [row["step"] for row in read_rows(config.run_dir / "metrics.jsonl") if row["kind"] == "step"]
    if steps != list(range(read_result(undisturbed.run_dir)["steps"])):
        return "metrics.jsonl has not each step once"
    for name in ("model.safetensors", "optimizer.safetensors"):
        files = [checkpoints(each.run_dir / "checkpoints")[0] / name for each in (config, undisturbed)]
        if sha256(files[0]) != sha256(files[1]):
            return f"{name} differs"
    return ""


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 24 MiB; raises RuntimeError where it cannot be mounted."""
    disk = folder / "disk"
    disk.mkdir(exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], capture_output=True).returncode:
        raise RuntimeError("needs the right to mount a file system")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def strike(fault: str, number: int, folder: Path, undisturbed: Config) -> str:
    """One try; empty where all ended well, else what did not."""
    name = f"{fault.replace(' ', '-')}-{number}"
    step = random.randrange(20, 300)
    try:
        if fault == "disk full":
            with small_disk(folder) as disk:
                run = Command(disk, name)
                return FAULTS[fault](run, step) or compare(run, undisturbed)
        run = Command(folder, name)
        return FAULTS[fault](run, step) or compare(run, undisturbed)
    except (RuntimeError, UserError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        for pid in processes(str(folder / name)) + processes(str(folder / "disk" / name)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder / name, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; exit status 1 when any try ended badly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10, help="tries of each fault")
    parser.add_argument("--faults", nargs="+", default=list(FAULTS), choices=list(FAULTS), metavar="FAULT")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args(arguments)
    random.seed(given.seed)
    print("| fault | tries | ended complete and bit-identical |\n| --- | --- | --- |", flush=True)
    failed = False
    with tempfile.TemporaryDirectory(prefix="tt-ray-faults-") as name:
        undisturbed = Command(Path(name), "undisturbed")
        undisturbed.start()
        if problem := expect(undisturbed, 0, "top-1"):
            raise SystemExit(f"error: the undisturbed run: {problem}")
        for fault in given.faults:
            problems = [strike(fault, number, Path(name), undisturbed.config) for number in range(given.times)]
            good = sum(not problem for problem in problems)
            print(f"| {fault} | {given.times} | {good} |", flush=True)
            for problem in filter(None, problems):
                failed = True
                print(f"{fault}: {problem}", file=sys.stderr, flush=True)
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
