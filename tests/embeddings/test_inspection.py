"""The report on a store: each figure against a plain computation, and on stores whose answer is known."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tt_ray.embeddings import __main__ as store_commands
from tt_ray.embeddings import inspection as inspect_store
from tt_ray.embeddings.build import write_store
from tt_ray.embeddings.inspection import count_duplicates, draw_sample, inspect, nearest, plot
from tt_ray.embeddings.store import EmbeddingStore
from tt_ray.terminal.command import run_command
from tt_ray.terminal.errors import UserError

ENCODER = {"id": "toy", "revision": "0", "pooling": "mean", "max_tokens": 8}


def silent(what: str, done: int, of: int) -> None:
    """Shows nothing."""


def _store(path: Path, values: np.ndarray, ids: list[str] | None = None) -> EmbeddingStore:
    names = ids or [f"{row}.png" for row in range(len(values))]
    return write_store(path, pa.array(names), [values], values.shape[1], "float32", ENCODER)


def _labels(values: list[str | None] | list[str]) -> pa.StringArray:
    return pa.array(values, pa.string())


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect_store, "_BLOCK", 7)
    monkeypatch.setattr(inspect_store, "_QUERIES", 9)


def test_norms(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(41, 6)).astype(np.float32) + 3
    store = _store(tmp_path / "s", values)
    report = inspect(store, draw_sample(store, None, 100), silent)
    np.testing.assert_allclose(report.norms, np.quantile(np.linalg.norm(values, axis=1), np.arange(5) / 4), rtol=1e-5)
    assert report.knn is None and report.chance is None


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_effective_rank_of_equal_directions(tmp_path: Path, rank: int) -> None:
    """Plus and minus each of `rank` orthogonal directions, around a mean that must not count."""
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0][:rank]
    values = np.concatenate([axes, -axes] * 5).astype(np.float32) + 7
    store = _store(tmp_path / "s", values)
    report = inspect(store, draw_sample(store, None, 1000), silent)
    assert report.effective_rank == pytest.approx(rank, rel=1e-3)
    np.testing.assert_allclose(report.axes[:, :rank] @ report.axes[:, :rank].T, axes.T @ axes, atol=1e-3)


def test_effective_rank_is_the_entropy_of_the_spectrum(tmp_path: Path) -> None:
    values = (np.random.default_rng(0).normal(size=(60, 5)) * [1, 2, 3, 4, 5]).astype(np.float32)
    share = np.linalg.svd(values - values.mean(0), compute_uv=False) ** 2
    share /= share.sum()
    store = _store(tmp_path / "s", values)
    report = inspect(store, draw_sample(store, None, 60), silent)
    assert report.effective_rank == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)


def test_duplicates_are_counted_over_all_rows(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    rows = np.concatenate([np.arange(20), np.random.default_rng(0).integers(0, 20, 13)])
    assert count_duplicates(_store(tmp_path / "s", values[rows]), silent) == 13
    assert count_duplicates(_store(tmp_path / "t", values), silent) == 0


def test_nearest_are_those_of_the_whole_matrix() -> None:
    values = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    units = values / np.linalg.norm(values, axis=1, keepdims=True)
    cosines = units @ units.T
    groups = np.arange(50)
    groups[10:20] = 3
    cosines[groups[:, None] == groups] = -2
    queries = np.array([3, 49, 0])
    found, near = nearest(units, groups, queries, 5)
    np.testing.assert_array_equal(found, (-cosines[queries]).argsort(1)[:, :5])
    np.testing.assert_allclose(near, -np.sort(-cosines[queries], 1)[:, :5], atol=1e-5)


def test_knn_tells_classes_apart_where_embeddings_do(tmp_path: Path) -> None:
    centres = 10 * np.eye(4, 6)
    numbers = np.arange(120) % 4
    values = (centres[numbers] + np.random.default_rng(0).normal(size=(120, 6)) + 50).astype(np.float32)
    store = _store(tmp_path / "s", values)
    labels = [f"class {number}" for number in numbers]
    report = inspect(store, draw_sample(store, _labels(labels), 1000), silent)
    assert (report.knn, report.chance) == (1, 0.25)
    shuffled = [str(label) for label in np.random.default_rng(0).permutation(labels)]
    report = inspect(store, draw_sample(store, _labels(shuffled), 1000), silent)
    assert report.knn is not None and report.knn < 0.5


def test_a_row_does_not_vote_for_itself(tmp_path: Path) -> None:
    """Two classes at the same two places: only a row itself knows its class."""
    values = (
        np.eye(2, 4)[np.arange(24) % 2].astype(np.float32)
        + np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32) / 1000
    )
    store = _store(tmp_path / "s", values)
    labels = [str(row) for row in range(24)]
    report = inspect(store, draw_sample(store, _labels(labels), 1000), silent)
    assert report.knn == 0


def test_equal_embeddings_vote_only_where_it_is_said(tmp_path: Path) -> None:
    """One embedding for each class, as captions that are the class's name give."""
    values = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)[np.arange(60) % 5]
    store = _store(tmp_path / "s", values)
    report = inspect(store, draw_sample(store, _labels([f"c{row % 5}" for row in range(60)]), 60), silent)
    assert (report.knn, report.knn_distinct, report.duplicates) == (1, 0, 55)


