"""The published setting against its formulas, written out here a second time, and against the libraries it uses."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from tests.toy import run_toy, toy_config
from tests.training.test_collectives import on_two
from tests.training.test_objective import CLASSES, _batch, _gradients, _model
from tt_ray.config import Config, OptimConfig, TextConfig
from tt_ray.data.mixing import _MIXING_SEED, build_mixing
from tt_ray.recipes import RECIPES
from tt_ray.stateless_random import seed_of
from tt_ray.terminal.errors import UserError
from tt_ray.training.metrics_log import read_rows
from tt_ray.training.objective import PARTS, Objective
from tt_ray.training.optim import build_optimizer, build_scheduler, clip_gradients, learning_rate
from tt_ray.training.run_folder import changed_paths
from tt_ray.training.validation import batch_mean

PUBLISHED = RECIPES["in1k_vit_s_published"]()
HALF, SEED, STEP, WEIGHT = 3, 5, 2, 0.5
EPS, TOY_MODEL = PUBLISHED.optim.eps, "vit_tiny_patch16_224"


def test_ours_stays_the_default_and_the_recipe_has_each_difference_in_a_field() -> None:
    ours, baseline = RECIPES["in1k_vit_s_textteacher"](), RECIPES["in1k_vit_s_published_baseline"]()
    assert (ours.text.scope, ours.text.local_negatives, ours.text.loss_precision) == ("global", False, "fp32")
    assert (ours.optim.schedule_per, ours.optim.label_smoothing, ours.train.eval_batch_mean) == ("step", 0.1, False)
    assert PUBLISHED.text.local_negatives and PUBLISHED.train.batch_size // PUBLISHED.workers[1] == 512
    assert {path for path in Config.paths() if baseline.get(path) != PUBLISHED.get(path)} == {"run.name", "text.weight"}


def test_epochs_0_and_1_warm_up_from_the_same_rate_and_the_peak_is_epoch_6() -> None:
    steps, optim = 7, PUBLISHED.optim
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=optim.lr)
    scheduler = build_scheduler(optim, optimizer, 300, steps)
    rates = []
    for step in range(300 * steps):
        scheduler.step_update(step)
        rates.append(learning_rate(optimizer))
    assert all(len(set(rates[start : start + steps])) == 1 for start in range(0, len(rates), steps))
    epochs = rates[::steps]
    assert epochs[:4] == pytest.approx([1e-6, 1e-6, 6.008e-4, 1.2006e-3])
    for epoch, rate in enumerate(epochs):
        t = max(epoch - 1, 0)
        rising = 1e-6 + (3e-3 - 1e-6) * t / 5
        falling = 1e-5 + (3e-3 - 1e-5) * (1 + math.cos(math.pi * t / 300)) / 2
        assert rate == pytest.approx(rising if t < 5 else falling, rel=1e-9), epoch
    assert epochs.index(max(epochs)) == 6
    # Sums over the first six epochs, as measured in the official code and in ours.
    assert sum(epochs[:6]) == pytest.approx(6.0e-3, rel=0.01)
    for _ in range(2):  # a resumed run has the same
        scheduler.step_update(2 * steps)
        assert learning_rate(optimizer) == pytest.approx(6.008e-4)


def test_part_of_an_epoch_of_warm_up_is_refused_where_the_rate_changes_by_epoch() -> None:
    with pytest.raises(UserError, match=r"optim\.schedule_per epoch .* optim\.warmup_epochs is 0\.5"):
        Config(optim=OptimConfig(schedule_per="epoch", warmup_epochs=0.5))


def test_smoothing_once_by_019_is_smoothing_twice_by_01() -> None:
    """Targets that the official code smooths when it mixes them, and its cross-entropy again, at 1,000 classes."""
    mixing = build_mixing(PUBLISHED, 1000)
    assert mixing is not None
    labels = torch.tensor([3, 999, 0, 17])
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
    for step in range(4):
        images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        _, targets, _ = mixing.mix(images.clone(), labels, None, SEED, step)
        np.random.seed(seed_of(SEED, _MIXING_SEED, step))
        once = Mixup(cutmix_alpha=1.0, mixup_alpha=0.0, label_smoothing=0.1, num_classes=1000)(images, labels)[1]
        expected = F.cross_entropy(logits, once, label_smoothing=0.1)
        torch.testing.assert_close(-(targets * logits.log_softmax(1)).sum(1).mean(), expected)
    # An image that nothing was mixed into has 0.81019 at its class.
    assert 0.9 * (0.9 + 0.1 / 1000) + 0.1 / 1000 == pytest.approx(0.81019) == pytest.approx(0.81 + 0.19 / 1000)


def _draw(worker: int) -> Mixup:
    np.random.seed(seed_of(SEED, _MIXING_SEED, STEP, worker))
    return Mixup(mixup_alpha=0.0, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=CLASSES)


def _parts() -> list[tuple[Tensor, Tensor, Tensor]]:
    """Each GPU's images, labels and captions: four, so that they can be mixed in pairs."""
    images, labels, text = (torch.cat([part, part[:2].flip(0)]) for part in _batch())
    return list(zip(images.split(4), labels.split(4), text.split(4), strict=True))


