"""Vision teachers give what timm and transformers themselves give, and nothing of them is random or trained."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.toy import largest_difference, run_toy, toy_config, weights
from tt_ray.config import Config
from tt_ray.data.prepare import open_images
from tt_ray.data.sources.base import Source
from tt_ray.models.export import export_model
from tt_ray.models.teacher import Teacher, load_teacher
from tt_ray.terminal.errors import UserError

KWARGS = {"patch_size": 8, "embed_dim": 36, "depth": 2, "num_heads": 3}
SMALL: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
CPU = torch.device("cpu")
MEAN, STD = (0.1, 0.4, 0.7), (0.5, 0.25, 0.75)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_images(toy_config(tmp_path_factory.mktemp("data"), text__weight=0.0))[0]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory, split: Source) -> Path:
    """An export of 24 px, with means of its own; its classes are those of the data, backwards."""
    folder = tmp_path_factory.mktemp("teacher")
    kwargs = {"data__image_size": 24, "data__mean": MEAN, "data__std": STD, "text__weight": 0.0}
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=16, img_size=24, **KWARGS)
    torch.nn.init.normal_(model.get_classifier().weight)
    export_model(model, toy_config(folder, **kwargs), split.classes[::-1], folder / "export")
    return folder / "export"


def _teach(tmp_path: Path, split: Source, model: object, **settings: Any) -> Teacher:
    settings = {"text__normalize_mean": False, "teacher__model": str(model), **settings}
    return load_teacher(toy_config(tmp_path, **settings), split, CPU)[0]


def _images(config: Config, size: int = 16) -> tuple[Tensor, Tensor]:
    """Pixels on the 0-1 scale, and as the student sees them."""
    pixels = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (config.data.mean, config.data.std))
    return pixels, (pixels - mean) / std


def _resized(pixels: Tensor, size: int, mean: Any, std: Any) -> Tensor:
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (mean, std))
    return (F.interpolate(pixels, (size, size), mode="bicubic", antialias=True) - mean) / std


def test_embedding_is_timms_own(tmp_path: Path, split: Source, export: Path) -> None:
    pixels, images = _images(Config())
    model = timm.create_model(f"local-dir:{export}", pretrained=True).eval()
    wanted = model.forward_head(model.forward_features(_resized(pixels, 24, MEAN, STD)), pre_logits=True)
    torch.testing.assert_close(_teach(tmp_path, split, export)(images), wanted, rtol=1e-4, atol=1e-5)


def test_logits_are_timms_own_in_the_students_order(tmp_path: Path, split: Source, export: Path) -> None:
    pixels, images = _images(Config())
    model = timm.create_model(f"local-dir:{export}", pretrained=True).eval()
    wanted = model(_resized(pixels, 24, MEAN, STD)).flip(1)
    found = _teach(tmp_path, split, export, teacher__target="logits")(images)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_another_input_size_can_be_asked_for(tmp_path: Path, split: Source, export: Path) -> None:
    pixels, images = _images(Config(), 16)
    model = timm.create_model(f"local-dir:{export}", pretrained=True, img_size=16).eval()
    wanted = model.forward_head(model.forward_features(_resized(pixels, 16, MEAN, STD)), pre_logits=True)
    found = _teach(tmp_path, split, export, teacher__image_size=16)(images)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_teacher_is_frozen(tmp_path: Path, split: Source, export: Path) -> None:
    teacher = _teach(tmp_path, split, export)
    _, images = _images(Config())
    assert not teacher(images.requires_grad_()).requires_grad


def test_embeddings_are_centred_and_scaled_as_a_stores_are(tmp_path: Path, split: Source, export: Path) -> None:
    plain = _teach(tmp_path, split, export)
    config = toy_config(tmp_path, teacher__model=str(export), text__normalize_std="full")
    teacher, dim = load_teacher(config, split, CPU)
    pixels = torch.from_numpy(split.pixels(np.arange(len(split)), 16)).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (config.data.mean, config.data.std))
    images = (pixels - mean) / std
    found, raw = teacher(images), plain(images)
    assert dim == found.shape[1] == KWARGS["embed_dim"]
    torch.testing.assert_close(found.mean(0), torch.zeros(dim), rtol=0, atol=1e-5)
    torch.testing.assert_close(found * (raw.std(0, correction=0) + 1e-6), raw - raw.mean(0), rtol=1e-3, atol=1e-5)


def _hugging_face(folder: Path, kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "clip":
        text = transformers.CLIPTextConfig(vocab_size=9, **SMALL)
        vision = transformers.CLIPVisionConfig(image_size=32, patch_size=8, **SMALL)
        config = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=20)
        model = transformers.CLIPModel(config)
    else:
        config_class, model_class = {
            "vit": (transformers.ViTConfig, transformers.ViTModel),
            "dinov2": (transformers.Dinov2Config, transformers.Dinov2Model),
            "dinov3": (transformers.DINOv3ViTConfig, transformers.DINOv3ViTModel),
        }[kind]
        model = model_class(config_class(image_size=32, patch_size=8, **SMALL))
    model.eval().save_pretrained(folder)
    sizes = {"crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 40}}
    values = {"image_mean": MEAN, "image_std": STD, **sizes}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    return model


@pytest.mark.parametrize("kind", ["vit", "dinov2", "dinov3", "clip", "clip+projection"])
def test_embedding_is_transformers_own(tmp_path: Path, split: Source, kind: str) -> None:
    name, _, projection = kind.partition("+")
    model = _hugging_face(tmp_path / "model", name)
    pixels, images = _images(Config())
    inputs = _resized(pixels, 32, MEAN, STD)
    with torch.no_grad():
        if name == "clip":
            wanted = model.vision_model(inputs).pooler_output
            wanted = model.visual_projection(wanted) if projection else wanted
        else:
            wanted = model(inputs).pooler_output
    found = _teach(tmp_path, split, f"hf:{tmp_path / 'model'}{'+projection' * bool(projection)}")(images)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_pooler_without_weights_is_not_used(tmp_path: Path, split: Source) -> None:
    model = _hugging_face(tmp_path / "model", "vit")
    file = tmp_path / "model" / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "pooler" not in k}, file, {"format": "pt"})
    pixels, images = _images(Config())
    with torch.no_grad():
        wanted = model(_resized(pixels, 32, MEAN, STD)).last_hidden_state[:, 0]
    found = _teach(tmp_path, split, f"hf:{tmp_path / 'model'}")(images)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_weights_that_are_not_there_are_an_error(tmp_path: Path, split: Source, export: Path) -> None:
    _hugging_face(tmp_path / "model", "dinov2")
    file = tmp_path / "model" / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "layernorm.bias" not in k}, file, {"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 weights of dinov2, such as layernorm.bias"):
        _teach(tmp_path, split, f"hf:{tmp_path / 'model'}")
    with pytest.raises(UserError, match="cannot get the pretrained weights of timm:resnet18.a1_in1k"):
        _teach(tmp_path, split, "timm:resnet18.a1_in1k")


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        ("timm:resnet", {}, "timm has no model 'resnet'"),
        ("timm:vit_tiny_patch8_224", {}, "no model"),
        ("nowhere", {}, "teacher.model nowhere: no such model"),
        ("hf:/nowhere", {}, "hf:/nowhere: no such folder"),
        ("hf:somebody/something", {}, "hf:somebody/something cannot be found"),
        ("hf:somebody/something", {"teacher__target": "logits"}, "teacher.target logits takes timm"),
        ("EXPORT", {"teacher__image_size": 3}, "does not run on images of 3 px|cannot load"),
    ],
)
def test_what_cannot_teach_is_refused_in_one_line(
    tmp_path: Path, split: Source, export: Path, model: str, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words) as error:
        _teach(tmp_path, split, model.replace("EXPORT", str(export)), **settings)
    assert "\n" not in str(error.value)


def test_logits_of_other_classes_are_refused(tmp_path: Path, split: Source, export: Path) -> None:
    other = replace(split, classes=("unicorn", *split.classes[1:]))
    with pytest.raises(UserError, match="classes of teacher.model .* it lacks 'unicorn'"):
        _teach(tmp_path, other, export, teacher__target="logits")
    fewer = replace(split, classes=split.classes[:-1])
    with pytest.raises(UserError, match="it has 16, the data 15"):
        _teach(tmp_path, fewer, export, teacher__target="logits")


@pytest.mark.parametrize("target", ["embedding", "logits"])
def test_students_learn_from_it_and_take_nothing_of_it_along(tmp_path: Path, export: Path, target: str) -> None:
    taught = toy_config(tmp_path / "a", teacher__model=str(export), teacher__target=target)
    plain = toy_config(tmp_path / "b", text__weight=0.0)
    zero = toy_config(tmp_path / "c", teacher__model="nowhere", teacher__target=target, text__weight=0.0)
    run_toy(taught), run_toy(plain), run_toy(zero)
    assert largest_difference(weights(zero), weights(plain)) == 0
    names = set(weights(taught)) - set(weights(plain))
    assert names == ({"text_head.layers.0.weight", "text_head.layers.0.bias"} if target == "embedding" else set())
    backbone = {name: value for name, value in weights(taught).items() if name.startswith("backbone.")}
    assert largest_difference(backbone, weights(plain)) > 1e-3
    exported = load_file(taught.run_dir / "export" / "model.safetensors")
    assert exported.keys() == load_file(plain.run_dir / "export" / "model.safetensors").keys()


def test_the_embeddings_of_vl2lite_share_a_space(tmp_path: Path, export: Path) -> None:
    config = toy_config(tmp_path, teacher__model=str(export), text__loss="vl2lite")
    with pytest.raises(UserError, match="36 and 12 dimensions differ"):
        run_toy(config)
