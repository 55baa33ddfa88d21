"""Protocol `linear_sgd`: linear classifiers trained by SGD on augmented images, many at once on one backbone pass.

DINOv2's `eval/linear.py` (Oquab et al., 2024, arXiv 2304.07193, appendix B.3): the class token of the last 1 or 4
blocks after the final norm, concatenated, with or without the mean of the last block's patch tokens, times 13 learning
rates, gives 52 heads. Each is trained on cross-entropy by SGD with momentum 0.9, without weight decay, by the learning
rate times batch / 256, which falls to 0 along a cosine; weights start from N(0, 0.01^2), biases from 0. Images are
cut at random (RandomResizedCrop) and mirrored; tests resize to 256/224 of the input and cut out the centre, bicubic.

The head is chosen on validation images: official ones, or images held out from train, never those that are reported
(that code's default). It is not trained again, but for VTAB-1k, which asks for it. DINOv3 takes `blocks` (1,). Models
without a class token get one input, the pooled feature, and 13 heads.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from eval.contract import Corruption, EvalConfig, Result, Test, Traits
from eval.features.backbone import Backbone, Preprocessing, forward_pass
from eval.features.extract import Decoder
from eval.metrics import score
from eval.protocols.finetune_data import joined
from eval.protocols.likeliest import result_of
from eval.tasks.registry import Task, split_rows
from tt_ray.data.augment import normalize
from tt_ray.data.augment_draws import seeded
from tt_ray.data.loader import loader_processes
from tt_ray.data.loader_processes import prepared
from tt_ray.data.sources.base import Source
from tt_ray.stateless_random import seed_of, uniform
from tt_ray.terminal.errors import UserError

TRAITS = Traits(version=1, cost=40.0)
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
_ORDER, _CUT, _START = 0x11A1, 0x11A2, 0x11A3
_MARGIN = 224 / 256
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Options:
    """The recipe."""

    rates: tuple[float, ...] = RATES
    """Learning rates at a batch of 256."""
    blocks: tuple[int, ...] = (1, 4)
    """Numbers of last blocks whose class tokens are taken; more than there are becomes all."""
    patches: tuple[bool, ...] = (False, True)
    """Whether the mean of the patch tokens is concatenated to them."""
    steps: int = 12_500
    """The paper's 10 epochs of 1250 steps."""
    batch_size: int = 128
    """Images of a step. The paper's runs had 1024, on 8 GPUs; learning rates follow."""
    momentum: float = 0.9
    """Of SGD."""
    smallest_cut: float = 0.08
    """Least share of the image's area that RandomResizedCrop takes."""

    def __post_init__(self) -> None:
        """Raises UserError for values that no training could use."""
        if not (self.rates and self.blocks and self.patches):
            raise UserError(f"linear_sgd: rates, blocks and patches of {self} must not be empty")
        if min(*self.rates, *self.blocks, self.steps, self.batch_size, self.smallest_cut) <= 0:
            raise UserError(f"linear_sgd: rates, blocks, steps, batch_size and smallest_cut of {self} must be positive")


