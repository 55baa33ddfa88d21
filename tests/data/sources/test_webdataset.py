"""Shards as the wild has them, through their index: keys, labels, captions, splits, and what is refused."""

import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tt_ray.config import DataConfig
from tt_ray.data.sources import webdataset
from tt_ray.data.sources.base import Source
from tt_ray.data.sources.registry import open_source, open_splits, open_unlabelled
from tt_ray.data.sources.tar_index import INDEX, labels_are_numbers, read_index
from tt_ray.data.sources.webdataset import of_split
from tt_ray.terminal.errors import UserError


def jpeg(number: int, size: tuple[int, int] = (12, 8)) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def write(path: Path, files: Mapping[str, bytes | str], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def opened(root: Path, split: str = "train", captions: bool = False, **fields: str) -> Source:
    return open_source(DataConfig(source="webdataset", root=str(root), train_split=split, **fields), "train", captions)


def test_the_layout_of_imagenet_1k_wds(tmp_path: Path) -> None:
    """jpg, cls and json; class numbers keep their places, also those that a shard lacks."""
    for split, labels in (("train", (2, 0, 7)), ("validation", (7, 2))):
        files: dict[str, bytes | str] = {}
        for number, label in enumerate(labels):
            key = f"n0{label}_{number}"
            files |= {f"{key}.cls": str(label), f"{key}.jpg": jpeg(number)}
            files |= {f"{key}.json": json.dumps({"label": label, "filename": f"{key}.JPEG", "width": 12})}
        write(tmp_path / f"imagenet1k-{split}-0000.tar", files)
    config = DataConfig(source="webdataset", root=str(tmp_path), val_split="validation")
    train, val = open_splits(config, False)
    assert train.ids.to_pylist() == ["n02_0", "n00_1", "n07_2"] and train.labels.tolist() == [2, 0, 7]
    assert train.classes == tuple(map(str, range(8))) and val.labels.tolist() == [7, 2]
    assert np.array_equal(np.asarray(train.read(1)), np.asarray(Image.open(io.BytesIO(jpeg(1)))))
    assert train.encoded(2) == jpeg(2) and train.pixels(np.array([0, 2]), 4).shape == (2, 4, 4, 3)


def test_names_as_labels_and_captions_of_both_kinds(tmp_path: Path) -> None:
    """Class names in .cls, captions in .txt; then both as fields of .json, under names of the user's."""
    write(
        tmp_path / "a" / "train.tar",
        {"x.jpg": jpeg(0), "x.cls": "eel\n", "x.txt": "an eel", "y.jpg": jpeg(1), "y.cls": "cat"},
    )
    plain = opened(tmp_path / "a", captions=True)
    assert plain.classes == ("cat", "eel") and plain.labels.tolist() == [1, 0]
    assert plain.captions is not None and plain.captions.to_pylist() == ["an eel", None]
    fields = [{"kind": "eel", "text": ["an eel", "a long one"]}, {"kind": "cat", "text": ""}]
    files = {
        f"{n}.{end}": content
        for n, each in enumerate(fields)
        for end, content in (("JPG", jpeg(n)), ("json", json.dumps(each)))
    }
    write(tmp_path / "b" / "train.tar", files)
    own = opened(tmp_path / "b", captions=True, label_column="kind", caption_column="text")
    assert own.classes == ("cat", "eel") and own.captions is not None and own.captions.to_pylist() == ["an eel", None]


def test_keys(tmp_path: Path) -> None:
    """Folders belong to a key, a key ends at the first dot of its last part, and what has no image is passed over."""
    files = {
        "v1.0/a.seg.png": jpeg(0),
        "v1.0/a.cls": "0",
        "README.md": "hello",
        "v1.0/b.jpg": jpeg(1),
        "v1.0/b.cls": "1",
    }
    write(tmp_path / "train.tar", files)
    assert opened(tmp_path).ids.to_pylist() == ["v1.0/a", "v1.0/b"]


def test_keys_that_start_again_in_each_shard_are_told_apart_by_it(tmp_path: Path) -> None:
    for split, shard in (("train", 0), ("train", 1), ("test", 0)):
        write(tmp_path / f"{split}-{shard}.tar", {"0.jpg": jpeg(shard), "0.cls": "0", "1.jpg": jpeg(5), "1.cls": "1"})
    train = opened(tmp_path)
    assert train.ids.to_pylist() == ["train-0/0", "train-0/1", "train-1/0", "train-1/1"]
    assert train.encoded(2) == jpeg(1)


@pytest.mark.parametrize(
    "names", [("train/0.tar", "test/0.tar"), ("train-000.tar", "test-000.tar"), ("cub_train.tar", "cub_test.tar")]
)
def test_splits_by_folder_or_name(names: tuple[str, str], tmp_path: Path) -> None:
    for number, name in enumerate(names):
        write(tmp_path / name, {f"{number}.jpg": jpeg(number), f"{number}.cls": "0"})
    assert opened(tmp_path).ids.to_pylist() == ["0"] and opened(tmp_path, "test").ids.to_pylist() == ["1"]
    assert sorted(opened(tmp_path, ".").ids.to_pylist()) == ["0", "1"]
    with pytest.raises(UserError, match="has no shards of split 'trian', did you mean"):
        opened(tmp_path, "trian")


def test_a_pattern_takes_some_shards(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"train-{number}.tar", {f"{number}.jpg": jpeg(number), f"{number}.cls": "0"})
    opened(tmp_path)  # writes the index of all
    assert opened(tmp_path / "train-[01].tar").ids.to_pylist() == ["0", "1"]


def test_the_index_is_made_once_and_must_fit_the_shards(tmp_path: Path) -> None:
    write(tmp_path / "train-0.tar", {"a.jpg": jpeg(0), "a.cls": "0"})
    opened(tmp_path)
    before = (tmp_path / INDEX).stat().st_mtime_ns
    assert len(opened(tmp_path)) == 1 and (tmp_path / INDEX).stat().st_mtime_ns == before
    table, _ = read_index(tmp_path / INDEX)
    assert table.select(["width", "height"]).to_pylist() == [{"width": 12, "height": 8}]
    assert labels_are_numbers(table)
    write(tmp_path / "train-1.tar", {"b.jpg": jpeg(1), "b.cls": "1"})
    with pytest.raises(UserError, match="does not have 1 shards that are there: train-1.tar.*--index-only"):
        opened(tmp_path)
    (tmp_path / "train-1.tar").unlink()
    (tmp_path / "train-0.tar").rename(tmp_path / "train-2.tar")
    with pytest.raises(UserError, match="does not have 1 shards"):
        opened(tmp_path)
    (tmp_path / "train-2.tar").unlink()
    write(tmp_path / "train-3.tar", {"c.jpg": jpeg(3), "c.cls": "0"})
    (tmp_path / INDEX).unlink()
    write(tmp_path / "train-4.tar", {"d.jpg": jpeg(4), "d.cls": "0"})
    opened(tmp_path)
    (tmp_path / "train-3.tar").unlink()
    with pytest.raises(UserError, match="names 1 shards that are not there: train-3.tar"):
        opened(tmp_path)


def test_images_that_cannot_be_read_are_known_to_the_index(tmp_path: Path) -> None:
    files = {"a.jpg": jpeg(0), "a.cls": "0", "b.jpg": b"a web page", "b.cls": "1", "c.jpg": jpeg(2), "c.cls": "1"}
    write(tmp_path / "train.tar", files)
    with pytest.raises(UserError, match=r"cannot read image b in .*train.tar .*--data.on_bad_image skip"):
        opened(tmp_path)
    source = opened(tmp_path, on_bad_image="skip")
    assert source.ids.to_pylist() == ["a", "c"] and "1 images left out of train, such as b" in source.left_out[0]
    assert source.skipped == ("b",)
    assert len(open_unlabelled(DataConfig(source="webdataset", root=str(tmp_path)), "train").ids) == 3


def cut(path: Path) -> None:
    write(path, {"a.cls": "0", "a.jpg": jpeg(0)})
    path.write_bytes(path.read_bytes()[:1700])


def packed(path: Path) -> None:
    write(path, {"a.jpg": jpeg(0)}, "w:gz")


def without_end(path: Path) -> None:
    """Cut between two files: what is there can be read."""
    write(path, {"a.jpg": jpeg(0), "a.cls": "0", "b.jpg": jpeg(1), "b.cls": "0"})
    with tarfile.open(path) as tar:
        end = tar.getmember("b.jpg").offset
    path.write_bytes(path.read_bytes()[:end])


def put_together(path: Path) -> None:
    write(path, {"a.jpg": jpeg(0), "a.cls": "0"})
    path.write_bytes(path.read_bytes() * 2)


def half_an_image(path: Path) -> None:
    """Its header is whole."""
    write(path, {"a.jpg": jpeg(0, (64, 64))[:-900], "a.cls": "0"})


def no_tar(path: Path) -> None:
    path.write_text("<html>not found</html>" * 100)


def no_json(path: Path) -> None:
    write(path, {"a.jpg": jpeg(0), "a.json": "{"})


def no_label(path: Path) -> None:
    write(path, {"a.jpg": jpeg(0), "b.jpg": jpeg(1), "b.cls": "0"})


def minus_one(path: Path) -> None:
    """What Hugging Face writes for no label is no class."""
    write(
        path,
        {"a.jpg": jpeg(0), "a.cls": "-1", "b.jpg": jpeg(1), "b.json": '{"label": -1}', "c.jpg": jpeg(2), "c.cls": "0"},
    )


def twice(path: Path) -> None:
    write(path, {"a.jpg": jpeg(0), "a.cls": "0", "b.jpg": jpeg(1), "b.cls": "0"})
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo("a.jpg")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))


