"""Whether the two losses pull the backbone the same way: cosines of their gradients, layer by layer.

The teacher acts as a preconditioner early in training (TextTeacher, arXiv 2605.22098); gradient cosines as a measure of
agreement of two losses: Du et al., 2018, arXiv 1812.02224.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tt_ray.config import Config
from tt_ray.data.loader import TrainBatches
from tt_ray.data.prepare import Data
from tt_ray.io.checkpoint_folder import step_of
from tt_ray.models.classifier import Outputs, TaughtClassifier
from tt_ray.training.context import LocalContext
from tt_ray.training.parallelism import blocks
from tt_ray.training.trainer import Trainer

FEATURE = "pooled feature"


class Agreement(NamedTuple):
    """Agreement of the two losses in one layer, averaged over batches."""

    cosine: float
    """Cosine of the gradients of L_cls and L_text by the layer's parameters; nan where one of them is 0."""
    norm_cls: float
    """Norm of the gradient of L_cls."""
    norm_text: float
    """Norm of the gradient of L_text, unbalanced."""


def gradient_agreements(
    checkpoints: Sequence[Path], config: Config, data: Data, batches: int, device: torch.device
) -> list[dict[str, Agreement]]:
    """One for each checkpoint, by layer in the order of the model; last the pooled feature, which w is of.

    On the training batches that follow the checkpoint, augmented and mixed as in training, in float32, in training
    mode. L_text is the loss towards a vision teacher where the run has one. Layers are the backbone's blocks and what
    else of it has parameters; the classifier and the text head, which one loss alone trains, are left out. Raises
    UserError where the run's data or teacher is not there any more.
    """
    # The trainer itself prepares batches and targets; float32, and nothing is compiled for a few of them.
    config = config.override("train.compile", False).override("text.on_device", False)
    trainer = Trainer(config, data, LocalContext(0, 1, device))
    model = trainer.model.train()
    layers = parameters_by_layer(model)
    objective = trainer.text_teacher.objective._replace(balance=False)
    loaded = TrainBatches(data.train, data.targets, trainer.order, config)
    answers: list[dict[str, Agreement]] = []
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of stochastic depth and dropout
        for checkpoint in checkpoints:
            model.load_state_dict(load_file(checkpoint / "model.safetensors"))
            found: dict[str, list[Agreement]] = defaultdict(list)
            for step in range(step_of(checkpoint), step_of(checkpoint) + batches):
                images, labels, text = trainer.on_device(loaded[step], step)
                text, teacher = trainer.ask_teacher(images, text)
                outputs: Outputs = model(images)
                losses = [objective(outputs, labels, text, weight, teacher)[0] for weight in (0.0, 1.0)]
                tensors = {**layers, FEATURE: [outputs.features]}
                for name, agreement in agreements((losses[0], losses[1]), tensors).items():
                    found[name].append(agreement)
            answers.append({name: Agreement(*np.mean(rows, 0).tolist()) for name, rows in found.items()})
    return answers


def agreements(losses: tuple[Tensor, Tensor], layers: dict[str, Sequence[Tensor]]) -> dict[str, Agreement]:
    """Cosine and norms of the gradients of two losses by each layer's tensors, taken as one vector."""
    tensors = [tensor for layer in layers.values() for tensor in layer]
    grads = [
        torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True, materialize_grads=True)
        for loss in losses
    ]
    found: dict[str, Agreement] = {}
    start = 0
    for name, layer in layers.items():
        first, second = (torch.cat([g.flatten() for g in each[start : start + len(layer)]]).double() for each in grads)
        norms = first.norm(), second.norm()
        found[name] = Agreement(float(first @ second / (norms[0] * norms[1])), float(norms[0]), float(norms[1]))
        start += len(layer)
    return found


def parameters_by_layer(model: TaughtClassifier) -> dict[str, Sequence[Tensor]]:
    """The backbone's parameters but its classifier's: blocks by name, the rest by the name of the outermost module."""
    backbone = model.backbone
    names = {module: name for name, module in backbone.named_modules()}
    inner = [names[block] for block in blocks(backbone)]
    classifier: nn.Module = backbone.get_classifier()  # type: ignore[operator]
    own = {id(parameter) for parameter in classifier.parameters()}
    layers: dict[str, list[Tensor]] = defaultdict(list)
    for name, parameter in backbone.named_parameters():
        if id(parameter) not in own and parameter.requires_grad:
            block = next((block for block in inner if name.startswith(f"{block}.")), name.split(".")[0])
            layers[block].append(parameter)
    return dict(layers)
