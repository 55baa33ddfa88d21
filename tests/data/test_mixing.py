"""Mixing is timm's, with text mixed by the coefficient of the labels, and a function of (seed, step)."""

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup
from torch import Tensor

from tt_ray.config import Config, DataConfig, OptimConfig
from tt_ray.data.mixing import _MIXING_SEED, Mixing, build_mixing
from tt_ray.stateless_random import seed_of

BATCH, CLASSES, DIM = 6, 5, 4
KINDS = {"mixup": (0.8, 0.0), "cutmix": (0.0, 1.0), "both": (0.8, 1.0)}
STEPS = range(8)


def _mixing(kind: str, smoothing: float = 0.0) -> Mixing:
    mixup, cutmix = KINDS[kind]
    data, optim = DataConfig(mixup=mixup, cutmix=cutmix), OptimConfig(label_smoothing=smoothing)
    mixing = build_mixing(Config(data=data, optim=optim), CLASSES)
    assert mixing is not None
    return mixing


def _batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, 8, 8, generator=generator)
    # No image has the class of its partner in the flip.
    labels = torch.tensor([0, 1, 2, 3, 4, 1])
    return images, labels, torch.randn(BATCH, DIM, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_mixed_like_the_labels(kind: str) -> None:
    mixing, shares = _mixing(kind), set()
    for step in STEPS:
        images, labels, text = _batch()
        _, mixed, mixed_text = mixing.mix(images, labels, text, seed=3, step=step)
        assert mixed.shape == (BATCH, CLASSES) and mixed_text is not None
        own = mixed[torch.arange(BATCH), labels]
        partner = mixed[torch.arange(BATCH), labels.flip(0)]
        torch.testing.assert_close(own + partner, torch.ones(BATCH))
        expected = own[:, None] * text + partner[:, None] * text.flip(0)
        torch.testing.assert_close(mixed_text, expected)
        shares.add(round(own[0].item(), 6))
    assert len(shares) > len(STEPS) // 2, "every step draws anew"


@pytest.mark.parametrize("kind", KINDS)
def test_images_and_labels_are_those_of_timm(kind: str) -> None:
    mixup, cutmix = KINDS[kind]
    timms = Mixup(mixup, cutmix, label_smoothing=0.1, num_classes=CLASSES)
    for step in STEPS:
        images, labels, text = _batch()
        images, mixed, _ = _mixing(kind, 0.1).mix(images, labels, text, seed=3, step=step)
        np.random.seed(seed_of(3, _MIXING_SEED, step))
        expected, expected_labels = timms(*_batch()[:2])
        assert torch.equal(images, expected) and torch.equal(mixed, expected_labels)
        torch.testing.assert_close(mixed.sum(1), torch.ones(BATCH))


def test_cutmix_coefficient_is_the_share_of_pixels() -> None:
    for step in STEPS:
        images = torch.arange(BATCH).float().reshape(-1, 1, 1, 1).expand(-1, 3, 8, 8).clone()
        labels = torch.tensor([0, 1, 2, 3, 4, 1])
        images, mixed, _ = _mixing("cutmix").mix(images, labels, None, seed=3, step=step)
        kept = (images == torch.arange(BATCH).reshape(-1, 1, 1, 1)).float().mean((1, 2, 3))
        torch.testing.assert_close(mixed[torch.arange(BATCH), labels], kept)


@pytest.mark.parametrize("kind", KINDS)
def test_seed_and_step_alone_decide(kind: str) -> None:
    def mix(seed: int, step: int) -> list[Tensor]:
        return [part for part in _mixing(kind).mix(*_batch(), seed=seed, step=step) if part is not None]

    def same(one: list[Tensor], other: list[Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    first = mix(3, 5)
    np.random.seed(99)
    torch.manual_seed(99)
    mix(3, 4)
    assert same(mix(3, 5), first)
    assert not same(mix(3, 6), first) and not same(mix(4, 5), first)


def test_workers_with_parts_of_the_batch_mix_as_one() -> None:
    images, labels, text = _batch()
    whole = _mixing("mixup").mix(images, labels, text, seed=3, step=5)
    images, labels, text = _batch()
    for rows in (torch.tensor([0, 5]), torch.tensor([1, 2, 3, 4])):
        part = _mixing("mixup").mix(images[rows], labels[rows], text[rows], seed=3, step=5)
        for one, all_of_it in zip(part, whole, strict=True):
            assert torch.equal(one, all_of_it[rows])


def test_text_of_all_workers_is_mixed_in_each_ones_part() -> None:
    rows = [torch.tensor([0, 5]), torch.tensor([1, 2, 3, 4])]
    expected = _mixing("mixup").mix(*_batch(), seed=3, step=5)[2]
    images, labels, text = _batch()
    of_all = text[torch.cat(rows)]
    found = _mixing("mixup").mix(images[rows[0]], labels[rows[0]], of_all, seed=3, step=5, shares=(2, 4))[2]
    assert expected is not None and found is not None and torch.equal(found, expected[torch.cat(rows)])


def test_without_text() -> None:
    images, labels, _ = _batch()
    assert _mixing("both").mix(images, labels, None, seed=0, step=0)[2] is None


def test_a_coefficient_of_1_changes_nothing() -> None:
    images, labels, text = _batch()
    # Beta(0.001, 0.001) is 0 or 1, as good as always; the first step of the latter.
    mixing = Mixing(1e-3, 0.0, 0.0, CLASSES)
    step = next(step for step in range(99) if torch.equal(mixing.mix(images.clone(), labels, None, 0, step)[0], images))
    mixed_images, mixed, mixed_text = mixing.mix(images.clone(), labels, text, seed=0, step=step)
    assert torch.equal(mixed_images, images) and mixed_text is not None and torch.equal(mixed_text, text)
    assert torch.equal(mixed.argmax(1), labels)


def test_off_when_both_are_0() -> None:
    assert build_mixing(Config(), CLASSES) is None
