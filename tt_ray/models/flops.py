"""What a model costs by counting: parameters, FLOPs and activations of one image, from one forward pass."""

from typing import Any, NamedTuple

import torch
from torch import nn
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
    counter = FlopCounterMode(display=False)
    activations = FlopCounterMode(display=False, custom_mapping={op: _activations_of(op) for op in flop_registry})
    # Not inference_mode, in which layers reach the counters whole.
    try:
        with torch.no_grad(), counter, activations:
            model.eval()(torch.zeros(1, 3, image_size, image_size, device=device))
    finally:
        model.train(was_training)
    params = sum(parameter.numel() for parameter in model.parameters())
    return Counts(params, counter.get_total_flops(), activations.get_total_flops(), image_size)


def _activations_of(operation: Any) -> Any:
    """A rule for FlopCounterMode that counts an operation's outputs in place of its FLOPs, from shapes."""
    attends = "scaled_dot_product" in str(operation)

    def outputs(*shapes: Any, out_shape: Any, **_: Any) -> int:
        scores = torch.Size(shapes[0][:-1]).numel() * shapes[1][-2] if attends else 0
        first = out_shape if isinstance(out_shape, torch.Size) else out_shape[0]
        return first.numel() + scores

    return outputs
