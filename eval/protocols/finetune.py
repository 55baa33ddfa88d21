"""Protocol `finetune`: all weights trained on the task by the project's own loop, with text off.

The backbone's weights and a fresh classifier (truncated normal with standard deviation 0.02, bias 0, as TextTeacher's
fine-tuning has it, arXiv 2605.22098) start `tt_ray.training.trainer`. Each learning rate of the recipe is tried on the
training images and scored on the validation images with the task's metric; the best one trains again on both together,
and the result is tested once. A rate whose loss becomes infinite has lost; a recipe with a single rate selects nothing.

`train_on` says what the last training sees. The recipes `paper` and `paper_cars` leave official validation images out,
as TextTeacher does for Flowers and Aircraft: its numbers there do not compare with those of models that are trained on
train + val.

The budget is steps, not epochs: as many images as the steps need are drawn so that all occur equally often (give or
take one), in random order over the whole training. Images are resized as in training runs: bicubic, to the backbone's
input size. `EvalConfig.batch_size` splits larger steps into parts whose gradients add up: the same up to rounding,
the random numbers of stochastic depth, and batch norm's statistics.

`at_edge` among what was chosen says that the best rate was the lowest or the highest: try a wider grid.
"""

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from timm.models import get_model_args
from torch import Tensor, nn

from eval.contract import Corruption, EvalConfig, Result, Test, Traits
from eval.features.backbone import Backbone, forward_pass
from eval.features.corruptions import corrupt_all
from eval.metrics import score
from eval.protocols.finetune_data import hold, joined, repeated
from eval.protocols.finetune_recipes import COMMON, RECIPES, Recipe
from eval.protocols.likeliest import result_of
from eval.tasks.registry import Task, split_rows
from tt_ray.config import Config, ModelConfig
from tt_ray.data.augment import VECTORISED, normalize
from tt_ray.data.loader import EvalBatches, load
from tt_ray.data.prepare import Data
from tt_ray.data.sources.base import Source
from tt_ray.models.classifier import TaughtClassifier
from tt_ray.stateless_random import seed_of
from tt_ray.terminal.errors import NonFiniteLoss, UserError, nearest, one_line
from tt_ray.training.context import LocalContext
from tt_ray.training.run_folder import start_run
from tt_ray.training.trainer import Trainer

TRAITS = Traits(version=2, cost=200.0)
_ORDER_SEED, _CLASSIFIER_SEED = 31, 32
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Options:
    """The recipe, and changes of it."""

    recipe: Literal["builtin", "deit", "paper", "paper_cars", "vtab"] = "builtin"
    """A short one for CPUs, DeiT's, TextTeacher's for Flowers or Cars, or VTAB's lightweight sweep (see `RECIPES`)."""
    steps: int = 0
    """Steps of each training; 0 takes the recipe's, or chooses among its `schedules`."""
    batch_size: int = 0
    """Images of a step; 0 takes the recipe's."""
    rates: tuple[float, ...] = ()
    """Learning rates to choose from; empty takes the recipe's."""
    layer_decay: float = 0.0
    """Factor of the learning rate from each layer to the one before it, 1 for none; 0 takes the recipe's."""
    train_on: Literal["", "train", "train+val"] = ""
    """Images of the last training: train leaves official validation images out; empty takes the recipe's."""
    overrides: dict[str, Any] = field(default_factory=dict[str, Any])
    """Fields of the run's configuration over the recipe's (see `COMMON`), such as {"optim.weight_decay": 0.1}."""

    def __post_init__(self) -> None:
        """Raises UserError for values that no training could use."""
        if min(self.steps, self.batch_size, *self.rates, 0) < 0 or not 0 <= self.layer_decay <= 1:
            raise UserError(f"finetune: {self} has a negative number, or a layer_decay above 1")
        for path in self.overrides:
            if path not in COMMON:
                raise UserError(f"finetune.overrides: no field {path} that a recipe sets; {nearest(path, COMMON)}")

    @property
    def resolved(self) -> Recipe:
        """Every number of the training."""
        recipe = RECIPES[self.recipe]
        overrides = {**recipe.overrides, **self.overrides}
        if self.layer_decay:
            overrides["optim.layer_decay"] = self.layer_decay
        if self.steps:
            recipe = replace(recipe, schedules=())
        given = {"steps": self.steps, "batch_size": self.batch_size, "rates": self.rates, "train_on": self.train_on}
        return replace(recipe, **{name: value for name, value in given.items() if value}, overrides=overrides)

    @property
    def recipe_numbers(self) -> dict[str, Any]:
        """Every number of the training, for the protocol's hash."""
        return self.resolved.numbers


