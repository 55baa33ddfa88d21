"""What is made of probabilities: predictions, both accuracies, calibration, and what comes with them."""

from typing import Any, cast

import numpy as np
import pytest

from eval.metrics import expected_calibration_error
from eval.protocols.likeliest import result_of
from tests.eval.toy_task import ToyTask


def test_the_likeliest_class_is_predicted_with_its_probability() -> None:
    probs = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]], np.float32)
    labels = np.array([0, 1, 0])
    found = result_of(cast(Any, ToyTask()), probs, labels, {"k": 3}, effective_rank=2.0)
    assert found.predictions is not None and found.predictions.tolist() == [0, 1, 2]
    assert found.labels is not None and found.labels.tolist() == [0, 1, 0]
    assert found.confidence is not None and found.confidence.tolist() == probs.max(1).tolist()
    assert found.metrics["top1"] == pytest.approx(200 / 3) and found.metrics["effective_rank"] == 2.0
    assert found.metrics["ece"] == expected_calibration_error(probs, labels)
    assert found.n == 3 and found.chosen == {"k": 3}
