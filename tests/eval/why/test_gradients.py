"""Gradient cosines against autograd written out, parameter by parameter."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from eval.why.gradients import FEATURE, agreements, gradient_agreements, parameters_by_layer
from tests.toy import DIM, run_toy, toy_config
from tt_ray.data.augment import normalize
from tt_ray.data.loader import TrainBatches
from tt_ray.data.prepare import open_data
from tt_ray.data.sampling import train_order
from tt_ray.losses import clip
from tt_ray.models.classifier import build_model


def test_a_loss_agrees_with_itself_and_not_with_its_opposite() -> None:
    torch.manual_seed(0)
    layers = {"a": [torch.randn(3, 4, requires_grad=True), torch.randn(2, requires_grad=True)]}
    loss = layers["a"][0].square().sum() + layers["a"][1].sum() ** 2
    for factor, cosine in ((1.0, 1.0), (5.0, 1.0), (-2.0, -1.0)):
        assert agreements((loss, factor * loss), layers)["a"].cosine == pytest.approx(cosine)


def test_gradients_of_different_parameters_are_orthogonal() -> None:
    first, second = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    found = agreements((first.sum(), 2 * second.sum()), {"both": [first, second], "one": [first]})
    assert found["both"].cosine == 0 and found["both"].norm_text == pytest.approx(2 * 3**0.5)
    assert np.isnan(found["one"].cosine) and found["one"].norm_text == 0


def test_layers_have_all_of_the_backbone_but_its_classifier(tmp_path: Path) -> None:
    model = build_model(toy_config(tmp_path), 16, DIM)
    layers = parameters_by_layer(model)
    assert {"patch_embed", "blocks.0", "blocks.1", "norm"} <= set(layers)
    classifier = set(map(id, model.backbone.get_classifier().parameters()))  # type: ignore[operator]
    taken = [id(parameter) for layer in layers.values() for parameter in layer]
    assert len(taken) == len(set(taken))
    assert set(taken) | classifier == set(map(id, model.backbone.parameters())) and not set(taken) & classifier


def test_a_run_of_three_batches_equals_autograd_written_out(tmp_path: Path) -> None:
    config = toy_config(tmp_path, run__keep_checkpoints=0, data__augment="crop_flip")
    run_toy(config)
    data = open_data(config, Path(config.text.embeddings))
    folders = sorted((config.run_dir / "checkpoints").iterdir())
    assert [folder.name for folder in folders] == ["step-00000006", "step-00000012"]
    found = gradient_agreements(folders, config, data, 3, torch.device("cpu"))

    batches = TrainBatches(data.train, data.targets, train_order(config, 48, 0, 1), config)
    model = build_model(config, 16, DIM)
    for folder, answer in zip(folders, found, strict=True):
        model.load_state_dict(load_file(folder / "model.safetensors"))
        expected: dict[str, list[float]] = {"blocks.1": [], FEATURE: []}
        for step in range(int(folder.name[5:]), int(folder.name[5:]) + 3):
            batch = batches[step]
            rows: list[dict[str, np.ndarray]] = []
            for which in ("cls", "text"):
                model.zero_grad()
                out = model(normalize(batch.images, config.data.mean, config.data.std))
                out.features.retain_grad()
                loss = F.cross_entropy(out.logits, batch.labels, label_smoothing=config.optim.label_smoothing)
                (loss if which == "cls" else clip(out.text, batch.text)).backward()
                grads = [parameter.grad.flatten() for parameter in model.backbone.blocks[1].parameters()]
                rows.append({"blocks.1": torch.cat(grads).numpy(), FEATURE: out.features.grad.flatten().numpy()})
            for name, values in expected.items():
                first, second = (row[name].astype(np.float64) for row in rows)
                values.append(first @ second / np.linalg.norm(first) / np.linalg.norm(second))
        for name, values in expected.items():
            assert answer[name].cosine == pytest.approx(np.mean(values), abs=1e-4)
    assert found[0] != found[1]
