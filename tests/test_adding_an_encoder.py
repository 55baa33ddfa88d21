"""A family of text encoders that the package has no row for: one row, and captions are embedded by it."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.text.toy_encoders import SMALL, save_encoder
from tests.toy import run_toy, toy_config
from tt_ray.data.prepare import find_store, open_images
from tt_ray.embeddings.build import embed_captions
from tt_ray.embeddings.store import open_store
from tt_ray.terminal.errors import UserError
from tt_ray.text import families, pooling
from tt_ray.text.encoder import load_text_encoder
from tt_ray.text.families import Family

transformers: Any = pytest.importorskip("transformers")
CAPTIONS = ["a dog", "a red cat sits", "dog"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """OWL-ViT's text side: it pools one position and normalises it, and AutoModel does not know it."""
    config = transformers.OwlViTTextConfig(**SMALL, max_position_embeddings=8)
    save_encoder(transformers.OwlViTTextModel(config), tmp_path / "owl")
    return tmp_path / "owl"


@pytest.mark.slow
def test_one_row_is_enough(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError):
        load_text_encoder(str(folder))
    monkeypatch.setitem(families.FAMILIES, "owlvit_text_model", Family("OwlViTTextModel", "eos"))
    encoder = load_text_encoder(str(folder))
    assert (encoder.pooling, encoder.dim) == ("eos", 16)
    ids = pa.array([f"{number}.jpg" for number in range(len(CAPTIONS))])
    store = embed_captions(ids, pa.array(CAPTIONS), encoder, tmp_path / "store")
    model = transformers.OwlViTTextModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for vector, caption in zip(store.embeddings, CAPTIONS, strict=True):
        with torch.inference_mode():
            expected = model(**tokenizer(caption, return_tensors="pt")).pooler_output[0]
        np.testing.assert_allclose(vector, expected, rtol=1e-2, atol=1e-3)


def test_a_run_learns_from_it(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(families.FAMILIES, "owlvit_text_model", Family("OwlViTTextModel", "eos"))
    config = toy_config(tmp_path, train__epochs=1).override("text.embeddings", "")
    config = config.override("text.encoder", str(folder))
    store = find_store(config, open_images(config)[0])
    assert store is not None and open_store(store).manifest["encoder"]["pooling"] == "eos"
    result = run_toy(config.override("text.embeddings", str(store)))
    assert np.isfinite(result["top1"])


def test_a_pooling_is_a_row_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(outputs: Any, mask: Any, lengths: Any) -> Any:
        return 2 * outputs.last_hidden_state[:, 0].float()

    save_encoder(transformers.BertModel(transformers.BertConfig(**SMALL, max_position_embeddings=16)), tmp_path)
    expected = 2 * load_text_encoder(str(tmp_path)).encode(CAPTIONS)
    monkeypatch.setitem(pooling.POOLINGS, "twice", twice)
    monkeypatch.setitem(families.FAMILIES, "bert", Family(pooling="twice"))
    encoder = load_text_encoder(str(tmp_path))
    assert encoder.pooling == "twice"
    np.testing.assert_allclose(encoder.encode(CAPTIONS), expected, rtol=1e-6)
