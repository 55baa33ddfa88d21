"""The export is the plain timm model that was trained: loaded by timm alone, with its names, logits and images."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.data import create_transform, resolve_model_data_config
from torch import nn

import tt_ray
from tests.command_here import fill, listing, one_line
from tests.io.fake_hub import FakeHub, fake_hub
from tests.toy import DIM, largest_difference, run_toy, toy_config, weights
from tt_ray.config import Config
from tt_ray.data.augment import normalize
from tt_ray.data.prepare import open_images
from tt_ray.export import main as export_command
from tt_ray.models.classifier import build_model
from tt_ray.models.export import find_checkpoint, write_export
from tt_ray.models.flops import count
from tt_ray.terminal.command import run_command
from tt_ray.terminal.errors import UserError

RESNET = {"channels": [8, 16, 24, 32], "stem_width": 8}
CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}
MODELS: dict[str, dict[str, Any]] = {
    "vit": {"model__drop_path": 0.1},
    "vit_avg": {
        "model__kwargs": {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2, "class_token": False}
        | {"global_pool": "avg", "init_values": 1e-4},
    },
    "resnet": {"model__name": "resnet18", "model__kwargs": RESNET, "data__image_size": 32},
    "resnet_channels_last": {
        **{"model__name": "resnet18", "model__kwargs": RESNET, "data__image_size": 32},
        **{"train__channels_last": True, "model__drop": 0.5},
    },
    "convnext": {"model__name": "convnext_atto", "model__kwargs": CONVNEXT, "data__image_size": 32},
}


@pytest.fixture(scope="module", params=MODELS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A finished run of two steps."""
    return short_run(tmp_path_factory.mktemp(request.param), **MODELS[request.param])


