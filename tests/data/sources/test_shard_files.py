"""Shards that patterns and URIs name: which they are, what opening them reads, and what is refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.sources.test_webdataset import jpeg, write
from tests.embedding_here import do_here
from tests.io.flaky_s3 import Bucket, flaky_bucket
from tests.toy import run_toy, toy_config, weights
from tt_ray import pack
from tt_ray.config import DataConfig
from tt_ray.data.sources.base import Source
from tt_ray.data.sources.registry import open_source, open_unlabelled
from tt_ray.data.sources.shard_files import expand_braces, find_shards, split_pattern
from tt_ray.data.sources.tar_index import INDEX
from tt_ray.embeddings.ensure import pull_store
from tt_ray.io.local_copy import cache_folder
from tt_ray.terminal.errors import UserError


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("train-{08..11}.tar", ["train-08.tar", "train-09.tar", "train-10.tar", "train-11.tar"]),
        ("{9..11}.tar", ["9.tar", "10.tar", "11.tar"]),
        ("{a,b}-{0..1}.tar", ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]),
        ("{a,}x.tar", ["ax.tar", "x.tar"]),
        ("{one}.tar", ["{one}.tar"]),
        ("{5..5}.tar", ["5.tar"]),
    ],
)
def test_braces_stand_for_what_shells_say(pattern: str, names: list[str]) -> None:
    assert expand_braces(pattern) == names


@pytest.mark.parametrize("pattern", ["{3..1}.tar", "{0..99999999}.tar", "{0..9999}{0..9999}.tar"])
def test_ranges_that_are_none_are_refused(pattern: str) -> None:
    with pytest.raises(UserError, match="check it"):
        expand_braces(pattern)


@pytest.mark.parametrize(
    ("root", "folder", "pattern"),
    [
        ("s3://b/wds", "s3://b/wds", None),
        ("s3://b/wds/", "s3://b/wds", None),
        ("s3://b", "s3://b", None),
        ("s3://b/wds?region=x", "s3://b/wds?region=x", None),
        ("gs://b/wds/train-{0..3}.tar?a.b=c", "gs://b/wds?a.b=c", "train-{0..3}.tar"),
        ("s3://b/wds/train-?.tar?region=x", "s3://b/wds?region=x", "train-?.tar"),
        ("s3://b/wds/one.tar", "s3://b/wds", "one.tar"),
        ("s3://b/{train,val}/*.tar", "s3://b", "{train,val}/*.tar"),
        ("/none/of/these-*.tar", "/", "none/of/these-*.tar"),
    ],
)
def test_a_pattern_is_split_from_its_folder(root: str, folder: str, pattern: str | None) -> None:
    assert split_pattern(root) == (folder, pattern)


NAMES = ("train-00.tar", "train-01.tar", "train-02.tar", "test-00.tar", "more/train-00.tar")


def fill(folder: Path) -> None:
    for number, name in enumerate(NAMES):
        files: dict[str, Any] = {}
        for image in range(4):
            key = f"{number}{image}"
            files |= {f"{key}.jpg": jpeg(4 * number + image), f"{key}.cls": str(image % 2), f"{key}.txt": f"text {key}"}
        write(folder / name, files)


PATTERNS = [
    ("", set(NAMES)),
    ("/train-*.tar", set(NAMES[:3])),
    ("/train-0[12].tar", set(NAMES[1:3])),
    ("/train-0?.tar", set(NAMES[:3])),
    ("/train-{00..01}.tar", set(NAMES[:2])),
    ("/{train,test}-00.tar", {NAMES[0], NAMES[3]}),
    ("/{train,test}-*.tar", set(NAMES[:4])),
    ("/*/train-00.tar", {NAMES[4]}),
    ("/test-00.tar", {NAMES[3]}),
]
WRONG = [
    ("/train-{00..04}.tar", "names 2 shards that are not there: train-03.tar, train-04.tar"),
    ("/none-*.tar", r"no folder of \.tar files"),
    ("/none.tar", r"no folder of \.tar files"),
    ("/nowhere", r"no folder of \.tar files"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards with their index."""
    folder = tmp_path_factory.mktemp("shards")
    fill(folder)
    opened(str(folder))
    return folder


@pytest.fixture(scope="module")
def started(folder: Path) -> Iterator[Bucket]:
    with flaky_bucket() as bucket:
        for name in NAMES:
            bucket.put(f"wds/{name}", (folder / name).read_bytes())
        yield bucket


