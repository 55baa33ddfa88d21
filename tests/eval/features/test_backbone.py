"""Models by their specs: strict, reproducible, and one-line errors where something does not fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from eval.contract import EvalConfig
from eval.features.backbone import Backbone, forward_pass, open_backbone, parse_models, pooled
from tests.toy import run_toy, toy_config
from tt_ray.io.checkpoint_folder import write_manifest
from tt_ray.terminal.errors import UserError

TOY_TIMM = "test_vit"


def message(call: Callable[[], object]) -> str:
    """The text of the UserError that a call raises, which must be one line."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a toy model."""
    config = toy_config(tmp_path_factory.mktemp("runs"), "shapes_baseline")
    run_toy(config)
    return config.run_dir


def test_names_of_models() -> None:
    assert parse_models(["a=timm:x", "b-2=runs/r=1"]) == {"a": "timm:x", "b-2": "runs/r=1"}
    assert "two --models are called 'a'" in message(lambda: parse_models(["a=x", "a=y"]))
    for wrong in ("x", "=x", "a=", "a/b=x", "a b=x"):
        assert "must be NAME=MODEL" in message(lambda wrong=wrong: parse_models([wrong]))


def test_random_weights_follow_the_seed() -> None:
    state = torch.get_rng_state()
    first, again, other = (open_backbone("r", f"random:{TOY_TIMM}{seed}") for seed in ("", ":0", ":1"))
    assert first.weights == again.weights != other.weights
    assert torch.equal(torch.get_rng_state(), state), "the global generator was moved"
    assert not first.model.training and first.preprocessing.size == 160
    images = torch.rand(2, 3, 160, 160)
    assert first.pooled(images).shape == (2, first.dim)


def test_run_export_and_checkpoint_are_the_same_model(run: Path) -> None:
    checkpoint = max((run / "checkpoints").iterdir())
    found: list[Backbone] = [open_backbone("m", str(path)) for path in (run, run / "export", checkpoint)]
    assert len({each.weights for each in found}) == 1
    assert len({each.preprocessing for each in found}) == 1
    assert found[0].preprocessing.size == 16 and found[0].preprocessing.crop_mode == "squash"
    assert found[0].classes == found[2].classes and len(found[0].classes) == 16 and found[0].dim == 24
    plain = timm.create_model(f"local-dir:{run / 'export'}", pretrained=True).eval()
    images = torch.rand(3, 3, 16, 16)
    with torch.inference_mode():
        expected = plain.forward_head(plain.forward_features(images), pre_logits=True)
        assert torch.equal(pooled(found[2].model, images), expected)