def links(path: Path) -> None:
    """As tar writes the second name of a file that two folders share."""
    write(path, {"a.jpg": jpeg(0), "a.cls": "0", "b.cls": "1"})
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo("b.jpg")
        member.type, member.linkname = tarfile.LNKTYPE, "a.jpg"
        tar.addfile(member)


def sparse(path: Path) -> None:
    """An image with zeros after its end, of which the tar holds the rest alone, by GNU's fields of pax."""
    content = jpeg(0)
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("a.jpg")
        member.pax_headers = {"GNU.sparse.map": f"0,{len(content)}", "GNU.sparse.size": str(len(content) + 4096)}
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


def of(*files: tuple[str, bytes | str]) -> Callable[[Path], None]:
    """What writes a shard of these files; the same name may occur twice."""

    def spoil(path: Path) -> None:
        with tarfile.open(path, "w") as tar:
            for name, content in files:
                member, data = tarfile.TarInfo(name), content if isinstance(content, bytes) else content.encode()
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))

    return spoil


def corrected(path: Path) -> None:
    """Of six images two have another number in .json than in .cls."""
    pairs = [(0, 0), (0, 0), (0, 1), (1, 1), (1, 1), (1, 0)]
    files: dict[str, bytes | str] = {}
    for number, (old, new) in enumerate(pairs):
        files |= {f"{number}.jpg": jpeg(number), f"{number}.cls": str(old), f"{number}.json": f'{{"label": {new}}}'}
    write(path, files)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (links, "b.jpg is a link"),
        (sparse, "a.jpg is a link or a sparse file"),
        (corrected, "contradict 'label' in .json: take those of .cls by --data.label_column cls"),
        (of(("a.jpg", jpeg(0)), ("a.png", jpeg(1)), ("a.cls", "0")), r"sample a has 2 images, \.jpg, \.png"),
        (of(("a.1.jpg", jpeg(0)), ("a.1.cls", "0"), ("a.2.jpg", jpeg(1)), ("a.2.cls", "1")), "sample a has 2 images"),
        (of(("a.jpg", jpeg(0)), ("a.jpg", jpeg(1)), ("a.cls", "0")), "it has a.jpg twice"),
        (of(("a.jpg", jpeg(0)), ("b.jpg", jpeg(1)), ("a.cls", "0"), ("b.cls", "1")), "2 samples are not next to each"),
        (of(("a.jpg", jpeg(0)), ("a.cls", b"\xe9")), "a.cls is not UTF-8"),
        (of(("a.jpg", jpeg(0)), ("a.json", "[" * 10**5)), "a.json is not JSON"),
        (of(("a.jpg", jpeg(0)), ("a.json", '{"label": [1, 2]}')), "1 images have no label"),
        (of(("a.jpg", jpeg(0)), ("a.json", '{"label": NaN}')), "1 images have no label"),
        (cut, "cannot read shard .*train.tar"),
        (without_end, "cannot read shard .*train.tar: unexpected end of data"),
        (put_together, "cannot read shard .*train.tar: more follows its end"),
        (half_an_image, "cannot read image a in .*train.tar .*truncated"),
        (packed, "cannot read shard .*train.tar.*compressed tars"),
        (no_tar, "cannot read shard .*train.tar"),
        (no_json, "a.json is not JSON"),
        (no_label, "1 images have no label .*a in "),
        (minus_one, "2 images have no label .*a in .*, b in "),
        (twice, "key of another one"),
    ],
)
def test_shards_that_would_be_read_wrongly_are_refused(spoil: object, words: str, tmp_path: Path) -> None:
    assert callable(spoil)
    spoil(tmp_path / "train.tar")
    with pytest.raises(UserError, match=words):
        opened(tmp_path)


