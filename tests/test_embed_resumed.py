"""Embedding captions is resumed, however often it was killed, and only with what it was begun with."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.embedding_here import (
    CAPTIONS,
    SENTENCES,
    SHARD,
    Recorder,
    arguments,
    contents,
    interrupted,
    table,
    unfinished,
)
from tests.embedding_here import cluster as cluster
from tests.embedding_here import encoder as encoder
from tests.embedding_here import no_ray as no_ray
from tests.embedding_here import one_thread as one_thread
from tests.embedding_here import small_shards as small_shards
from tests.text.toy_encoders import WORDS
from tt_ray import embed_captions
from tt_ray.embed_captions import Arguments, embed
from tt_ray.embeddings.store import open_store
from tt_ray.terminal.errors import UserError
from tt_ray.text.encoder import load_text_encoder


def test_what_was_cut_off_is_counted_over_all_runs(tmp_path: Path, encoder: str, no_ray: None) -> None:
    long = [" ".join([word] * 9) for word in WORDS[4:]]
    given = Arguments(table(tmp_path / "captions.parquet", [*long, *SENTENCES[:30]]), tmp_path / "store", encoder)
    interrupted(given, SHARD)
    assert f"36 distinct captions, {len(long)} of them longer than the encoder takes" in embed(given, Recorder())


@pytest.mark.parametrize("done", [SHARD, 2 * SHARD, 60])
def test_a_killed_run_goes_on(tmp_path: Path, encoder: str, no_ray: None, done: int) -> None:
    whole = arguments(tmp_path, encoder, "whole")
    embed(whole, Recorder())
    given, display = arguments(tmp_path, encoder), Recorder()
    kept = interrupted(given, done)
    assert len(kept) == -(-done // SHARD)
    embed(given, display)
    assert display.said == [f"continuing {unfinished(given)}: {len(kept)} of 4 shards are done"]
    assert [of for _, of in display.embedded] == [60 - done] * (4 - len(kept)), "nothing is encoded twice"
    assert contents(given.out) == contents(whole.out)
    assert not unfinished(given).exists()


def test_a_torn_shard_is_made_anew(tmp_path: Path, encoder: str, no_ray: None) -> None:
    given, display = arguments(tmp_path, encoder), Recorder()
    interrupted(given, 60)
    torn = next(unfinished(given).glob("0000001-*"))
    torn.write_bytes(torn.read_bytes()[:-1])
    embed(given, display)
    assert display.embedded == [(SHARD, SHARD)]
    np.testing.assert_allclose(
        open_store(given.out).embeddings, load_text_encoder(encoder).encode(CAPTIONS), rtol=1e-3, atol=1e-3
    )


def _other_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file({name: 2 * weight for name, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def _other_pooling(folder: Path) -> None:
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))


def _other_limit(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 5}))


def _other_words(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"dog"', '"god"'))


def _other_activation(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"gelu"', '"relu"'))


def _other_prompt(folder: Path) -> None:
    prompts = {"prompts": {"red": "red "}, "default_prompt_name": "red"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))


@pytest.mark.parametrize(
    "change", [_other_weights, _other_pooling, _other_limit, _other_words, _other_activation, _other_prompt]
)
def test_an_encoder_that_changed_is_refused(
    tmp_path: Path, encoder: str, no_ray: None, change: Callable[[Path], None]
) -> None:
    copy = tmp_path / "encoder"
    shutil.copytree(encoder, copy)
    given = arguments(tmp_path, str(copy))
    kept = interrupted(given, SHARD)
    done = arguments(tmp_path, str(copy), "done")
    embed(done, Recorder())
    assert "is complete" in embed(done, Recorder())
    before = contents(copy)
    change(copy)
    assert contents(copy) != before
    with pytest.raises(UserError, match=r"was begun with other revision \(\w{16}, now \w{16}\)"):
        embed(given, Recorder())
    assert kept.items() <= contents(unfinished(given)).items() and not given.out.exists()
    with pytest.raises(UserError, match="exists already, made of something else"):
        embed(done, Recorder())


def test_another_encoder_or_other_captions_are_refused_before_anything_is_loaded(
    tmp_path: Path, encoder: str, no_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arguments(tmp_path, encoder)
    interrupted(given, SHARD)
    monkeypatch.setattr(embed_captions, "do_missing", lambda *_: pytest.fail("work was begun"))
    copy = shutil.copytree(encoder, tmp_path / "copy")
    with pytest.raises(UserError, match="was begun with other id"):
        embed(Arguments(given.captions, given.out, str(copy)), Recorder())
    table(given.captions, [*CAPTIONS[1:], "cat"])
    with pytest.raises(UserError, match="was begun with other captions"):
        embed(given, Recorder())


def test_a_finished_store_is_left_alone(tmp_path: Path, encoder: str, no_ray: None) -> None:
    given = arguments(tmp_path, encoder)
    embed(given, Recorder())
    before = contents(given.out)
    assert "is complete: there is nothing to do" in embed(given, Recorder())
    table(given.captions, CAPTIONS[1:])
    with pytest.raises(UserError, match="exists already, made of something else"):
        embed(given, Recorder())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        embed(Arguments(given.captions, tmp_path / "file", encoder), Recorder())
    assert contents(given.out) == before and (tmp_path / "file").read_text() == "mine"


def test_what_a_kill_left_of_a_store_is_deleted(tmp_path: Path, encoder: str, no_ray: None) -> None:
    given, display = arguments(tmp_path, encoder), Recorder()
    half, other = tmp_path / ".store.1-0123abcd.partial", tmp_path / ".store2.1-0123abcd.partial"
    for folder in (half, other):
        folder.mkdir()
        (folder / "embeddings.npy").write_bytes(b"half")
    embed(given, display)
    assert not half.exists() and other.exists()
    assert ("embeddings written", len(CAPTIONS), len(CAPTIONS)) in display.shown
