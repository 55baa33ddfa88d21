"""Each family of text encoders is pooled as it asks, and equals the reference implementation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.text.toy_encoders import (
    CAPTIONS,
    SMALL,
    WORDS,
    bert,
    save_encoder,
    states_of,
)
from tt_ray.terminal.errors import UserError
from tt_ray.text.encoder import load_text_encoder

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")


def test_bert_takes_cls(tmp_path: Path) -> None:
    model = bert(tmp_path)
    encoder = load_text_encoder(str(tmp_path))
    assert (encoder.pooling, encoder.dim, encoder.max_tokens, encoder.name) == ("cls", 16, 8, str(tmp_path))
    vectors = encoder.encode(CAPTIONS, batch_size=2)
    assert vectors.dtype == np.float32 and vectors.shape == (5, 16)
    assert encoder.truncated == 1
    for vector, caption in zip(vectors, CAPTIONS, strict=True):
        np.testing.assert_allclose(vector, states_of(model, caption)[0], atol=1e-5)


def test_masked_language_model_without_pooler(tmp_path: Path) -> None:
    model = bert(tmp_path, "BertForMaskedLM")
    vector = load_text_encoder(str(tmp_path)).encode(["a dog"])[0]
    np.testing.assert_allclose(vector, states_of(model.bert, "a dog")[0], atol=1e-5)


def test_other_encoders_take_the_mean(tmp_path: Path) -> None:
    config = transformers.ElectraConfig(**SMALL, embedding_size=16, max_position_embeddings=16)
    model = save_encoder(transformers.ElectraModel(config), tmp_path)
    encoder = load_text_encoder(str(tmp_path))
    assert encoder.pooling == "mean"
    for vector, caption in zip(encoder.encode(CAPTIONS), CAPTIONS, strict=True):
        np.testing.assert_allclose(vector, states_of(model, caption).mean(0), atol=1e-5)


DECODERS = {
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralModel",
    "granite": "GraniteModel",
}


def _decoder(folder: Path, family: str, **more: Any) -> Any:
    """A toy decoder, with or without its language model's head."""
    if family == "gpt2":  # learned positions: padding must not shift them
        config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=8, vocab_size=len(WORDS))
        config.bos_token_id = config.eos_token_id = 3
        return save_encoder(transformers.GPT2LMHeadModel(config), folder, special=False)
    sizes = {**SMALL, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 8}
    config = transformers.AutoConfig.for_model(family, **sizes, **more)
    return save_encoder(getattr(transformers, DECODERS[family])(config), folder, special=False)


@pytest.mark.parametrize("family", ["gpt2", *DECODERS])
def test_decoders_take_the_last_token(tmp_path: Path, family: str) -> None:
    model = _decoder(tmp_path, family)
    encoder = load_text_encoder(str(tmp_path))
    assert encoder.pooling == "last"
    for vector, caption in zip(encoder.encode(CAPTIONS), CAPTIONS, strict=True):
        np.testing.assert_allclose(vector, states_of(model.base_model, caption, special=False)[-1], atol=1e-5)
    assert encoder.encode([""]).shape == (1, 16)  # no token at all: the tokenizer adds none


@pytest.mark.parametrize("family", DECODERS)
def test_padding_on_the_right_equals_the_decoders_own_on_the_left(tmp_path: Path, family: str) -> None:
    model = _decoder(tmp_path, family).base_model
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, padding_side="left", pad_token="[PAD]")
    batch = tokenizer(CAPTIONS, padding=True, truncation=True, return_tensors="pt", return_token_type_ids=False)
    assert not batch["attention_mask"].all()
    with torch.inference_mode():
        expected = model(**batch).last_hidden_state[:, -1]
    np.testing.assert_allclose(load_text_encoder(str(tmp_path)).encode(CAPTIONS), expected, atol=1e-5)


def test_qwen3_embedding_layout(tmp_path: Path) -> None:
    """Prompts are for queries, and there is no default: captions have none, as with SentenceTransformer.encode."""
    model = _decoder(tmp_path, "qwen3").base_model
    kinds = {"0": "Transformer", "1": "Pooling", "2": "Normalize"}
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": int(i), "name": i, "path": paths[kind], "type": f"sentence_transformers.models.{kind}"}
        for i, kind in kinds.items()
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    flags = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(flags))
    prompts = {"prompts": {"query": "red ", "document": ""}, "default_prompt_name": None}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    encoder = load_text_encoder(str(tmp_path))
    assert encoder.pooling == "last+normalize"
    for vector, caption in zip(encoder.encode(CAPTIONS), CAPTIONS, strict=True):
        state = states_of(model, caption, special=False)[-1]
        np.testing.assert_allclose(vector, state / state.norm(), atol=1e-5)


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("pooling", ["", "avg", "last"])
def test_bidirectional_decoders(tmp_path: Path, pooling: str) -> None:
    """is_causal false in config.json, or llama-embed-nemotron's own model type: every token sees all others."""
    model = _decoder(tmp_path, "llama", is_causal=False).base_model
    if pooling:
        code = {"AutoConfig": "llama_bidirectional_model.LlamaBidirectionalConfig"}
        code["AutoModel"] = "llama_bidirectional_model.LlamaBidirectionalModel"
        change(tmp_path, model_type="llama_bidirec", pooling=pooling, auto_map=code, is_causal=None)
    encoder = load_text_encoder(str(tmp_path))
    assert encoder.pooling == ("last" if pooling == "last" else "mean")
    for vector, caption in zip(encoder.encode(CAPTIONS), CAPTIONS, strict=True):
        states = states_of(model, caption, special=False)
        np.testing.assert_allclose(vector, states[-1] if pooling == "last" else states.mean(0), atol=1e-5)
    model.config.is_causal = True
    causal = states_of(model, CAPTIONS[1], special=False).mean(0)
    assert np.abs(encoder.encode(CAPTIONS[1:2])[0] - causal.numpy()).max() > 0.1


