"""What training and evaluation choose by the kind of device: precision, and torch's settings on a GPU."""

import torch


def use_gpu_profile(device: torch.device) -> None:
    """Sets torch for a worker's process whose device is a GPU; on a CPU it changes nothing.

    These are settings of the whole process: call it where the process is the project's own, never from the library,
    whose users have a process of their own.
    """
    if device.type != "cuda":
        return
    # What autocast leaves in float32 is multiplied in TF32, whose relative error is 1e-3 a product: the losses too, and
    # the gradients by which the balance divides. The original trains all of it in float16, whose error is as large.
    torch.set_float32_matmul_precision("high")
    # Convolutions as well, by the older name: torch refuses to mix the newer one with the line above.
    torch.backends.cudnn.allow_tf32 = True
    # Sizes of batches do not change, but for the last one of a validation: each is tried once.
    torch.backends.cudnn.benchmark = True


def precision_on(device: torch.device, precision: str) -> str:
    """The autocast precision that `train.precision` means on a device: fp32, bf16 or fp16.

    auto is bf16 on a GPU that computes in it, of Ampere's generation or a later one. On others it is fp32 and not fp16,
    which needs its losses scaled: a sharded model has no scaler, and workers with and without one do not mix.
    """
    if precision != "auto":
        return precision
    # Of the current device, which is the worker's.
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "fp32"


def precision_note(device: torch.device, precision: str) -> str:
    """A sentence where auto leaves a GPU slower than it need be; or ""."""
    if device.type != "cuda" or precision != "auto" or precision_on(device, precision) != "fp32":
        return ""
    name = torch.cuda.get_device_name(device)
    return f"train.precision auto is fp32 on a {name}, which has no bf16: --train.precision fp16 is faster there"
