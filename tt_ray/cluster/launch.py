"""Runs the training loop under Ray Train (Ray 2.60), quietly."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tt_ray.cluster.auth_token import keep_token_private
from tt_ray.cluster.connect import HELP, find_cluster
from tt_ray.cluster.messages import Mailbox
from tt_ray.cluster.ray_errors import first_own_words, is_death, lost_peer, portable
from tt_ray.config import Config
from tt_ray.io.storage import Storage
from tt_ray.terminal.errors import Interrupted, NonFiniteLoss, UserError, first_line, one_line
from tt_ray.terminal.signals import signals_act_soon
from tt_ray.training.run_folder import disk_problems

_QUIET = {
    # How soon the end of training is noticed; each look wakes every worker.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    # After a node is lost, Ray still counts on it for a while: how long it waits for workers there.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    # Ray starts its workers at niceness 15, behind everything else on the machine, its own helpers included.
    "RAY_worker_niceness": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Idle workers started beforehand cannot serve Ray Train, whose processes have an environment of their own.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
}


_ROOM_LIMIT_S = 600.0


class ClusterTooSmall(UserError):
    """The cluster has not what a run needs at the least: `lack` says what, `way` what to give instead."""

    def __init__(self, lack: str, way: str) -> None:
        super().__init__(f"{lack}: give {way}")
        self.lack = lack


def start_ray(config: Config, say: Callable[[str], None]) -> bool:
    """Joins or starts Ray for a training run; true when the cluster was there before.

    A cluster that was may still be starting its machines: it is waited for, and `say` tells so. Raises UserError when
    the cluster cannot be joined or is too small for the run.
    """
    joined = join_ray(say)
    # Nobody takes away the machine that the command itself runs on with notice; each look is a process's work.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", str(int(joined)))
    if joined or config.workers[0] < config.workers[1]:
        _warm_up()
    wait_for_room(config, _ROOM_LIMIT_S * joined, say)
    return joined


def wait_for_room(config: Config, seconds: float, say: Callable[[str], None]) -> None:
    """Until the cluster has what the run needs at the least; raises UserError after so many seconds."""
    import ray

    end, told = time.monotonic() + seconds, False
    while True:
        try:
            cpus_per_worker(config, ray.cluster_resources())
            return
        except ClusterTooSmall as error:
            if not seconds:
                raise
            if time.monotonic() > end:
                raise UserError(
                    f"{error.lack}, after {seconds / 60:.0f} minutes: see with `ray status` whether machines start, "
                    "or give a lower --run.num_workers"
                ) from None
            if not told:
                say(f"{error.lack}: waiting {seconds / 60:.0f} minutes for more machines")
                told = True
        time.sleep(1)


def join_ray(say: Callable[[str], None] = print) -> bool:
    """Joins the cluster of RAY_ADDRESS or of this machine (true), or starts Ray on this machine; quietly.

    Raises UserError when the cluster of RAY_ADDRESS cannot be reached, and SystemExit on SIGTERM.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray
    from ray._private import worker

    if not ray.is_initialized():
        with signals_act_soon():
            _init(say)
    # Ray tells of dead processes on stdout, whatever log_to_driver is; its debugger silences it like this.
    worker._worker_logs_enabled = False
    own = _own_node()
    if own is not None:
        own.kill_log_monitor(check_alive=False)  # what it would bring to the driver is not shown
    return own is None


def _init(say: Callable[[str], None]) -> None:
    import ray
    from ray.exceptions import RayError

    there = find_cluster(say)
    keep_token_private()
    try:
        with _apart_from_signals():
            # A Ray that ends with the command needs no dashboard: eleven processes less, which run beside it.
            ray.init(
                address=None if there else "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=False,
            )
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        if not there:
            raise
        place = os.environ.get("RAY_ADDRESS") or "of this machine"
        raise UserError(
            f"cannot join the Ray cluster at {place} ({one_line(error.__cause__ or error)}): {HELP}"
        ) from None


def _own_node() -> Any:
    """The node of the Ray that this process has started; None when it has joined one."""
    from ray._private import worker

    node = worker._global_node
    return node if node is not None and node.is_head() else None


@contextmanager
def _apart_from_signals() -> Iterator[None]:
    """Ray's processes, and so all that they start, begin a session of their own.

    Signals to the command's process group, as of `timeout` and Ctrl-C, so reach the command alone, which has a
    checkpoint taken first.
    They die with the command all the same: the kernel kills them when it ends, which Ray calls fate sharing. Where the
    kernel is not Linux, Ray ends them by their group instead, and they must stay in it.
    """
    from ray._private import services, utils

    popen = services.ConsolePopen
    apart = bool(utils.detect_fate_sharing_support())
    services.ConsolePopen = partial(popen, start_new_session=apart)  # type: ignore[misc]
    try:
        yield
    finally:
        services.ConsolePopen = popen


