"""What a model costs by counting: parameters, FLOPs and activations of one image, from one forward pass."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry


class Counts(NamedTuple):
    """Of one image at `image_size`."""

    params: int
    """Numbers in parameters."""
    flops: int
    """Of matrix products and convolutions, attention's included: a multiplication and an addition are two."""
    activations: int
    """Numbers that matrix products and convolutions give (Radosavovic et al., 2020, arXiv 2003.13678, section 2), the
    attention's scores included, whether or not a fused kernel ever writes them."""
    image_size: int
    """Height and width, in pixels."""


def count(model: nn.Module, image_size: int) -> Counts:
    """Counts of a forward pass of the model, as it is in evaluation, on one black image."""
    device = next(model.parameters()).device
    was_training = model.training
    counter, activations = FlopCounterMode(display=False), _Activations()
    # Not inference_mode, in which layers reach the counters whole.
    try:
        with torch.no_grad(), counter, activations:
            model.eval()(torch.zeros(1, 3, image_size, image_size, device=device))
    finally:
        model.train(was_training)
    params = sum(parameter.numel() for parameter in model.parameters())
    return Counts(params, counter.get_total_flops(), activations.total, image_size)


class _Activations(TorchDispatchMode):
    """Adds up the outputs of the operations whose FLOPs are counted."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            first: Tensor = out[0] if isinstance(out, tuple) else out
            self.total += first.numel()
            if "scaled_dot_product" in func.__name__:
                query, key = args[:2]
                self.total += query.shape[:-1].numel() * key.shape[-2]
        return out
