"""A run's metrics as Ray's, which a cluster's Prometheus collects and its dashboard shows."""

import logging
from collections.abc import Mapping

from ray.util.metrics import Gauge

_WHAT = {
    "step": "Number of the step",
    "epoch": "Number of the epoch",
    "workers": "Workers of the run",
    "loss": "Loss of the step",
    "loss_cls": "Its classification part",
    "loss_text": "Its text part",
    "balance": "Balance w of the text part",
    "text_weight": "Weight lambda of the text part",
    "grad_norm": "Norm of the gradient",
    "lr": "Learning rate",
    "images_per_s": "Images a second, all workers together",
    "data_wait_share": "Share of the time that is spent waiting for data",
    "top1": "Top-1 of the last validation, in per cent",
    "top5": "Top-5 of the last validation, in per cent",
    "val_loss": "Cross-entropy of the last validation",
}
"""What Prometheus calls ray_tt_ray_KEY; each has the tag `run`."""


class RunMetrics:
    """Shows rows of metrics on the machine of worker 0. A Ray that takes none costs a line in the worker's log."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] | None = {}

    def show(self, row: Mapping[str, float]) -> None:
        """Takes over the numbers of a row of metrics.jsonl; does not wait for anybody."""
        if self._gauges is None:
            return
        # A validation may be one of an earlier step, and come late.
        past = ("step", "epoch") if "loss" not in row else ()
        try:
            for key in [key for key in row if key in _WHAT and key not in past]:
                if key not in self._gauges:
                    self._gauges[key] = Gauge(f"tt_ray_{key}", _WHAT[key], ("run",)).set_default_tags(
                        {"run": self._run}
                    )
                self._gauges[key].set(row[key])
        except Exception as error:  # whatever it is, the run is worth more than being watched
            logging.getLogger(__name__).warning("Ray takes no metrics: %s", error)
            self._gauges = None