def test_one_of_several_images_is_taken_by_its_name_not_by_its_place(tmp_path: Path) -> None:
    """Masks lie before or after; hidden copies of a Mac, and files of no kind that is read, between."""
    files = {"._a.jpg": b"fork", "a.mask.png": jpeg(9), "a.jpg": jpeg(0), "a.mp4": b"film", "a.cls": "0"}
    write(tmp_path / "train.tar", {**files, "._b.jpg": b"fork", "b.jfif": jpeg(1), "b.a.png": jpeg(9), "b.cls": "1"})
    source = opened(tmp_path)
    assert source.labels.tolist() == [0, 1] and [source.encoded(row) for row in (0, 1)] == [jpeg(0), jpeg(1)]


def test_labels_and_texts_that_are_written_in_several_ways(tmp_path: Path) -> None:
    files = {
        "a.jpg": jpeg(0),
        "a.cls": "\ufeff3\n",
        "b.jpg": jpeg(1),
        "b.json": '{"label": 2.0, "caption": "x\\ud800"}',
    }
    write(tmp_path / "train.tar", {**files, "c.jpg": jpeg(2), "c.json": '{"label": [1], "caption": ["a", "b"]}'})
    source = opened(tmp_path, captions=True)
    assert source.labels.tolist() == [3, 2, 1] and len(source.classes) == 4
    assert source.captions is not None and source.captions.to_pylist() == [None, "x\\ud800", "a"]


