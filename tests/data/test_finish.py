"""What is left to the device: operations, normalisation, erasing."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tt_ray.config import DataConfig
from tt_ray.data.augment import normalize
from tt_ray.data.augment_draws import Erase
from tt_ray.data.augment_operations import OPERATIONS, Work
from tt_ray.data.finish import Rest, erase, finish, normal
from tt_ray.stateless_random import uniform

CONFIG = DataConfig(augment="deit", image_size=24)


def images(count: int = 6) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, 24, 24), np.uint8))


def rest() -> Rest:
    rows, boxes = torch.tensor([1, 4]), torch.tensor([[2, 3, 10, 20], [0, 0, 24, 5]])
    invert = Work(("invert",), (3,), torch.tensor([0, 1, 5]), torch.zeros(3))
    return Rest(invert, Erase(rows, boxes, torch.tensor([11, 2**32 - 1])))


def test_without_anything_left_it_normalises_bit_for_bit() -> None:
    assert torch.equal(finish(images(), Rest(), CONFIG), normalize(images(), CONFIG.mean, CONFIG.std))
    reordered = images().to(memory_format=torch.channels_last)
    assert torch.equal(finish(reordered, Rest(), CONFIG), finish(images(), Rest(), CONFIG))


def test_what_is_finished_stays() -> None:
    done = finish(images(), rest(), CONFIG)
    assert finish(done, rest(), CONFIG) is done


def test_operations_come_first_and_noise_last() -> None:
    before = images()
    found = finish(before, rest(), CONFIG)
    assert torch.equal(before, images()), "the batch itself is another's"
    expected = before.clone()
    expected[[0, 1, 5]] = 255 - expected[[0, 1, 5]]
    plain = normalize(expected, CONFIG.mean, CONFIG.std)
    inside = torch.zeros(6, 3, 24, 24, dtype=torch.bool)
    inside[1, :, 2:10, 3:20] = inside[4, :, :, :5] = True
    assert torch.equal(found[~inside], plain[~inside])
    assert (found[inside] != plain[inside]).float().mean() > 0.99


@pytest.mark.parametrize("count", [0, 1, 2, 5, 6])
def test_the_first_images_are_finished_as_in_the_whole_batch(count: int) -> None:
    part = finish(images()[:count], rest().first(count), CONFIG)
    assert torch.equal(part, finish(images(), rest(), CONFIG)[:count])


@pytest.mark.parametrize("name", OPERATIONS)
def test_first_images_of_which_none_has_the_operation_are_left_alone(name: str) -> None:
    later = Rest(Work((name,), (2,), torch.tensor([4, 5]), torch.full((2,), 0.5)), rest().erase)
    assert torch.equal(finish(images()[:1], later.first(1), CONFIG), finish(images()[:1], Rest(), CONFIG))


def test_noise_is_normal_and_a_function_of_seed_and_place() -> None:
    seeds, places = torch.tensor([5, 6, 5, 2**32 - 1]), torch.arange(50_000)
    noise = normal(seeds, places)
    assert torch.equal(noise[0], noise[2]) and not torch.equal(noise[0], noise[1])
    assert torch.equal(noise[:, 100:200], normal(seeds, places[100:200]))
    assert noise.isfinite().all() and abs(float(noise.mean())) < 0.01 and abs(float(noise.std()) - 1) < 0.01
    shares = [(noise.abs() < limit).float().mean() for limit in (0.5, 1, 2)]
    np.testing.assert_allclose(shares, [0.3829, 0.6827, 0.9545], atol=0.005)
    both = torch.corrcoef(torch.stack([noise[0, :-1], noise[0, 1:], noise[1, 1:]]))
    assert (both - torch.eye(3)).abs().max() < 0.02


def test_its_hash_is_that_of_the_order() -> None:
    """SplitMix64 with torch's signed integers; `normal` takes the upper 24 bits for the radius, `uniform` 53."""
    seeds, places = torch.tensor([5, 123_456_789]), torch.arange(1000)
    expected = uniform(seeds.numpy(), 1000)
    radius = np.sqrt(-2 * np.log(np.floor(expected * 2**24) * 2.0**-24 + 2.0**-24))
    assert (normal(seeds, places).abs().numpy() <= radius + 1e-5).all()


def test_a_rectangle_of_noise_does_not_depend_on_its_batch() -> None:
    before = torch.zeros(2, 3, 24, 24)
    boxes, seeds = torch.tensor([[0, 0, 3, 3], [5, 5, 9, 9]]), torch.tensor([1, 2])
    together = erase(before, boxes, seeds)
    assert torch.equal(together[1:], erase(before[1:], boxes[1:], seeds[1:]))
    assert (together != 0).sum() == 3 * (9 + 16)
