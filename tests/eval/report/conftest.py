"""Results that most tests of the report read."""

from pathlib import Path

import pytest

from tests.eval.sample_results import write_sample


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results of three models, whose tests write to other folders."""
    out = tmp_path_factory.mktemp("sample")
    write_sample(out, tasks=("digits", "flowers102", "dtd"), failing=[("deit", "dtd", "knn")])
    return out
