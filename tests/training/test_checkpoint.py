"""The whole training state comes back bit-equal; whatever is damaged or does not fit is noticed."""

import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import tt_ray.io.files
import tt_ray.training.checkpoint
from tt_ray.config import OptimConfig
from tt_ray.io.checkpoint_folder import check_manifest, checkpoints, newest_intact
from tt_ray.io.files import new_folder
from tt_ray.terminal.errors import UserError
from tt_ray.training.checkpoint import Position, load_checkpoint, save_checkpoint
from tt_ray.training.optim import build_optimizer
from tt_ray.training.snapshot import HostMemory, snapshot

POSITION = Position(step=2, epoch=1, samples_seen=16)
EXTRA = {"seconds": 1.5, "scores": {"top1": 12.5}, "classes": ["a", "ö"], "scaler": {}}
OPTIMIZERS = ["adamw", "sgd", "lamb"]


def _net(hidden: int = 4, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, hidden, 3), nn.BatchNorm2d(hidden), nn.Flatten(), nn.Linear(hidden * 4, 2))


def _optimizer(model: nn.Module, name: str = "adamw") -> Optimizer:
    return build_optimizer(OptimConfig(name=name, lr=1e-2), model)


def _step(model: nn.Module, optimizer: Optimizer, seed: int) -> None:
    images = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    model(images).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def _trained(name: str = "adamw", hidden: int = 4) -> tuple[nn.Module, Optimizer]:
    model = _net(hidden)
    optimizer = _optimizer(model, name)
    for seed in range(2):
        _step(model, optimizer, seed)
    return model, optimizer


def _save(path: Path, name: str = "adamw", step: int = 2, ema: nn.Module | None = None) -> tuple[nn.Module, Optimizer]:
    model, optimizer = _trained(name)
    save_checkpoint(
        path, Position(step, 1, 8 * step), snapshot(model, optimizer, ema, HostMemory()), EXTRA, "train: {}\n"
    )
    return model, optimizer


def _assert_same(one: object, other: object) -> None:
    """Equal values of equal types, all the way down."""
    assert type(one) is type(other)
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            _assert_same(value, other[key])
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            _assert_same(a, b)
    else:
        assert one == other


@pytest.mark.parametrize("saved_fused", [True, False])
def test_kernels_are_those_of_the_device_that_resumes(saved_fused: bool, tmp_path: Path) -> None:
    """A GPU's are fused and keep `step` there; a scaler knows by the optimiser, not by its groups, which it has."""
    model = _net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=saved_fused)
    _step(model, optimizer, 0)
    save_checkpoint(tmp_path / "step-1", POSITION, snapshot(model, optimizer, None, HostMemory()), EXTRA, "train: {}\n")
    again = _net(seed=1)
    other = torch.optim.AdamW(again.parameters(), lr=1e-2, fused=not saved_fused)
    load_checkpoint(tmp_path / "step-1", again, other, None)
    assert [group["fused"] for group in other.param_groups] == [not saved_fused]
    for one, restored in ((model, optimizer), (again, other)):
        _step(one, restored, 1)
    for first, second in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_everything_comes_back_bit_equal_and_goes_on_alike(name: str, tmp_path: Path) -> None:
    ema = _net(seed=5)
    model, optimizer = _save(tmp_path / "step-2", name, ema=ema)
    assert any(key != "step" for entries in optimizer.state.values() for key in entries), "there is state to lose"
    again, other_ema = _net(seed=1), _net(seed=2)
    restored = _optimizer(again, name)
    assert load_checkpoint(tmp_path / "step-2", again, restored, other_ema) == (POSITION, EXTRA)
    for _ in range(2):
        _assert_same(dict(model.state_dict()), dict(again.state_dict()))
        _assert_same(optimizer.state_dict(), restored.state_dict())
        _step(model, optimizer, 7)
        _step(again, restored, 7)
    _assert_same(dict(ema.state_dict()), dict(other_ema.state_dict()))


