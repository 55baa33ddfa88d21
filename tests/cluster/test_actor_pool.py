"""The pool: it fits the cluster or is refused; what actors meet arrives as it should."""

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.cluster.ray_here import stop_ray
from tt_ray.cluster import actor_pool
from tt_ray.cluster.actor_pool import Pool, PoolOptions, do_missing, plan_pool
from tt_ray.cluster.connect import keep_ray_quiet
from tt_ray.cluster.ray_errors import ENDED
from tt_ray.io.resumable import open_shards
from tt_ray.terminal.errors import UserError
from tt_ray.terminal.progress import Display

CPUS = [{"CPU": 8.0, "memory": 1e9}, {"CPU": 3.0}]
GPUS = [{"CPU": 0.0}, {"CPU": 8.0, "GPU": 4.0}, {"CPU": 2.0, "GPU": 4.0}]


@pytest.mark.parametrize(
    ("options", "nodes", "pool"),
    [
        (PoolOptions(), CPUS, Pool(11, 1, False)),
        (PoolOptions(actors=2), CPUS, Pool(2, 1, False)),
        (PoolOptions(threads=2), CPUS, Pool(5, 2, False)),  # none has its CPUs on two nodes
        (PoolOptions(actors=2, threads=4), CPUS, Pool(2, 4, False)),
        (PoolOptions(), GPUS, Pool(6, 1, True)),  # two of eight GPUs lack a CPU
        (PoolOptions(threads=2), GPUS, Pool(5, 2, True)),
        (PoolOptions(device="cpu"), GPUS, Pool(10, 1, False)),
        (PoolOptions(gpus_per_actor=0.5), GPUS, Pool(10, 1, True, 0.5)),
        (PoolOptions(gpus_per_actor=0.5, threads=2), GPUS, Pool(5, 2, True, 0.5)),
        (PoolOptions(gpus_per_actor=0.1), [{"CPU": 99.0, "GPU": 2.0}], Pool(20, 1, True, 0.1)),
        (PoolOptions(gpus_per_actor=0.3), [{"CPU": 99.0, "GPU": 8.0}], Pool(24, 1, True, 0.3)),  # none is on two GPUs
        (PoolOptions(gpus_per_actor=1 / 3), [{"CPU": 99.0, "GPU": 1.0}], Pool(3, 1, True, 1 / 3)),
        (PoolOptions(gpus_per_actor=0.5), CPUS, Pool(11, 1, False)),
    ],
)
def test_the_pool_fits(options: PoolOptions, nodes: list[dict[str, float]], pool: Pool) -> None:
    assert plan_pool(options, nodes) == pool


