"""timm's pretrained models and what they want of images; anything but all of the weights is an error."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import timm
from timm.data import resolve_model_data_config
from timm.models import get_pretrained_cfg, is_model_pretrained, list_pretrained
from torch import Tensor, nn

from tt_ray.terminal.errors import UserError, nearest, one_line

SOURCES = ("hf-hub:", "local-dir:")
"""Prefixes of timm's model names that are no architecture."""


@dataclass(frozen=True)
class Preprocessing:
    """From an RGB image to the model's input, in the words of timm's data configuration."""

    size: int
    """Height and width of the input, in pixels."""
    crop_pct: float
    """Centre crop's share of the resized image's side."""
    crop_mode: str
    """center (short side resized, rest cut off), squash (both sides resized) or border (padded)."""
    interpolation: str
    """bicubic, bilinear, ..."""
    mean: tuple[float, float, float]
    """Channel means that are subtracted, on the 0-1 scale."""
    std: tuple[float, float, float]
    """Channel standard deviations that are divided by, on the 0-1 scale."""


def pooled(model: Any, images: Tensor) -> Tensor:
    """What timm calls forward_head(pre_logits=True): the input of the classifier, (B, d)."""
    return model.forward_head(model.forward_features(images), pre_logits=True)


def timm_preprocessing(model: nn.Module) -> Preprocessing:
    """That of the model's timm configuration; raises UserError when its input is no square RGB image."""
    config = resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise UserError(f"the model's input is {channels} x {height} x {width}, but must be a square RGB image")
    mean, std = (cast(tuple[float, float, float], tuple(map(float, config[key]))) for key in ("mean", "std"))
    return Preprocessing(height, config["crop_pct"], config["crop_mode"], config["interpolation"], mean, std)


def pretrained(name: str, **kwargs: Any) -> nn.Module:
    """timm's pretrained model; anything but all of its weights is a UserError."""
    if not name.startswith(SOURCES):
        check_timm_name(name)
        if not is_model_pretrained(name):
            known = list_pretrained(f"{name.split('.')[0]}*")
            hint = f"weights there are: {', '.join(known[:5])}" if known else f"say random:{name} to evaluate none"
            raise UserError(f"timm has no pretrained weights for {name}; {hint}")
    fetch = shlex.quote(f"import timm; timm.create_model({name!r}, pretrained=True)")
    help_ = (
        f"on a machine with network run: python -c {fetch} "
        "and share its Hugging Face cache (HF_HOME), or give an export folder"
    )
    return create(name, f"cannot get the pretrained weights of timm:{name}", help_, pretrained=True, **kwargs)


def check_timm_name(name: str) -> None:
    """Raises UserError, with near names, where timm knows neither such a model nor such weights."""
    try:
        get_pretrained_cfg(name)
    except RuntimeError:  # an architecture that timm knows, with a tag that it does not
        tags = list_pretrained(f"{name.split('.')[0]}*")
        raise UserError(f"timm has no weights {name!r}; {nearest(name, tags)}") from None
    if not timm.is_model(name):
        raise UserError(f"timm has no model {name!r}; {nearest(name, timm.list_models())}")


def create(name: str, problem: str, help_: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """timm.create_model, whose errors become a UserError: `problem`, the cause and `help_`."""
    try:
        with _all_weights() if pretrained else nullcontext():
            return timm.create_model(name, pretrained=pretrained, **kwargs)
    except UserError as error:
        raise UserError(f"{problem}: {error}") from None
    # Downloads, hubs, caches, JSON and state dicts each raise their own; none of it is a mistake of this program.
    except Exception as error:
        raise UserError(f"{problem}: {type(error).__name__}: {one_line(error)}; {help_}") from None


@contextmanager
def _all_weights() -> Iterator[None]:
    """Makes state dicts load strictly: timm is lenient for some families, and keeps random weights for what is missing.

    Raises:
        UserError: A state dict lacks weights of the model, or has others.
    """
    load = nn.Module.load_state_dict

    def strictly(module: nn.Module, *arguments: Any, **options: Any) -> Any:
        keys = load(module, *arguments, **options)
        wrong = [*(f"missing {key}" for key in keys.missing_keys), *(f"surplus {key}" for key in keys.unexpected_keys)]
        if wrong:
            raise UserError(f"the weights do not fit the model: {', '.join(wrong)[:500]}")
        return keys

    nn.Module.load_state_dict = strictly  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.load_state_dict = load  # type: ignore[method-assign]
