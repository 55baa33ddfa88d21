"""A run in processes that torchrun has started: the same loop without Ray."""

import signal
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from tt_ray.config import Config
from tt_ray.terminal.errors import Interrupted, first_line
from tt_ray.terminal.progress import Display
from tt_ray.terminal.signals import say_at_end, stop_on_signals, stopped
from tt_ray.training.preflight import begin_run, prepare, try_model
from tt_ray.training.run_folder import check_run, disk_problems, next_time, sole_writer

if TYPE_CHECKING:  # it imports torch
    from tt_ray.training.context import LocalContext

_PREPARATION_LIMIT = timedelta(days=2)
# Time for torchrun to end the others after one has failed.
_GRACE_S = 10.0


def train_under_torchrun(config: Config) -> dict[str, Any] | None:
    """Trains; worker 0 prepares while the others wait.

    Returns:
        What result.json holds, on worker 0; None on the others.

    Raises:
        Stopped: A SIGTERM has ended the run, after a checkpoint.
        UserError: The run, its data or its model cannot be used as configured.
    """
    import torch.distributed as dist

    from tt_ray.data.prepare import find_store, open_data, open_images
    from tt_ray.training.context import LocalContext
    from tt_ray.training.trainer import train

    with Display() as display, ExitStack() as alone:
        context = LocalContext.start(config.run.use_gpu, display.training)
        # Now, while all processes are at the same place: making a group has the time limit of steps.
        patient = patient_group(context.world)
        changes = list[str]()
        if context.rank == 0:
            alone.enter_context(sole_writer(config, display.say))
            resumes = check_run(config)
            say_at_end(partial(next_time, config))
            prepared = prepare(config, display)
            try_model(config, prepared.classes)
            changes = begin_run(config, prepared, resumes, display)
        wait_for_all(patient, context)  # the others read the store that worker 0 may just have made
        store = find_store(config, open_images(config)[0])
        ask = partial(setattr, context, "request", "stop")
        try:
            with disk_problems(config.run_dir), stop_on_signals(ask, signal.SIGTERM):
                data = open_data(config, store, display.show if context.rank == 0 else None)
                wait_for_all(patient, context)  # each node has pulled its data
                result = train(config, replace(data, notes=(*data.notes, *changes)), context)
        except Interrupted as stop:
            raise stopped(stop.step, signal.SIGTERM) from None
    if context.world > 1:
        dist.destroy_process_group()
    return result if context.rank == 0 else None


def patient_group(world: int) -> Any:
    """Returns a group of all processes that may wait for each other for days; None where there is but one.

    Captions may be embedded for hours, and shards be pulled: longer than steps may wait for each other.
    """
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=_PREPARATION_LIMIT) if world > 1 else None


def wait_for_all(group: Any, context: "LocalContext") -> None:
    """Waits until all processes of `patient_group` have come here.

    One that fails closes its connections to the others, and says why itself: they stay silent and leave it to torchrun
    to end them.

    Raises:
        RuntimeError: A process has ended or cannot be reached, but torchrun does not know.
    """
    import torch.distributed as dist

    if group is None:
        return
    try:
        dist.barrier(group)
    except RuntimeError as error:
        end = time.monotonic() + _GRACE_S
        while time.monotonic() < end:
            time.sleep(0.1)
            if context.request:  # torchrun's SIGTERM, which training would answer with a checkpoint
                raise SystemExit(1) from None
        raise RuntimeError(
            f"another process of torchrun has ended, or cannot be reached: {first_line(error)}"
        ) from error
