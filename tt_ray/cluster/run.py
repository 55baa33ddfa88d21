"""One run on Ray from its configuration to its result: prepares, starts workers, waits, and stops on signals."""

import signal
from concurrent.futures import Future
from functools import partial
from typing import Any

from tt_ray.cluster.connect import cluster_address
from tt_ray.cluster.messages import Messages, ProgressThread
from tt_ray.config import Config
from tt_ray.terminal.command import in_background
from tt_ray.terminal.errors import UserError
from tt_ray.terminal.progress import Display
from tt_ray.terminal.signals import say_at_end, stop_on_signals, stopped
from tt_ray.training.preflight import begin_run, prepare, try_model
from tt_ray.training.run_folder import check_run, discard_run, next_time, sole_writer


def train_run(config: Config) -> dict[str, Any]:
    """Trains a new run, or resumes one; Ray is joined, or started on this machine.

    Returns:
        What result.json holds.

    Raises:
        Stopped: A signal has ended the run, after a checkpoint.
        UserError: The run, its data, its model or the cluster cannot be used as configured.
    """
    with Display() as display, sole_writer(config, display.say):
        resumes = check_run(config)
        say_at_end(partial(next_time, config))
        from tt_ray.cluster.launch import start_ray, train_on_ray

        display.show("starting Ray", 0, 1)
        started: Future[bool] = Future()
        embed = None
        if config.run.use_gpu:
            from tt_ray.cluster.caption_actors import embed_on_gpus

            embed = embed_on_gpus(config.text.encoder, display, started.result)
        prepared = in_background(prepare, config, display, embed)  # Ray's start is mostly waiting
        try:
            started.set_result(start_ray(config, display.say))
        except BaseException as error:
            started.set_exception(error)  # which captions wait for
        joined, data = started.result(), prepared.result()
        if joined or config.run.overwrite:
            # Workers of a machine's own Ray start at once and try the model as well: there it need not be done twice.
            try_model(config, data.classes)
        where = f" on the Ray cluster at {cluster_address()}" if joined else ""
        notes = begin_run(config, data, resumes, display, where)
        messages = Messages()
        ask = partial(messages.send, "request", "stop")
        # Only now: Ray takes SIGTERM for itself when it starts.
        with ProgressThread(messages, display), stop_on_signals(ask, signal.SIGTERM, signal.SIGINT) as signals:
            display.show("starting workers", 0, 1)
            try:
                result = train_on_ray(config, data.store, messages, notes=notes)
            except UserError:
                if not resumes:
                    discard_run(config)
                raise
    if "stopped" in result:
        raise stopped(result["stopped"], signals[0])
    return result
