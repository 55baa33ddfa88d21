"""Mixed precision by name."""

import torch

_TYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def mixed_precision(device: torch.device, precision: str) -> torch.autocast:
    """Autocast to bf16 or fp16; with fp32 it does nothing."""
    dtype = _TYPES[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
