"""CKA between models' pooled features, and between the layers of two models.

Linear CKA without bias, from minibatches (Nguyen et al., 2021, arXiv 2010.15327): 1 for features that are rotations
and scales of each other, about 0 for unrelated ones. Batches are drawn at random from the images. Layers are the
backbone's blocks, or every attention and MLP in them, and, last, its pooled feature; activations are taken as they
are, all tokens or pixels side by side, as in that paper.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from eval.contract import EvalConfig
from eval.feature_metrics import SMALLEST_BATCH, hsic1, shuffled_batches, unbiased_cka
from eval.features.backbone import Backbone
from eval.features.cache import test_features
from eval.features.extract import Decoder
from eval.tasks.registry import Task
from tt_ray.data.augment import normalize
from tt_ray.data.sources.base import Source
from tt_ray.terminal.errors import UserError
from tt_ray.training.parallelism import blocks

Grid = npt.NDArray[np.float64]
Layers = Literal["blocks", "modules"]
"""Layers to compare: the backbone's blocks, or the outputs of every attention and MLP in them."""
_MODULES = ("attn", "self_attn", "token_mixer", "mhca", "e_mhsa", "mlp", "ffn")
"""Names that timm's models give them."""


def between_models(backbones: Sequence[Backbone], task: Task, config: EvalConfig) -> Grid:
    """CKA of every two models' pooled features on the test images, (K, K); features come from the cache."""
    features = [test_features(backbone, task, config)[0] for backbone in backbones]
    return np.array([[unbiased_cka(x, y, config.batch_size) for y in features] for x in features])


def between_layers(
    first: Backbone, second: Backbone, source: Source, config: EvalConfig, layers: Layers = "blocks"
) -> Grid:
    """CKA of every layer of `first` with every layer of `second`, (L1, L2), on all images of a split.

    A batch's Gram matrices are in memory at a time. Raises UserError below four images.
    """
    batches = _batches(source, config)
    return cka_of_grams(
        tuple(_grams(each, source, rows, config, layers) for each in (first, second)) for rows in batches
    )


def layer_grams(backbone: Backbone, source: Source, config: EvalConfig, layers: Layers = "blocks") -> list[list[Grid]]:
    """Gram matrices of each batch and layer, for `cka_of_grams`: n^2 / batches numbers a layer stay in memory.

    Raises UserError below four images.
    """
    return [_grams(backbone, source, rows, config, layers) for rows in _batches(source, config)]


def cka_of_grams(pairs: Iterable[Sequence[Sequence[Grid]]]) -> Grid:
    """CKA of every layer of a model with every layer of another, (L1, L2), from the Gram matrices of each batch.

    The three HSIC_1 of equation 3 of Nguyen et al. are averaged over batches before the root and the ratio are taken.
    """
    both: Grid | None = None
    own: list[Any] = [0.0, 0.0]
    for grams in pairs:
        terms = np.array([[hsic1(k, l) for l in grams[1]] for k in grams[0]])  # noqa: E741, as in the paper
        both = terms if both is None else both + terms
        own = [total + np.array([hsic1(k, k) for k in each]) for total, each in zip(own, grams, strict=True)]
    assert both is not None, "there is a batch"
    scale = np.sqrt(np.maximum(own[0], 0)[:, None] * np.maximum(own[1], 0)[None, :])
    return np.divide(both, scale, out=np.full(both.shape, np.nan), where=scale > 0)


def _batches(source: Source, config: EvalConfig) -> list[npt.NDArray[np.int64]]:
    if min(len(source), config.batch_size) < SMALLEST_BATCH:
        raise UserError(f"CKA without bias needs at least {SMALLEST_BATCH} images a batch, but has {len(source)}")
    return shuffled_batches(len(source), config.batch_size)


def layer_names(backbone: Backbone, layers: Layers = "blocks") -> list[str]:
    """Names of the rows of `between_layers`."""
    return [*_layers(backbone, layers), "pooled"]


def _layers(backbone: Backbone, layers: Layers) -> dict[str, nn.Module]:
    """Modules to watch, by name; raises UserError where the model has none of the kind."""
    names = {module: name for name, module in backbone.model.named_modules()}
    found = {names[block]: block for block in blocks(backbone.model)}
    if layers == "blocks":
        return found
    inside = {
        f"{block}.{name}": module
        for block, part in found.items()
        for name, module in part.named_modules()
        if name.rpartition(".")[2] in _MODULES
    }
    if not inside:
        raise UserError(f"{backbone.name} has no attention or MLP modules: compare its blocks (leave --modules out)")
    return inside


def _grams(
    backbone: Backbone, source: Source, rows: npt.NDArray[np.int64], config: EvalConfig, layers: Layers
) -> list[Grid]:
    """One Gram matrix (B, B) a layer."""
    prep, device = backbone.preprocessing, torch.device(config.device)
    images = Decoder(source, prep, [rows], config.threads)[0].to(device)
    watched = _layers(backbone, layers)
    found: dict[str, Tensor] = {}
    model = backbone.model.to(device)
    try:
        # Not around the decoder, whose threads are in no inference mode.
        with torch.inference_mode(), _watching(watched, lambda name, out: found.update({name: _gram(out, len(rows))})):
            pooled = backbone.pooled(normalize(images, prep.mean, prep.std))
    finally:
        model.to("cpu")
    if missing := watched.keys() - found.keys():
        raise UserError(f"{backbone.name} computes its feature without {', '.join(sorted(missing))}")
    return [gram.double().cpu().numpy() for gram in [*(found[name] for name in watched), _gram(pooled, len(rows))]]


@contextmanager
def _watching(modules: Mapping[str, nn.Module], put: Callable[[str, Any], None]) -> Iterator[None]:
    """Passes each module's name and output to `put` in the forward pass."""

    def watch(name: str, module: nn.Module) -> Any:
        return module.register_forward_hook(lambda _, __, out: put(name, out))

    hooks = [watch(name, module) for name, module in modules.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _gram(output: Any, images: int) -> Tensor:
    """(B, B) from activations of B images; the first of several outputs. Windows of an image lie side by side.

    Without their mean, which HSIC_1 does not see: in single precision a large one rounds away what images differ in.
    """
    flat = (output[0] if isinstance(output, tuple) else output).reshape(images, -1)
    flat = flat - flat.mean(0)
    return flat @ flat.T