class Heads:
    """Linear classifiers of one input, one for each learning rate, trained together."""

    def __init__(self, width: int, classes: int, rates: Tensor, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (len(rates), classes, width)
        # One draw for all rates: what they find differs by the rate alone.
        weights = 0.01 * torch.randn(classes, width, generator=generator)
        self.rates = rates[:, None, None]
        self.weights = weights.to(rates.device).expand(shape).clone()
        self.bias = torch.zeros(len(rates), 1, classes, device=rates.device)
        self._speed, self._bias_speed = torch.zeros_like(self.weights), torch.zeros_like(self.bias)

    def logits(self, x: Tensor) -> Tensor:
        """Logits of inputs (B, width): (rates, B, classes)."""
        return torch.baddbmm(self.bias, x.expand(len(self.rates), *x.shape), self.weights.transpose(1, 2))

    def step(self, x: Tensor, labels: Tensor, share: float, momentum: float) -> None:
        """SGD on the mean cross-entropy of a batch, x (B, width) and labels (B,), by `share` of the learning rates."""
        slope = torch.softmax(self.logits(x), 2)
        slope[:, torch.arange(len(x), device=x.device), labels] -= 1
        slope /= len(x)
        self._speed.mul_(momentum).add_(slope.transpose(1, 2) @ x)
        self._bias_speed.mul_(momentum).add_(slope.sum(1, keepdim=True))
        self.weights -= share * self.rates * self._speed
        self.bias -= share * self.rates * self._bias_speed


class Head(NamedTuple):
    """Which head."""

    input: str
    rate: float

    def __str__(self) -> str:
        return f"{self.input} lr {self.rate:g}"


def evaluate(backbone: Backbone, task: Task, config: EvalConfig) -> Result:
    """Trains all heads, chooses one, then tests it once."""
    return fit(backbone, task, config)(None)


def fit(backbone: Backbone, task: Task, config: EvalConfig) -> Test:
    """Trains all heads and chooses one on validation images: the first of equally good ones."""
    options: Options = config.options
    if task.evaluation_only:
        raise UserError(f"{task.name} has no training images: evaluate classifiers on it, with --protocols classifier")
    source = task.open("train")
    count = len(source)
    if task.has_val:
        source = joined(source, task.open("val"))
    rows, val = split_rows(task, source.labels, count, config.seed)
    with _on_device(backbone, config.device):
        heads = train(backbone, source.select(rows), task.classes, options, config)
        held_out = source.select(val)
        found = {
            head: score(task, held_out.labels, shares.argmax(1))[task.metric]
            for head, shares in predict(backbone, heads, held_out, options, config).items()
            if np.isfinite(shares).all()
        }
        if not found:
            raise UserError(
                f"linear_sgd: all heads diverged at the rates {options.rates}: choose lower linear_sgd.rates"
            )
        best = max(found, key=lambda head: found[head])
        if task.refits:
            heads = train(backbone, source, task.classes, options, config)
    tried = {str(head): value for head, value in found.items()}
    chosen = {"input": best.input, "lr": best.rate, "validation": found[best], "heads": tried}
    test = task.open("test")

    def tested(corruption: Corruption | None) -> Result:
        with _on_device(backbone, config.device):
            shares = predict(backbone, heads, test, options, config, best, corruption)[best]
        return result_of(task, shares, test.labels, chosen)

    return tested


@contextmanager
def _on_device(backbone: Backbone, device: str) -> Iterator[None]:
    """Keeps the model on a device meanwhile."""
    at_first = next(backbone.model.parameters()).device
    backbone.model.to(device)
    try:
        yield
    finally:
        backbone.model.to(at_first)


def train(backbone: Backbone, source: Source, classes: int, options: Options, config: EvalConfig) -> dict[str, Heads]:
    """Heads by the name of their input, after all steps."""
    rates = torch.tensor(options.rates, device=config.device) * (options.batch_size / 256)
    batches = Views(source, backbone.preprocessing.size, options, config.seed)
    heads: dict[str, Heads] = {}
    loader = prepared(batches, range(options.steps), *_loaders(config))
    for step, (images, labels) in enumerate(loader):
        share = (1 + math.cos(math.pi * step / options.steps)) / 2
        labels = labels.to(config.device, non_blocking=True)
        for name, x in _inputs_in_parts(backbone, images, options, config).items():
            if name not in heads:
                heads[name] = Heads(x.shape[1], classes, rates, seed_of(config.seed, _START, len(heads)))
            heads[name].step(x, labels, share, options.momentum)
    return heads


class Views(Dataset[tuple[Tensor, Tensor]]):
    """`self[step]`: cut and mirrored images, uint8 (B, 3, size, size), and their labels, (B,).

    All images come once before any comes again; what is drawn is a function of (seed, step, place in the batch).
    """

    def __init__(self, source: Source, size: int, options: Options, seed: int) -> None:
        source.pull()
        self.source, self.batch_size, self.seed = source, options.batch_size, seed
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(
                    size, (options.smallest_cut, 1.0), interpolation=InterpolationMode.BICUBIC
                ),
                transforms.RandomHorizontalFlip(),
                transforms.PILToTensor(),
            ]
        )
        self._round: tuple[int, Ints] = (-1, np.zeros(0, np.int64))

    def __len__(self) -> int:
        return 1 << 62  # as many as are asked for

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        rows = np.array([self._row(int(place)) for place in places])
        seeds = (uniform(places, 1, self.seed, _CUT)[:, 0] * 2**32).astype(np.int64)
        samples = zip(rows.tolist(), seeds.tolist(), strict=True)
        views = [seeded(self.transform, self.source.read(row), seed) for row, seed in samples]
        return torch.stack(views), torch.from_numpy(self.source.labels[rows])

    def _row(self, place: int) -> int:
        number, within = divmod(place, len(self.source))
        if self._round[0] != number:
            self._round = (
                number,
                np.random.default_rng(seed_of(self.seed, _ORDER, number)).permutation(len(self.source)),
            )
        return int(self._round[1][within])