def test_ids_are_keys_or_those_of_json_as_they_are(tmp_path: Path) -> None:
    abouts = {"a b ": "{}", "c": '{"image_id": " d.jpg"}', "e": '{"image_id": 0}', "f\udce9": '{"image_id": ""}'}
    files = {
        f"{key}.{end}": jpeg(0) if end == "jpg" else about for key, about in abouts.items() for end in ("jpg", "json")
    }
    write(tmp_path / "train.tar", files)
    found = open_unlabelled(DataConfig(source="webdataset", root=str(tmp_path)), "train")
    assert found.ids.to_pylist() == ["a b ", " d.jpg", "0", "f\\udce9"]


def test_labels_of_one_kind_may_be_names_or_groups_of_the_other(tmp_path: Path) -> None:
    """.cls numbers the fine classes; `.json` has their names, or coarser ones, and one image has none."""
    for field, words in (("label", ("cat", "dog", "eel")), ("label", ("pet", "pet", "fish"))):
        files: dict[str, bytes | str] = {"x.jpg": jpeg(7), "x.cls": "-1", "x.json": f'{{"label": "{words[0]}"}}'}
        for number in range(6):
            about = json.dumps({field: words[number % 3]})
            files |= {f"{number}.jpg": jpeg(number), f"{number}.cls": str(number % 3), f"{number}.json": about}
        root = tmp_path / words[0]
        write(root / "train.tar", files)
        assert opened(root).classes == tuple(sorted(set(words)))