def evaluate(backbone: Backbone, task: Task, config: EvalConfig) -> Result:
    """Chooses the learning rate, trains, then tests once."""
    return fit(backbone, task, config)(None)


def fit(backbone: Backbone, task: Task, config: EvalConfig) -> Test:
    """Chooses the learning rate, and the number of steps where the recipe has several, and trains on all."""
    recipe = cast(Options, config.options).resolved
    size = backbone.preprocessing.size if recipe.config["data.augment"] in VECTORISED else 0
    both, fit, val = _splits(task, config.seed)
    both = hold(both, size)
    candidates = [(rate, steps) for steps in recipe.schedules or (recipe.steps,) for rate in recipe.rates]
    tuners = {each: Tuner(backbone, replace(recipe, steps=each[1]), each[0], config) for each in candidates}
    best, found = candidates[0], dict[tuple[float, int], float | None]()
    if len(candidates) > 1:
        train, held_out = both.select(fit), both.select(val)
        for candidate, tuner in tuners.items():
            try:
                probs = tuner.train(train).predict(held_out)
            except NonFiniteLoss:
                found[candidate] = None
            else:
                found[candidate] = score(task, held_out.labels, probs.argmax(1))[task.metric]
        finite = {each: value for each, value in found.items() if value is not None}
        if not finite:
            raise UserError(f"finetune: the loss diverged at every rate of {recipe.rates}: choose lower finetune.rates")
        best = max(finite, key=lambda each: (finite[each], -each[0], -each[1]))
    test = task.open("test")
    last = both.select(fit) if task.has_val and recipe.train_on == "train" and not task.refits else both
    tuned = tuners[best].train(last)
    rates = recipe.rates
    chosen: dict[str, Any] = {"lr": best[0], "at_edge": len(rates) > 1 and best[0] in (min(rates), max(rates))}
    if recipe.schedules:
        chosen |= {"steps": best[1], "validation": {f"{lr:g}, {steps} steps": v for (lr, steps), v in found.items()}}
    else:
        chosen["validation"] = {lr: value for (lr, _), value in found.items()}
    chosen["recipe"] = recipe.numbers
    if recipe.amp and config.device.startswith("cuda"):
        chosen["precision"] = "bf16"  # of the training

    def tested(corruption: Corruption | None) -> Result:
        return result_of(task, tuned.predict(test, corruption), test.labels, chosen)

    return tested


class Splits(NamedTuple):
    """Images that training may use, and which of them choose the learning rate."""

    both: Source
    fit: Rows
    val: Rows


def _splits(task: Task, seed: int) -> Splits:
    train = task.open("train")
    both = joined(train, task.open("val")) if task.has_val else train
    return Splits(both, *split_rows(task, both.labels, len(train), seed))


class Tuned(NamedTuple):
    """A trained model."""

    model: TaughtClassifier
    run: Config
    config: EvalConfig

    def predict(self, source: Source, corruption: Corruption | None = None) -> npt.NDArray[np.float32]:
        """Probabilities of the classes (n, C), in float32, of images as the loop's validation prepares them.

        They are corrupted after that, where a corruption is given.
        """
        data, device = self.run.data, torch.device(self.config.device)
        self.model.eval()
        batches = EvalBatches(source, self.run, 0, 1, self.config.batch_size)
        parts: list[Tensor] = []
        for batch in load(batches, range(len(batches)), self.run, device):
            images = batch.images
            if corruption is not None:
                images = corrupt_all(images, source.ids.take(pa.array(batch.rows.numpy())).to_pylist(), corruption)
            with forward_pass(self.config):
                images = normalize(images.to(device, non_blocking=True), data.mean, data.std)
                parts.append(self.model(images).logits.float().softmax(1))
        return torch.cat(parts).cpu().numpy()  # once: each copy makes the host wait for a GPU


