"""Principal components: those of the whole matrix, in one pass, kept in the store."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from tests.embeddings.test_store import DIM, ROWS, make_store, toy_values
from tests.embeddings.test_store import cut as cut_off
from tt_ray.embeddings import pca as pca_module
from tt_ray.embeddings.pca import fit_pca
from tt_ray.terminal.errors import UserError


@pytest.mark.parametrize("std", ["none", "full"])
def test_pca_matches_svd(tmp_path: Path, std: Literal["none", "full"]) -> None:
    store = make_store(tmp_path / "store")
    values = toy_values().astype(np.float64)
    if std == "full":
        values /= store.std + 1e-6
    centred = values - values.mean(0)
    singular, axes = np.linalg.svd(centred)[1:]
    pca = fit_pca(store, 4, std)
    np.testing.assert_allclose(pca.mean, values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(pca.variance, singular[:4] ** 2 / ROWS, rtol=1e-5)
    np.testing.assert_allclose(np.abs(pca.components @ axes[:4].T), np.eye(4), atol=1e-5)
    assert (np.take_along_axis(pca.components, np.abs(pca.components).argmax(1)[:, None], 1) > 0).all()


class Counted(np.ndarray):
    """Counts the rows that are read from it."""

    read = 0

    def __getitem__(self, key: Any) -> Any:
        part = np.asarray(self)[key]
        Counted.read += len(part)
        return part


def test_pca_is_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pca_module, "_BLOCK", 9)
    store = make_store(tmp_path / "store")
    fit_pca(replace(store, embeddings=store.embeddings.view(Counted)), 3)
    assert Counted.read == ROWS


def test_pca_is_cached_and_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "store")
    expected = fit_pca(store, DIM).components
    (cache,) = store.path.glob("pca_none_*.npy")
    with monkeypatch.context() as patch:
        patch.setattr(pca_module, "_principal_axes", lambda *_: pytest.fail("not read from the cache"))
        np.testing.assert_array_equal(fit_pca(store, 2).components, expected[:2])
    for wrong in (np.zeros((DIM + 1, DIM)), np.eye(3), np.zeros((DIM + 1, DIM), np.float32)):
        np.save(cache, wrong)
        np.testing.assert_array_equal(fit_pca(store, DIM).components, expected)
    cut_off(cache)
    np.testing.assert_array_equal(fit_pca(store, DIM).components, expected)
    assert np.load(cache).shape == (DIM + 1, DIM)
    assert not list(store.path.glob(".*"))  # no temporary file is left


def test_pca_refuses_more_dimensions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="head.out_dim is 7, but .* only 6 dimensions"):
        fit_pca(make_store(tmp_path / "store"), 7)
