"""Protocol `classifier`: the model's own classifier on a task's test images; nothing is trained or chosen.

For ImageNet and the sets that test ImageNet's classifiers, and for tasks whose classes the model's classifier knows by
name. Classes that a set lacks are left out before the best one is taken, as the authors of ImageNet-A
(Hendrycks et al., 2021, arXiv 1907.07174) and ImageNet-R (arXiv 2006.16241) do. Where several answers are right (ReaL,
Beyer et al., 2020, arXiv 2006.07159) each counts, and images without one do not; a right answer is then stored as the
image's label, so that predictions can be compared with labels.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from eval.contract import Corruption, EvalConfig, Result, Test, Traits
from eval.features.backbone import Backbone
from eval.features.cache import test_features
from eval.metrics import expected_calibration_error, score
from eval.tasks.registry import Task
from tt_ray.terminal.errors import UserError, nearest

TRAITS = Traits(version=1, cost=0.5, trains=False, draws="never")
_IMAGENET_CLASSES = 1000
_BLOCK = 8192


@dataclass(frozen=True)
class Options:
    """The recipe: there is nothing to set."""


def evaluate(backbone: Backbone, task: Task, config: EvalConfig) -> Result:
    """Tests the model's own classifier; raises UserError when it does not have the task's classes."""
    return fit(backbone, task, config)(None)


def fit(backbone: Backbone, task: Task, config: EvalConfig) -> Test:
    """Takes the model's own classifier; raises UserError when it does not have the task's classes."""
    source = task.open("test")
    columns = classifier_columns(backbone, task, source.classes)
    check_linear(backbone)
    accepted = task.accepted(source)

    def test(corruption: Corruption | None) -> Result:
        x, labels = test_features(backbone, task, config, corruption)
        probs = probabilities(cast(Any, backbone.model).get_classifier(), x, columns)
        predictions = probs.argmax(1)
        right = predictions == labels
        if accepted is not None:
            right = accepted[np.arange(len(predictions)), predictions]
            predictions = np.where(right, labels, predictions)
        metrics = score(task, labels, predictions)
        metrics["ece"] = expected_calibration_error(probs, right)
        return Result(
            metrics, len(labels), predictions.astype(np.int32), np.asarray(labels, np.int32), confidence=probs.max(1)
        )

    return test


def classifier_columns(backbone: Backbone, task: Task, names: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """The classifier's class for each of the task's, (classes,), whose names are `names`.

    By name where the weights have their classes' names, and otherwise by ImageNet's order (sorted WordNet ids).
    """
    count = int(cast(Any, backbone.model).num_classes)
    number = {name: place for place, name in enumerate(backbone.classes)}
    known = len(number) == count
    if known and all(name in number for name in names):
        return np.array([number[name] for name in names], np.int64)
    if task.mask is not None or task.name == "imagenet":
        if count == _IMAGENET_CLASSES:
            return np.arange(count) if task.mask is None else task.mask
        problem = f"it has {count} classes, not ImageNet's {_IMAGENET_CLASSES}"
    elif not known:
        problem = "it does not name its classes"
    else:
        lacking = next(name for name in names if name not in number)
        problem = f"it has no class {lacking!r}; {nearest(lacking, number)[:200]}"
    raise UserError(
        f"the classifier of {backbone.spec} cannot be tested on {task.name}: {problem}. Leave the protocol out, "
        "or run linear or finetune, which train a classifier for the task"
    )


@torch.inference_mode()
def check_linear(backbone: Backbone) -> None:
    """Raises UserError when the model's logits are not its classifier on the pooled feature."""
    model, size = cast(Any, backbone.model), backbone.preprocessing.size
    classifier = model.get_classifier()
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    if isinstance(classifier, nn.Linear) and torch.allclose(
        model(images), classifier(backbone.pooled(images)), rtol=1e-4, atol=1e-5
    ):
        return
    raise UserError(
        f"the logits of {backbone.spec} are more than one linear layer on its features; leave classifier out"
    )


@torch.inference_mode()
def probabilities(
    classifier: nn.Module, x: npt.NDArray[np.floating], columns: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Probabilities of the classes `columns`, (n, len(columns)), from features (n, d), which are read in blocks."""
    chosen = torch.from_numpy(columns)
    parts = [
        classifier(torch.from_numpy(np.array(x[start : start + _BLOCK], np.float32)))[:, chosen].softmax(1)
        for start in range(0, len(x), _BLOCK)
    ]
    return torch.cat(parts).numpy()