@pytest.mark.parametrize(
    ("options", "nodes", "message"),
    [
        (
            PoolOptions(actors=12),
            CPUS,
            "12 actors with 1 CPUs each do not fit the cluster, which has 11 CPUs and 0 GPUs",
        ),
        (PoolOptions(threads=9), CPUS, "1 actors with 9 CPUs each do not fit"),
        (PoolOptions(actors=2, threads=5), CPUS, "2 actors with 5 CPUs each do not fit"),
        (PoolOptions(device="gpu"), CPUS, "1 actors with 1 CPUs and a GPU each do not fit"),
        (PoolOptions(actors=7), GPUS, "has 10 CPUs and 8 GPUs on 3 nodes: choose lower --actors"),
        (PoolOptions(threads=0), CPUS, "--threads is 0"),
        (PoolOptions(actors=-1), CPUS, "--actors is -1"),
        (PoolOptions(actors=4, gpus_per_actor=0.4), [{"CPU": 9.0, "GPU": 1.0}], "1 CPUs and 0.4 GPUs each do not fit"),
        *(
            (PoolOptions(gpus_per_actor=gpus), GPUS, f"--gpus_per_actor is {gpus}: choose 1, or a fraction")
            for gpus in (0.0, -1.0, 1.5, 2.0, 1e-6, float("nan"), float("inf"))
        ),
    ],
)
def test_what_does_not_fit_is_refused(options: PoolOptions, nodes: list[dict[str, float]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_pool(options, nodes)


class Faulty:
    """A worker that fails as it is told to, when it is made or at its shard."""

    def __init__(self, fault: str, at_once: bool, pool: Pool) -> None:
        self.fault, self.about = fault, {"kind": "faulty"}
        if at_once:
            fail(fault)

    def __call__(self, items: list[Any]) -> bytes:
        fail(self.fault)
        return b"done"


class Unpicklable(Exception):
    """Neither is pickled, nor could be read again."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"own words {one}\nin line {two}")
        self.signal = lambda: None


def fail(fault: str) -> None:
    if fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "once" and not Path(os.environ["TT_RAY_DIED"]).exists():
        Path(os.environ["TT_RAY_DIED"]).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    errors = {"unpicklable": Unpicklable(1, 2), "mistake": UserError("mend this")}
    if fault in errors:
        raise errors[fault]


@pytest.fixture(scope="module")
def ray_of_two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    died = tmp_path_factory.mktemp("died") / "once"
    os.environ["TT_RAY_DIED"] = str(died)
    keep_ray_quiet()
    ray.init(address="local", num_gpus=1, include_dashboard=False, log_to_driver=False)  # nobody computes on it
    yield died
    stop_ray()
    del os.environ["TT_RAY_DIED"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Data, in its own settings
@pytest.mark.parametrize(
    ("fault", "at_once", "kind", "words"),
    [
        ("unpicklable", True, RuntimeError, "an actor failed: Unpicklable: own words 1 in line 2; the same command"),
        ("mistake", False, UserError, "mend this"),
        ("killed", True, RuntimeError, f"an actor failed: {ENDED}, 1 times; the same command"),
        ("killed", False, RuntimeError, f"an actor failed: {ENDED}, 1 times; the same command"),
    ],
)
def test_an_actor_s_own_error_is_the_line(
    ray_of_two: Path,
    fault: str,
    at_once: bool,
    kind: type[Exception],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(actor_pool, "_DEATHS", 0)
    make = partial(Faulty, fault, at_once)
    with open_shards(tmp_path / "work", {"what": "faults"}, 2) as shards, pytest.raises(kind) as error:
        do_missing(shards, [[1], [2]], make, PoolOptions(actors=1), Display(), "faults met")
    assert str(error.value).startswith(words) and type(error.value) is kind


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Data, in its own settings
def test_an_actor_that_dies_once_is_started_again(ray_of_two: Path, tmp_path: Path) -> None:
    make = partial(Faulty, "once", False)
    with open_shards(tmp_path / "work", {"what": "faults"}, 2) as shards:
        do_missing(shards, [[1], [2]], make, PoolOptions(actors=1), Display(), "faults met")
        assert not shards.missing() and ray_of_two.exists()


class Sharing:
    """Answers with the part of a GPU that its actor has, once two actors are there."""

    def __init__(self, folder: Path, pool: Pool) -> None:
        self.folder, self.about = folder, {"kind": "sharing"}
        assert (pool.device, pool.share) == ("cuda", 0.5)

    def __call__(self, items: list[Any]) -> bytes:
        (self.folder / ray.get_runtime_context().get_actor_id()).touch()  # type: ignore[operator]
        deadline = time.monotonic() + 60
        while len(list(self.folder.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        return str(ray.get_runtime_context().get_assigned_resources()["GPU"]).encode()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Data, in its own settings
def test_two_actors_share_a_gpu(ray_of_two: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    options = PoolOptions(actors=2, device="gpu", gpus_per_actor=0.5)
    # More than the two that an actor may hold: the first one to start leaves some for the other.
    items = [[number] for number in range(4)]
    with open_shards(tmp_path / "work", {"what": "shares"}, len(items)) as shards:
        do_missing(shards, items, partial(Sharing, tmp_path / "there"), options, Display(), "shares")
        assert [shards.read(shard) for shard in range(4)] == [b"0.5"] * 4
    assert len(list((tmp_path / "there").iterdir())) == 2
