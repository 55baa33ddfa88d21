"""Text encoders of a few weights, with a tokenizer of whole words."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "dog", "cat", "runs", "sits"]
CAPTIONS = ["a dog", "a red cat sits", "dog", "a cat runs", "a red red dog runs a red cat sits"]


def word_tokenizer(folder: Path, special: bool, limit: int = 8) -> Any:
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
    word_tokenizer(folder, special)
    return model.eval()


SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"vocab_size": len(WORDS)}


def bert(folder: Path, model_class: str = "BertModel") -> Any:
    config = transformers.BertConfig(**SMALL, max_position_embeddings=16)
    return save_encoder(getattr(transformers, model_class)(config), folder)


def states_of(model: Any, caption: str, special: bool = True, limit: int = 8) -> torch.Tensor:
    """Last states of one caption without any padding, (T, D)."""
    words = [WORDS.index(word) for word in caption.split()]
    ids = [2, *words[: limit - 2], 3] if special else words[:limit]
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).last_hidden_state[0]


def sentence_folder(folder: Path, pooling: dict[str, Any], kinds: tuple[str, ...] = ("Pooling", "Normalize")) -> Any:
    model = bert(folder)
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": kind} for kind in kinds]
    modules = [{"type": "sentence_transformers.models.Transformer", "path": ""}, *modules]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 5, "do_lower_case": true}')
    if pooling:
        (folder / "Pooling").mkdir()
        (folder / "Pooling" / "config.json").write_text(json.dumps(pooling))
    return model