@dataclass(frozen=True)
class Tuner:
    """One training."""

    backbone: Backbone
    recipe: Recipe
    rate: float
    config: EvalConfig

    def train(self, source: Source) -> "Tuned":
        """Trains on a split. Raises NonFiniteLoss."""
        device = torch.device(self.config.device)
        recipe, seed = self.recipe, self.config.seed
        images = repeated(source, recipe.steps * recipe.batch_size, seed_of(seed, _ORDER_SEED))
        with tempfile.TemporaryDirectory(prefix="finetune-") as folder:
            run = self._run(Path(folder), len(source))
            start_run(run)
            # The loop validates a split after the last step: one image, since the scores come from elsewhere.
            trainer = Trainer(
                run, Data(images, images.select(np.zeros(1, np.int64)), None, ()), LocalContext(0, 1, device)
            )
            start_from(trainer.model.backbone, self.backbone.model, seed_of(seed, _CLASSIFIER_SEED))
            trainer.run()
        return Tuned(trainer.model, run, self.config)

    def _run(self, folder: Path, images: int) -> Config:
        """The loop's configuration; all files go to `folder`."""
        recipe, backbone, cuda = self.recipe, self.backbone, self.config.device.startswith("cuda")
        prep = backbone.preprocessing
        warmup = min(recipe.warmup_epochs * images / recipe.batch_size / recipe.steps, recipe.largest_warmup)
        fields = recipe.config
        settings = {
            **fields,
            "run.name": "run",
            "run.storage": str(folder),
            "run.use_gpu": cuda,
            "run.log_every": 50,
            "text.weight": 0.0,
            "data.image_size": prep.size,
            "data.mean": prep.mean,
            "data.std": prep.std,
            "data.cache_gb": 0.0,
            "data.num_loaders": self.config.num_loaders,
            "train.epochs": 1,
            "train.batch_size": recipe.batch_size,
            "train.max_batch_per_worker": self.config.batch_size,
            "train.seed": self.config.seed,
            "train.precision": "bf16" if (recipe.amp and cuda) or self.config.precision == "bf16" else "fp32",
            "optim.warmup_epochs": warmup,
            "data.crop_pct": fields["data.crop_pct"] or prep.crop_pct,
            "optim.lr": self.rate,
        }
        return replace(Config(), model=model_config(backbone)).override(settings)


def model_config(backbone: Backbone) -> ModelConfig:
    """The configuration that builds the backbone; raises UserError when none can express it."""
    model = cast(Any, backbone.model)
    arguments: dict[str, Any] = get_model_args(model)
    for name in ("num_classes", "in_chans"):
        arguments.pop(name, None)
    kwargs = {name: _plain(value) for name, value in arguments.items() if value is not None}
    try:
        config = Config().override("model.kwargs", kwargs)
    except UserError as error:
        raise UserError(f"finetune cannot build {backbone.spec} again: {error}") from None
    return replace(config.model, name=model.pretrained_cfg["architecture"])


def _plain(value: Any) -> Any:
    """Square sizes as one number, lists as tuples."""
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
        return value[0]
    return tuple(value) if isinstance(value, list) else value


@torch.no_grad()
def start_from(model: nn.Module, source: nn.Module, seed: int) -> None:
    """Copies all weights of `source` into `model` but the classifier's, which are drawn from `seed`.

    Raises UserError, naming them, where weights are lacking, left over or of another shape.
    """
    classifier = cast(Any, model).get_classifier()
    generator = torch.Generator().manual_seed(seed)
    fresh = nn.init.trunc_normal_(torch.empty(classifier.weight.shape), std=0.02, generator=generator)
    classifier.weight.copy_(fresh)
    if classifier.bias is not None:
        classifier.bias.zero_()
    own = {id(parameter) for parameter in classifier.parameters()}
    names = {name for name, value in model.named_parameters() if id(value) in own}
    state = {name: value for name, value in source.state_dict().items() if name not in names}
    state |= {name: value for name, value in model.state_dict().items() if name in names}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"finetune cannot start from these weights: {one_line(error)}") from None
