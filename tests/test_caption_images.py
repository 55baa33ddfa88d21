"""Images -> caption table: the same whoever does it, bad images listed, class names without a model."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from tests.command_here import one_line
from tests.embedding_here import WITH_RAY, Recorder, cluster, do_here, one_thread
from tests.text.test_captioner import IMAGES, llava
from tests.text.test_class_describer import llama
from tt_ray import caption_images, pack
from tt_ray.caption_images import Arguments, ImageCaptioner, Images, caption
from tt_ray.cluster.actor_pool import PoolOptions
from tt_ray.config import DataConfig
from tt_ray.data.sources.registry import open_source, without_labels
from tt_ray.io.resumable import Shards
from tt_ray.terminal.command import run_command
from tt_ray.terminal.errors import UserError
from tt_ray.text.caption_table import made_of, read_captions
from tt_ray.text.captioner import CaptionerOptions, load_captioner
from tt_ray.text.class_describer import DescriberOptions

__all__ = ["cluster", "one_thread"]  # fixtures
SHARD = 4
NAMES = [f"{name}/{number}.png" for name in ("big_cat", "dog") for number in range(5)]


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("captioner")
    llava(folder)
    return str(folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images in two classes, in split `train`; one file is no image."""
    root = tmp_path_factory.mktemp("images")
    for number, name in enumerate(NAMES):
        (root / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        IMAGES[number % len(IMAGES)].save(root / "train" / name)
    (root / "train" / "dog" / "2.png").write_bytes(b"no image")
    return root


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_images, "_SHARD", SHARD)


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_images, "do_missing", do_here)


def arguments(out: Path, root: Path, captioner: str, **options: Any) -> Arguments:
    writer = CaptionerOptions(captioner, max_tokens=6)
    return Arguments(out, Images(root=str(root)), captioner=writer, batch_size=3, **options)


def expected(captioner: str, root: Path) -> dict[str, str]:
    """Captions image by image."""
    writer = load_captioner(CaptionerOptions(captioner, max_tokens=6))
    images = {name: root / "train" / name for name in NAMES if name != "dog/2.png"}
    return {name: writer.caption([Image.open(path).convert("RGB")])[0] for name, path in images.items()}


def written(out: Path) -> dict[str, str]:
    table = read_captions(out, strict=True)
    return dict(zip(table.ids.to_pylist(), table.captions.to_pylist(), strict=True))


# Without Ray


def test_every_image_gets_its_caption_and_bad_ones_are_listed(
    tmp_path: Path, root: Path, captioner: str, no_ray: None
) -> None:
    out = tmp_path / "captions.parquet"
    sentence = caption(arguments(out, root, captioner), Recorder())
    assert written(out) == expected(captioner, root) and len(set(written(out).values())) > 2
    revision = load_captioner(CaptionerOptions(captioner)).revision
    assert set(read_captions(out).source.to_pylist()) == {f"{captioner}@{revision}"}
    listed = (tmp_path / "captions.parquet.skipped.tsv").read_text()
    assert listed.startswith("dog/2.png\tcannot read image") and listed.count("\n") == 1
    assert "9 images; 1 without a caption are listed in" in sentence and "--data" not in sentence
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, f"{out.name}.skipped.tsv"]


@pytest.mark.parametrize("column", ["", "name"])
def test_a_parquet_without_labels(tmp_path: Path, captioner: str, no_ray: None, column: str) -> None:
    names = [f"image {number}" for number in range(len(IMAGES))]
    (tmp_path / "data").mkdir()
    rows = datasets.Dataset.from_dict({"picture": IMAGES, "name": names}).cast_column("picture", datasets.Image())
    rows.to_parquet(tmp_path / "data" / "train.parquet")
    data = Images("datasets", str(tmp_path / "data" / "train.parquet"), image_column="picture", id_column=column)
    out = tmp_path / "captions.parquet"
    caption(replace(arguments(out, tmp_path, captioner), data=data), Recorder())
    whole = load_captioner(CaptionerOptions(captioner, max_tokens=6)).caption(IMAGES)
    assert written(out) == dict(zip(names if column else map(str, range(len(IMAGES))), whole, strict=True))


