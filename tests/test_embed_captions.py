"""Captions -> store: what is in it, what is left out, and mistakes, which are one line."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.command_here import one_line
from tests.data.sources.test_webdataset import jpeg, write
from tests.embedding_here import CAPTIONS, SHARD, Recorder, arguments, contents, interrupted, spoil, table, unfinished
from tests.embedding_here import cluster as cluster
from tests.embedding_here import encoder as encoder
from tests.embedding_here import no_ray as no_ray
from tests.embedding_here import one_thread as one_thread
from tests.embedding_here import small_shards as small_shards
from tt_ray import embed_captions
from tt_ray.config import DataConfig
from tt_ray.data.sources.registry import open_source
from tt_ray.data.sources.tar_index import INDEX
from tt_ray.embed_captions import Arguments, embed
from tt_ray.embeddings.store import open_store
from tt_ray.terminal.command import run_command
from tt_ray.terminal.errors import UserError
from tt_ray.text.encoder import load_text_encoder


def test_each_image_gets_the_embedding_of_its_caption(tmp_path: Path, encoder: str, no_ray: None) -> None:
    given, display = arguments(tmp_path, encoder), Recorder()
    sentence = embed(given, display)
    assert "68 images, 60 distinct captions" in sentence
    store = open_store(given.out, verify=True)
    assert store.ids.to_pylist() == [f"{number}.jpg" for number in range(len(CAPTIONS))]
    np.testing.assert_allclose(store.embeddings, load_text_encoder(encoder).encode(CAPTIONS), rtol=1e-3, atol=1e-3)
    about = store.manifest["encoder"]
    assert (about["id"], about["pooling"], about["max_tokens"], about["precision"]) == (encoder, "cls", 8, "float32")
    assert display.embedded[-1] == (60, 60), "each distinct caption once"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.parquet", "store"]


def test_the_index_of_shards_is_a_caption_table(tmp_path: Path, encoder: str, no_ray: None) -> None:
    files = {"a.jpg": jpeg(0), "a.cls": "0", "a.txt": "a dog", "b.jpg": jpeg(1), "b.cls": "1", "b.txt": "a cat"}
    write(tmp_path / "train.tar", {**files, "c.jpg": jpeg(2), "c.cls": "1"})
    source = open_source(DataConfig("webdataset", str(tmp_path)), "train", True)
    display = Recorder()
    embed(Arguments(tmp_path / INDEX, tmp_path / "store", encoder), display)
    assert open_store(tmp_path / "store").ids.to_pylist() == source.ids.to_pylist()[:2]
    assert "no caption for c" in display.said[0]


@pytest.mark.parametrize(("average", "words"), [(False, ["a dog"]), (True, ["a dog", "red cat"])])
def test_several_captions_of_an_image(
    tmp_path: Path, encoder: str, no_ray: None, average: bool, words: list[str]
) -> None:
    path = tmp_path / "captions.csv"
    path.write_text("image_id,caption\n1.jpg,a dog\n2.jpg,a cat\n1.jpg,red cat\n1.jpg,a dog\n")
    assert "2 images" in embed(Arguments(path, tmp_path / "store", encoder, average=average), Recorder())
    store = open_store(tmp_path / "store")
    assert store.ids.to_pylist() == ["1.jpg", "2.jpg"]
    mean = load_text_encoder(encoder).encode(words).mean(0)
    np.testing.assert_allclose(store.embeddings[0], mean, rtol=2e-3, atol=2e-3)


def test_malformed_rows_are_left_out_and_told(tmp_path: Path, encoder: str, no_ray: None) -> None:
    path = tmp_path / "captions.csv"
    path.write_bytes(b"image_id,caption\n1.jpg,a dog\n2.jpg,  \n3.jpg,a \xff dog\n4.jpg,a cat\n")
    display = Recorder()
    embed(Arguments(path, tmp_path / "store", encoder), display)
    assert display.said == [f"2 rows of {path} are left out, the first: {path}:3: no caption for 2.jpg"]
    assert open_store(tmp_path / "store").ids.to_pylist() == ["1.jpg", "4.jpg"]
    with pytest.raises(UserError, match="has 2 malformed rows, the first at .*captions.csv:3"):
        embed(Arguments(path, tmp_path / "strict", encoder, strict=True), display)
    assert not (tmp_path / "strict.unfinished").exists()


def test_embeddings_that_are_not_finite(tmp_path: Path, encoder: str, no_ray: None) -> None:
    copy = shutil.copytree(encoder, tmp_path / "encoder")
    given = arguments(tmp_path, str(copy))
    spoil(copy)
    with pytest.raises(
        UserError, match=r"not finite as float16 for \d+ of 16 captions, such as '.*dog.*': choose another"
    ):
        embed(given, Recorder())
    assert not given.out.exists() and not list(unfinished(given).glob("*.shard"))


@pytest.mark.parametrize("average", [False, True])
def test_embeddings_that_are_not_finite_are_left_out_when_asked_for(
    tmp_path: Path, encoder: str, no_ray: None, average: bool
) -> None:
    copy = shutil.copytree(encoder, tmp_path / "encoder")
    given = arguments(tmp_path, str(copy), average=average)
    with pytest.raises(UserError, match="--on_bad_embedding skip, which keeps what is done"):
        spoil(copy)
        embed(given, Recorder())
    several = [*CAPTIONS, "a dog"]
    path = given.captions
    pq.write_table(
        pa.table({"image_id": [*(f"{i}.jpg" for i in range(len(CAPTIONS))), "1.jpg"], "caption": several}), path
    )
    given = replace(given, on_bad_embedding="skip", out=tmp_path / "skipped")
    kept = interrupted(given, 2 * SHARD)
    assert len(kept) == 2, "shards with bad captions are kept"
    sentence = embed(given, Recorder())
    good = [number for number, caption in enumerate(CAPTIONS) if "dog" not in caption]
    bad = len(CAPTIONS) - len(good) + average
    assert f"{bad} captions without a finite embedding are listed in {given.out}.skipped.tsv" in sentence
    assert len((tmp_path / "skipped.skipped.tsv").read_text().splitlines()) == bad
    store = open_store(given.out, verify=True)
    assert store.ids.to_pylist() == [f"{number}.jpg" for number in good]
    expected = load_text_encoder(encoder).encode([CAPTIONS[number] for number in good])
    np.testing.assert_allclose(store.embeddings, expected, rtol=1e-3, atol=1e-3)
    assert "is complete" in embed(given, Recorder())


def test_a_full_disk(tmp_path: Path, mounted: Path, encoder: str, no_ray: None) -> None:
    given = Arguments(table(tmp_path / "captions.parquet"), mounted / "store", encoder)
    kept = interrupted(given, 60)
    filler = mounted / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(1024))
    with pytest.raises(
        UserError, match=r"cannot write .*store.*: No space left on device\): fix this, or choose another --out"
    ):
        embed(given, Recorder())
    assert sorted(path.name for path in mounted.iterdir()) == ["filler", "store.unfinished"]
    assert kept.items() <= contents(unfinished(given)).items()
    filler.unlink()
    display = Recorder()
    embed(given, display)
    assert not display.embedded and len(open_store(given.out, verify=True)) == len(CAPTIONS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.parquet", "--out", "store"], "no caption table none.parquet"),
        (["captions.parquet"], "--out"),
        (["captions.parquet", "--out", "store", "--encoder", "./none"], "no such folder"),
        (["captions.parquet", "--out", "store", "--batch_size", "-1"], "--batch_size is -1"),
        (["captions.parquet", "--out", "store", "--device", "tpu"], "device"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    table(tmp_path / "captions.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prog", *words])
    with pytest.raises(SystemExit) as stop:
        run_command(embed_captions.main)
    assert stop.value.code == 2 and message in one_line(capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.parquet"]
