"""What cannot be trained is refused before any worker starts, in one line."""

import random
import re

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from tests.models.test_classifier import CLASSES, SIZE, VIT, _config
from tt_ray.config import ModelConfig
from tt_ray.terminal.errors import UserError
from tt_ray.training.trainable import check_model


@pytest.mark.parametrize("name", ["efficientvit_m0", "volo_d1_224"])
def test_models_whose_logits_are_more_than_a_linear_layer_are_refused(name: str) -> None:
    config = _config(ModelConfig(name), weight=0.0).override("data.image_size", 224)
    with pytest.raises(UserError, match="more than a linear layer"):
        check_model(config, CLASSES)


@pytest.mark.parametrize(
    ("model", "size"),
    [
        (ModelConfig(VIT.name, {**VIT.kwargs, "img_size": 64}), 32),  # AssertionError
        (ModelConfig("halonet26t"), 32),  # AssertionError without a text
        (ModelConfig("test_vit"), 4),  # no patch fits
        (ModelConfig("test_maxvit"), 33),
        (ModelConfig("test_maxvit"), 4),  # ZeroDivisionError
        (ModelConfig("xcit_nano_12_p8_224"), 12),  # AssertionError in the constructor, which is told the size
        (ModelConfig("gmixer_12_224"), 4),  # ZeroDivisionError in the constructor
        (ModelConfig("inception_v3"), 64),  # too small to be halved so often
        (ModelConfig("hrnet_w18"), 33),
        (ModelConfig("test_convnext"), 4),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(model: ModelConfig, size: int) -> None:
    if not timm.is_model(model.name):
        pytest.fail(f"timm has no {model.name}")
    with pytest.raises(UserError) as error:
        check_model(_config(model).override("data.image_size", size), CLASSES)
    assert str(error.value).startswith(f"{model.name} does not run on images of {size} px: ")
    assert len(str(error.value)) > len(f"{model.name} does not run on images of {size} px: ")
    assert "\n" not in str(error.value)


class Odd(nn.Module):
    """A backbone that runs on some images only, with a classifier as timm's have."""

    def __init__(self, error: Exception, training: bool) -> None:
        super().__init__()
        self.head, self.error, self.only_in_training = nn.Linear(3, CLASSES), error, training

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward_features(self, images: Tensor) -> Tensor:
        if self.training or not self.only_in_training:
            raise self.error
        return images.mean((2, 3))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        return features if pre_logits else self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "error", [IndexError("tuple index"), AssertionError(), KeyError("x"), ZeroDivisionError("by\nzero"), OSError(5)]
)
def test_any_exception_of_the_forward_pass_is_about_the_size(
    error: Exception, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tt_ray.training.trainable.build_backbone", lambda config, classes: Odd(error, training))
    with pytest.raises(UserError, match=f"^{VIT.name} does not run on images of {SIZE} px: .+$"):
        check_model(_config(), CLASSES)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        UserError("in our own words"),
        MemoryError("no memory"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_memory_that_runs_out_is_not_about_the_size(
    error: Exception, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tt_ray.training.trainable.build_backbone", lambda config, classes: Odd(error, training))
    with pytest.raises(type(error)) as raised:
        check_model(_config(), CLASSES)
    assert raised.value is error


def test_logits_of_every_patch_are_refused() -> None:
    with pytest.raises(UserError, match=r"returns logits of shape \(17, 5\) for each image"):
        check_model(_config(ModelConfig(VIT.name, {**VIT.kwargs, "global_pool": ""})), CLASSES)


@pytest.mark.parametrize(
    "kwargs", [{"patch_size": 0}, {"depth": "x"}, {"features_only": True}, {"num_heads": 0}, {"norm_layer": "nope"}]
)
def test_arguments_that_the_constructor_refuses_are_one_line(kwargs: dict) -> None:
    with pytest.raises(UserError, match=f"{VIT.name}") as error:
        check_model(_config(ModelConfig(VIT.name, {**VIT.kwargs, **kwargs})), CLASSES)
    assert "\n" not in str(error.value)


def test_unknown_optimiser_is_found_before_training() -> None:
    with pytest.raises(UserError, match="did you mean adamw"):
        check_model(_config().override("optim.name", "adamww"), CLASSES)


IN_ONES = {"train.sync_batchnorm": True, "train.batch_size": 8, "train.max_batch_per_worker": 1}


@pytest.mark.parametrize(
    ("settings", "lack"),
    [
        ({"train.batch_size": 1}, "train.batch_size 1 leaves 1 image"),
        ({"train.batch_size": 2, "run.num_workers": 2}, "train.batch_size 2 on 2 workers leaves 1 image"),
        ({"train.batch_size": 5, "run.num_workers": "1:4"}, "train.batch_size 5 on 4 workers leaves 1 image"),
        ({"train.batch_size": 8, "train.max_batch_per_worker": 1}, "in parts of at most 1 "),
        ({"train.batch_size": 3, "train.max_batch_per_worker": 2}, "in parts of at most 2 "),
        ({"train.batch_size": 2}, ""),
        ({"train.batch_size": 4, "run.num_workers": 2}, ""),
        ({"train.batch_size": 4, "train.max_batch_per_worker": 2}, ""),
        # Synchronised: of all workers' images together, in each part.
        ({"train.sync_batchnorm": True, "train.batch_size": 2, "run.num_workers": 2}, ""),
        ({"train.sync_batchnorm": True, "train.batch_size": 1}, "train.batch_size 1 leaves 1 image"),
        ({**IN_ONES, "run.num_workers": 4}, ""),
        ({**IN_ONES, "run.num_workers": "1:4"}, "in parts of at most 1 "),
        ({"train.batch_size": 1, "data.image_size": 64}, ""),  # four numbers of a channel
        ({"train.batch_size": 1, "model.name": "vit_tiny_patch16_224"}, ""),
    ],
)
def test_batch_norm_of_a_single_number_is_refused(settings: dict[str, object], lack: str) -> None:
    config = _config(ModelConfig("resnet10t"))
    for path, value in settings.items():
        config = config.override(path, value)
    if not lack:
        check_model(config, 3)
        return
    with pytest.raises(UserError, match=re.escape(lack)) as error:
        check_model(config, 3)
    assert "batch norm of resnet10t on images of 32 px needs at least 2" in str(error.value)


def test_activations_that_cannot_be_computed_again_are_refused_before_training() -> None:
    config = _config(ModelConfig("hrnet_w18_small"), weight=0.0).override("train.activation_checkpointing", True)
    with pytest.raises(UserError, match=r"--train\.activation_checkpointing"):
        check_model(config, CLASSES)


def test_trying_leaves_global_random_numbers_alone() -> None:
    def states() -> tuple:
        return torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())

    before = states()
    check_model(_config(), CLASSES)
    assert states() == before
