"""CKA between models and layers against features taken by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eval.contract import EvalConfig
from eval.feature_metrics import unbiased_cka
from eval.features import cka
from eval.features.cka import _gram, between_layers, between_models, cka_of_grams, layer_names
from eval.similarity import main
from tests.eval.toy_task import SIZE, ToyTask, coloured, tensor, toy_backbone
from tt_ray.terminal.errors import UserError


def _activations(backbone: Any, images: torch.Tensor) -> list[np.ndarray]:
    """Of both blocks, flattened, and the pooled feature, layer after layer by hand."""
    model = backbone.model
    found, x = [], model._pos_embed(model.patch_embed(images))
    for block in model.blocks:
        x = block(x)
        found.append(x.flatten(1).numpy())
    return [*found, model.norm(x)[:, 0].numpy()]


def test_layers_equal_those_taken_by_hand() -> None:
    first, second, source = toy_backbone(), toy_backbone(depth=3), coloured(20, 0)
    with torch.inference_mode():
        images = torch.stack([tensor(source.read(row)) for row in range(20)])
        layers = [_activations(each, images) for each in (first, second)]
    found = between_layers(first, second, source, EvalConfig(None, Path()))
    expected = [[unbiased_cka(x, y) for y in layers[1]] for x in layers[0]]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert layer_names(first) == ["blocks.0", "blocks.1", "pooled"] and found.shape == (3, 4)
    assert not any(module._forward_hooks for module in first.model.modules())


def test_what_all_images_share_rounds_nothing_away() -> None:
    """Activations of a large mean, as transformers' are in some dimensions; CKA does not depend on it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 32)).astype(np.float32)
    y = x[:, :20] + rng.normal(size=(64, 20)).astype(np.float32)
    found = []
    for mean in (0, 4096):  # of which these numbers keep 11 binary places, far more than is compared
        moved = [(np.round(each * 2048) / 2048 + mean).astype(np.float32) for each in (x, y)]
        layers = [[_gram(torch.from_numpy(each), 64).double().numpy()] for each in moved]
        found += [cka_of_grams([layers])[0, 0], unbiased_cka(moved[0], moved[1])]
    assert found == pytest.approx([found[0]] * 4, abs=1e-5) and 0.3 < found[0] < 0.9


def test_a_model_is_like_itself_in_batches_too() -> None:
    backbone = toy_backbone()
    found = between_layers(backbone, backbone, coloured(21, 0), EvalConfig(None, Path(), batch_size=7))
    assert np.diag(found) == pytest.approx(np.ones(3)) and found == pytest.approx(found.T)


def test_images_sorted_by_class_give_the_value_of_all_at_once() -> None:
    source = coloured(240, 0)
    by_class = source.select(np.argsort(source.labels, kind="stable"))
    backbones = toy_backbone(), toy_backbone(depth=3)
    whole = between_layers(*backbones, source, EvalConfig(None, Path(), batch_size=240))
    parts = between_layers(*backbones, by_class, EvalConfig(None, Path(), batch_size=40))
    assert parts == pytest.approx(whole, abs=0.03)


def test_layers_may_be_every_attention_and_mlp() -> None:
    backbone, source = toy_backbone(), coloured(20, 0)
    names = layer_names(backbone, "modules")
    assert names == [*(f"blocks.{i}.{each}" for i in range(2) for each in ("attn", "mlp")), "pooled"]
    with torch.inference_mode():
        images = torch.stack([tensor(source.read(row)) for row in range(20)])
        model: Any = backbone.model
        block, x = model.blocks[0], model._pos_embed(model.patch_embed(images))
        attention = block.attn(block.norm1(x))
        found = between_layers(backbone, backbone, source, EvalConfig(None, Path()), "modules")
        mlp = block.mlp(block.norm2(x + attention))
    expected = unbiased_cka(attention.flatten(1).numpy(), mlp.flatten(1).numpy())
    assert found[0, 1] == pytest.approx(expected, abs=1e-4) and found.shape == (5, 5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "some"),
    [("swin_tiny_patch4_window7_224", "layers.1.blocks.1.attn"), ("xcit_nano_12_p16_224", "blocks.0.mlp")],
)
def test_attention_and_mlp_are_found_in_other_models_too(name: str, some: str) -> None:
    backbone = toy_backbone(name=name, **({"img_size": SIZE, "window_size": 2} if "swin" in name else {}))
    names = layer_names(backbone, "modules")
    found = between_layers(backbone, backbone, coloured(8, 0), EvalConfig(None, Path()), "modules")
    assert some in names and found.shape == (len(names), len(names))
    assert not any(module._forward_hooks for module in backbone.model.modules())


