"""Corruptions: what is published at 32 and 224 px, more with every severity, the same whatever the batch."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from eval.contract import Corruption
from eval.features.corruptions import KINDS, SEVERITIES, corrupt, corrupt_all, parameters, parse_corruptions
from eval.features.extract import Decoder
from eval.tasks.registry import tasks
from tests.eval.toy_task import SIZE, coloured
from tt_ray.models.pretrained import Preprocessing
from tt_ray.terminal.errors import UserError


@cache
def drawn(size: int) -> Tensor:
    """Coloured shapes, uint8 (n, 3, size, size)."""
    pixels = tasks(["shapes_shape"])["shapes_shape"].open("test").pixels(np.arange(8 if size < 100 else 3), size)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", [16, 32, 100, 224])
@pytest.mark.parametrize("kind", KINDS)
def test_a_higher_severity_is_farther_from_the_image(kind: str, size: int) -> None:
    images = drawn(size)
    ids = list(map(str, range(len(images))))
    spoilt = [corrupt_all(images, ids, Corruption(kind, severity)) for severity in (0, *SEVERITIES)]
    assert torch.equal(spoilt[0], images)
    assert all(each.dtype == torch.uint8 and each.shape == images.shape for each in spoilt)
    far = [(each.float() - images.float()).pow(2).mean().item() for each in spoilt]
    assert far == sorted(far) and len(set(far)) == 6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("crop", ["squash", "center"])
def test_what_is_random_depends_on_the_image_alone(kind: str, crop: str) -> None:
    source, corruption = coloured(21, seed=3), Corruption(kind, 4)
    preprocessing = Preprocessing(SIZE, 1.0 if crop == "squash" else 0.9, crop, "bicubic", (0, 0, 0), (1, 1, 1))

    def images(rows: list[np.ndarray], threads: int) -> Tensor:
        decoder = Decoder(source, preprocessing, rows, threads, corruption)
        return torch.cat([decoder[batch] for batch in range(len(rows))])

    torch.manual_seed(1)
    state = torch.get_rng_state()
    alone = images([np.array([row]) for row in range(21)], threads=1)
    assert torch.equal(images([np.arange(21)], threads=3), alone)
    backwards = np.arange(21)[::-1].copy()
    assert torch.equal(images([backwards[:4], backwards[4:]], threads=1).flip(0), alone)
    assert torch.equal(torch.get_rng_state(), state)
    clean = Decoder(source, preprocessing, [np.arange(21)], 1)[0]
    ids = source.ids.to_pylist()
    assert torch.equal(corrupt_all(clean, ids, corruption), alone)  # after resizing and cutting, not before
    if kind in ("gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "fog"):
        one = clean[:1].expand(21, -1, -1, -1)
        assert len({each.numpy().tobytes() for each in corrupt_all(one, ids, corruption)}) == 21


def test_parameters_are_the_published_ones_and_between_them_between() -> None:
    for kind, found in KINDS.items():
        for severity, small, large in zip(SEVERITIES, found.small, found.large, strict=True):
            corruption = Corruption(kind, severity)
            assert parameters(corruption, 32) == parameters(corruption, 8) == pytest.approx(small)
            assert parameters(corruption, 224) == pytest.approx(large)
            for value, one, other in zip(parameters(corruption, 85), small, large, strict=True):
                assert min(one, other) <= value <= max(one, other)
    middle = round(math.sqrt(32 * 224))
    assert parameters(Corruption("jpeg", 1), middle) == pytest.approx((math.sqrt(80 * 25),), rel=0.01)
    assert parameters(Corruption("gaussian_blur", 5), 448) == pytest.approx((12,))
    assert parameters(Corruption("pixelate", 5), 448) == pytest.approx((0.125,))
    assert parameters(Corruption("gaussian_noise", 5), 448) == pytest.approx((0.38,))


def test_noise_has_the_stated_deviation_and_impulses_the_stated_share() -> None:
    grey = torch.full((3, 224, 224), 128, dtype=torch.uint8)
    noisy = corrupt(grey, Corruption("gaussian_noise", 1), 0).double() / 255
    assert noisy.std().item() == pytest.approx(0.08, rel=0.02) and noisy.mean().item() == pytest.approx(0.5, abs=0.005)
    assert (corrupt(grey, Corruption("impulse_noise", 5), 0) != 128).double().mean().item() == pytest.approx(0.27, 0.03)
    shots = corrupt(grey, Corruption("shot_noise", 1), 0).double() / 255
    assert shots.std().item() == pytest.approx(math.sqrt(0.5 / 60), rel=0.03)


def test_blurs_keep_an_even_image_and_black_becomes_brighter() -> None:
    even = torch.tensor([30, 90, 200], dtype=torch.uint8)[:, None, None].expand(3, 32, 32)
    for kind in ("gaussian_blur", "motion_blur", "pixelate"):
        assert torch.equal(corrupt(even, Corruption(kind, 5), 0), even)
    assert corrupt(torch.zeros_like(even), Corruption("brightness", 5), 0).unique().tolist() == [76]  # 0.3
    grey = corrupt(even, Corruption("saturate", 5), 0)
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[1], grey[2])


def test_kinds_are_checked() -> None:
    every = parse_corruptions(("all",), (2, 1))
    assert len(every) == 2 * len(KINDS) and str(every[0]) == "gaussian_noise-1"
    assert parse_corruptions(("jpeg", "fog", "fog"), (3,)) == (Corruption("fog", 3), Corruption("jpeg", 3))
    with pytest.raises(UserError, match=r"^--corruptions has no kind 'gausian_noise'.*gaussian_noise"):
        parse_corruptions(("fog", "gausian_noise"), (1,))
    for severity in (0, 6, -1):
        with pytest.raises(UserError, match=rf"^--severities {severity} must be 1 to 5"):
            parse_corruptions(("fog",), (severity,))