def cluster_address() -> str:
    """Host and port of the cluster that this process has joined."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


def _warm_up() -> None:
    """Starts an actor that Ray Train would otherwise wait for later on."""
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )

    get_or_create_autoscaling_coordinator()


def cpus_per_worker(config: Config, resources: Mapping[str, float]) -> int:
    """CPUs of each worker; raises UserError when the cluster is too small, where Ray itself would wait for ever."""
    run, cpus, gpus = config.run, resources.get("CPU", 0), resources.get("GPU", 0)
    fewest, most = config.workers
    beside = int(run.async_validation)
    if beside and fewest < most:
        raise UserError(
            f"run.num_workers {run.num_workers} takes every place of the cluster and leaves none for validations: "
            "give --run.async_validation False, or a fixed --run.num_workers"
        )
    alone = run.use_gpu or fewest < most
    share = run.cpus_per_worker or (1 if alone else max(int((cpus - beside) // fewest), 1))
    wanted, wanted_gpus = share * fewest + beside, (fewest + beside) * run.use_gpu
    if wanted > cpus or wanted_gpus > gpus:
        way = "--run.use_gpu False" if run.use_gpu and not gpus else "a lower --run.num_workers"
        way = "a lower --run.cpus_per_worker" if run.cpus_per_worker > 1 and fewest + beside <= cpus else way
        way = "--run.async_validation False" if beside and wanted - 1 <= cpus and wanted_gpus - 1 <= gpus else way
        raise ClusterTooSmall(
            f"run.num_workers {run.num_workers}{' with validation beside them' * beside} needs {wanted} CPUs"
            f"{f' and {wanted_gpus} GPUs' if run.use_gpu else ''}, "
            f"but the cluster has {cpus:g} CPUs and {gpus:g} GPUs",
            way,
        )
    return share


def train_on_ray(
    config: Config, store: Path | None, mailbox: Mailbox, until: int = 0, notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Trains on the running Ray cluster; returns what result.json holds, or {"stopped": step} before the end.

    With `until`, stops after so many epochs. `notes` are added to those of the result.
    Raises what `loop.train` raises, and RuntimeError when workers fail more often than run.max_failures.
    """
    import ray
    from ray.exceptions import RayActorError
    from ray.train import ControllerError, FailureConfig, LoggingConfig, ScalingConfig, WorkerGroupError
    from ray.train import RunConfig as RayRunConfig

    from tt_ray.cluster.ray_internals import LeanTrainer, PauseToResize, TorchBackendConfig

    share = cpus_per_worker(config, ray.cluster_resources())
    fewest, most = config.workers
    arguments = {"config": config.to_dict(), "store": store and str(store), "threads": share, "until": until}
    arguments["notes"] = list(notes)
    callbacks: list[Any] = [_no_retry(config), PauseToResize(mailbox)]
    trainer = LeanTrainer(
        _train_worker,
        train_loop_config={**arguments, "command": mailbox.command},
        backend_config=TorchBackendConfig("nccl" if config.run.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=most if fewest == most else (fewest, most),
            use_gpu=config.run.use_gpu,
            resources_per_worker={"CPU": share},
            elastic_resize_monitor_interval_s=config.run.resize_every,
        ),
        # Checkpoints are the run folder's own; Ray keeps nothing there but its bookkeeping.
        run_config=RayRunConfig(
            name=f"{config.run.name}/.ray",
            storage_path=config.storage_place,
            failure_config=FailureConfig(max_failures=config.run.max_failures),
            logging_config=LoggingConfig("ERROR"),
            callbacks=callbacks,
        ),
    )
    trainer.alone = _own_node() is not None
    try:
        answer = trainer.fit().return_value
    except ControllerError as error:
        failure = error.controller_failure
        raise RuntimeError(f"{failure}{_logs()}") if isinstance(failure, WorkerFailed) else failure from error
    except RayActorError as error:
        raise RuntimeError(
            "Ray has lost what controls the run, as when a cluster ends: the same command goes on, with "
            f"RAY_ADDRESS=local on a Ray of its own ({first_line(error)})"
        ) from error
    except WorkerGroupError as error:
        raise RuntimeError(f"{_failure(error.worker_failures)}{_logs()}") from error
    assert isinstance(answer, dict), "worker 0 returns a dictionary"
    return answer


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
        return f"worker {rank} ended unexpectedly (killed, or out of memory); the same command goes on"
    return f"worker {rank} failed: {words}"


def _logs() -> str:
    from ray._private import worker

    node = worker._global_node
    return "" if node is None else f"; workers' logs are in {node.get_logs_dir_path()}/train"


def _train_worker(arguments: dict[str, Any]) -> dict[str, Any]:
    import torch

    from tt_ray.data.prepare import open_data
    from tt_ray.training.context import RayContext
    from tt_ray.training.trainable import check_model
    from tt_ray.training.trainer import train

    logging.getLogger().setLevel(logging.WARNING)
    torch.set_num_threads(arguments["threads"])
    config = Config.from_dict(arguments["config"])
    store, mailbox = arguments["store"], Mailbox(arguments["command"])
    context = RayContext(mailbox)
    if (step := mailbox.get("stopped")) is not None:
        return {"stopped": step}  # just before Ray had it start again with more workers or fewer
    if context.rank == 0:
        times = 1 + (mailbox.get("started") or {"times": 0})["times"]
        mailbox.put("started", {"times": times, "workers": context.world})
    try:
        data = open_data(config, store and Path(store))
        data = replace(data, notes=(*data.notes, *arguments["notes"]))
        check_model(config, len(data.train.classes))
        with disk_problems(config.run_dir):
            return train(config, data, context, arguments["until"])
    except Interrupted as stop:
        if stop.request == "stop":
            mailbox.put("stopped", stop.step)
        if stop.request in ("stop", "until"):
            return {"stopped": stop.step}
        if stop.request == "pause":
            mailbox.put("paused", stop.step)
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
