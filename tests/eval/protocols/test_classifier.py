"""The classifier's scores against a plain loop over the images with the timm model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eval.contract import EvalConfig
from eval.metrics import expected_calibration_error
from eval.protocols.classifier import Options, classifier_columns, evaluate
from tests.eval.toy_task import COLOURS, ToyTask, tensor, toy_backbone
from tt_ray.terminal.errors import UserError


def _loop(backbone: Any, task: ToyTask, columns: list[int]) -> np.ndarray:
    """Probabilities of the task's classes, one image at a time."""
    source = task.open("test")
    with torch.inference_mode():
        rows = [backbone.model(tensor(source.read(row))[None])[0, columns].softmax(0) for row in range(len(source))]
    return torch.stack(rows).numpy()


def _config(folder: Path) -> EvalConfig:
    return EvalConfig(Options(), folder, batch_size=16)


def test_equals_a_plain_loop_by_names(tmp_path: Path) -> None:
    backbone, task = toy_backbone(4, ("blue", "black", "red", "green")), ToyTask()
    result = evaluate(backbone, task, _config(tmp_path))  # type: ignore[arg-type]
    probs = _loop(backbone, task, [2, 3, 0])
    labels = task.open("test").labels
    assert (result.predictions == probs.argmax(1)).all() and (result.labels == labels).all()
    assert result.metrics["top1"] == pytest.approx(100 * (probs.argmax(1) == labels).mean())
    assert result.metrics["ece"] == pytest.approx(expected_calibration_error(probs, labels), abs=1e-3)
    assert result.n == 45 and result.metrics.keys() == {"top1", "mean_per_class", "ece"}


def test_masks_leave_the_other_classes_out(tmp_path: Path) -> None:
    backbone, task = toy_backbone(1000), ToyTask(evaluation_only=True, mask=np.array([7, 500, 999]))
    result = evaluate(backbone, task, _config(tmp_path))  # type: ignore[arg-type]
    assert (result.predictions == _loop(backbone, task, [7, 500, 999]).argmax(1)).all()


def test_any_right_answer_counts(tmp_path: Path) -> None:
    right = np.zeros((45, 3), bool)
    right[np.arange(45), ToyTask().open("test").labels] = True
    right[:30] = True
    task = ToyTask(evaluation_only=True, mask=np.array([1, 2, 3]), right=right)
    backbone = toy_backbone(1000)
    result = evaluate(backbone, task, _config(tmp_path))  # type: ignore[arg-type]
    predictions = _loop(backbone, task, [1, 2, 3]).argmax(1)
    expected = [right[row, answer] for row, answer in enumerate(predictions)]
    assert 30 <= sum(expected) < 45
    assert result.metrics["top1"] == pytest.approx(100 * np.mean(expected))
    assert ((result.predictions == result.labels) == expected).all()


@pytest.mark.parametrize(
    ("count", "classes", "task", "problem"),
    [
        (10, (), ToyTask(mask=np.arange(3)), r"10 classes, not ImageNet's 1000"),
        (10, (), ToyTask(name="imagenet"), r"10 classes, not ImageNet's 1000"),
        (5, (), ToyTask(), "does not name its classes"),
        (3, ("red", "greem", "blue"), ToyTask(), "no class 'green'; did you mean greem"),
        (3, ("red", "red", "blue"), ToyTask(), "does not name"),
    ],
)
def test_classifiers_of_other_classes_are_refused(count: int, classes: Any, task: Any, problem: str) -> None:
    with pytest.raises(UserError, match=f"random:.* cannot be tested on .*{problem}.*run linear or finetune"):
        classifier_columns(toy_backbone(count, classes), task, COLOURS)


def test_imagenets_order_is_taken_where_weights_name_nothing() -> None:
    task: Any = ToyTask(name="imagenet")
    assert (classifier_columns(toy_backbone(1000), task, COLOURS) == np.arange(1000)).all()


def test_more_than_a_linear_classifier_is_refused(tmp_path: Path) -> None:
    task: Any = ToyTask(name="imagenet")
    backbone = toy_backbone(1000)
    backbone.model.head = torch.nn.Sequential(torch.nn.Linear(24, 1000))  # type: ignore[assignment]
    with pytest.raises(UserError, match="more than one linear layer"):
        evaluate(backbone, task, _config(tmp_path))
