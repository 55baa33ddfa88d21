"""The private names of Ray: each is there, each has an entry, and the real trainer does with them what they are for."""

import ast
import importlib.util
import pkgutil
import re
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.ray_here import stop_ray
from tests.test_train_command import processes_with
from tests.toy import toy_config
from tt_ray.cluster import launch
from tt_ray.cluster.connect import join_ray, worker_logs
from tt_ray.cluster.launch import train_on_ray
from tt_ray.cluster.messages import Messages
from tt_ray.terminal.command import in_background
from tt_ray.training.run_folder import start_run

SPEC = importlib.util.find_spec("tt_ray.cluster.ray_internals")
assert SPEC is not None and SPEC.origin is not None
# Read rather than imported: a name that is gone must not hide the others.
TREE = ast.parse(Path(SPEC.origin).read_text())
(PRIVATE,) = (
    ast.literal_eval(node.value)
    for node in TREE.body
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PRIVATE"
)
HELPERS = {"DatasetManager", "PlacementGroupCleaner"}


@pytest.mark.parametrize("name", PRIVATE)
def test_ray_has_the_name(name: str) -> None:
    pkgutil.resolve_name(name)


def test_every_private_import_has_its_reason() -> None:
    imports = [node for node in ast.walk(TREE) if isinstance(node, ast.ImportFrom) and ".v2." in str(node.module)]
    used = {f"{node.module}:{alias.name}" for node in imports for alias in node.names}
    assert used == {re.sub(r"(:\w+)\..*", r"\1", name) for name in PRIVATE}
    assert all(reason.endswith(".") for reason in PRIVATE.values())


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """What the processes of this test's Ray have in their environment."""
    value = str(uuid.uuid4())
    monkeypatch.setenv("TT_RAY_TEST", value)
    return f"TT_RAY_TEST={value}"


def actors(mark: str) -> set[str]:
    """Names of the classes whose actors run just now."""
    found = set[str]()
    for pid in processes_with(mark):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode()
        except OSError:
            continue
        if title.startswith("ray::"):
            found.add(title.removeprefix("ray::").partition(".")[0].partition(" ")[0])
    return found


def run(tmp_path: Path, mark: str) -> tuple[dict[str, Any], set[str]]:
    """A small run's result, and the actors that were seen during it."""
    config = toy_config(tmp_path, "shapes_baseline", run__cpus_per_worker=1, train__epochs=8)
    start_run(config)
    seen, answer = set[str](), in_background(train_on_ray, config, None, Messages())
    while not answer.done():
        seen |= actors(mark)
        time.sleep(0.2)
    return answer.result(), seen


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Data, in its own settings
def test_the_real_trainer_starts_no_helpers_and_the_public_one_gives_the_same(
    mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    join_ray()
    try:
        lean, seen = run(tmp_path / "lean", mark)
        assert {"RayTrainWorker", "TrainController", "_Holder"} <= seen and not seen & HELPERS
        assert not launch._changed_ray()
        assert any(Path(worker_logs()).glob("ray-train-app-worker-*")), "what a failure's message names"
        monkeypatch.setitem(sys.modules, "tt_ray.cluster.ray_internals", None)  # as if a name were gone
        launch.start_ray(toy_config(tmp_path, "shapes_baseline"), said.append)
        public, seen = run(tmp_path / "public", mark)
    finally:
        stop_ray()
    assert seen >= HELPERS, "the names of Ray's helpers are right"
    (note,) = said
    assert note.startswith("note: tt-ray was tested with Ray 2.60, this is 2.60") and "seconds longer" in note
    assert lean["top1"] == public["top1"] and lean["val_loss"] == public["val_loss"]