def test_attention_that_transformers_would_not_do_is_refused(tmp_path: Path) -> None:
    config = transformers.MambaConfig(hidden_size=16, num_hidden_layers=2, state_size=4, vocab_size=len(WORDS))
    model = save_encoder(transformers.MambaForCausalLM(config), tmp_path, special=False)
    encoder = load_text_encoder(str(tmp_path))
    assert encoder.pooling == "last"
    np.testing.assert_allclose(
        encoder.encode(CAPTIONS)[0], states_of(model.backbone, "a dog", special=False)[-1], atol=1e-5
    )
    change(tmp_path, is_causal=False)
    with pytest.raises(UserError, match="wants is_causal false, which transformers' mamba does not do"):
        load_text_encoder(str(tmp_path))


@pytest.mark.parametrize("family", ["qwen3", "unknown"])
def test_code_of_others_is_refused(tmp_path: Path, family: str) -> None:
    _decoder(tmp_path, "qwen3")
    change(tmp_path, auto_map={"AutoModel": "modeling_mine.Mine"}, model_type=family)
    (tmp_path / "modeling_mine.py").write_text("raise RuntimeError('this was run')")
    with pytest.raises(UserError, match="brings code of its own, which is not run .*modeling_mine.Mine") as caught:
        load_text_encoder(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["t5", "mt5", "umt5"])
@pytest.mark.parametrize("whole", [False, True])
def test_t5_encoders_take_the_mean(tmp_path: Path, family: str, whole: bool) -> None:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2, "vocab_size": len(WORDS)}
    config = transformers.AutoConfig.for_model(family, **sizes, feed_forward_proj="gated-gelu")
    name = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}[family]
    kind = "ForConditionalGeneration" if whole else "EncoderModel"
    model = save_encoder(getattr(transformers, name + kind)(config), tmp_path)
    encoder = load_text_encoder(str(tmp_path))
    assert (encoder.pooling, encoder.max_tokens) == ("mean", 8)
    for vector, caption in zip(encoder.encode(CAPTIONS), CAPTIONS, strict=True):
        np.testing.assert_allclose(vector, states_of(model.encoder, caption).mean(0), atol=1e-5)
    assert encoder.truncated == 1


CLIP_TEXT = {**SMALL, "max_position_embeddings": 8, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}


def _clip(folder: Path, model_class: str) -> Any:
    text = {**CLIP_TEXT, "projection_dim": 4}
    if model_class != "CLIPModel":
        return save_encoder(getattr(transformers, model_class)(transformers.CLIPTextConfig(**text)), folder)
    vision = {**SMALL, "image_size": 8, "patch_size": 4}
    vision.pop("vocab_size")
    config = transformers.CLIPConfig(text_config=CLIP_TEXT, vision_config=vision, projection_dim=4)
    return save_encoder(transformers.CLIPModel(config), folder)


@pytest.mark.parametrize("model_class", ["CLIPModel", "CLIPTextModel", "CLIPTextModelWithProjection"])
def test_clip_takes_pooled_eos(tmp_path: Path, model_class: str) -> None:
    model = _clip(tmp_path, model_class)
    encoder = load_text_encoder(str(tmp_path))
    assert (encoder.pooling, encoder.dim, encoder.max_tokens) == ("eos", 16, 8)
    for vector, caption in zip(encoder.encode(CAPTIONS), CAPTIONS, strict=True):
        np.testing.assert_allclose(vector, states_of(getattr(model, "text_model", model), caption)[-1], atol=1e-5)


@pytest.mark.parametrize("model_class", ["CLIPModel", "CLIPTextModelWithProjection"])
def test_clip_with_projection(tmp_path: Path, model_class: str) -> None:
    model = _clip(tmp_path, model_class)
    encoder = load_text_encoder(f"{tmp_path}+projection")
    assert (encoder.name, encoder.pooling, encoder.dim) == (f"{tmp_path}+projection", "eos+projection", 4)
    for vector, caption in zip(encoder.encode(CAPTIONS), CAPTIONS, strict=True):
        with torch.inference_mode():
            expected = model.text_projection(states_of(model.text_model, caption)[-1])
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_a_projection_that_is_not_there(tmp_path: Path) -> None:
    _clip(tmp_path / "clip", "CLIPTextModel")
    with pytest.raises(UserError, match="lacks 1 weights of clip_text_model, such as text_projection.weight"):
        load_text_encoder(f"{tmp_path}/clip+projection")
    bert(tmp_path / "bert")
    with pytest.raises(UserError, match="is of type bert, which has no projection: leave out \\+projection"):
        load_text_encoder(f"{tmp_path}/bert+projection")
