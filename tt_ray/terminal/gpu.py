"""The GPU that a process was told to use: it computes there, or one line says why it cannot. Never on a CPU instead."""

import re
import socket
import warnings
from typing import TYPE_CHECKING

from tt_ray.terminal.errors import UserError, first_line

if TYPE_CHECKING:
    import torch

PAGE = "clusters/README.md#drivers"
"""What to install."""
_DRIVERS = {"12": "525", "13": "580"}
"""The driver that CUDA of these major versions needs at least."""


def gpu(index: int = 0) -> "torch.device":
    """The GPU of this number among those that the process sees, which then is torch's current one.

    Raises:
        UserError: It cannot be used: names this machine, the cause, and what to do.
    """
    import torch

    device = torch.device("cuda", index)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of what it raises
            torch.cuda.init()
            torch.cuda.set_device(device)
            # Only a kernel shows whether torch was built for this kind of GPU; `item` waits for it.
            torch.ones(1, device=device).add_(1).item()
    except (RuntimeError, AssertionError) as error:
        # torch's errors, of which OutOfMemoryError and AcceleratorError are some; AssertionError: built without CUDA.
        raise UserError(f"no GPU can be used on {socket.gethostname()}: {_cause(error)}") from None
    return device


def device_of(name: str) -> "torch.device":
    """torch's device of this name, such as cpu or cuda:1; a GPU as `gpu` returns it.

    Raises:
        UserError: It is a GPU that cannot be used.
    """
    import torch

    device = torch.device(name)
    return gpu(device.index or 0) if device.type == "cuda" else device


def _cause(error: Exception) -> str:
    """What torch says, and what to do about it."""
    import torch

    text, cuda = str(error), torch.version.cuda
    built = f"torch {torch.__version__} is built for CUDA {cuda}"
    if found := re.search(r"driver on your system is too old \(found version (\d+)\)", text):
        has = f"{int(found[1]) // 1000}.{int(found[1]) % 1000 // 10}"
        least = _DRIVERS.get((cuda or "").partition(".")[0])
        newer = f"install driver {least} or newer" if least else "install a newer driver"
        return f"its NVIDIA driver is for CUDA {has} at most, but {built}: {newer}, or another torch ({PAGE})"
    if "no NVIDIA driver" in text:
        return f"it has no NVIDIA driver: install one ({PAGE}), or choose machines that have GPUs, or the CPU"
    if cuda is None:
        return f"torch {torch.__version__} is built without CUDA: install one that has it ({PAGE}), or choose the CPU"
    if "no kernel image" in text:
        return f"{built}, but not for this kind of GPU: install another torch ({PAGE})"
    return f"{first_line(error)} ({built}; {PAGE})"
