"""Texts about classes: a random language model's own likeliest words, in batches as alone, with and without a chat."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.text.test_captioner import TEXT, WORDS, _tokenizer
from tt_ray.terminal.errors import UserError
from tt_ray.text.class_describer import DescriberOptions, load_describer

transformers = pytest.importorskip("transformers")
NAMES = ["dog", "red cat", "bird", "a bird"]
CHAT = "{% for m in messages %}user {{ m.content }} {% endfor %}{% if add_generation_prompt %}says{% endif %}"


def llama(folder: Path, chat: bool = False) -> None:
    """A random causal language model."""
    torch.manual_seed(3)
    config = transformers.LlamaConfig(**TEXT, num_key_value_heads=2, max_position_embeddings=64)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape))
        model.lm_head.weight[:5] = 0  # words, not marks
    model.save_pretrained(folder)
    tokenizer = _tokenizer()
    tokenizer.chat_template = CHAT if chat else None
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "chat"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    llama(path, request.param)
    return path


def _options(folder: Path, **settings: Any) -> DescriberOptions:
    return DescriberOptions(str(folder), **{"prompt": "a {label} runs", "max_tokens": 6, **settings})


def _plain(folder: Path, name: str) -> str:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = f"user a {name} runs says" if tokenizer.chat_template else f"a {name} runs"
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=not tokenizer.chat_template).input_ids
    tokens = model.generate(ids, max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(ids))
    return tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_a_batch_is_written_as_transformers_writes_each(folder: Path) -> None:
    describer = load_describer(_options(folder))
    together = describer.write(NAMES)
    assert together == [_plain(folder, name) for name in NAMES] and len(set(together)) > 1
    assert all(set(text.split()) <= set(WORDS) for text in together)


def test_random_writing_is_repeatable_by_its_seed(folder: Path) -> None:
    hot = load_describer(_options(folder, temperature=30.0))
    assert hot.write(NAMES, 1) == hot.write(NAMES, 1) != hot.write(NAMES, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"texts": 2}, "--llm.texts 2 would be the same text: set --llm.temperature"),
        ({"texts": 0}, "must be at least 1, 1 and 0"),
        ({"max_tokens": 0}, "must be at least 1, 1 and 0"),
        ({"temperature": -1.0}, "must be at least 1, 1 and 0"),
        ({"prompt": "an animal"}, "has no {label}: all classes would get the same text"),
    ],
)
def test_settings_that_no_model_can_use(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DescriberOptions(**{"model": "x", **settings}).check()


def test_what_is_no_language_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="language model .*none"):
        load_describer(DescriberOptions(str(tmp_path / "none")))
    with pytest.raises(UserError, match="cannot load language model"):
        load_describer(DescriberOptions(str(tmp_path)))
