from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toy import toy_config
from tests.training.test_collectives import on_two
from tt_ray.config import Config
from tt_ray.data.augment import normalize
from tt_ray.data.loader import EvalBatches
from tt_ray.data.prepare import Data, open_data
from tt_ray.models.classifier import TaughtClassifier, build_model
from tt_ray.training.context import LocalContext
from tt_ray.training.run_folder import start_run
from tt_ray.training.trainer import train
from tt_ray.training.validation import validate, validate_checkpoint


@pytest.fixture
def setting(tmp_path: Path) -> tuple[Config, Data, TaughtClassifier]:
    config = toy_config(tmp_path, text__weight=0.0, model__drop=0.5)
    data = open_data(config, None)
    return config, data, build_model(config, 16, 0)


def run(config: Config, data: Data, model: TaughtClassifier, batch_size: int) -> dict[str, float]:
    batches = EvalBatches(data.val, config, 0, 1, batch_size)
    return validate(model, batches, config, torch.device("cpu"), torch.autocast("cpu", enabled=False))


def test_accuracy_is_correct_over_total_for_any_batch_size(setting: tuple[Config, Data, TaughtClassifier]) -> None:
    config, data, model = setting
    images = EvalBatches(data.val, config, 0, 1, 100)[0].images
    with torch.no_grad():
        logits = model.eval()(normalize(images, config.data.mean, config.data.std)).logits
    labels = torch.from_numpy(data.val.labels)
    top1 = 100 * (logits.argmax(1) == labels).double().mean().item()
    top5 = 100 * (logits.topk(5).indices == labels[:, None]).any(1).double().mean().item()
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    for batch_size in (1, 5, 36, 37, 100):
        scores = run(config, data, model.train(), batch_size)
        assert scores["top1"] == pytest.approx(top1) and scores["top5"] == pytest.approx(top5)
        assert scores["val_loss"] == pytest.approx(loss, rel=1e-5)
        assert scores["val_images"] == 37
        assert model.training


def test_the_mean_over_batches_is_beside_the_exact_accuracy_where_it_is_asked_for(
    setting: tuple[Config, Data, TaughtClassifier],
) -> None:
    config, data, model = setting
    assert "top1_batch_mean" not in run(config, data, model, 5)
    asked = config.override({"train.eval_batch_mean": True, "train.batch_size": 8})
    images = EvalBatches(data.val, config, 0, 1, 100)[0].images
    with torch.no_grad():
        found = model.eval()(normalize(images, config.data.mean, config.data.std)).logits.argmax(1)
    hits = (found == torch.from_numpy(data.val.labels)).double()
    # 37 images: four batches of 8, and one of 5 that counts as much.
    expected = 100 * sum(batch.mean().item() for batch in hits.split(8)) / 5
    for batch_size in (1, 5, 100):
        scores = run(asked, data, model, batch_size)
        assert scores["top1_batch_mean"] == pytest.approx(expected)
        assert scores["top1"] == pytest.approx(100 * hits.mean().item())
    # As four workers would have it: 40 images, three of them twice, batches of 2.
    padded = torch.cat([hits, hits[:3]]).reshape(10, 4)
    many = validate(
        model,
        EvalBatches(data.val, asked, 0, 1),
        asked,
        torch.device("cpu"),
        torch.autocast("cpu", enabled=False),
        workers=4,
    )
    assert many["top1_batch_mean"] == pytest.approx(100 * padded.mean().item())


# Of a ResNet, each of whose workers' batch norms sees its own images.
APART: dict[str, dict[str, Any]] = {
    "whole": {},
    "averaged": {"train__ema": 0.5},
    "sharded, channels last": {"run__strategy": "fsdp", "train__channels_last": True},
    "sharded, averaged": {"run__strategy": "hsdp", "train__ema": 0.5, "train__channels_last": True},
}


def _trained(rank: int, configs: dict[str, Config]) -> dict[str, dict[str, Any]]:
    return {
        name: train(config, open_data(config, None), LocalContext(rank, 2, torch.device("cpu")))
        for name, config in configs.items()
    }


@pytest.mark.slow
def test_scores_are_those_of_the_checkpoint_on_any_number_of_workers(tmp_path: Path) -> None:
    resnet = {"model__name": "test_resnet", "model__kwargs": {}, "data__image_size": 32, "run__num_workers": 2}
    configs = {
        name: toy_config(tmp_path / name, "shapes_baseline", optim__lr=0.01, **resnet, **settings)
        for name, settings in APART.items()
    }
    for config in configs.values():
        start_run(config)
    found = on_two(tmp_path, _trained, configs)
    for name, config in configs.items():
        newest = max((config.run_dir / "checkpoints").iterdir())
        alone = validate_checkpoint(config.to_dict(), str(newest))
        for own in found:
            assert own[name]["val_loss"] == pytest.approx(alone["val_loss"], rel=1e-5), name
            assert own[name]["top1"] == pytest.approx(alone["top1"]), name
