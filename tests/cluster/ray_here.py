"""A Ray that tests of one file share.

Ray's processes import the file that a function of theirs is in, with all that it imports: this one is light.
"""

from collections.abc import Iterator

import pytest

from tt_ray.cluster.connect import join_ray


def stop_ray() -> None:
    """Ends the Ray of this process, and waits until its processes are gone.

    Ray itself waits a second for each that it has killed: on a busy machine they are then still running.
    """
    import ray
    from ray._private import worker

    node = worker._global_node
    killed = [info.process for infos in (node.all_processes.values() if node else ()) for info in infos]
    ray.shutdown()
    for process in killed:
        process.wait(60)


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """Ray in this process, with the CPUs of the machine."""
    join_ray()
    yield
    stop_ray()
