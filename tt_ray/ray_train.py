"""Runs the training loop under Ray Train (Ray 2.60), quietly."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tt_ray.config import Config
from tt_ray.errors import UserError

_QUIET = {
    # The controller takes one report per look; Ray's own interval of 2 s would hold up every epoch that much.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def start_ray() -> None:
    """Joins the cluster of RAY_ADDRESS or of this machine, or starts Ray on this machine."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.ERROR)


def cpus_per_worker(config: Config, resources: Mapping[str, float]) -> int:
    """CPUs of each worker; raises UserError when the cluster is too small, where Ray itself would wait for ever."""
    run, cpus, gpus = config.run, resources.get("CPU", 0), resources.get("GPU", 0)
    share = run.cpus_per_worker or (1 if run.use_gpu else max(int(cpus // run.num_workers), 1))
    wanted = share * run.num_workers
    if wanted > cpus or (run.use_gpu and run.num_workers > gpus):
        raise UserError(
            f"{run.num_workers} workers need {wanted} CPUs{f' and {run.num_workers} GPUs' if run.use_gpu else ''}, "
            f"but the cluster has {cpus:g} CPUs and {gpus:g} GPUs: lower --run.num_workers"
        )
    return share


def train_on_ray(config: Config, store: Path | None) -> dict[str, Any]:
    """Trains on the running Ray cluster; returns what result.json holds. Raises what `loop.train` raises."""
    import ray
    from ray.train import FailureConfig, LoggingConfig, ScalingConfig
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    share = cpus_per_worker(config, ray.cluster_resources())
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"config": config.to_dict(), "store": store and str(store), "threads": share},
        torch_config=TorchConfig(backend="nccl" if config.run.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.run.num_workers, use_gpu=config.run.use_gpu, resources_per_worker={"CPU": share}
        ),
        # Checkpoints are the run folder's own; Ray keeps nothing there but its bookkeeping.
        run_config=RayRunConfig(
            name=".ray",
            storage_path=str(config.run_dir),
            failure_config=FailureConfig(max_failures=config.run.max_failures),
            logging_config=LoggingConfig("ERROR"),
        ),
    )
    answer = trainer.fit().return_value
    assert isinstance(answer, dict), "worker 0 returns a dictionary"
    if "mistake" in answer:
        raise UserError(answer["mistake"])
    if "failure" in answer:
        raise RuntimeError(answer["failure"])
    return answer


def _train_worker(arguments: dict[str, Any]) -> dict[str, Any]:
    import torch

    from tt_ray.context import RayContext
    from tt_ray.loop import NonFiniteLoss, train
    from tt_ray.prepare import open_data
    from tt_ray.progress import ProgressFile

    logging.getLogger().setLevel(logging.WARNING)
    torch.set_num_threads(arguments["threads"])
    config = Config.from_dict(arguments["config"])
    store = arguments["store"]
    # Starting again cannot mend these: they are answers, not exceptions, which Ray would retry.
    try:
        data = open_data(config, store and Path(store))
        return train(config, data, RayContext(ProgressFile(config.run_dir).write))
    except UserError as error:
        return {"mistake": str(error)}
    except NonFiniteLoss as error:
        return {"failure": str(error)}
