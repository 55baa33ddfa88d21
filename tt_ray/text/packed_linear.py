"""Linear layers of frozen float32 models on CPUs, their weights laid out once for oneDNN's matrix product.

torch has no public name for it: `torch.ops.mkldnn._reorder_linear_weight` and `_linear_pointwise`, which its compiler
uses, were read in torch 2.15. Without packing two actors miss the 1.2 of benchmarks/encode.py (1.13 against 1.30 with
it). Where a torch lacks the names or takes other arguments, layers stay as they are, and one warning says so.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """`linear` without gradients, (..., in_features) to (..., out_features); fastest for about `rows` rows."""

    bias: Tensor | None

    def __init__(self, linear: nn.Linear, rows: int):
        super().__init__()
        ops: Any = torch.ops.mkldnn
        self._product = ops._linear_pointwise
        # Plain attributes: nothing is to move, convert or save a weight in oneDNN's own layout.
        self.weight = ops._reorder_linear_weight(linear.weight.detach(), rows)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, values: Tensor) -> Tensor:
        """The layer's output; there is nothing to fuse with it."""
        return self._product(values, self.weight, self.bias, "none", [], "")


def pack_linears(model: nn.Module, rows: int) -> None:
    """Replaces every nn.Linear of a frozen float32 CPU model in place, where torch was built with oneDNN.

    torch itself multiplies float32 by MKL, which is a tenth slower on AMD's CPUs.
    """
    if not torch.backends.mkldnn.is_available() or not _can_pack():
        return
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, PackedLinear(child, rows))


def _can_pack() -> bool:
    """Whether this torch has the private operators with the arguments that are passed to them."""
    try:
        with torch.inference_mode():
            PackedLinear(nn.Linear(2, 2), 1)(torch.zeros(1, 2))
    except (AttributeError, RuntimeError, TypeError) as error:
        problem = str(error).split("\n", 1)[0]
        warnings.warn(f"torch {torch.__version__} packs no weights: captions take longer ({problem})", stacklevel=2)
        return False
    return True
