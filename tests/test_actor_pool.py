"""The pool: it fits the cluster or is refused; what actors meet arrives as it should."""

import pytest

from tt_ray.actor_pool import Pool, PoolOptions, plan_pool
from tt_ray.errors import UserError

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
        (PoolOptions(actors=7), GPUS, "has 10 CPUs and 8 GPUs on 3 nodes: give lower --actors"),
        (PoolOptions(threads=0), CPUS, "--threads is 0"),
        (PoolOptions(actors=-1), CPUS, "--actors is -1"),
    ],
)
def test_what_does_not_fit_is_refused(options: PoolOptions, nodes: list[dict[str, float]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_pool(options, nodes)
