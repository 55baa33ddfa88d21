"""A Ray that tests of one file share."""

from collections.abc import Iterator

import pytest

from tests.toy import stop_ray
from tt_ray.cluster.connect import join_ray


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """Ray in this process, with the CPUs of the machine."""
    join_ray()
    yield
    stop_ray()
