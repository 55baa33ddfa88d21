"""What all tests start with: a Ray of their own, no network, quiet libraries; subprocesses inherit it."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["RAY_ADDRESS"] = "local"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Ray starts its workers behind everything else on the machine: beside other tests they would hardly run.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
# Workers that it starts beforehand are of use to few tests.
os.environ["RAY_prestart_worker_first_driver"] = "0"  # noqa: SIM112
os.environ["RAY_enable_worker_prestart"] = "0"  # noqa: SIM112
# Beside the other processes of -n 4, threads that wait for each other take several times the work of one.
os.environ["OMP_NUM_THREADS"] = "1"
# Each command would compile the code anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell script starts what it puts in the background so, and the commands that tests interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Files that take longest, by `--durations 0`: a process of pytest-xdist must not be left alone with one at the end.
LONGEST = [
    *(
        "test_train_command",
        "tune/test_tune_command",
        "training/test_trainer",
        "test_examples",
        "cluster/test_actor_pool",
    ),
    *("test_pack", "test_page_runs", "eval/test_eval_command", "test_embed_on_ray", "training/test_resume"),
    *("models/test_classifier", "benchmarks/test_benchmarks", "test_caption_images", "io/test_storage", "test_library"),
    *("eval/jobs/test_scheduler", "data/test_loader_processes", "cluster/test_messages", "cluster/test_caption_actors"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests of LONGEST before all others."""
    place = {Path(__file__).parent / f"{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """The folder of a file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder]).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
