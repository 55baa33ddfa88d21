"""Runs the training loop under Ray Train (Ray 2.60)."""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tt_ray.cluster.capacity import cpus_per_worker, wait_for_room
from tt_ray.cluster.connect import join_ray, worker_logs
from tt_ray.cluster.messages import Messages
from tt_ray.cluster.ray_errors import first_own_words, is_death, lost_peer, portable
from tt_ray.config import Config
from tt_ray.io.storage import Storage
from tt_ray.terminal.command import in_background
from tt_ray.terminal.errors import Interrupted, NonFiniteLoss, UserError, first_line, one_line
from tt_ray.training.run_folder import disk_problems
from tt_ray.training.tracker import take_environment, tracker_environment

_ROOM_LIMIT_S = 600.0


def start_ray(config: Config, say: Callable[[str], None]) -> bool:
    """Joins or starts Ray for a training run.

    Waits for a cluster that is still starting its machines, and reports so by `say`.

    Returns:
        Whether the cluster was there before.

    Raises:
        UserError: when the cluster cannot be joined or is too small for the run.
    """
    joined = join_ray(say)
    # The command's own machine is never taken away with notice, and each look costs a process.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", str(int(joined)))
    if changed := _changed_ray():
        say(f"note: {changed}")
    wait_for_room(config, _ROOM_LIMIT_S * joined, say)
    return joined