def test_a_model_without_attention_and_mlp_is_refused() -> None:
    with pytest.raises(UserError, match="has no attention or MLP modules: compare its blocks"):
        layer_names(toy_backbone(name="test_resnet"), "modules")
    with pytest.raises(UserError, match="--modules is about layers: pass --layers too"):
        main(["--models", "a=random:test_resnet", "--task", "digits", "--modules"])


@pytest.mark.parametrize(
    ("models", "options", "said"),
    [
        ("a b", ["--images", "8"], "--images is about layers: pass --layers too"),
        ("a b", ["--images", "-3", "--layers"], "--images is -3, but must be at least 0"),
        ("a b c", ["--layers"], "--layers compares two models, but --models has 3"),
        ("", [], "--models is empty"),
    ],
)
def test_what_would_not_be_looked_at_is_refused(models: str, options: list[str], said: str) -> None:
    specs = [f"{name}=random:test_vit" for name in models.split()]
    with pytest.raises(UserError, match=said):
        main(["--models", *specs, "--task", "digits", *options])


def test_models_are_compared_by_pooled_features(tmp_path: Path) -> None:
    task: Any = ToyTask()
    backbones = [toy_backbone(), toy_backbone(depth=3)]
    found = between_models(backbones, task, EvalConfig(None, tmp_path))
    assert np.diag(found) == pytest.approx(np.ones(2)) and found[0, 1] == pytest.approx(found[1, 0])
    layers = between_layers(*backbones, task.open("test"), EvalConfig(None, tmp_path))
    assert found[0, 1] == pytest.approx(layers[-1, -1], abs=1e-4)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UserError, match="at least 4 images"):
        between_layers(toy_backbone(), toy_backbone(), coloured(3, 0), EvalConfig(None, Path()))


@pytest.mark.slow
@pytest.mark.parametrize("layers", [False, True])
def test_the_command_prints_and_writes(layers: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cka.json"
    models = [f"{name}=random:test_vit.r160_in1k:{seed}" for seed, name in enumerate("ab")]
    options = ["--layers", "--images", "16"] if layers else []
    torch.set_num_threads(2)  # threads that decode
    main(["--models", *models, "--task", "digits", "--cache", str(tmp_path / "cache"), "--out", str(out), *options])
    tree = json.loads(out.read_text())
    assert np.shape(tree["values"]) == (len(tree["rows"]), len(tree["columns"]))
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 2 + len(tree["rows"]) and shown[0].startswith("| CKA | ")


def test_features_that_are_all_alike_are_named_and_the_file_is_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cka, "test_features", lambda *_: (np.full((360, 4), 0.1, np.float32), None))
    out = tmp_path / "cka.json"
    main(["--models", "a=random:test_vit", "--task", "digits", "--out", str(out)])
    assert "nan: features of all images are alike" in capsys.readouterr().out
    assert json.loads(out.read_text(), parse_constant=pytest.fail)["values"] == [[None]]


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out, said in ((tmp_path / "file" / "cka.json", "choose another --out"), (tmp_path, "is a folder: give a file")):
        with pytest.raises(UserError, match=said):
            main(["--models", "a=none", "--task", "none", "--out", str(out)])


def test_the_folder_of_a_task_is_given_as_the_hint_says(tmp_path: Path) -> None:
    """Hints are those of python -m eval: --task-root NAME=DIR."""
    for root in (f"mine={tmp_path / 'none'}", str(tmp_path / "none")):
        with pytest.raises(UserError, match=f"{tmp_path / 'none'}: there is no such folder"):
            main(["--models", "a=random:test_resnet", "--task", "mine", "--task_root", root])
