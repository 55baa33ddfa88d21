"""All private names of Ray that this project uses, as read in Ray 2.60: nothing else imports one.

`PRIVATE` has each with its reason, tests/cluster/test_ray_internals.py has a test of each by name, and CONTRIBUTING.md
says how to raise the version. Where one is gone, importing this module raises ImportError, and `launch` trains with
Ray's own TorchTrainer instead: that costs seconds at the start and the steps since the last checkpoint at a resize, and
one note, but not the run.

What the start costs in private names, as CPU seconds from the command to the first step on 2 cores (which it fills;
medians of 3 rounds by turns on a busy machine; one worker, embeddings there), decided by at most a fifth more than
before:

- 16.6 with all that was tried: the trainer below, no autoscaler (three names), no log monitor, internal_kv for
  messages, torch's process group by Ray's functions (eight names).
- 18.5 as it is now: an autoscaler's process starts, and messages are an actor.
- 22.3 with the two helper processes too, for which three names stay; and TorchTrainer imports torch twice more.
"""

import pkgutil
import time
from typing import Any

from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import ResizingState
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from tt_ray.cluster.messages import Messages

PRIVATE = {
    "ray.train.v2._internal.execution.callback:ControllerCallback.after_controller_state_update": (
        "Nothing public reports that Ray is about to end healthy workers to start more or fewer. Saves: no step is "
        "taken twice at a resize."
    ),
    "ray.train.v2._internal.execution.controller.state:ResizingState": "Which of the states of the controller that is.",
    "ray.train.v2.api.data_parallel_trainer:DataParallelTrainer.fit": (
        "TorchTrainer imports torch in the command and in the controller, for seconds, on CPUs that the workers need."
    ),
    "ray.train.v2.api.data_parallel_trainer:DataParallelTrainer._create_default_callbacks": (
        "Where Ray decides on the two helper processes below."
    ),
    "ray.train.v2._internal.callbacks.datasets:DatasetsCallback": (
        "Its process feeds Ray Data sets to workers; there are none."
    ),
    "ray.train.v2._internal.callbacks.placement_group_callback:PlacementGroupCleanerCallback": (
        "Its process asks the dashboard every second of the run whether the controller lives, to free the workers' "
        "places if not; the end of the command, which follows, frees them as well. And there may be no dashboard."
    ),
}

# Workers answer within run.log_every steps and the time of a checkpoint, unless they have finished.
_PAUSE_LIMIT_S = 120.0


def missing() -> str:
    """The first name of `PRIVATE` that this Ray lacks; empty where it has all."""
    for name in PRIVATE:
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            return name
    return ""


if gone := missing():  # nothing else would notice that a method which is only overridden is gone
    raise ImportError(f"this Ray has no {gone}")


class LeanTrainer(DataParallelTrainer):
    """Ray's TorchTrainer without torch where it is not used, and without two helper processes.

    Args:
        run: The function of the workers, which forms the process group by itself.
        messages: For a pause before a resize.
        settings: As for TorchTrainer.
    """

    def __init__(self, run: Any, messages: Messages, **settings: Any) -> None:
        super().__init__(run, backend_config=SharedGpusConfig(), **settings)
        self._messages = messages

    def _create_default_callbacks(self) -> list[Any]:
        unused = DatasetsCallback | PlacementGroupCleanerCallback
        kept = [callback for callback in super()._create_default_callbacks() if not isinstance(callback, unused)]
        return [*kept, PauseToResize(self._messages)]


class SharedGpus(Backend):
    """Public: shows each worker the GPUs of its machine, as NCCL needs and TorchTrainer does."""

    share_cuda_visible_devices = True


class SharedGpusConfig(BackendConfig):
    """Public: chooses `SharedGpus`."""

    @property
    def backend_cls(self) -> type[Backend]:
        """The backend."""
        return SharedGpus


class PauseToResize(ControllerCallback):
    """Asks workers for a checkpoint before Ray ends them to start more or fewer: no step is taken twice."""

    def __init__(self, messages: Messages) -> None:
        self.messages = messages

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Called by Ray's controller, which ends the workers once this returns."""
        if not isinstance(current_state, ResizingState):
            return
        # Keys of its own: a signal may ask for the end of the command at the same time, and must not be forgotten.
        self.messages.put("paused", None)
        self.messages.put("pause", "pause")
        deadline = time.monotonic() + _PAUSE_LIMIT_S
        while not any(self.messages.get(key) is not None for key in ("paused", "stopped")):
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        self.messages.put("pause", None)