def test_what_is_no_folder_of_shards_is_refused(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "none", tmp_path / "*.tar"):
        with pytest.raises(UserError, match=r"no folder of \.tar files"):
            opened(root)
    with pytest.raises(UserError, match="data.root is empty"):
        open_source(DataConfig(source="webdataset"), "train", False)


def test_a_shard_that_is_not_the_one_that_was_indexed_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "train.tar", {"a.jpg": jpeg(0), "a.cls": "0", "b.jpg": jpeg(1, (64, 64)), "b.cls": "0"})
    source = opened(tmp_path)
    assert isinstance(pickle.loads(pickle.dumps(source.ids)), pa.Array)
    write(tmp_path / "train.tar", {"a.jpg": jpeg(0), "a.cls": "0"})
    with pytest.raises(UserError, match=r"b in .*train.tar"):
        source.read(1)


def test_a_shard_of_as_many_bytes_is_not_taken_for_the_one_that_was_indexed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other labels, then other places of images; noticed at the start, and by the image where it looks older."""
    shard, old = tmp_path / "train.tar", {"a.jpg": jpeg(0), "a.cls": "0", "b.jpg": jpeg(1, (64, 64)), "b.cls": "1"}
    write(shard, old)
    opened(tmp_path)
    for newer in ({**old, "b.cls": "0"}, dict(reversed(list(old.items())))):
        write(shard, newer)
        os.utime(shard, ns=(0, (tmp_path / INDEX).stat().st_mtime_ns + 10**9))
        with pytest.raises(UserError, match="1 shards have changed since .*: train.tar; run .*--index-only"):
            opened(tmp_path)
    with monkeypatch.context() as context:
        context.setattr(webdataset, "_HASHED", 0)
        assert "1 shards are newer than" in opened(tmp_path).left_out[0]
    os.utime(shard, ns=(0, 0))
    source = opened(tmp_path)
    for row in range(2):
        with pytest.raises(UserError, match="has no such image there: it is not the one that was indexed"):
            source.read(row)


def test_copies_of_shards_that_look_newer_than_their_index_are_taken(tmp_path: Path) -> None:
    write(tmp_path / "train.tar", {"a.jpg": jpeg(0), "a.cls": "0"})
    opened(tmp_path)
    os.utime(tmp_path / "train.tar", ns=(0, (tmp_path / INDEX).stat().st_mtime_ns + 10**9))
    assert opened(tmp_path).left_out == ()


def test_a_shard_belongs_to_one_split(tmp_path: Path) -> None:
    """The longer of two names where one has the other in it; none where a path names both."""
    for number, name in enumerate(("train-0.tar", "train-val-0.tar")):
        write(tmp_path / name, {f"{number}.jpg": jpeg(number), f"{number}.cls": "0"})
    config = DataConfig(source="webdataset", root=str(tmp_path), val_split="train-val")
    assert [source.ids.to_pylist() for source in open_splits(config, False)] == [["0"], ["1"]]
    for split, other in (("train", "val"), ("val", "train"), ("train", "Train"), ("Train", "train")):
        with pytest.raises(UserError, match="shard train-val-0.tar has the names of two splits"):
            of_split("train-val-0.tar", split, other)
    assert of_split("train-test/test-0.tar", "test", "train-test") is False


@pytest.mark.parametrize(("labels", "words"), [(("-2", "3"), "label -2 is not a class number"), (("9" * 20, "3"), "")])
def test_numbers_that_are_no_class_numbers(labels: tuple[str, str], words: str, tmp_path: Path) -> None:
    """Negative ones are refused as elsewhere; ids of more digits than a number can have are names."""
    files = {
        f"{n}.{end}": jpeg(n) if end == "jpg" else label for n, label in enumerate(labels) for end in ("jpg", "cls")
    }
    write(tmp_path / "train.tar", files)
    if words:
        with pytest.raises(UserError, match=words):
            opened(tmp_path)
    else:
        assert opened(tmp_path).classes == tuple(sorted(labels))