def test_run_without_export_gives_its_newest_intact_checkpoint(run: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").symlink_to(run / "checkpoints")
    assert open_backbone("m", str(tmp_path)).weights == open_backbone("m", str(run)).weights
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    assert "has no intact checkpoint" in message(lambda: open_backbone("m", str(tmp_path / "empty")))


def test_random_control_of_an_export(run: Path) -> None:
    control, trained = open_backbone("c", f"random:{run}:3"), open_backbone("m", str(run))
    assert control.weights != trained.weights
    assert control.preprocessing == trained.preprocessing and control.dim == trained.dim


def test_checkpoint_of_another_architecture_names_the_keys(run: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "step-00000001"
    checkpoint.mkdir()
    for file in max((run / "checkpoints").iterdir()).iterdir():
        if file.name != "manifest.json":
            (checkpoint / file.name).write_bytes(file.read_bytes())
    text = (checkpoint / "config.yaml").read_text()
    (checkpoint / "config.yaml").write_text(text.replace("depth: 2\n    num_heads", "depth: 3\n    num_heads"))
    assert text != (checkpoint / "config.yaml").read_text()
    assert "is not complete" in message(lambda: open_backbone("m", str(checkpoint)))
    write_manifest(checkpoint)
    text = message(lambda: open_backbone("m", str(checkpoint)))
    assert "does not fit" in text and "blocks.2." in text


def test_export_with_other_keys_names_them(run: Path, tmp_path: Path) -> None:
    weights = load_file(run / "export" / "model.safetensors")
    weights["surprise"] = weights.pop("norm.weight")
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((run / "export" / "config.json").read_text())
    text = message(lambda: open_backbone("m", str(tmp_path)))
    assert "norm.weight" in text and "surprise" in text


def test_damaged_export(run: Path, tmp_path: Path) -> None:
    config = json.loads((run / "export" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "cannot load" in message(lambda: open_backbone("m", str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes((run / "export" / "model.safetensors").read_bytes()[:500])
    assert "cannot load" in message(lambda: open_backbone("m", str(tmp_path)))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("nowhere", ["no model 'nowhere'", "timm:NAME"]),
        ("timm:deit_smal_patch16_224", ["no model", "did you mean", "deit_small_patch16_224"]),
        ("timm:resnet18.nonsense", ["no weights", "resnet18."]),
        ("timm:test_vit", ["cannot get the pretrained weights", "pretrained=True"]),
        ("timm:hf-hub:nobody/nothing", ["cannot get the pretrained weights"]),
        ("random:test_vitt", ["no model", "test_vit"]),
    ],
)
def test_models_that_cannot_be_had(spec: str, expected: list[str]) -> None:
    text = message(lambda: open_backbone("m", spec))
    assert all(part in text for part in expected), text


def test_architecture_without_pretrained_weights() -> None:
    name = next(each for each in timm.list_models("vit_*") if not timm.models.is_model_pretrained(each))
    assert "no pretrained weights" in message(lambda: open_backbone("m", f"timm:{name}"))


def test_weights_that_timm_would_fill_with_random_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm logs and goes on when it may not be strict; nobody reads that log."""
    state = timm.create_model(TOY_TIMM).state_dict()
    del state["blocks.0.attn.qkv.weight"]
    real = timm.create_model

    def lenient(name: str, pretrained: bool) -> torch.nn.Module:
        model = real(name)
        from timm.models._builder import load_pretrained

        load_pretrained(model, {"state_dict": state, "num_classes": 1000}, strict=False)
        return model

    monkeypatch.setattr(timm, "create_model", lenient)
    text = message(lambda: open_backbone("m", f"timm:{TOY_TIMM}"))
    assert "blocks.0.attn.qkv.weight" in text


def test_empty_folder(tmp_path: Path) -> None:
    assert "holds neither export/" in message(lambda: open_backbone("m", str(tmp_path)))


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_tf32_is_for_forward_passes_on_gpus_alone(device: str, precision: Any) -> None:
    """Outside them solvers compute, which would not reach their tolerance."""
    config = EvalConfig(None, Path(), device=device, precision=precision)
    assert torch.get_float32_matmul_precision() == "highest"
    convolutions = torch.backends.cudnn.allow_tf32
    with pytest.raises(KeyError), forward_pass(config):
        fast = (device, precision) == ("cuda", "tf32")
        assert torch.get_float32_matmul_precision() == ("high" if fast else "highest")
        assert device == "cpu" or torch.backends.cudnn.allow_tf32 == fast
        assert torch.is_inference_mode_enabled() and not torch.is_autocast_enabled(device)
        raise KeyError
    assert torch.get_float32_matmul_precision() == "highest" and not torch.is_inference_mode_enabled()
    assert torch.backends.cudnn.allow_tf32 == convolutions


def test_bf16_is_for_forward_passes_alone() -> None:
    model, images = open_backbone("r", f"random:{TOY_TIMM}"), torch.rand(2, 3, 160, 160)
    with forward_pass(EvalConfig(None, Path(), precision="bf16")):
        found = model.pooled(images)
    with forward_pass(EvalConfig(None, Path())):
        expected = model.pooled(images)
    assert not torch.is_autocast_enabled("cpu") and expected.dtype == torch.float32
    difference = (found.float() - expected).abs().max()
    assert 0 < difference < 0.05 * expected.abs().max()
