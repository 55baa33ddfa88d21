"""Text targets: the join, what it leaves over, normalisation, reduction and the controls."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from tests.toy import DIM as TOY_DIM
from tests.toy import run_toy, toy_config
from tt_ray.config import Config
from tt_ray.data.prepare import open_data
from tt_ray.data.sources.base import Source
from tt_ray.data.text_targets import TextTargets, build_targets
from tt_ray.embeddings.build import write_store
from tt_ray.embeddings.store import EmbeddingStore, open_store
from tt_ray.terminal.errors import UserError

ROWS, DIM, CLASSES = 40, 5, 4
VALUES = (np.random.default_rng(0).normal(size=(ROWS, DIM)) * [1, 2, 3, 4, 5] + [9, 0, 0, 0, -9]).astype(np.float32)
LABELS = np.arange(ROWS) % CLASSES


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    ids = pa.array([f"i{row}" for row in range(ROWS)], pa.string())
    return write_store(tmp_path / "store", ids, [VALUES], DIM, "float32", {"id": "toy"})


def _source(ids: list[str]) -> Source:
    def read(row: int) -> Image.Image:
        raise AssertionError("targets need no images")

    def pixels(rows: np.ndarray, size: int) -> np.ndarray:
        raise AssertionError("targets need no images")

    labels = np.arange(len(ids)) % CLASSES
    return Source(pa.array(ids, pa.string()), labels, ("a", "b", "c", "d"), None, read, pixels)


def _config(**changes: object) -> Config:
    config = Config()
    for path, value in changes.items():
        config = config.override(path.replace("__", "."), value)
    return config


def _all(targets: TextTargets) -> np.ndarray:
    return targets[np.arange(len(targets))].numpy()


SAME = [f"i{row}" for row in range(ROWS)]


def test_join_follows_ids(store: EmbeddingStore) -> None:
    source = _source(["i7", "i3", "i39", "i3"])
    targets, missing = build_targets(store, source, LABELS[:4], _config(text__normalize_mean=False))
    assert len(targets) == 4 and targets.dim == DIM
    batch = targets[np.array([3, 0, 0])]
    assert batch.dtype == torch.float32
    np.testing.assert_array_equal(batch, VALUES[[3, 7, 7]])
    np.testing.assert_array_equal(targets[torch.tensor([2])], VALUES[[39]])
    assert (missing.images, missing.image_ids, missing.embeddings) == (0, (), 37)
    assert missing.embedding_ids == ("i0", "i1", "i2", "i4", "i5")
    np.testing.assert_array_equal(missing.rows, [0, 1, 2, 3])


def test_missing_images_are_left_out(store: EmbeddingStore) -> None:
    source = _source(["x0", "i1", "x2", "i3"])
    config = _config(text__max_missing=0.5, text__normalize_mean=False)
    targets, missing = build_targets(store, source, LABELS[:4], config)
    assert (missing.images, missing.image_ids) == (2, ("x0", "x2"))
    np.testing.assert_array_equal(missing.rows, [1, 3])
    assert len(targets) == len(source.select(missing.rows)) == 2
    np.testing.assert_array_equal(_all(targets), VALUES[[1, 3]])


def test_too_many_missing(store: EmbeddingStore) -> None:
    source = _source([*(f"x{row}" for row in range(7)), *SAME[:13]])
    with pytest.raises(UserError) as caught:
        build_targets(store, source, LABELS[:20], _config(text__max_missing=0.34))
    message = str(caught.value)
    assert message.startswith("7 of 20 images have no embedding") and "\n" not in message
    assert "x0, x1, x2, x3, x4: " in message and message.endswith("--text.max_missing 0.35")
    build_targets(store, source, LABELS[:20], _config(text__max_missing=0.35))


def test_disjoint_ids_show_both_sides(store: EmbeddingStore) -> None:
    with pytest.raises(UserError, match="none of the 2 images .* such as x, y match none such as i0, i1"):
        build_targets(store, _source(["x", "y"]), LABELS[:2], _config(text__max_missing=1.0))


STD = VALUES.std(0)
CENTRED = VALUES - VALUES.mean(0)


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [
        (False, "none", VALUES),
        (True, "none", CENTRED),
        (True, "mean", CENTRED / STD.mean()),
        (True, "full", CENTRED / STD),
        (False, "full", VALUES / STD),
    ],
)
def test_normalisation(store: EmbeddingStore, mean: bool, std: str, expected: np.ndarray) -> None:
    config = _config(text__normalize_mean=mean, text__normalize_std=std)
    targets, _ = build_targets(store, _source(SAME), LABELS, config)
    np.testing.assert_allclose(_all(targets), expected, rtol=1e-5, atol=1e-5)


def test_full_std_of_a_constant_dimension(tmp_path: Path) -> None:
    ids = pa.array(["a", "b"], pa.string())
    store = write_store(tmp_path / "s", ids, [np.array([[1, 5], [3, 5]])], 2, "float16", {})
    targets, _ = build_targets(store, _source(["a", "b"]), LABELS[:2], _config(text__normalize_std="full"))
    np.testing.assert_allclose(_all(targets), [[-1, 0], [1, 0]], atol=1e-5)


@pytest.mark.parametrize("std", ["none", "mean", "full"])
def test_reduction_keeps_the_most_variance(store: EmbeddingStore, std: str) -> None:
    config = _config(text__normalize_std=std)
    full = _all(build_targets(store, _source(SAME), LABELS, config)[0])
    targets, _ = build_targets(store, _source(SAME), LABELS, config.override("head.out_dim", 2))
    reduced = _all(targets)
    assert targets.dim == 2 and reduced.shape == (ROWS, 2) and targets[np.array([1])].is_contiguous()
    singular = np.linalg.svd(full - full.mean(0), compute_uv=False)
    np.testing.assert_allclose((reduced**2).sum(0), singular[:2] ** 2, rtol=1e-4)
    np.testing.assert_allclose(reduced.mean(0), 0, atol=1e-5)


def test_reduction_to_all_is_none_and_to_more_is_refused(store: EmbeddingStore) -> None:
    targets, _ = build_targets(store, _source(SAME), LABELS, _config(head__out_dim=DIM))
    np.testing.assert_allclose(_all(targets), CENTRED, atol=1e-5)
    with pytest.raises(UserError, match="head.out_dim is 6"):
        build_targets(store, _source(SAME), LABELS, _config(head__out_dim=6))


def test_shuffle_is_a_fixed_permutation(store: EmbeddingStore) -> None:
    def shuffled(seed: int) -> np.ndarray:
        config = _config(text__control="shuffle", train__seed=seed, text__normalize_mean=False)
        return _all(build_targets(store, _source(SAME), LABELS, config)[0])

    first = shuffled(0)
    np.testing.assert_array_equal(first, shuffled(0))
    assert (first != shuffled(1)).any()
    assert (first != VALUES).any(1).mean() > 0.8
    np.testing.assert_array_equal(np.sort(first, 0), np.sort(VALUES, 0))


def test_shuffle_stays_among_the_images(store: EmbeddingStore) -> None:
    config = _config(text__control="shuffle", text__normalize_mean=False)
    shuffled = _all(build_targets(store, _source(SAME[:6]), LABELS[:6], config)[0])
    np.testing.assert_array_equal(np.sort(shuffled, 0), np.sort(VALUES[:6], 0))


def test_random_class_is_one_vector_per_true_class(store: EmbeddingStore) -> None:
    def vectors(seed: int, clean: np.ndarray = LABELS) -> np.ndarray:
        config = _config(text__control="random_class", train__seed=seed, text__max_missing=0.5)
        return _all(build_targets(store, _source(["none", *SAME[1:]]), clean, config)[0])

    first = vectors(0)
    assert len(first) == ROWS - 1
    np.testing.assert_array_equal(first, vectors(0))
    assert len(np.unique(first, axis=0)) == CLASSES
    for number in range(CLASSES):
        assert len(np.unique(first[LABELS[1:] == number], axis=0)) == 1
    drawn = np.concatenate([vectors(seed, np.arange(ROWS)) for seed in range(25)])
    np.testing.assert_allclose(drawn.std(0), STD, rtol=0.1)
    np.testing.assert_allclose(drawn.mean(0) / STD, 0, atol=0.15)
    with pytest.raises(UserError, match="needs a class for each image"):
        vectors(0, np.full(ROWS, -1))


@pytest.mark.parametrize("change", [{}, {"head__out_dim": 3}, {"text__control": "random_class"}])
def test_pickles_small(store: EmbeddingStore, change: dict[str, object]) -> None:
    targets, _ = build_targets(store, _source(SAME), LABELS, _config(**change))
    data = pickle.dumps(targets)
    assert len(data) < 2500 and VALUES.tobytes()[:100] not in data
    again: TextTargets = pickle.loads(data)
    np.testing.assert_array_equal(_all(again), _all(targets))


def _class_store(folder: Path, ids: list[str], dim: int = TOY_DIM) -> Path:
    rows = np.random.default_rng(5).normal(3, 2, (len(ids), dim)).astype(np.float32)
    write_store(folder, pa.array(ids), [rows], dim, "float32", {"id": "random", "revision": "0"})
    return folder


def test_texts_about_classes_are_found_by_the_classes_names(tmp_path: Path) -> None:
    config = toy_config(tmp_path, text__loss="borlan", text__class_variance="sample")
    classes = open_data(config, Path(config.text.embeddings)).train.classes
    ids = [f"{name}/{number}" for number in range(3) for name in classes] + ["elsewhere/0", classes[2]]
    store = _class_store(tmp_path / "classes", ids)
    config = config.override("text.class_embeddings", str(store))
    found = open_data(config, Path(config.text.embeddings)).class_texts
    assert found is not None and len(found.labels) == len(ids) - 1
    values = open_store(store).embeddings - open_store(store).mean  # centred by their own mean
    for number, name in enumerate(classes):
        rows = [row for row, each in enumerate(ids) if each == name or each.startswith(f"{name}/")]
        own = found.targets[np.flatnonzero(found.labels == number)].numpy()
        np.testing.assert_allclose(np.sort(own, 0), np.sort(values[rows], 0), atol=1e-6)
    run_toy(config)


def test_classes_without_text_and_texts_of_another_length_are_refused(tmp_path: Path) -> None:
    config = toy_config(tmp_path, text__loss="borlan")
    classes = open_data(config, Path(config.text.embeddings)).train.classes
    lacking = _class_store(tmp_path / "lacking", [f"{name}/0" for name in classes[1:]])
    with pytest.raises(UserError, match=rf"no text of 1 of {len(classes)} classes: {classes[0]}; .* CLASS/ANYTHING"):
        open_data(config.override("text.class_embeddings", str(lacking)), Path(config.text.embeddings))
    long = _class_store(tmp_path / "long", list(classes), TOY_DIM + 1)
    with pytest.raises(UserError, match=f"are of {TOY_DIM + 1} dimensions, but images' embeddings of {TOY_DIM}"):
        open_data(config.override("text.class_embeddings", str(long)), Path(config.text.embeddings))


@pytest.mark.parametrize("field", ["class_embeddings", "class_variance", "mixed_class"])
def test_fields_of_borlan_are_refused_with_other_losses(field: str) -> None:
    value = {"class_variance": "sample", "mixed_class": "argmax"}.get(field, "store")
    with pytest.raises(UserError, match=rf"text\.loss clip has no text\.{field}, as borlan has"):
        Config.from_dict({"text": {field: value}})