def predict(
    backbone: Backbone,
    heads: dict[str, Heads],
    source: Source,
    options: Options,
    config: EvalConfig,
    only: Head | None = None,
    corruption: Corruption | None = None,
) -> dict[Head, npt.NDArray[np.float32]]:
    """Probabilities (n, classes) of every image, perhaps corrupted, by each head, or by one of them."""
    preprocessing = replace(backbone.preprocessing, crop_pct=_MARGIN, crop_mode="center", interpolation="bicubic")
    found: dict[Head, list[npt.NDArray[np.float32]]] = {}
    for images in _test_batches(source, preprocessing, config, corruption):
        for name, x in _inputs_in_parts(backbone, images, options, config).items():
            if only is not None and name != only.input:
                continue
            shares = torch.softmax(heads[name].logits(x), 2).cpu().numpy()
            for rate, part in zip(options.rates, shares, strict=True):
                if only is None or rate == only.rate:
                    found.setdefault(Head(name, rate), []).append(part)
    return {head: np.concatenate(parts) for head, parts in found.items()}


def _test_batches(
    source: Source, preprocessing: Preprocessing, config: EvalConfig, corruption: Corruption | None
) -> Iterator[Tensor]:
    rows = np.arange(len(source))
    batches = np.array_split(rows, range(config.batch_size, len(rows), config.batch_size))
    decoder = Decoder(source, preprocessing, batches, config.threads, corruption)
    yield from prepared(decoder, range(len(decoder)), *_loaders(config))


def _loaders(config: EvalConfig) -> tuple[int, bool]:
    """Loader processes, and whether they pin memory. A GPU does not wait for images: it has one at least."""
    cuda = config.device.startswith("cuda")
    return (loader_processes(config.num_loaders, cuda) if cuda else config.num_loaders), cuda


def _inputs_in_parts(backbone: Backbone, images: Tensor, options: Options, config: EvalConfig) -> dict[str, Tensor]:
    """Inputs of a batch, whose forward pass is taken in parts of at most config.batch_size images."""
    mean, std = backbone.preprocessing.mean, backbone.preprocessing.std
    with forward_pass(config):
        parts = [
            inputs(backbone, normalize(part.to(config.device, non_blocking=True), mean, std), options)
            for part in images.split(config.batch_size)
        ]
        return {name: torch.cat([part[name] for part in parts]).float() for name in parts[0]}


def inputs(backbone: Backbone, images: Tensor, options: Options) -> dict[str, Tensor]:
    """Inputs of heads from normalised images (B, 3, size, size), by name, (B, width) each."""
    model: Any = backbone.model
    if getattr(model, "cls_token", None) is None or not hasattr(model, "blocks"):
        return {"pooled": backbone.pooled(images)}
    depths = sorted({min(number, len(model.blocks)) for number in options.blocks})
    layers = model.forward_intermediates(
        images, indices=depths[-1], return_prefix_tokens=True, norm=True, output_fmt="NLC", intermediates_only=True
    )
    found: dict[str, Tensor] = {}
    for depth in depths:
        tokens = [prefix[:, 0] for _, prefix in layers[-depth:]]
        for with_patches in dict.fromkeys(options.patches):
            name = f"class token of {depth} {'block' if depth == 1 else 'blocks'}"
            if with_patches:
                found[f"{name} + patches"] = torch.cat([*tokens, layers[-1][0].mean(1)], 1)
            else:
                found[name] = torch.cat(tokens, 1)
    return found
