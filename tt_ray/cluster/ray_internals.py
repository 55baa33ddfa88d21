"""Ray Train's TorchTrainer without what delays the first step and disturbs the others."""

import importlib
import os
import time
from contextlib import AbstractContextManager, suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import ResizingState
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.result import Result

from tt_ray.cluster.messages import Mailbox

# Workers answer within run.log_every steps and the time of a checkpoint, unless they have come to their end.
_PAUSE_LIMIT_S = 120.0
_LEAVE_LIMIT_S = 30.0


class LeanTrainer(DataParallelTrainer):
    """Without three helper processes.

    One would feed Ray Data sets to workers; there are none. One asks the dashboard every second whether the
    controller lives, to free its workers' places if not; the end of the driver, which follows, frees them as well. The
    third asks an autoscaler for nodes, which only a cluster has: `alone` is for a Ray that this command has started.
    """

    alone = False

    def _create_default_callbacks(self) -> list[Any]:
        unused = DatasetsCallback | PlacementGroupCleanerCallback
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, unused)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Result:
        if self.alone and not self.scaling_config.elasticity_enabled:
            arguments["scaling_policy"] = NoAutoscaler(self.scaling_config)
        return super()._initialize_and_run_controller(**arguments)

    def _register_sigint_handler(self, controller: Any) -> None:
        """Ctrl-C stays with the command, which has a checkpoint taken; Ray's handler would abort without one."""


class NoAutoscaler(FixedScalingPolicy):
    """A fixed number of workers, on the machine that is there."""

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass


class TorchBackendConfig(BackendConfig):
    """Ray's TorchConfig, imported by workers only: neither the driver nor the controller needs seconds of torch."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        """nccl or gloo."""

    @property
    def backend_cls(self) -> type["TorchBackend"]:
        return TorchBackend

    @property
    def train_func_context(self) -> Any:
        return _on_own_device


def _on_own_device() -> AbstractContextManager[None]:
    from ray.train.torch import TorchConfig

    return TorchConfig().train_func_context()


class TorchBackend(Backend):
    """Has workers form a process group, and leave it, as Ray's own backend for torch does."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, TorchBackendConfig)
        # Before a port is chosen, which others may take until worker 0 listens on it.
        worker_group.execute(_import_torch)
        place, world = worker_group.execute_single(0, get_address_and_port), len(worker_group)
        join = [(rank, world, backend_config.backend, *place) for rank in range(world)]
        ray.get([worker_group.execute_single_async(each[0], _join_group, *each) for each in join])

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        with suppress(GetTimeoutError):  # they are ended next, come what may
            ray.get(worker_group.execute_async(_leave_group, len(worker_group)), timeout=_LEAVE_LIMIT_S)


def _import_torch() -> None:
    importlib.import_module("ray.train.torch")


def _join_group(rank: int, world: int, backend: str, address: str, port: int) -> None:
    from ray.train.torch import config

    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    config._set_torch_distributed_env_vars()
    config._setup_torch_process_group(backend, rank, world, "env://")


def _leave_group(world: int) -> None:
    from ray.train.torch import config

    config._shutdown_torch(destroy_process_group=world > 1)


class PauseToResize(ControllerCallback):
    """Before Ray ends healthy workers to start more or fewer, has them write a checkpoint: no step is taken twice."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if not isinstance(current_state, ResizingState):
            return
        # Keys of its own: a signal may ask for the end of the command at the same time, and must not be forgotten.
        self.mailbox.put("paused", None)
        self.mailbox.put("pause", "pause")
        deadline = time.monotonic() + _PAUSE_LIMIT_S
        while not any(self.mailbox.get(key) is not None for key in ("paused", "stopped")):
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        self.mailbox.put("pause", None)
