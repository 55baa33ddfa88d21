"""A run in processes that torchrun has started: the same loop without Ray."""

import signal
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

from tt_ray.config import Config
from tt_ray.terminal.errors import Interrupted
from tt_ray.terminal.progress import Display
from tt_ray.terminal.signals import say_at_end, stop_on_signals, stopped
from tt_ray.training.preflight import begin_run, prepare, try_model
from tt_ray.training.run_folder import check_run, disk_problems, next_time, sole_writer

_PREPARATION_LIMIT = timedelta(days=2)


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
        # Captions may be embedded for hours, and shards be pulled: longer than steps may wait for each other.
        patient: Any = dist.new_group(backend="gloo", timeout=_PREPARATION_LIMIT) if context.world > 1 else None
        changes = list[str]()
        if context.rank == 0:
            alone.enter_context(sole_writer(config, display.say))
            resumes = check_run(config)
            say_at_end(partial(next_time, config))
            prepared = prepare(config, display)
            try_model(config, prepared.classes)
            changes = begin_run(config, prepared, resumes, display)
        if patient is not None:
            dist.barrier(patient)  # the others read the store that worker 0 may just have made
        store = find_store(config, open_images(config)[0])
        ask = partial(setattr, context, "request", "stop")
        try:
            with disk_problems(config.run_dir), stop_on_signals(ask, signal.SIGTERM):
                data = open_data(config, store, display.show if context.rank == 0 else None)
                if patient is not None:
                    dist.barrier(patient)  # each node has pulled its data
                result = train(config, replace(data, notes=(*data.notes, *changes)), context)
        except Interrupted as stop:
            raise stopped(stop.step, signal.SIGTERM) from None
    if context.world > 1:
        dist.destroy_process_group()
    return result if context.rank == 0 else None