def train_on_ray(
    config: Config, store: Path | None, messages: Messages, until: int = 0, notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Trains on the running Ray cluster.

    Args:
        config: The run.
        store: Embedding store of its training captions, where it needs one.
        messages: Requests to the workers, and what they report.
        until: Stops after so many epochs; 0 trains to the end.
        notes: Added to those of the result.

    Returns:
        What result.json holds, or {"stopped": step} before the end.

    Raises:
        RuntimeError: when workers fail more often than run.max_failures.
        UserError, NonFiniteLoss: as raised by `trainer.train`.
    """
    import ray
    from ray.exceptions import RayActorError
    from ray.train import ControllerError, WorkerGroupError

    arguments = {"config": config.to_dict(), "store": store and str(store), "until": until, "notes": list(notes)}
    arguments |= {"threads": cpus_per_worker(config, ray.cluster_resources()), "messages": messages}
    if tracker := tracker_environment(config.run.logger):  # by messages: Ray's dashboard shows what is in `arguments`
        messages.put("tracker", tracker)
    trainer = _trainer(config, arguments)
    try:
        # Not in the main thread, where Ray would take Ctrl-C for itself and end the run without a checkpoint.
        answer = in_background(trainer.fit).result().return_value
    except ControllerError as error:
        failure = error.controller_failure
        raise RuntimeError(f"{failure}{_logs()}") if isinstance(failure, WorkerFailed) else failure from error
    except RayActorError as error:
        raise RuntimeError(
            "Ray has lost the run's controller, as when a cluster ends: the same command resumes the run, with "
            f"RAY_ADDRESS=local on a Ray of its own ({first_line(error)})"
        ) from error
    except WorkerGroupError as error:
        raise RuntimeError(f"{_failure(error.worker_failures)}{_logs()}") from error
    assert isinstance(answer, dict), "worker 0 returns a dictionary"
    return answer


def _trainer(config: Config, arguments: dict[str, Any]) -> Any:
    from ray.train import FailureConfig, LoggingConfig, ScalingConfig
    from ray.train import RunConfig as RayRunConfig

    fewest, most = config.workers
    settings: dict[str, Any] = {
        "train_loop_config": arguments,
        "scaling_config": ScalingConfig(
            num_workers=most if fewest == most else (fewest, most),
            use_gpu=config.run.use_gpu,
            resources_per_worker={"CPU": arguments["threads"]},
            elastic_resize_monitor_interval_s=config.run.resize_every,
        ),
        # Checkpoints are the run folder's own; Ray keeps nothing there but its bookkeeping.
        "run_config": RayRunConfig(
            name=f"{config.run.name}/.ray",
            storage_path=config.storage_place,
            failure_config=FailureConfig(max_failures=config.run.max_failures),
            logging_config=LoggingConfig("ERROR"),
            callbacks=[_no_retry(config)],
        ),
    }
    try:
        from tt_ray.cluster.ray_internals import LeanTrainer
    except ImportError:
        from ray.train.torch import TorchTrainer

        return TorchTrainer(_train_worker, **settings)
    return LeanTrainer(_train_worker, arguments["messages"], **settings)


def _changed_ray() -> str:
    """What a run loses where this Ray lacks a name that `ray_internals` uses; empty where it has them all."""
    import ray

    try:
        import tt_ray.cluster.ray_internals  # noqa: F401
    except ImportError as error:
        return (
            f"tt-ray was tested with Ray 2.60, this is {ray.__version__} ({one_line(error)}): starting takes seconds "
            "longer, and a resize repeats the steps since the last checkpoint"
        )
    return ""


class WorkerFailed(RuntimeError):
    """Python raised something in a worker that would be raised again."""


def _no_retry(config: Config) -> Any:
    """Ends the run at once where starting workers again cannot help.

    That is after mistakes of the user, and after any exception of Python's since which no checkpoint has been written:
    the same steps would raise it again. Workers that were killed or lost are started again, and so are their peers.

    An exception here ends the run; Ray's own policy would try again `run.max_failures` times. Only a raised exception
    makes Ray end the other workers: one that returns would leave them waiting for its part of the gradient.
    """
    from ray.train import UserCallback

    def checkpoints() -> set[str]:
        return set(Storage.open(config.run.storage).names(config.run_dir / "checkpoints"))

    class NoRetry(UserCallback):
        def __init__(self) -> None:
            self.seen = checkpoints()

        def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
            for _, error in sorted(worker_exceptions.items()):
                if isinstance(error, UserError | NonFiniteLoss):
                    raise error
            before, self.seen = self.seen, checkpoints()
            if self.seen <= before and raised_again(worker_exceptions):
                raise WorkerFailed(_failure(worker_exceptions))

    return NoRetry()


def raised_again(failures: Mapping[int, Exception]) -> bool:
    """Whether workers failed by an exception of their own, and not because a process or machine is gone."""
    own = [error for error in failures.values() if not isinstance(error, Interrupted) and not lost_peer(error)]
    return bool(own) and not any(is_death(error) for error in failures.values())


def _failure(failures: Mapping[int, Exception]) -> str:
    rank, words = first_own_words(failures)
    if is_death(failures.get(rank, RuntimeError())):
        return f"worker {rank} ended unexpectedly (killed, or out of memory); the same command resumes the run"
    return f"worker {rank} failed: {words}"


def _logs() -> str:
    folder = worker_logs()
    return folder and f"; workers' logs are in {folder}"


def _train_worker(arguments: dict[str, Any]) -> dict[str, Any]:
    import torch

    from tt_ray.cluster.context import RayContext, process_group
    from tt_ray.data.prepare import open_data
    from tt_ray.terminal.gpu import gpu
    from tt_ray.training.trainable import check_model
    from tt_ray.training.trainer import train

    logging.getLogger().setLevel(logging.WARNING)
    torch.set_num_threads(arguments["threads"])
    config, store = Config.from_dict(arguments["config"]), arguments["store"]
    messages: Messages = arguments["messages"]
    context = RayContext(messages, config.run.name)
    if (step := messages.get("stopped")) is not None:
        return {"stopped": step}  # just before Ray had it start again with more workers or fewer
    if context.rank == 0:
        times = 1 + (messages.get("started") or {"times": 0})["times"]
        messages.put("started", {"times": times, "workers": context.world})
    take_environment(messages.get("tracker") or {})
    try:
        if config.run.use_gpu:  # before data are pulled, which may take an hour
            gpu(context.device.index or 0)
        # Before the workers form a group: pulling shards may take one node longer than the group waits for it.
        show = context.preparing if context.rank == 0 else None
        data = open_data(config, store and Path(store), show)
        with process_group():
            data = replace(data, notes=(*data.notes, *arguments["notes"]))
            check_model(config, len(data.train.classes))
            with disk_problems(config.run_dir):
                return train(config, data, context, arguments["until"])
    except Interrupted as stop:
        if stop.request == "stop":
            messages.put("stopped", stop.step)
        if stop.request in ("stop", "until"):
            return {"stopped": stop.step}
        if stop.request == "pause":
            messages.put("paused", stop.step)
            time.sleep(600)  # until the controller, which has asked for it, ends this process
        raise  # a notice of preemption: Ray starts new workers elsewhere as soon as these are gone
    except UserError:
        # The first exception ends the run. Where all workers stop for the same reason, worker 0 knows most about it.
        time.sleep(2.0 * (context.rank > 0))
        raise
    except Exception as error:
        if (plain := portable(error)) is not error:
            raise plain from None
        raise