@pytest.fixture(scope="module")
def one_run(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A finished run with two checkpoints."""
    return short_run(tmp_path_factory.mktemp("one"), train__epochs=2)


def short_run(storage: Path, **settings: Any) -> Config:
    config = toy_config(storage, **{"data__shapes__train_size": 16, "train__epochs": 1, **settings})
    run_toy(config)
    return config


def trained(config: Config) -> nn.Module:
    """The training model as its last checkpoint has it."""
    model = build_model(config, 16, DIM)
    model.load_state_dict(weights(config))
    return model.eval()


def deployed(folder: Path) -> nn.Module:
    """What a user of the export has: timm and the folder."""
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def images(config: Config) -> torch.Tensor:
    size = config.data.image_size
    return torch.rand(5, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_logits_are_those_of_the_training_model(run: Config) -> None:
    batch = images(run)
    assert torch.equal(deployed(run.run_dir / "export")(batch), trained(run)(batch).logits)


def test_names_and_shapes_are_those_of_the_plain_timm_model(run: Config) -> None:
    size = {"img_size": run.data.image_size} if run.model.name.startswith("vit") else {}
    plain = timm.create_model(run.model.name, num_classes=16, **size, **run.model.kwargs)
    model = deployed(run.run_dir / "export")
    assert type(model) is type(plain)
    assert [(n, p.shape) for n, p in model.named_parameters()] == [(n, p.shape) for n, p in plain.named_parameters()]
    stored = load_file(run.run_dir / "export" / "model.safetensors")
    assert stored.keys() == plain.state_dict().keys(), "buffers as well, and no text head"
    assert any(name.startswith("text_head") for name in weights(run)), "there was one to leave out"


def test_the_deployed_model_drops_nothing(run: Config) -> None:
    model, batch = deployed(run.run_dir / "export"), images(run)
    for module in model.modules():
        module.training = not isinstance(module, nn.BatchNorm2d)
    assert torch.equal(model(batch), model(batch))


def test_classes_and_preprocessing_are_told(run: Config) -> None:
    told = json.loads((run.run_dir / "export" / "config.json").read_text())
    classes = open_images(run)[0].classes
    assert told["label_names"] == list(classes) and told["num_classes"] == len(classes) == 16
    assert told["architecture"] == run.model.name
    assert told["efficiency"] == count(deployed(run.run_dir / "export"), run.data.image_size)._asdict()
    data = resolve_model_data_config(deployed(run.run_dir / "export"))
    assert data["input_size"] == (3, run.data.image_size, run.data.image_size)
    assert (tuple(data["mean"]), tuple(data["std"])) == (run.data.mean, run.data.std)
    assert (data["interpolation"], data["crop_pct"], data["crop_mode"]) == ("bicubic", 1.0, "squash")


@torch.no_grad()
def test_timms_own_transform_gives_the_images_of_validation(run: Config) -> None:
    val = open_images(run)[1]
    model = deployed(run.run_dir / "export")
    transform = create_transform(**resolve_model_data_config(model))
    theirs = torch.stack([transform(val.read(row)) for row in range(5)])
    pixels = torch.from_numpy(val.pixels(torch.arange(5).numpy(), run.data.image_size)).permute(0, 3, 1, 2)
    ours = normalize(pixels, run.data.mean, run.data.std)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)


def test_the_average_of_weights_is_exported_where_there_is_one(tmp_path: Path) -> None:
    config = short_run(tmp_path, train__ema=0.5)
    average = backbone_of(weights(config, "ema.safetensors"))
    assert largest_difference(average, backbone_of(weights(config))) > 0
    write_export(find_checkpoint(config.run_dir)[0], tmp_path / "out")
    for folder in (config.run_dir / "export", tmp_path / "out"):
        assert largest_difference(average, load_file(folder / "model.safetensors")) == 0


def backbone_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}


# The command


class Command:
    """`python -m tt_ray.export` in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        self.monkeypatch.setattr(sys, "argv", ["prog", *map(str, arguments)])
        code = 0
        try:
            run_command(export_command)
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *self.capsys.readouterr()

    def mistake(self, *arguments: object) -> str:
        """The one line of a command that must be refused."""
        code, out, err = self(*arguments)
        assert (code, out) == (2, "")
        return one_line(err)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


def copied(config: Config, folder: Path) -> Path:
    """The run folder somewhere else, so that a test may damage it."""
    return Path(shutil.copytree(config.run_dir, folder / "copy"))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@torch.no_grad()
def test_a_run_folder(one_run: Config, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "deep" / "out"
    code, text, err = command(one_run.run_dir, "--out", out)
    assert (code, err) == (0, "")
    assert text == (
        f"exported {one_run.run_dir}/checkpoints/step-00000004 to {out}: "
        f"timm.create_model('local-dir:{out}', pretrained=True)\n"
    )
    assert {path.name for path in out.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    for name in ("model.safetensors", "config.json"):
        assert (out / name).read_bytes() == (one_run.run_dir / "export" / name).read_bytes()
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    card = (out / "README.md").read_text()
    scores = json.loads((one_run.run_dir / "result.json").read_text())
    assert f"| this model | {scores['top1']:.2f} | {scores['top5']:.2f} |" in card and "local-dir:FOLDER" in card
    assert torch.equal(deployed(out)(images(one_run)), trained(one_run)(images(one_run)).logits)


def test_a_checkpoint_folder(one_run: Config, tmp_path: Path, command: Command) -> None:
    first = one_run.run_dir / "checkpoints" / "step-00000002"
    assert command(first, "--out", tmp_path / "out")[0] == 0
    expected = backbone_of(load_file(first / "model.safetensors"))
    assert largest_difference(expected, load_file(tmp_path / "out" / "model.safetensors")) == 0
    assert largest_difference(expected, backbone_of(weights(one_run))) > 0


def test_an_existing_folder_is_left_alone(one_run: Config, tmp_path: Path, command: Command) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    before = listing(tmp_path)
    assert command.mistake(one_run.run_dir, "--out", tmp_path / "out") == f"{tmp_path}/out exists: choose another --out"
    assert listing(tmp_path) == before


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_refused(name: str, one_run: Config, tmp_path: Path, command: Command) -> None:
    checkpoint = copied(one_run, tmp_path) / "checkpoints" / "step-00000004"
    flip(checkpoint / name)
    text = command.mistake(checkpoint, "--out", tmp_path / "out")
    assert f"{checkpoint / name} is damaged" in text
    assert not (tmp_path / "out").exists()


def test_an_incomplete_checkpoint_is_refused(one_run: Config, tmp_path: Path, command: Command) -> None:
    checkpoint = copied(one_run, tmp_path) / "checkpoints" / "step-00000004"
    (checkpoint / "manifest.json").unlink()
    assert "not complete" in command.mistake(checkpoint, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_falls_back_to_its_newest_intact_checkpoint_and_says_so(
    one_run: Config, tmp_path: Path, command: Command
) -> None:
    folder = copied(one_run, tmp_path)
    flip(folder / "checkpoints" / "step-00000004" / "model.safetensors")
    code, text, _ = command(folder, "--out", tmp_path / "out")
    assert code == 0
    note, said = text.splitlines()
    assert note.startswith("note: ") and "step-00000004/model.safetensors is damaged" in note
    assert said.startswith(f"exported {folder}/checkpoints/step-00000002 to")
    flip(folder / "checkpoints" / "step-00000002" / "model.safetensors")
    text = command.mistake(folder, "--out", tmp_path / "out2")
    assert "no intact checkpoint" in text and "step-00000004" in text and "step-00000002" in text


def test_a_folder_that_is_no_run(tmp_path: Path, command: Command) -> None:
    assert "no run or checkpoint" in command.mistake(tmp_path / "none", "--out", tmp_path / "out")
    assert "no intact checkpoint" in command.mistake(tmp_path, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [([], "--out"), (["a", "--outt", "b"], "--outt"), (["a", "--out"], "--out"), (["a", "b", "--out", "c"], "b")],
)
def test_a_wrong_command_line(arguments: list[str], part: str, command: Command) -> None:
    assert part in command.mistake(*arguments)


def test_a_full_disk_leaves_nothing(one_run: Config, mounted: Path, command: Command) -> None:
    fill(mounted)
    text = command.mistake(one_run.run_dir, "--out", mounted / "out")
    assert f"cannot write {mounted}/out" in text and "No space left on device" in text
    assert [path.name for path in mounted.iterdir()] == ["ballast"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub(monkeypatch, str(tmp_path / "cache")) as running:
        yield running


@torch.no_grad()
def test_a_pushed_model_is_opened_from_the_hub(one_run: Config, hub: FakeHub, tmp_path: Path, command: Command) -> None:
    code, text, _ = command(one_run.run_dir, "--out", tmp_path / "out", "--push-to-hub", "ada/net")
    call = "timm.create_model('hf-hub:ada/net', pretrained=True)"
    assert code == 0 and text.splitlines()[-1] == f"pushed to {hub.address}/ada/net: {call}"
    pushed = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert pushed.items() <= hub.models["ada/net"].items() and "README.md" in pushed
    assert 'timm.create_model("hf-hub:ada/net", pretrained=True)' in hub.cards[0]
    model = timm.create_model("hf-hub:ada/net", pretrained=True).eval()
    assert torch.equal(model(images(one_run)), trained(one_run)(images(one_run)).logits)


def test_a_folder_that_cannot_be_pushed_is_kept(
    one_run: Config, hub: FakeHub, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "my out"
    code, _, err = command(one_run.run_dir, "--out", out, "--push-to-hub", "bob/net")
    assert code == 2 and "the token has no right to write bob/net" in one_line(err)
    assert f"{out} is kept, to be pushed by `hf upload USER/NAME '{out}'`" in err
    assert deployed(out) and not hub.models


@pytest.mark.parametrize("name", ["net", "a/b/c", "a--b/c", "/net", "a/", "a b/c"])
def test_a_name_that_the_hub_would_not_take(name: str, tmp_path: Path, command: Command) -> None:
    assert "must be USER/NAME" in command.mistake(tmp_path, "--out", tmp_path / "out", "--push-to-hub", name)
    assert not (tmp_path / "out").exists()


def test_the_library_replaces_an_earlier_export_alone(tmp_path: Path) -> None:
    model, out = timm.create_model("test_vit", num_classes=3), tmp_path / "out"
    assert tt_ray.export(model, out) == out
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="overwrite=True"):
        tt_ray.export(timm.create_model("test_vit", num_classes=3), out)
    assert (out / "model.safetensors").read_bytes() == before
    tt_ray.export(timm.create_model("test_vit", num_classes=4), out, overwrite=True)
    assert json.loads((out / "config.json").read_text())["num_classes"] == 4
    (out / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for taken in (tmp_path, out, tmp_path / "file"):
        held = listing(tmp_path)
        with pytest.raises(UserError, match="holds something else"):
            tt_ray.export(model, taken, overwrite=True)
        assert listing(tmp_path) == held