@pytest.fixture
def bucket(started: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """The shards in it, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    started.proxy.counts.clear()
    yield started
    started.proxy.fault = lambda method, path, number: ""


def named(bucket: Bucket, pattern: str) -> str:
    where, mark, options = bucket.uri("wds").partition("?")
    return where + pattern + mark + options


@pytest.mark.parametrize(("pattern", "names"), PATTERNS)
def test_patterns_name_the_same_in_a_folder_and_behind_a_uri(
    pattern: str, names: set[str], folder: Path, bucket: Bucket
) -> None:
    for root in (f"{folder}{pattern}", f"file://{folder}{pattern}", named(bucket, pattern)):
        shards = find_shards(DataConfig(source="webdataset", root=root))
        assert shards.sizes == {name: (folder / name).stat().st_size for name in sorted(names)}
        assert shards.whole == (not pattern)


@pytest.mark.parametrize(("pattern", "words"), WRONG)
def test_patterns_of_what_is_not_there_are_refused(pattern: str, words: str, folder: Path, bucket: Bucket) -> None:
    for root in (f"{folder}{pattern}", f"file://{folder}{pattern}", named(bucket, pattern)):
        with pytest.raises(UserError, match=words):
            find_shards(DataConfig(source="webdataset", root=root))


def opened(root: str, **fields: str) -> Source:
    return open_source(DataConfig(source="webdataset", root=root, **fields), "train", False)  # type: ignore[arg-type]


def gets(bucket: Bucket) -> set[str]:
    return {path.rpartition("/")[2] for (method, path), _ in bucket.proxy.counts.items() if method == "GET"} - {
        "bucket"
    }


def test_an_index_is_asked_for_and_made_behind_a_uri(
    folder: Path, bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Elsewhere first, as for a bucket of others; then next to the shards, while the server drops connections."""
    pattern = named(bucket, "/train-*.tar")
    with pytest.raises(UserError, match=r"no index s3://bucket/wds/index.parquet.*--index-only.*--out DIR"):
        opened(pattern)
    pack.main(["--data.root", pattern, "--index-only", "--out", str(tmp_path / "here")])
    assert capsys.readouterr().out == f"{tmp_path / 'here' / INDEX}: 12 images in 3 shards, 0 cannot be read\n"
    assert len(opened(pattern, index=str(tmp_path / "here"))) == 12
    with pytest.raises(UserError, match="no index"):
        opened(pattern, index=str(tmp_path / "there"))
    bucket.proxy.fault = lambda method, path, number: "drop" if method == "GET" and number == 1 else ""
    pack.main(["--data.root", bucket.uri("wds"), "--index-only"])
    plain = opened(f"{folder}/*-00.tar")
    assert plain.labels.tolist() == [0, 1, 0, 1]
    for root in (pattern, bucket.uri("wds")):
        assert len(opened(root)) == (12 if root == pattern else 16)


def test_opening_reads_the_index_alone_and_the_first_image_pulls(folder: Path, bucket: Bucket, tmp_path: Path) -> None:
    pack.main(["--data.root", bucket.uri("wds"), "--index-only"])
    bucket.proxy.counts.clear()
    source = opened(bucket.uri("wds"))
    assert gets(bucket) == {INDEX} and len(source) == 16
    assert source.captions is not None and source.captions[0].as_py() == "text 40"
    assert np.array_equal(np.asarray(source.read(0)), np.asarray(opened(str(folder)).read(0)))
    assert gets(bucket) == {INDEX, *(name.rpartition("/")[2] for name in NAMES if "train" in name)}, "not test-00.tar"
    bucket.proxy.counts.clear()
    again = opened(bucket.uri("wds"))
    assert again.pixels(np.arange(16), 8).shape == (16, 8, 8, 3) and not gets(bucket), "the index is kept too"
    cache = cache_folder("", "s3://bucket/wds")
    assert tmp_path in cache.parents and len(list(cache.rglob("*.tar"))) == 4
    assert len(open_unlabelled(DataConfig(source="webdataset", root=bucket.uri("wds")), "train").ids) == 16


def test_shards_that_changed_since_they_were_indexed_are_refused_by_name(folder: Path, bucket: Bucket) -> None:
    pack.main(["--data.root", bucket.uri("wds"), "--index-only"])
    before = (folder / NAMES[1]).read_bytes()
    try:
        bucket.put(f"wds/{NAMES[1]}", before + bytes(512))
        with pytest.raises(UserError, match="s3://bucket/wds/train-01.tar has .* bytes, but .*--index-only"):
            opened(bucket.uri("wds"))
        bucket.put(f"wds/{NAMES[1]}", before[:-600] + b"x" + before[-599:])
        source = opened(bucket.uri("wds"))
        with pytest.raises(UserError, match="s3://bucket/wds/train-01.tar has another checksum than the index"):
            source.read(0)
        bucket.put("wds/train-03.tar", before)
        with pytest.raises(UserError, match="does not have 1 shards that are there: train-03.tar"):
            opened(bucket.uri("wds"))
    finally:
        bucket.put(f"wds/{NAMES[1]}", before)
        bucket.system.delete_file("bucket/wds/train-03.tar")


def test_a_cache_that_is_too_small_is_noticed_before(folder: Path, mounted: Path) -> None:
    (mounted / "full").write_bytes(bytes(4 * 2**20 - 80_000))
    source = opened(f"file://{folder}", local_cache=str(mounted))
    with pytest.raises(UserError, match=r"needs [\d,]+ more bytes in .*, where [\d,]+ are free"):
        source.read(0)


def test_training_and_its_resume_from_a_bucket_are_those_from_a_folder(
    folder: Path, bucket: Bucket, tmp_path: Path
) -> None:
    """Images and embeddings; bit by bit, and also after the copies are gone."""
    pack.main(["--data.root", bucket.uri("wds"), "--index-only"])
    fields: dict[str, Any] = {"data__source": "webdataset", "train__batch_size": 4, "run__checkpoint_every": 2}
    plain = toy_config(tmp_path / "plain", data__root=str(folder), **fields)
    run_toy(plain)
    for path in Path(plain.text.embeddings).iterdir():
        bucket.put(f"store/{path.name}", path.read_bytes())
    there = toy_config(tmp_path / "there", data__root=bucket.uri("wds"), text__embeddings=bucket.uri("store"), **fields)
    run_toy(there)
    first = weights(plain)
    assert all((first[name] == each).all() for name, each in weights(there).items())
    checkpoints = sorted((there.run_dir / "checkpoints").iterdir())
    for path in [*checkpoints[-1].iterdir()]:
        path.unlink()
    checkpoints[-1].rmdir()
    (there.run_dir / "result.json").unlink()
    for path in cache_folder("", "s3://bucket/wds").glob("*.tar"):
        path.unlink()
    run_toy(there)
    assert all((first[name] == each).all() for name, each in weights(there).items())


def test_stores_behind_a_uri_that_are_none_are_refused(bucket: Bucket) -> None:
    with pytest.raises(UserError, match="no embedding store: it has no manifest.json"):
        pull_store(bucket.uri("wds"), "")
    bucket.put("torn/manifest.json", b"{")
    with pytest.raises(UserError, match="manifest.json cannot be read"):
        pull_store(bucket.uri("torn"), "")


def test_packing_into_a_bucket(
    bucket: Bucket, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped half way, the same command does the rest; what it made is read back, and is not written over."""
    monkeypatch.setattr(pack, "do_missing", do_here)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    words = ["--data.source", "webdataset", "--data.root", str(folder), "--out", bucket.uri("packed"), "--keep"]
    words += ["--shard_size", "3"]
    writing = pack.write_shard
    calls: list[str] = []

    def stops(path: Path, name: str, *rest: Any) -> Any:
        calls.append(name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return writing(path, name, *rest)

    monkeypatch.setattr(pack, "write_shard", stops)
    with pytest.raises(KeyboardInterrupt):
        pack.main(words)
    pack.main(words)
    assert sorted(calls) == sorted([*{*calls}, calls[2]]), "no shard is done twice but the one that was cut"
    assert "20 images" in capsys.readouterr().out
    plain, again = opened(str(folder)), opened(bucket.uri("packed"))
    assert again.ids.equals(plain.ids) and [again.encoded(n) for n in range(16)] == [
        plain.encoded(n) for n in range(16)
    ]
    with pytest.raises(UserError, match="s3://bucket/packed holds packed images already"):
        pack.main(words)
    for wrong in ("s3://", "no://x/y"):
        with pytest.raises(UserError, match=f"--out {wrong}"):
            pack.main([*words[:4], "--out", wrong])
