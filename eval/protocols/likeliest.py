"""The result of a protocol that gives each test image a probability of every class: the likeliest one is predicted."""

from typing import TYPE_CHECKING, Any

import numpy as np

from eval.contract import Result
from eval.metrics import Floats, Ints, expected_calibration_error, score

if TYPE_CHECKING:
    from eval.tasks.registry import Task


def result_of(task: "Task", probs: Floats, labels: Ints, chosen: dict[str, Any], **further: float) -> Result:
    """What a protocol returns that gives probabilities of the classes, (n, C), of test images with labels (n,).

    Args:
        task: Their task.
        probs: Of each class; the likeliest one is the prediction.
        labels: True classes.
        chosen: What the protocol has chosen before it tested.
        further: Metrics besides both accuracies and the expected calibration error (`ece`).
    """
    predictions = probs.argmax(1)
    metrics = score(task, labels, predictions) | {"ece": expected_calibration_error(probs, labels)} | further
    own, given = predictions.astype(np.int32), np.asarray(labels, np.int32)
    return Result(metrics, len(own), own, given, chosen, probs.max(1))
