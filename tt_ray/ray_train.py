"""Runs the training loop under Ray Train (Ray 2.60), quietly."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tt_ray.config import Config
from tt_ray.errors import NonFiniteLoss, UserError
from tt_ray.run_folder import disk_problems

_QUIET = {
    # How soon the end of training is noticed; each look wakes every worker.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Idle workers started beforehand cannot serve Ray Train, whose processes have an environment of their own.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
}


def start_ray(config: Config) -> None:
    """Joins or starts Ray as `join_ray` does; raises UserError when the cluster is too small for the run."""
    join_ray()
    import ray

    cpus_per_worker(config, ray.cluster_resources())


def join_ray() -> None:
    """Joins the cluster of RAY_ADDRESS or of this machine, or starts Ray on this machine; quietly."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray
    from ray._private import worker

    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        _warm_up()
    # Ray tells of dead processes on stdout, whatever log_to_driver is; its debugger silences it like this.
    worker._worker_logs_enabled = False


def _warm_up() -> None:
    """Starts an actor that Ray Train would otherwise wait for later on."""
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )

    get_or_create_autoscaling_coordinator()


def cpus_per_worker(config: Config, resources: Mapping[str, float]) -> int:
    """CPUs of each worker; raises UserError when the cluster is too small, where Ray itself would wait for ever."""
    run, cpus, gpus = config.run, resources.get("CPU", 0), resources.get("GPU", 0)
    share = run.cpus_per_worker or (1 if run.use_gpu else max(int(cpus // run.num_workers), 1))
    wanted = share * run.num_workers
    if wanted > cpus or (run.use_gpu and run.num_workers > gpus):
        way = "--run.use_gpu False" if run.use_gpu and not gpus else "a lower --run.num_workers"
        way = "a lower --run.cpus_per_worker" if run.cpus_per_worker > 1 and run.num_workers <= cpus else way
        raise UserError(
            f"run.num_workers {run.num_workers} needs {wanted} CPUs"
            f"{f' and {run.num_workers} GPUs' if run.use_gpu else ''}, "
            f"but the cluster has {cpus:g} CPUs and {gpus:g} GPUs: give {way}"
        )
    return share


def train_on_ray(config: Config, store: Path | None) -> dict[str, Any]:
    """Trains on the running Ray cluster; returns what result.json holds.

    Raises what `loop.train` raises, and RuntimeError when workers fail more often than run.max_failures.
    """
    import ray
    from ray.train import ControllerError, FailureConfig, LoggingConfig, ScalingConfig, WorkerGroupError
    from ray.train import RunConfig as RayRunConfig

    from tt_ray.ray_trainer import ImportAhead, LeanTrainer, TorchBackendConfig

    share = cpus_per_worker(config, ray.cluster_resources())
    trainer = LeanTrainer(
        _train_worker,
        train_loop_config={"config": config.to_dict(), "store": store and str(store), "threads": share},
        backend_config=TorchBackendConfig("nccl" if config.run.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.run.num_workers, use_gpu=config.run.use_gpu, resources_per_worker={"CPU": share}
        ),
        # Checkpoints are the run folder's own; Ray keeps nothing there but its bookkeeping.
        run_config=RayRunConfig(
            name=".ray",
            storage_path=str(config.run_dir),
            failure_config=FailureConfig(max_failures=config.run.max_failures),
            logging_config=LoggingConfig("ERROR"),
            callbacks=[_no_retry(), ImportAhead()],
        ),
    )
    try:
        answer = trainer.fit().return_value
    except ControllerError as error:
        raise error.controller_failure from error
    except WorkerGroupError as error:
        raise RuntimeError(f"{_first_failure(error.worker_failures)}{_logs()}") from error
    assert isinstance(answer, dict), "worker 0 returns a dictionary"
    return answer


def _no_retry() -> Any:
    """Ends the run at once where starting workers again cannot help.

    An exception here ends it; Ray's own policy would try again `run.max_failures` times. Only a raised exception makes
    Ray end the other workers: one that returns would leave them waiting for its part of the gradient.
    """
    from ray.train import UserCallback

    class NoRetry(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
            for _, error in sorted(worker_exceptions.items()):
                if isinstance(error, UserError | NonFiniteLoss):
                    raise error

    return NoRetry()


def _first_failure(failures: Mapping[int, Exception]) -> str:
    gone = {rank: error for rank, error in failures.items() if hasattr(error, "health_check_failure")}
    if gone:  # others then fail as well, for lack of their peer
        rank = min(gone)
        return f"worker {rank} ended unexpectedly (killed, or out of memory); the same command goes on"
    rank, error = min(failures.items(), default=(0, RuntimeError("no reason is known")), key=lambda item: item[0])
    lines = str(error).strip().splitlines() or [""]
    return f"worker {rank} failed: {type(error).__name__}: {lines[0]}"


def _logs() -> str:
    from ray._private import worker

    node = worker._global_node
    return "" if node is None else f"; workers' logs are in {node.get_logs_dir_path()}/train"


def _train_worker(arguments: dict[str, Any]) -> dict[str, Any]:
    import time

    import torch

    from tt_ray.context import RayContext
    from tt_ray.loop import train
    from tt_ray.prepare import open_data
    from tt_ray.progress import ProgressFile

    logging.getLogger().setLevel(logging.WARNING)
    torch.set_num_threads(arguments["threads"])
    config = Config.from_dict(arguments["config"])
    store = arguments["store"]
    context = RayContext(ProgressFile(config.run_dir).write)
    try:
        with disk_problems(config.run_dir):
            return train(config, open_data(config, store and Path(store)), context)
    except UserError:
        # The first exception ends the run. Where all workers stop for the same reason, worker 0 knows most about it.
        time.sleep(2.0 * (context.rank > 0))
        raise
