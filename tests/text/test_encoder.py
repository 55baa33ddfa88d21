"""Text encoders are loaded quietly, whole and from safetensors, or refused in one line."""

import itertools
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.text.test_encoder_files import minilm as minilm
from tests.text.toy_encoders import CAPTIONS, SMALL, WORDS, bert, save_encoder, sentence_folder
from tt_ray.terminal.errors import UserError
from tt_ray.text import encoder as encoder_module
from tt_ray.text.encoder import TextEncoder, load_text_encoder
from tt_ray.text.encoder_files import MINILM

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")


def test_importing_costs_nothing() -> None:
    code = "import sys, tt_ray.text.encoder; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_partial_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    bert(tmp_path)
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
    model = bert(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="no .*safetensors weights"):
        load_text_encoder(str(tmp_path))


def test_not_an_encoder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="cannot load text encoder") as caught:
        load_text_encoder(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_revision_follows_the_weights(tmp_path: Path) -> None:
    bert(tmp_path)
    first = load_text_encoder(str(tmp_path)).revision
    assert len(first) == 16 and load_text_encoder(str(tmp_path)).revision == first
    bert(tmp_path, "BertForMaskedLM")
    assert load_text_encoder(str(tmp_path)).revision != first


def test_loading_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bert(tmp_path, "BertForMaskedLM")
    capfd.readouterr()
    load_text_encoder(str(tmp_path)).encode(CAPTIONS)
    assert capfd.readouterr() == ("", "")


# sentence-transformers and its dependencies warn when imported; only our own warnings are ours to mend.
@pytest.mark.slow
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
    sentence_folder(tmp_path, {"pooling_mode": "mean"})
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 17}')
    encoder = load_text_encoder(str(tmp_path))
    assert encoder.max_tokens == 16
    assert np.isfinite(encoder.encode(["a dog " * 30])).all() and encoder.truncated == 1


MANY = [" ".join(words) for length in (1, 2, 3) for words in itertools.product(WORDS[4:7], repeat=length)]


def _tokenised(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the encoder does from now on, in order: a line for each tokenising and each forward pass."""
    done: list[str] = []
    tokenize, forward, main = encoder._tokenize, encoder._forward, threading.current_thread()

    def tokenizing(captions: list[str]) -> list[list[int]]:
        done.append(f"{len(captions)} {'here' if threading.current_thread() is main else 'beside'}")
        return tokenize(captions)

    monkeypatch.setattr(encoder, "_tokenize", tokenizing)
    monkeypatch.setattr(encoder, "_forward", lambda tokens: done.append("forward") or forward(tokens))
    return done


def test_tokenising_beside_the_forward_pass_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bert(tmp_path)
    encoder = load_text_encoder(str(tmp_path))
    expected = np.concatenate([encoder.encode(MANY[start : start + 16]) for start in range(0, len(MANY), 16)])
    monkeypatch.setattr(encoder_module, "WINDOW", 16)
    done = _tokenised(encoder, monkeypatch)
    before = set(threading.enumerate())  # other tests' threads may end when they are collected
    assert np.array_equal(encoder.encode(MANY), expected) and encoder.truncated == 0
    assert [line for line in done if line != "forward"] == ["16 beside", "16 beside", "7 beside"]
    assert set(threading.enumerate()) <= before, "none is there at a fork"
    del done[:]
    assert np.array_equal(encoder.encode(MANY[:16]), expected[:16])
    assert done[0] == "16 here", "a thread for nothing costs time"
    assert encoder.encode([]).shape == (0, 16)


def test_a_gpu_waits_for_the_tokens_of_the_first_batch_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bert(tmp_path)
    encoder = load_text_encoder(str(tmp_path))
    expected = encoder.encode([*MANY, "a dog " * 9])
    monkeypatch.setattr(encoder, "_on_gpu", True)
    done = _tokenised(encoder, monkeypatch)
    np.testing.assert_allclose(encoder.encode([*MANY, "a dog " * 9], 10), expected, rtol=1e-4, atol=1e-5)
    assert [line for line in done if line != "forward"] == ["10 beside"] * 4 and encoder.truncated == 2
    assert done.index("forward") <= 2, "before the third batch is tokenised"


def test_embeddings_leave_the_device_in_few_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bert(tmp_path)
    encoder = load_text_encoder(str(tmp_path))
    whole = encoder.encode(MANY, 4)
    monkeypatch.setattr(encoder_module, "_FLUSH_BYTES", 3 * 4 * 16 * 4)
    sizes: list[int] = []
    flush = encoder_module._flush

    def flushing(held: list[object], out: np.ndarray) -> list[object]:
        sizes.append(len(held))
        return flush(held, out)  # type: ignore[arg-type]

    monkeypatch.setattr(encoder_module, "_flush", flushing)
    assert np.array_equal(encoder.encode(MANY, 4), whole) and sizes == [3, 3, 3, 1]
