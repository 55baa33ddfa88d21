"""Linear layers of frozen float32 models on CPUs, their weights laid out once for oneDNN's matrix product."""

from typing import Any

import torch
from torch import Tensor, nn

PACKED_FAMILIES = ("bert", "clip", "clip_text_model", "distilbert", "llama", "mpnet", "qwen3", "roberta", "xlm-roberta")
"""Of transformers' models, those known to call their linear layers: others look at the weights too, as Mamba does."""


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

    torch itself multiplies float32 by MKL, which is a tenth slower on AMD's CPUs: benchmarks/encode.py.
    """
    if not torch.backends.mkldnn.is_available():
        return
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, PackedLinear(child, rows))
