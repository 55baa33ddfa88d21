"""Pooling and the modules after it, as a folder of sentence-transformers describes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.text.toy_encoders import (
    CAPTIONS,
    sentence_folder,
    states_of,
)
from tt_ray.terminal.errors import UserError
from tt_ray.text.encoder import load_text_encoder
from tt_ray.text.pooling import load_dense


@pytest.mark.parametrize(
    ("pooling", "name", "pool"),
    [
        ({"pooling_mode": "max"}, "max", lambda states: states.amax(0)),
        ({"pooling_mode": "lasttoken"}, "last", lambda states: states[-1]),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls", lambda states: states[0]),
        (
            {"pooling_mode_weightedmean_tokens": True},
            "weightedmean",
            lambda states: torch.arange(1.0, len(states) + 1) @ states / sum(range(1, len(states) + 1)),
        ),
        ({"pooling_mode": "mean_sqrt_len_tokens"}, "mean_sqrt_len", lambda states: states.sum(0) / len(states) ** 0.5),
    ],
)
def test_sentence_transformers_settings(tmp_path: Path, pooling: dict[str, Any], name: str, pool: Any) -> None:
    model = sentence_folder(tmp_path, pooling)
    prompts = {"prompts": {"q": "red ", "other": "cat "}, "default_prompt_name": "q"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    encoder = load_text_encoder(str(tmp_path))
    assert (encoder.pooling, encoder.max_tokens) == (f"{name}+normalize", 5)
    vectors = encoder.encode(["DOG", "a dog runs"])
    for vector, caption in zip(vectors, ["red dog", "red a dog runs"], strict=True):
        expected = pool(states_of(model, caption, limit=5))
        np.testing.assert_allclose(vector, expected / expected.norm(), atol=1e-5)
    assert encoder.truncated == 1


def _dense(folder: Path, **config: Any) -> torch.nn.Linear:
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    linear = torch.nn.Linear(16, 4)
    save_file({f"linear.{name}": tensor for name, tensor in linear.state_dict().items()}, folder / "model.safetensors")
    sizes: dict[str, Any] = {"in_features": 16, "out_features": 4, "bias": True}
    sizes["activation_function"] = "torch.nn.modules.activation.Tanh"
    (folder / "config.json").write_text(json.dumps(sizes | config))
    return linear


@pytest.mark.parametrize("mode", ["mean", "weightedmean"])
def test_dense_modules_follow_in_order(tmp_path: Path, mode: str) -> None:
    model = sentence_folder(
        tmp_path, {"pooling_mode": mode, "embedding_dimension": 16}, ("Pooling", "Normalize", "Dense")
    )
    linear = _dense(tmp_path / "Dense")
    encoder = load_text_encoder(str(tmp_path))
    assert (encoder.pooling, encoder.dim) == (f"{mode}+normalize+dense", 4)
    vectors = encoder.encode(CAPTIONS)
    for vector, caption in zip(vectors, CAPTIONS, strict=True):
        states = states_of(model, caption, limit=5)
        weights = torch.arange(1.0, len(states) + 1) if mode == "weightedmean" else torch.ones(len(states))
        pooled = weights @ states / weights.sum()
        with torch.inference_mode():
            np.testing.assert_allclose(vector, torch.tanh(linear(pooled / pooled.norm())), atol=1e-5)
    before = encoder.revision
    _dense(tmp_path / "Dense")
    assert load_text_encoder(str(tmp_path)).revision != before


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"activation_function": "mine.Tanh"}, "mine.Tanh, which is not one of torch.nn's"),
        ({"activation_function": "torch.nn.Linear"}, "torch.nn.Linear, which is not"),
        ({"activation_function": "torch.nn.Threshold"}, "but does not say with which settings"),
        ({"in_features": 8}, "does not fit its config.json"),
        ({"module_input_name": "token_embeddings"}, "of tokens or with a residual"),
        ({"use_residual": True}, "of tokens or with a residual"),
    ],
)
def test_dense_modules_that_are_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    _dense(tmp_path, **config)
    with pytest.raises(UserError, match=message) as caught:
        load_dense(tmp_path, json.loads((tmp_path / "config.json").read_text()), "cpu")
    assert "\n" not in str(caught.value)


def test_pickled_dense_weights_are_refused(tmp_path: Path) -> None:
    _dense(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="has no model.safetensors"):
        load_dense(tmp_path, json.loads((tmp_path / "config.json").read_text()), "cpu")


@pytest.mark.parametrize(
    ("pooling", "kinds", "message"),
    [
        ({"pooling_mode_mean_tokens": True}, ("Pooling", "LSTM"), "has a module LSTM"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, ("Pooling",), "pools by mean and max"),
        ({}, ("Pooling",), "config.json is missing"),
    ],
)
def test_unknown_modules_are_refused(tmp_path: Path, pooling: Any, kinds: tuple[str, ...], message: str) -> None:
    sentence_folder(tmp_path, pooling, kinds)
    with pytest.raises(UserError, match=message):
        load_text_encoder(str(tmp_path))
