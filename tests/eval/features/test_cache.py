"""Features are timm's, bit for bit; the cache is never half-written, never stale, and shared."""

import dataclasses
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

import eval.features.extract as extraction
from eval.contract import EvalConfig
from eval.features import cache
from eval.features.backbone import Backbone, Preprocessing, build, timm_preprocessing
from eval.features.cache import fill_cache, task_features
from eval.features.cache import test_features as only_test_features
from eval.features.extract import Decoder, extract, transform
from eval.protocols.linear_sgd import Options, Views
from eval.tasks.origins import ArrayImages, Place, Shapes
from eval.tasks.registry import Task, tasks
from tests.io.pulled_here import copy_of_one_file
from tests.toy import FORKS
from tt_ray.data.augment import normalize
from tt_ray.data.sources.base import Source
from tt_ray.data.sources.image_folder import FolderImages
from tt_ray.terminal.errors import UserError

SQUASH = Preprocessing(32, 1.0, "squash", "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
CENTER = dataclasses.replace(SQUASH, crop_mode="center", crop_pct=0.9)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def message(call: Callable[[], object]) -> str:
    """The text of the UserError that a call raises, which must be one line."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def toy(preprocessing: Preprocessing = SQUASH, seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    arguments: dict[str, Any] = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return build("toy", "toy", timm.create_model("vit_tiny_patch16_224", num_classes=3, **arguments), preprocessing)


def pictures(count: int = 21, height: int = 40, width: int = 56) -> Source:
    images = np.random.default_rng(0).integers(0, 256, (count, height, width, 3)).astype(np.uint8)
    reader = ArrayImages(images, "random")
    ids = pa.array(map(str, range(count)), pa.string())
    return Source(ids, np.arange(count) % 3, ("a", "b", "c"), None, reader.read, reader.pixels)


def config(tmp_path: Path, **changes: Any) -> EvalConfig:
    return EvalConfig(None, tmp_path / "cache", **{"batch_size": 8, **changes})


def shapes(name: str = "shapes_count", label: Any = "count") -> Task:
    return Task(name, 1, 4 if label == "count" else 16, "top1", "-", {"train": 200, "test": 50},
                (Shapes(label, 200, 50),), Place(Path("."), False))  # fmt: skip


# Extraction


def test_images_are_pulled_before_loader_processes_start(tmp_path: Path) -> None:
    """Whose news nobody would see."""
    for name, reader in {
        "a": lambda source: Decoder(source, CENTER, [np.arange(3)], 1),
        "b": lambda source: Views(source, 16, Options(), 0),
    }.items():
        copy = copy_of_one_file(tmp_path, name)
        reader(dataclasses.replace(pictures(), copy=copy))
        assert (copy.folder / name).exists()


@pytest.mark.parametrize("preprocessing", [SQUASH, CENTER])
@pytest.mark.parametrize("changes", [{}, {"threads": 3}, {"num_loaders": 1}])
def test_features_are_timms(tmp_path: Path, preprocessing: Preprocessing, changes: dict[str, Any]) -> None:
    backbone, source = toy(preprocessing), pictures()
    found = extract(backbone, source, config(tmp_path, **changes))
    plain: Any = create_transform(
        32,
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
        interpolation="bicubic",
        mean=preprocessing.mean,
        std=preprocessing.std,
    )
    model: Any = backbone.model
    for start in range(0, 21, 8):
        images = torch.stack([plain(source.read(row)) for row in range(start, min(start + 8, 21))])
        with torch.inference_mode():
            expected = model.forward_head(model.forward_features(images), pre_logits=True)
        assert (found[start : start + 8] == expected.numpy()).all()


def test_centre_crops_of_jpegs_are_timms_within_two_levels(tmp_path: Path) -> None:
    """They are decoded the fast way: on ordinary sizes and on those that are decoded at a smaller scale."""
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate([(40, 56), (57, 41), (35, 35)]):
        coarse = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3)).astype(np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        image.save(tmp_path / f"{number}.jpg", quality=90)
    images = FolderImages(tmp_path, pa.array([f"{number}.jpg" for number in range(3)]))
    labels = np.zeros(3, np.int64)
    source = Source(images.ids, labels, ("a",), None, images.read, images.pixels, encoded=images.encoded)
    decoded = Decoder(source, CENTER, [np.arange(3)], 1)[0]
    plain = torch.stack([transform(CENTER)(source.read(row)) for row in range(3)])
    assert (decoded.int() - plain.int()).abs().max() <= 2 and not torch.equal(decoded, plain)


def test_preprocessing_is_timms() -> None:
    model = timm.create_model("test_vit")
    given, timms = timm_preprocessing(model), resolve_model_data_config(model)
    source = pictures(1, 300, 200)
    ours = normalize(transform(given)(source.read(0))[None], given.mean, given.std)[0]
    assert torch.equal(ours, create_transform(**timms, is_training=False)(source.read(0)))


def test_jpegs_decoded_at_a_smaller_scale_give_nearly_the_same(tmp_path: Path) -> None:
    y, x = np.mgrid[:400, :600]
    smooth = np.stack([128 + 100 * np.sin(x / 40), 128 + 100 * np.cos(y / 50), (x + y) / 5], 2).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "x.jpg")

    class Reader(ArrayImages):
        def open(self, row: int) -> Image.Image:
            return Image.open(tmp_path / "x.jpg")

    reader = Reader(smooth[None], "jpeg")
    source = Source(pa.array(["x.jpg"]), np.zeros(1, np.int64), ("a",), None, reader.read, reader.pixels)
    rows = [np.array([0])]
    fast = Decoder(source, SQUASH, rows, 1)[0].int()
    exact = Decoder(source, dataclasses.replace(SQUASH, interpolation="bicubic"), rows, 1)
    exact.transform = transform(SQUASH)
    assert (fast - exact[0].int()).abs().max() <= 4
    a, b = (extract(toy(given), source, config(tmp_path)) for given in (SQUASH, SQUASH))
    assert (a == b).all()


def test_batch_is_halved_when_memory_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, source = toy(), pictures()
    expected = extract(backbone, source, config(tmp_path))
    sizes: list[int] = []

    def pooled(model: Any, images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return model.forward_head(model.forward_features(images), pre_logits=True)

    monkeypatch.setattr(extraction, "pooled", pooled)
    found = extract(backbone, source, config(tmp_path))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert sizes[:3] == [8, 4, 2] and max(sizes[3:]) == 2, "the smaller batch was not kept"

    def never(model: Any, images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(extraction, "pooled", never)
    with pytest.raises(RuntimeError, match="allocate memory"):
        extract(backbone, source, config(tmp_path))


@pytest.mark.parametrize("preprocessing", [SQUASH, CENTER])
@pytest.mark.parametrize("changes", [{"threads": 1}, {"threads": 2}, {"num_loaders": 1}])
def test_unreadable_image_is_named(tmp_path: Path, preprocessing: Preprocessing, changes: dict[str, int]) -> None:
    class Broken(ArrayImages):
        def open(self, row: int) -> Image.Image:
            if row == 13:
                raise OSError("broken data stream")
            return super().open(row)

    source = pictures()
    reader = Broken(np.zeros((21, 8, 8, 3), np.uint8), "set")
    source = dataclasses.replace(source, read=reader.read, pixels=reader.pixels)
    threads = threading.active_count()
    text = message(lambda: extract(toy(preprocessing), source, config(tmp_path, **changes)))
    assert "set, row 13" in text and "broken data stream" in text
    assert threading.active_count() <= threads + 1, "readers were left behind"


# Tasks and the cache


def test_task_features(tmp_path: Path) -> None:
    task, backbone = shapes(), toy()
    found = task_features(backbone, task, config(tmp_path))
    assert isinstance(found.x, np.memmap) and not found.x.flags.writeable and found.x.dtype == np.float32
    assert found.x.shape == (200, 24) and found.test_x.shape == (50, 24)
    assert (found.x == extract(backbone, task.open("train"), config(tmp_path))).all()
    assert (found.test_x == extract(backbone, task.open("test"), config(tmp_path))).all()
    assert (found.y == task.open("train").labels).all() and (found.test_y == task.open("test").labels).all()
    assert sorted([*found.fit, *found.val]) == list(range(200)) and len(found.val) == 40
    other = task_features(backbone, task, config(tmp_path, seed=1))
    assert (other.x == found.x).all() and set(other.val) != set(found.val)
    x, y = only_test_features(backbone, task, config(tmp_path))
    assert (x == found.test_x).all() and (y == found.test_y).all()


def test_official_validation_is_the_tail(tmp_path: Path) -> None:
    from tests.eval.tasks.test_registry import own_folder

    task = tasks(["mine"], roots={"mine": own_folder(tmp_path / "data", val=True)})["mine"]
    found = task_features(toy(), task, config(tmp_path))
    assert found.fit.tolist() == list(range(15)) and found.val.tolist() == list(range(15, 24))
    assert (found.x[15:] == extract(toy(), task.open("val"), config(tmp_path))).all()
    assert (found.y[15:] == task.open("val").labels).all()


def test_evaluation_only_tasks_have_no_training_features(tmp_path: Path) -> None:
    task = tasks(["imagenet_a"])["imagenet_a"]
    assert "no training images" in message(lambda: task_features(toy(), task, config(tmp_path)))


def folders(tmp_path: Path) -> set[str]:
    return {entry.name for entry in (tmp_path / "cache").iterdir() if not entry.name.startswith(".")}


def test_cache_is_used_and_shared_by_tasks_of_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = task_features(toy(), shapes(), config(tmp_path))
    before = folders(tmp_path)
    assert len(before) == 2
    monkeypatch.setattr(cache, "extract_together", lambda *_: pytest.fail("extracted again"))
    again = task_features(toy(), shapes(), config(tmp_path, batch_size=5, threads=2))
    assert (again.x == first.x).all()
    other = task_features(toy(), shapes("shapes_shape", "shape"), config(tmp_path))
    assert (other.x == first.x).all() and (other.y != first.y).any()
    assert folders(tmp_path) == before


def test_several_models_see_images_that_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [toy(), toy(CENTER), toy(seed=1), toy()]
    alone = [task_features(each, shapes(), config(tmp_path / "alone")) for each in models]
    together, real = list[int](), cache.extract_together

    def count(backbones: Any, *given: Any) -> None:
        together.append(len(backbones))
        real(backbones, *given)

    monkeypatch.setattr(cache, "extract_together", count)
    fill_cache(models, shapes(), config(tmp_path))
    assert together == [2, 1, 2, 1] and len(folders(tmp_path)) == 2 * 3, "by preprocessing, and each model once"
    fill_cache([*models, toy(seed=2)], shapes(), config(tmp_path))
    assert together[4:] == [1, 1], "what is there is not extracted again"
    for backbone, expected in zip(models, alone, strict=True):
        found = task_features(backbone, shapes(), config(tmp_path))
        assert (found.x == expected.x).all() and (found.test_x == expected.test_x).all()
    assert len(together) == 6


def test_features_of_another_precision_are_others(tmp_path: Path) -> None:
    full, half = (task_features(toy(), shapes(), config(tmp_path, precision=name)) for name in ("fp32", "bf16"))
    assert len(folders(tmp_path)) == 4 and full.x.dtype == half.x.dtype == np.float32
    assert 0 < np.abs(full.x - half.x).max() < 0.05 * np.abs(full.x).max()


def test_cache_is_not_stale(tmp_path: Path) -> None:
    task = shapes()
    changed = [
        (toy(seed=1), task),
        (toy(CENTER), task),
        (toy(), dataclasses.replace(task, version=2)),
        (toy(), dataclasses.replace(task, sizes={"train": 201, "test": 51}, origins=(Shapes("count", 201, 51),))),
    ]
    task_features(toy(), task, config(tmp_path))
    for count, (backbone, changed_task) in enumerate(changed, 2):
        task_features(backbone, changed_task, config(tmp_path))
        assert len(folders(tmp_path)) == 2 * count


def test_changed_file_is_extracted_again(tmp_path: Path) -> None:
    from tests.eval.tasks.test_registry import own_folder, picture

    task = tasks(["mine"], roots={"mine": own_folder(tmp_path / "data")})["mine"]
    before = np.array(task_features(toy(), task, config(tmp_path)).test_x)
    picture(tmp_path / "data" / "test" / "bee" / "0.png", (77, 1, 200))
    after = task_features(toy(), task, config(tmp_path)).test_x
    assert (before != after).any(1).tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("damage", ["manifest", "features", "garbage"])
def test_interrupted_cache_is_rebuilt(tmp_path: Path, damage: str) -> None:
    first = np.array(task_features(toy(), shapes(), config(tmp_path)).x)
    for name in folders(tmp_path):
        folder = tmp_path / "cache" / name
        left = tmp_path / "cache" / f".{name}.killed.partial"
        left.mkdir()
        if damage == "manifest":
            (folder / "manifest.json").unlink()
            (folder / "features.npy").write_bytes(b"half")
        elif damage == "features":
            (folder / "features.npy").write_bytes((folder / "features.npy").read_bytes()[:-40])
        else:
            (folder / "manifest.json").write_text("{")
    assert (task_features(toy(), shapes(), config(tmp_path)).x == first).all()
    assert not list((tmp_path / "cache").glob(".*.partial"))
    assert all(json.loads((tmp_path / "cache" / name / "manifest.json").read_text()) for name in folders(tmp_path))


def test_failed_extraction_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise UserError("cannot read image x")

    monkeypatch.setattr(cache, "extract_together", fail)
    assert "cannot read image x" in message(lambda: task_features(toy(), shapes(), config(tmp_path)))
    assert not folders(tmp_path) and not list((tmp_path / "cache").glob(".*.partial"))


def test_threads_that_ask_at_once_extract_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks are of open files, so that threads meet them as processes do."""
    calls, real = list[int](), cache.extract_together

    def count(*given: Any) -> None:
        calls.append(1)
        real(*given)

    monkeypatch.setattr(cache, "extract_together", count)
    backbone = toy()
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: task_features(backbone, shapes(), config(tmp_path)).x, range(3)))
    assert len(calls) == 2 and all((x == found[0]).all() for x in found)


def _work(cache: Path, start: Any, results: Any) -> None:
    torch.set_num_threads(1)
    start.wait()
    found = task_features(toy(), shapes(), EvalConfig(None, cache, batch_size=8))
    results.put(float(found.x.sum()))


@pytest.mark.slow
def test_processes_that_ask_at_once_do_not_clash(tmp_path: Path) -> None:
    start, results = FORKS.Event(), FORKS.Queue()
    workers = [FORKS.Process(target=_work, args=(tmp_path / "cache", start, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    start.set()
    sums = {results.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len(sums) == 1 and len(folders(tmp_path)) == 2


def test_full_disk_is_told(mounted: Path) -> None:
    with pytest.raises(OSError, match="No space"), (mounted / "fill").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    text = message(lambda: task_features(toy(), shapes(), EvalConfig(None, mounted / "cache")))
    assert "No space left" in text and "--cache" in text