def test_samples_are_of_rows_with_a_label(tmp_path: Path) -> None:
    store = _store(tmp_path / "s", np.arange(80, dtype=np.float32).reshape(40, 2))
    labels = [None if row % 2 else f"c{row % 6}" for row in range(40)]
    sample = draw_sample(store, _labels(labels), 12)
    assert sample.labels is not None and len(np.unique(sample.rows)) == 12
    assert [labels[row] for row in sample.rows] == [sample.classes[number] for number in sample.labels]
    np.testing.assert_array_equal(sample.centred, store.embeddings[sample.rows] - store.mean)
    np.testing.assert_array_equal(sample.rows, draw_sample(store, _labels(labels), 12).rows)
    assert (sample.rows != draw_sample(store, _labels(labels), 12, seed=1).rows).any()
    with pytest.raises(UserError, match="--sample is 2"):
        draw_sample(store, None, 2)


@pytest.mark.parametrize("classes", [0, 3, 14])
def test_plot(tmp_path: Path, classes: int) -> None:
    values = np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32)
    store = _store(tmp_path / "s", values)
    labels = _labels([f"c{row % classes}" for row in range(90)]) if classes else None
    sample = draw_sample(store, labels, 90)
    plot(sample, inspect(store, sample, silent), "toy", tmp_path / "new" / "plot.png")
    with Image.open(tmp_path / "new" / "plot.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    coloured = (pixels.max(1) - pixels.min(1) > 40).mean()
    assert (coloured > 0.001) == bool(classes)


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["prog", "inspect", *map(str, arguments)])
    try:
        run_command(store_commands.main)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    values = (
        np.repeat(np.eye(2, 5), 6, 0).astype(np.float32)
        + np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32) / 10_000
    )
    values[1] = values[0]
    ids = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(6)]
    store = _store(tmp_path / "s", values, ids)
    (tmp_path / "train").mkdir()
    table = tmp_path / "c.csv"
    table.write_text("image_id,caption\n" + "".join(f"{image},a photo of {image[:3]}\n" for image in ids[:-1]))
    options = ["--labels", tmp_path / "train", "--captions", table, "--plot", tmp_path / "p.png", "--examples", "2"]
    assert _run(monkeypatch, store.path, *options) == 0
    out = capsys.readouterr().out
    for part in (
        "size: 12 rows of 5 numbers, float32",
        "encoder: id toy, revision 0, pooling mean, max_tokens 8",
        "duplicates: 1 rows (8.3%) repeat another",
        "all rows",
        "classes: 100.0% recognised by the 10 nearest others, ",
        "% without those that are equal, 50.0% by naming the most frequent of 2 (all rows)",
        "  cat/0.png: a photo of cat\n    1.000 cat/",
        "  dog/5.png\n    1.000 dog/",
        f"plot: {tmp_path}/p.png",
    ):
        assert part in out
    assert "cat/1.png" not in out, "it is equal"
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert _run(monkeypatch, store.path, "--sample", "4", "--examples", "0") == 0
    out = capsys.readouterr().out
    assert "4 rows drawn at random" in out and "classes" not in out and "nearest" not in out


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--labels", "none.csv"], "cannot read"),
        (["--labels", "empty"], "has no label for image ids such as 0.png"),
        (["--captions", "none.csv"], "no caption table"),
        (["--sample", "0"], "--sample is 0"),
        (["--plot", "file/p.png"], "cannot write"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path,
    options: list[str],
    part: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    _store(tmp_path / "s", np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32))
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert _run(monkeypatch, "s", *options) == 2
    out, err = capsys.readouterr()
    assert out == "" and part in err and err.startswith("error: ") and err.count("\n") == 1