def test_a_folder_without_splits_and_labels(tmp_path: Path, captioner: str, no_ray: None) -> None:
    for number, image in enumerate(IMAGES):
        image.save(tmp_path / f"{number}.png")
    out = tmp_path / "captions.parquet"
    given = replace(arguments(out, tmp_path, captioner), data=Images(root=str(tmp_path), train_split="."))
    caption(given, Recorder())
    assert set(written(out)) == {f"{number}.png" for number in range(len(IMAGES))}


def test_shards_without_labels(
    tmp_path: Path, root: Path, captioner: str, no_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed of images without labels, in a folder and behind a URI; training refuses them, captioning does not."""
    monkeypatch.setattr(pack, "do_missing", do_here)
    shards = tmp_path / "shards"
    flat = ["--data.root", str(root / "train"), "--data.train_split", ".", "--data.val_split", ""]
    pack.main([*flat, "--out", str(shards), "--keep", "--unlabelled", "--shard_size", "3"])
    assert sorted(path.name for path in shards.glob("*.tar")) == [f"images-0000{number}.tar" for number in range(4)]
    with pytest.raises(UserError, match="cannot read image dog/2.png"):
        open_source(DataConfig("webdataset", str(shards), train_split="."), "train", False)
    config = DataConfig("webdataset", str(shards), train_split=".", on_bad_image="skip")
    with pytest.raises(UserError, match="9 images have no label .*big_cat/0.png in "):
        open_source(config, "train", False)
    assert without_labels(config, "train").ids.to_pylist() == NAMES
    cache = tmp_path / "cache"
    for number, place in enumerate((str(shards), f"file://{shards}", f"file://{shards}/images-{{00000..00003}}.tar")):
        out = tmp_path / f"{number}.parquet"
        data = Images("webdataset", place, train_split=".", local_cache=str(cache))
        caption(replace(arguments(out, root, captioner), data=data), Recorder())
        assert written(out) == expected(captioner, root)
        assert Path(f"{out}.skipped.tsv").read_text().startswith("dog/2.png\tcannot read image dog/2.png in ")
    assert len(list(cache.rglob("*.tar"))) == 4


def test_a_killed_run_goes_on(tmp_path: Path, root: Path, captioner: str, no_ray: None) -> None:
    caption(arguments(tmp_path / "whole", root, captioner), Recorder())
    given, display = arguments(tmp_path / "captions", root, captioner), Recorder()
    with pytest.raises(KeyboardInterrupt):
        caption(given, Recorder(stop_at=SHARD, what="images captioned"))
    unfinished = tmp_path / "captions.unfinished"
    assert len(list(unfinished.glob("0*.shard"))) == 1 and not given.out.exists()
    other = replace(given, captioner=replace(given.captioner, prompt="a red"))
    with pytest.raises(UserError, match=r"was begun with other prompt \(, now a red\)"):
        caption(other, Recorder())
    caption(given, display)
    assert display.said == [f"continuing {unfinished}: 1 of 3 shards are done"]
    assert display.shown == [("images captioned", 4, 6), ("images captioned", 6, 6)]
    assert given.out.read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_finished_table_is_left_alone(
    tmp_path: Path, root: Path, captioner: str, no_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arguments(tmp_path / "captions", root, captioner)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Shards, "remove", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        caption(given, Recorder())
    before = given.out.read_bytes()
    assert (tmp_path / "captions.unfinished").exists()
    assert "is complete: there is nothing to do" in caption(given, Recorder())
    assert not (tmp_path / "captions.unfinished").exists()
    with pytest.raises(UserError, match="exists already, made of something else"):
        caption(replace(given, captioner=replace(given.captioner, prompt="a red")), Recorder())
    assert given.out.read_bytes() == before


def test_a_captioner_that_cannot_take_an_image_captions_the_others(captioner: str) -> None:
    class Picky:
        options = CaptionerOptions()

        def caption(self, images: list[Image.Image], seed: int) -> list[str]:
            if any(image.size == (1, 1) for image in images):
                raise ValueError("too\nsmall")
            return ["" if image.size == (2, 2) else f"{image.size[0]} wide" for image in images]

    worker = ImageCaptioner.__new__(ImageCaptioner)
    images = [Image.new("RGB", (side, side)) for side in (3, 1, 4, 2, 5)]
    worker._captioner, worker._read, worker._batch_size, worker._threads = Picky(), images.__getitem__, 3, 2  # type: ignore[assignment]
    assert json.loads(worker(list(range(5)))) == [
        ["3 wide", ""],
        ["", "the captioner cannot take it: too small"],
        ["4 wide", ""],
        ["", "the captioner wrote nothing"],
        ["5 wide", ""],
    ]


def test_no_readable_image(tmp_path: Path, captioner: str, no_ray: None) -> None:
    (tmp_path / "train").mkdir()
    for number in range(6):
        (tmp_path / "train" / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="none of 6 images got a caption; 0.png: cannot read image"):
        caption(arguments(tmp_path / "out", tmp_path, captioner), Recorder())
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


# Class names


def test_class_names_in_a_template_need_no_model(tmp_path: Path, root: Path) -> None:
    given = Arguments(tmp_path / "captions.parquet", Images(root=str(root)), template="a photo of a {label}")
    assert "10 images" in caption(given, Recorder())
    assert written(given.out) == {name: f"a photo of a {name.split('/')[0].replace('_', ' ')}" for name in NAMES}
    assert set(read_captions(given.out).source.to_pylist()) == {"template: a photo of a {label}"}


def test_imagenets_folders_need_a_table_of_names(tmp_path: Path) -> None:
    (tmp_path / "train" / "n01440764").mkdir(parents=True)
    IMAGES[0].save(tmp_path / "train" / "n01440764" / "1.png")
    given = Arguments(tmp_path / "captions.parquet", Images(root=str(tmp_path)), template="a photo of a {label}")
    with pytest.raises(UserError, match="WordNet ids"):
        caption(given, Recorder())
    assert not given.out.exists()
    (tmp_path / "names.json").write_text('{"n01440764": "tench"}')
    caption(replace(given, class_names=tmp_path / "names.json"), Recorder())
    assert written(given.out) == {"n01440764/1.png": "a photo of a tench"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "choose either a captioner with --model, or --template"),
        (["--model", "./none", "--template", "a {label}"], "choose either a captioner with --model, or --template"),
        (["--model", "./none"], "no such folder"),
        (["--template", "a photo"], "has no {label}"),
        (["--template", "{label}: {caption}"], "choose either a captioner with --model, or --template"),
        (["--model", "x", "--template", "{caption} {x}"], "has {x}, which nothing replaces"),
        (["--llm.model", "x", "--template", "a {label}"], "choose either --llm.model, which writes"),
        (["--llm.model", "x", "--model", "y"], "choose either --llm.model, which writes"),
        (["--llm.model", "x", "--llm.prompt", "a photo"], "has no {label}"),
        (["--llm.model", "./none"], "no such folder"),
        (["--template", "a {colour} {label}"], "has {colour}, which nothing replaces"),
        (["--template", "a {label}", "--data.root", "none"], "data.root none is not a folder"),
        (["--template", "a {label}", "--data.train_split", "val"], "--data.train_split"),
        (["--model", "x", "--max_tokens", "0"], "--max_tokens 0"),
        (["--model", "x", "--template", "{caption} {x}"], "use {label} and {caption} alone"),
        (["--template", "a {label}", "--llm.texts", "3"], "--llm.texts is about --llm.model, which is not given"),
        (["--template", "a {label}", "--prompt", "x"], "--prompt is about --model, which is not given"),
        (["--llm.model", "x", "--beams", "2"], "--beams is about --model, which is not given"),
        (["--model", "x", "--llm.rows", "class"], "--llm.rows is about --llm.model, which is not given"),
        (["--model", "x", "--class_names", "n.csv"], "--class_names names classes for --llm.model, or for {label}"),
        (["--model", "x", "--batch_size", "0"], "--batch_size is 0"),
        (["--template", "a {label}", "--out", "captions.csv"], "choose one that ends in .parquet"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    tmp_path: Path,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    where = ["--out", "captions.parquet", "--data.root", str(root)]
    monkeypatch.setattr(sys, "argv", ["prog", *where, *words])
    with pytest.raises(SystemExit) as stop:
        run_command(caption_images.main)
    assert stop.value.code == 2 and message in one_line(capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_an_existing_table_is_left_alone(tmp_path: Path, root: Path) -> None:
    out = tmp_path / "captions.parquet"
    out.write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        caption(Arguments(out, Images(root=str(root)), template="a {label}"), Recorder())
    assert out.read_text() == "mine"


# With Ray


@WITH_RAY
@pytest.mark.slow
def test_actors_write_what_one_process_writes(
    tmp_path: Path, root: Path, cluster: None, captioner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arguments(tmp_path / "here", root, captioner)
    with monkeypatch.context() as patch:
        patch.setattr(caption_images, "do_missing", do_here)
        caption(given, Recorder())
    display = Recorder()
    caption(replace(given, out=tmp_path / "actors", pool=PoolOptions(actors=2)), display)
    assert (tmp_path / "actors").read_bytes() == (tmp_path / "here").read_bytes()
    assert (tmp_path / "actors.skipped.tsv").read_text() == (tmp_path / "here.skipped.tsv").read_text()
    assert display.shown[-1] == ("images captioned", 10, 10)


# Class names with captions, and texts about classes


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("llama")
    llama(folder)
    return str(folder)


def test_a_template_puts_labels_before_captions(tmp_path: Path, root: Path, captioner: str, no_ray: None) -> None:
    plain, both = (tmp_path / f"{name}.parquet" for name in ("plain", "both"))
    caption(arguments(plain, root, captioner), Recorder())
    given = arguments(both, root, captioner, template="{label}: {caption} of {label}")
    caption(given, Recorder())
    names = {name: name.split("/")[0].replace("_", " ") for name in NAMES}
    assert written(both) == {name: f"{names[name]}: {text} of {names[name]}" for name, text in written(plain).items()}
    assert "there is nothing to do" in caption(given, Recorder())
    for other in (replace(given, template="{caption}"), replace(given, template="")):
        with pytest.raises(UserError, match="exists already, made of something else"):
            caption(other, Recorder())


def test_a_template_without_labels_needs_none(tmp_path: Path, captioner: str, no_ray: None) -> None:
    for number, image in enumerate(IMAGES):
        image.save(tmp_path / f"{number}.png")
    given = arguments(tmp_path / "c.parquet", tmp_path, captioner, template="a photo: {caption}")
    caption(replace(given, data=Images(root=str(tmp_path), train_split=".")), Recorder())
    assert all(text.startswith("a photo: ") for text in written(tmp_path / "c.parquet").values())


@pytest.mark.parametrize("rows", ["image", "class"])
def test_a_language_model_writes_about_classes(
    tmp_path: Path, root: Path, language_model: str, no_ray: None, rows: Any
) -> None:
    llm = DescriberOptions(language_model, "a {label} runs", 3, rows, max_tokens=6, temperature=2.0, seed=1)
    out = tmp_path / "captions.parquet"
    given = Arguments(out, Images(root=str(root)), batch_size=2, llm=llm)
    caption(given, Recorder())
    found = written(out)
    if rows == "class":
        assert set(found) == {f"{name}/{number}" for name in ("big_cat", "dog") for number in range(3)}
        return
    assert list(found) == sorted(NAMES), "of images that cannot be read too: nobody looks at them"
    for name in ("big_cat", "dog"):
        texts = [found[f"{name}/{number}.png"] for number in range(5)]
        assert texts[3:] == texts[:2] and len(set(texts)) > 1, "texts in turn"
    about = made_of(out)
    assert about is not None and about["prompt"] == "a {label} runs" and about["precision"] == "float32"
    assert "there is nothing to do" in caption(given, Recorder())
    with pytest.raises(UserError, match="exists already, made of something else"):
        caption(replace(given, llm=replace(llm, prompt="the {label}")), Recorder())


def test_a_language_model_that_was_cut_off_continues(
    tmp_path: Path, root: Path, language_model: str, no_ray: None
) -> None:
    llm = DescriberOptions(language_model, "a {label} runs", 4, max_tokens=6, temperature=30.0)
    whole, cut = (Arguments(tmp_path / name, Images(root=str(root)), llm=llm) for name in ("whole", "cut"))
    caption(whole, Recorder())
    with pytest.raises(KeyboardInterrupt):
        caption(cut, Recorder(4, "texts written"))
    display = Recorder()
    caption(cut, display)
    assert any("1 of 2 shards are done" in text for text in display.said)
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
