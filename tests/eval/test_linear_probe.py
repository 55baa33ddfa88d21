from pathlib import Path

import numpy as np
import timm
import torch

from eval.features import extract_features
from eval.linear_probe import linear_probe
from tests.toy import run_toy, toy_config
from tt_ray.prepare import open_data


def test_separable_features_are_solved_and_noise_is_chance() -> None:
    rng = np.random.default_rng(0)
    labels, test_labels = rng.integers(0, 4, 400), rng.integers(0, 4, 400)
    noise, test_noise = rng.normal(size=(2, 400, 8)).astype(np.float32)
    centres = 6 * np.eye(4, 8, dtype=np.float32)
    assert linear_probe(noise + centres[labels], labels, test_noise + centres[test_labels], test_labels).top1 > 97
    chance = linear_probe(noise, labels, test_noise, test_labels)
    assert 15 < chance.top1 < 35


def test_selection_does_not_look_at_the_test_split() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 300)
    features = (rng.normal(size=(300, 5)) + labels[:, None] * 0.3).astype(np.float32)
    first = linear_probe(features, labels, features[:50], labels[:50])
    second = linear_probe(features, labels, features[:50], (labels[:50] + 1) % 3)
    assert first.strength == second.strength and first.top1 != second.top1


def test_features_are_those_of_the_classifier(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    run_toy(config)
    data = open_data(config, None)
    backbone = timm.create_model(f"local-dir:{config.run_dir / 'export'}", pretrained=True).eval()
    features = extract_features(backbone, data.val, config)
    assert features.shape == (37, 24)
    correct = backbone.get_classifier()(torch.from_numpy(features)).argmax(1).numpy() == data.val.labels
    from tt_ray.run_folder import read_result

    assert 100 * correct.mean() == read_result(config.run_dir)["top1"]
