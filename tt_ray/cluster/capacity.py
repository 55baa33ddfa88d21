"""Room on the cluster: whether a run fits, and the CPUs of each of its workers. Ray itself would wait for ever."""

import time
from collections.abc import Callable, Mapping

from tt_ray.config import Config
from tt_ray.terminal.errors import UserError


class ClusterTooSmall(UserError):
    """The cluster lacks what a run needs at least.

    Args:
        lack: What is missing.
        way: The option to choose, which needs less.
    """

    def __init__(self, lack: str, way: str) -> None:
        super().__init__(f"{lack}: choose {way}")
        self.lack = lack


def wait_for_room(config: Config, seconds: float, say: Callable[[str], None]) -> None:
    """Waits until the cluster has at least what the run needs.

    Raises:
        UserError: when it still lacks it after so many seconds.
    """
    import ray

    end, said = time.monotonic() + seconds, False
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
                    "or choose a lower --run.num_workers"
                ) from None
            if not said:
                say(f"{error.lack}: waiting {seconds / 60:.0f} minutes for more machines")
                said = True
        time.sleep(1)


def cpus_per_worker(config: Config, resources: Mapping[str, float]) -> int:
    """CPUs of each worker on a cluster with these resources in all.

    Raises:
        UserError: when the run does not fit.
    """
    run, cpus, gpus = config.run, resources.get("CPU", 0), resources.get("GPU", 0)
    fewest, most = config.workers
    beside = int(run.async_validation)
    if beside and fewest < most:
        raise UserError(
            f"run.num_workers {run.num_workers} takes all of the cluster and leaves nothing for validations: "
            "set --run.async_validation False, or a fixed --run.num_workers"
        )
    alone = run.use_gpu or fewest < most
    share = run.cpus_per_worker or (1 if alone else max(int((cpus - beside) // fewest), 1))
    wanted, wanted_gpus = share * fewest + beside, (fewest + beside) * run.use_gpu
    if wanted > cpus or wanted_gpus > gpus:
        way = "--run.use_gpu False" if run.use_gpu and not gpus else "a lower --run.num_workers"
        way = "a lower --run.cpus_per_worker" if run.cpus_per_worker > 1 and fewest + beside <= cpus else way
        way = "--run.async_validation False" if beside and wanted - 1 <= cpus and wanted_gpus - 1 <= gpus else way
        raise ClusterTooSmall(
            f"run.num_workers {run.num_workers}{' with run.async_validation' * beside} needs {wanted} CPUs"
            f"{f' and {wanted_gpus} GPUs' if run.use_gpu else ''}, "
            f"but the cluster has {cpus:g} CPUs and {gpus:g} GPUs",
            way,
        )
    return share
