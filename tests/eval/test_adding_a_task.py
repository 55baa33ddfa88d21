"""A task of the user's own, by YAML or by one row of the table; the command evaluates that of YAML in
tests/test_packaging.py.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.contract import EvalConfig
from eval.features.backbone import open_backbone
from eval.protocols import knn
from eval.tasks.layouts import ClassFolders
from eval.tasks.registry import load_tasks, tasks
from eval.tasks.table import TABLE, Definition

TASKS = """
colours:
  root: pictures
  metric: mean_per_class
  citation: drawn for this test
"""


def pictures(root: Path) -> Path:
    """Coloured noise of two classes: 10 images of each."""
    rng = np.random.default_rng(0)
    for label, channel in (("red", 0), ("blue", 2)):
        (root / label).mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(0, 120, (16, 16, 3), np.uint8)
            pixels[..., channel] += 120
            Image.fromarray(pixels).save(root / label / f"{number}.png")
    return root


def test_a_task_of_yaml(tmp_path: Path) -> None:
    for split in ("train", "test"):
        pictures(tmp_path / "pictures" / split)
    (tmp_path / "tasks.yaml").write_text(TASKS)
    task = tasks(["colours"], own=load_tasks(tmp_path / "tasks.yaml"))["colours"]
    assert task.metric == "mean_per_class"
    result = knn.evaluate(
        open_backbone("a", "random:test_vit"), task, EvalConfig(knn.Options(k=1), tmp_path / "features")
    )
    assert result.n == 20 and result.metrics["mean_per_class"] > 60


def test_a_task_of_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "colours")
    row = Definition(2, "top1", {"train": 16, "test": 4}, (ClassFolders(("colours",), "no.where"),), "drawn here")
    monkeypatch.setitem(TABLE, "colours", row)
    task = tasks(["colours"], data_root=tmp_path)["colours"]
    config = EvalConfig(knn.Options(k=1), tmp_path / "features")
    result = knn.evaluate(open_backbone("a", "random:test_vit"), task, config)
    assert result.n == 4 and result.metrics["top1"] > 60