def _published_step(rank: int, loss: str) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients and parts of the loss of one of two GPUs, by the project's own loop's functions."""
    config = PUBLISHED.override({"text.loss": loss, "run.num_workers": 2})
    mixing, model = build_mixing(config, CLASSES), _model(loss)
    assert mixing is not None
    images, labels, text = _parts()[rank]
    images, labels, mixed = mixing.mix(images, labels, text, SEED, STEP, (4, 4), rank)
    total, parts = Objective.of(config)(model(images), labels, mixed, WEIGHT)
    total.backward()
    return _gradients(model), parts


def _by_hand(rank: int) -> tuple[dict[str, Tensor], list[float]]:
    """The same from the paper: own box, own negatives, own w; smoothing in the targets and in the loss."""
    images, labels, text = _parts()[rank]
    mixup = _draw(rank)
    np.random.seed(seed_of(SEED, _MIXING_SEED, STEP, rank))
    images, targets = mixup(images, labels)
    own = F.one_hot(labels, CLASSES).bool()
    partner = F.one_hot(labels.flip(0), CLASSES).bool()
    on, off = 0.9 + 0.1 / CLASSES, 0.1 / CLASSES
    # The share of the own image, from a target that two different classes share.
    row = next(row for row in range(4) if not torch.equal(own[row], partner[row]))
    share = ((targets[row][own[row]] - off) / (on - off)).item()
    text = share * text + (1 - share) * text.flip(0)
    model = _model("clip")
    outputs = model(images)
    assert outputs.text is not None
    loss_cls = F.cross_entropy(outputs.logits, targets, label_smoothing=0.1)
    similar = outputs.text @ text.T
    loss_text = (F.cross_entropy(similar, torch.arange(4)) + F.cross_entropy(similar.T, torch.arange(4))) / 2
    norms = [torch.autograd.grad(loss, outputs.features, retain_graph=True)[0].norm() for loss in (loss_cls, loss_text)]
    w = ((norms[0] + EPS) / (norms[1] + EPS)).item()
    (WEIGHT * w * loss_text + (1 - WEIGHT) * loss_cls).backward()
    return _gradients(model), [loss_cls.item(), loss_text.item(), w]


@pytest.mark.slow
def test_a_step_of_two_gpus_is_each_ones_own_and_the_mean_of_their_gradients(tmp_path: Path) -> None:
    found = on_two(tmp_path, _published_step, "clip")
    expected = [_by_hand(rank) for rank in range(2)]
    for (gradients, parts), (by_hand, values) in zip(found, expected, strict=True):
        assert parts[1:].tolist() == pytest.approx(values, rel=1e-4)
        # DDP takes the mean of these; nothing else of another GPU reaches them.
        for name, gradient in by_hand.items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6)
    assert abs(expected[0][1][2] - expected[1][1][2]) > 1e-3, "each has a w of its own"


def test_one_worker_alone_is_the_same_in_both_scopes() -> None:
    images, labels, text = _batch()
    results = []
    for scope in ("global", "worker"):
        config = Config(text=TextConfig(scope=scope))  # type: ignore[arg-type]
        mixing = build_mixing(config.override("data.cutmix", 1.0), CLASSES)
        assert mixing is not None
        mixed = mixing.mix(images.clone(), labels, text, SEED, STEP, (len(images),), 0)
        total, parts = Objective.of(config)(_model()(mixed[0]), mixed[1], mixed[2], WEIGHT)
        results.append((total, parts))
    assert torch.equal(results[0][1], results[1][1]) and torch.equal(results[0][0], results[1][0])


@pytest.mark.parametrize(
    ("scope", "negatives", "local"),
    [("global", "auto", False), ("worker", "auto", True), ("worker", "global", False), ("global", "local", True)],
)
def test_negatives_follow_the_scope_unless_they_are_named(scope: str, negatives: str, local: bool) -> None:
    saved = Config.from_dict({"text": {"scope": scope, "negatives": negatives}})
    assert saved.text.local_negatives is local
    assert Objective.of(saved).gather is not local and Objective.of(saved).own_balance is (scope == "worker")
    assert Config.from_dict({"text": {"negatives": "local"}}).text.local_negatives  # as saved before there was a scope


def test_what_depends_on_the_number_of_workers_keeps_one() -> None:
    two = {"data.cutmix": 1.0, "run.num_workers": 2}
    scope, local, ours = (
        Config().override({**two, **more}) for more in ({"text.scope": "worker"}, {"text.negatives": "local"}, {})
    )
    for config in (scope, local, scope.override("text.weight", 0.0)):
        with pytest.raises(UserError, match=r"run\.num_workers is 1:2, .* depend on the number: choose one"):
            config.override("run.num_workers", "1:2")
        assert changed_paths(config, config.override("run.num_workers", 3)) == ["run.num_workers"]
    for config in (ours, local.override("text.weight", 0.0), scope.override({"text.weight": 0.0, "data.cutmix": 0.0})):
        assert not changed_paths(config, config.override("run.num_workers", "1:3"))


def test_each_worker_mixes_the_captions_of_all_by_each_ones_own_share() -> None:
    """With negatives of all and boxes of each: a worker that looks up all captions mixes those of others as they do."""
    mixing = build_mixing(PUBLISHED, CLASSES)
    assert mixing is not None
    parts = _parts()
    own = [
        mixing.mix(images.clone(), labels, text, SEED, STEP, (4, 4), rank)[2]
        for rank, (images, labels, text) in enumerate(parts)
    ]
    every = torch.cat([text for _, _, text in parts])
    images, labels, _ = parts[1]
    found = mixing.mix(images.clone(), labels, every, SEED, STEP, (4, 4), 1)[2]
    assert found is not None and torch.equal(found, torch.cat([each for each in own if each is not None]))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_losses_inside_autocast_have_rounded_similarities(precision: str) -> None:
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    images, labels, text = _batch()
    outputs = _model()(images)
    assert outputs.text is not None
    objective, column = Objective.of(Config()), PARTS.index("loss_text")
    with torch.autocast("cpu", dtype=kind):
        inside = objective(outputs, labels, text, WEIGHT)[1][column].item()
    rounded = (outputs.text.to(kind) @ text.to(kind).T).float()
    rows = torch.arange(len(text))
    expected = (F.cross_entropy(rounded, rows) + F.cross_entropy(rounded.T, rows)) / 2
    assert inside == pytest.approx(expected.item(), rel=1e-3)
    assert inside != objective(outputs, labels, text, WEIGHT)[1][column].item()


ROUNDED = ("clip", "normclip", "infonce", "siglip", "clip_learned", "kl", "l2", "dist")


def _rounded(rank: int, losses: tuple[str, ...]) -> list[Tensor]:
    """Alignment losses inside autocast, of three images of each of two workers, who see all."""
    found = []
    for loss in losses:
        images, labels, text = (part.split(HALF)[rank] for part in _batch())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(
                Objective.of(Config(text=TextConfig(loss=loss)))(_model(loss)(images), labels, text, WEIGHT)[1]
            )
    return found


@pytest.mark.slow
def test_losses_inside_autocast_are_those_of_one_worker_where_all_see_all(tmp_path: Path) -> None:
    found = on_two(tmp_path, _rounded, ROUNDED)
    for place, loss in enumerate(ROUNDED):
        images, labels, text = _batch()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            alone = Objective.of(Config(text=TextConfig(loss=loss)))(_model(loss)(images), labels, text, WEIGHT)[1]
        column = PARTS.index("loss_text")
        mean = (found[0][place][column] + found[1][place][column]) / 2
        assert mean.item() == pytest.approx(alone[column].item(), rel=0.02), loss


def _lamb(values: list[Tensor], gradients: list[list[Tensor]], lr: float, decay: float) -> list[Tensor]:
    """FusedLAMB: gradients divided by their norm where it is above 1, then LAMB with a trust ratio where one decays."""
    first, second = [torch.zeros_like(value) for value in values], [torch.zeros_like(value) for value in values]
    values = [value.clone() for value in values]
    for t, grads in enumerate(gradients, 1):
        norm = math.sqrt(sum(float(grad.square().sum()) for grad in grads))
        for place, grad in enumerate(grads):
            grad = grad / max(norm, 1.0)
            first[place] = 0.9 * first[place] + 0.1 * grad
            second[place] = 0.999 * second[place] + 0.001 * grad.square()
            update = first[place] / (1 - 0.9**t) / ((second[place] / (1 - 0.999**t)).sqrt() + 1e-7)
            matrix = values[place].ndim > 1
            if matrix:
                update = update + decay * values[place]
            ratio = float(values[place].norm() / update.norm()) if matrix else 1.0
            values[place] = values[place] - lr * ratio * update
    return values


def test_three_steps_are_those_of_fusedlamb_which_clips_at_1() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = build_optimizer(PUBLISHED.optim, model)
    generator = torch.Generator().manual_seed(1)
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    # Norms above, about and below the limit.
    gradients = [
        [scale * torch.randn(p.shape, generator=generator) for p in (weight, bias)] for scale in (5, 0.3, 0.01)
    ]
    for given in gradients:
        model.weight.grad, model.bias.grad = (grad.clone() for grad in given)
        clip_gradients(model.parameters(), PUBLISHED.optim.grad_clip)
        optimizer.step()
    expected = _lamb([weight, bias], gradients, PUBLISHED.optim.lr, PUBLISHED.optim.weight_decay)
    torch.testing.assert_close(model.weight.detach(), expected[0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(model.bias.detach(), expected[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("images", "workers", "size"), [(37, 1, 8), (37, 4, 8), (50, 4, 16), (8, 2, 4), (3, 4, 2)])
def test_the_mean_over_batches_is_that_of_torchs_own_sampler_and_loader(images: int, workers: int, size: int) -> None:
    correct = (torch.rand(images, generator=torch.Generator().manual_seed(3)) < 0.6).float()
    means = []
    for rank in range(workers):
        sampler = DistributedSampler(range(images), workers, rank, shuffle=False)  # type: ignore[arg-type]
        loader: Any = DataLoader(correct.tolist(), batch_size=size, sampler=sampler)  # type: ignore[arg-type]
        batches = [batch.double().mean().item() for batch in loader]
        means.append(sum(batches) / len(batches))
    assert batch_mean(correct, workers, size) == pytest.approx(sum(means) / workers)
    if images % (workers * size) == 0:
        assert batch_mean(correct, workers, size) == pytest.approx(correct.mean().item())


def test_the_recipe_trains_at_toy_size_in_half_precision(tmp_path: Path) -> None:
    small = {"data__augment": "crop", "data__cache_gb": 1.0, "model__name": TOY_MODEL, "optim__warmup_epochs": 1.0}
    small["train__compile"] = False
    here = {"data__source": "shapes", "run__use_gpu": False, "run__num_workers": 1, "run__log_every": 1}
    config = toy_config(tmp_path, "in1k_vit_s_published", **small, **here, train__epochs=3, train__eval_every=1)
    result = run_toy(config)
    rows = read_rows(config.run_dir / "metrics.jsonl")
    steps = [row for row in rows if row["kind"] == "step"]
    assert [row["lr"] for row in steps] == pytest.approx([1e-6] * 12 + [1e-5 + 2.99e-3 * 0.75] * 6)
    assert all(row["top1_batch_mean"] >= 0 for row in rows if row["kind"] == "validation")
    assert config.train.precision == "fp16" and math.isfinite(result["top1"])