def test_parameters_without_state_stay_without(tmp_path: Path) -> None:
    model = _net()
    model[3].requires_grad_(False)
    optimizer = _optimizer(model)
    _step(model, optimizer, 0)
    save_checkpoint(tmp_path / "step-1", POSITION, snapshot(model, optimizer, None, HostMemory()), EXTRA, "")
    again = _net(seed=1)
    again[3].requires_grad_(False)
    restored = _optimizer(again)
    load_checkpoint(tmp_path / "step-1", again, restored, None)
    _assert_same(optimizer.state_dict(), restored.state_dict())


@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_weights_and_their_moments_come_back_in_the_models_order_of_memory(
    order: torch.memory_format, tmp_path: Path
) -> None:
    """A GPU's fused kernel refuses moments whose strides are not the parameter's."""
    model, optimizer = _trained()
    model.to(memory_format=torch.channels_last)
    save_checkpoint(tmp_path / "step-1", POSITION, snapshot(model, optimizer, None, HostMemory()), EXTRA, "")
    again = _net(seed=1).to(memory_format=order)
    restored = _optimizer(again)
    load_checkpoint(tmp_path / "step-1", again, restored, None)
    assert again[0].weight.is_contiguous(memory_format=order)
    assert torch.equal(again[0].weight, model[0].weight)
    for parameter, state in restored.state.items():
        assert {state[key].stride() for key in ("exp_avg", "exp_avg_sq")} == {parameter.stride()}
    _assert_same(optimizer.state_dict()["state"], restored.state_dict()["state"])


def test_nothing_is_pickled_and_the_manifest_names_every_file(tmp_path: Path) -> None:
    _save(tmp_path / "step-2", ema=_net())
    files = {file.name for file in (tmp_path / "step-2").iterdir()}
    tensors = {"model.safetensors", "optimizer.safetensors", "ema.safetensors"}
    assert files == {*tensors, "state.json", "config.yaml", "manifest.json"}
    assert set(check_manifest(tmp_path / "step-2")["files"]) == files - {"manifest.json"}
    for file in (tmp_path / "step-2").iterdir():
        assert not file.read_bytes().startswith((b"\x80", b"PK")), f"{file.name} looks like a pickle"
    assert (tmp_path / "step-2" / "config.yaml").read_text() == "train: {}\n"


def test_writing_again_replaces(tmp_path: Path) -> None:
    _save(tmp_path / "step-2")
    _save(tmp_path / "step-2", step=9)
    assert check_manifest(tmp_path / "step-2")["step"] == 9
    assert [path.name for path in tmp_path.iterdir()] == ["step-2"]


@pytest.mark.parametrize("change", ["other shape", "missing layer", "extra layer", "frozen", "other optimiser order"])
def test_what_does_not_fit_is_refused(change: str, tmp_path: Path) -> None:
    _save(tmp_path / "step-2")
    model = _net(8 if change == "other shape" else 4)
    if change == "missing layer":
        model = model[:3]
    elif change == "extra layer":
        model.append(nn.Linear(2, 2))
    elif change == "frozen":
        model[0].requires_grad_(False)
    optimizer = _optimizer(model)
    if change == "other optimiser order":
        optimizer.param_groups.reverse()
    with pytest.raises(UserError, match="does not fit this run's configuration") as error:
        load_checkpoint(tmp_path / "step-2", model, optimizer, None)
    assert "\n" not in str(error.value)


def test_an_ema_that_was_not_saved_is_refused(tmp_path: Path) -> None:
    model, optimizer = _save(tmp_path / "step-2")
    with pytest.raises(UserError, match="does not fit"):
        load_checkpoint(tmp_path / "step-2", model, optimizer, _net())


def _flip(file: Path, where: int) -> None:
    content = bytearray(file.read_bytes())
    content[where] ^= 1
    file.write_bytes(content)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for step in (1, 2, 10):
        _save(folder / f"step-{step:08d}", step=step)
    return folder


def _copy(three: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(three, tmp_path / "checkpoints"))


def test_newest_comes_first(three: Path) -> None:
    names = ["step-00000010", "step-00000002", "step-00000001"]
    assert [path.name for path in checkpoints(three)] == names
    assert newest_intact(checkpoints(three)) == (three / names[0], [])
    assert newest_intact(checkpoints(three / "none")) == (None, [])


FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "config.yaml"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["first", "middle", "last", "truncated", "empty", "longer", "missing"])
def test_damage_is_noticed_and_the_one_before_is_used(name: str, damage: str, three: Path, tmp_path: Path) -> None:
    folder = _copy(three, tmp_path)
    file = folder / "step-00000010" / name
    content = file.read_bytes()
    if damage in ("first", "middle", "last"):
        _flip(file, {"first": 0, "middle": len(content) // 2, "last": -1}[damage])
    elif damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"truncated": content[:-1], "empty": b"", "longer": content + b"\n"}[damage])
    path, problems = newest_intact(checkpoints(folder))
    assert path == folder / "step-00000002"
    assert len(problems) == 1 and str(file) in problems[0] and "damaged" in problems[0]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", '{"format": 1}', '{"format": 99, "files": {}}'])
def test_a_manifest_that_is_no_manifest_means_not_complete(content: str, three: Path, tmp_path: Path) -> None:
    folder = _copy(three, tmp_path)
    (folder / "step-00000010" / "manifest.json").write_text(content)
    (folder / "step-00000002" / "manifest.json").unlink()
    path, problems = newest_intact(checkpoints(folder))
    assert path == folder / "step-00000001" and len(problems) == 2


def test_any_flipped_byte_of_the_manifest_is_survived(three: Path, tmp_path: Path) -> None:
    folder = _copy(three, tmp_path)
    manifest = folder / "step-00000010" / "manifest.json"
    for position in range(len(manifest.read_bytes())):
        _flip(manifest, position)
        path, problems = newest_intact(checkpoints(folder))
        assert path in (folder / "step-00000010", folder / "step-00000002")
        assert len(problems) == (path == folder / "step-00000002")
        _flip(manifest, position)
    assert newest_intact(checkpoints(folder))[1] == []


def test_all_damaged_means_none(three: Path, tmp_path: Path) -> None:
    folder = _copy(three, tmp_path)
    for path in checkpoints(folder):
        _flip(path / "state.json", 0)
    path, problems = newest_intact(checkpoints(folder))
    assert path is None and len(problems) == 3


@pytest.mark.parametrize(
    ("module", "failing"),
    [
        (tt_ray.training.checkpoint, "save_file"),
        (tt_ray.training.checkpoint, "write_manifest"),
        (tt_ray.io.files, "sync"),
    ],
)
def test_a_failed_write_leaves_nothing_behind(
    module: ModuleType, failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _save(tmp_path / "step-1", step=1)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    real, calls = getattr(module, failing), []

    def full(*arguments: object, **entries: object) -> None:
        calls.append(arguments)
        if len(calls) > 1 or failing == "write_manifest":
            raise OSError(28, "No space left on device")
        real(*arguments, **entries)

    monkeypatch.setattr(module, failing, full)
    for path in (tmp_path / "step-2", tmp_path / "step-1"):
        with pytest.raises(OSError, match="No space left"):
            _save(path)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_left_overs_of_a_killed_writer_do_not_disturb(tmp_path: Path) -> None:
    (tmp_path / ".step-2.partial").mkdir()
    (tmp_path / ".step-2.partial" / "junk").write_text("x")
    assert checkpoints(tmp_path) == []
    _save(tmp_path / "step-2")
    assert "junk" not in {file.name for file in tmp_path.rglob("*")}
    assert newest_intact(checkpoints(tmp_path)) == (tmp_path / "step-2", [])


def test_new_folder_appears_only_when_filled(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a" / "b") as folder:
        (folder / "x").write_text("1")
        assert not (tmp_path / "a" / "b").exists()
    assert (tmp_path / "a" / "b" / "x").read_text() == "1"
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "c"):
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_state_is_plain_json(tmp_path: Path) -> None:
    _save(tmp_path / "step-2", "lamb")
    state = json.loads((tmp_path / "step-2" / "state.json").read_text())
    assert state["position"] == {"step": 2, "epoch": 1, "samples_seen": 16} and state["extra"] == EXTRA
