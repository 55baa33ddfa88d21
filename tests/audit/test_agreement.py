"""Captions that were exchanged on purpose stand at the top."""

import numpy as np

from tests.audit.test_noise import silent
from tt_ray.audit.agreement import suspicion


def test_exchanged_captions_are_the_most_suspicious() -> None:
    random = np.random.default_rng(0)
    hidden = random.normal(size=(600, 6))
    images = (hidden @ random.normal(size=(6, 40)) + random.normal(size=(600, 40))).astype(np.float32)
    captions = (hidden @ random.normal(size=(6, 24)) + random.normal(size=(600, 24))).astype(np.float32)
    exchanged = random.permutation(600)[:60]
    captions[exchanged] = captions[np.roll(exchanged, 1)]
    bad = np.isin(np.arange(600), exchanged)[np.argsort(-suspicion(images, captions, silent), kind="stable")]
    auc = np.cumsum(bad)[~bad].sum() / (bad.sum() * (~bad).sum())
    assert auc > 0.9, auc


def test_few_images_and_equal_captions_are_no_trouble() -> None:
    images = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    assert np.isfinite(suspicion(images, np.ones((5, 4), np.float32), silent)).all()
