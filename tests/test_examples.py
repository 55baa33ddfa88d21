"""Every example runs as it stands, at toy size, and leaves a plain timm model."""

import ast
import math
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from tt_ray.training.metrics_log import read_rows
from tt_ray.training.text_teacher import Taught, TextTeacher

EXAMPLES = Path(__file__).parents[1] / "examples"
TRAIN, TEST, CLASSES = 64, 160, 16


def _main(name: str) -> Callable[..., Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("examples") / "pictures"
    _main("pictures")(root, train=TRAIN, test=TEST, wrong=0.2)
    return root


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch) -> list[Taught]:
    """What the teacher returns while a test runs."""
    found, forward = list[Taught](), TextTeacher.forward

    def recording(self: TextTeacher, *arguments: Any, **options: Any) -> Taught:
        found.append(forward(self, *arguments, **options))
        return found[-1]

    monkeypatch.setattr(TextTeacher, "forward", recording)
    return found


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_each_fits_on_a_screen_and_says_how_to_run_it(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 60
    about = next(node.value for node in ast.parse(text).body if isinstance(node, ast.Expr))
    assert isinstance(about, ast.Constant)
    assert f"python examples/{path.name}" in str(about.value) and "pip install" in str(about.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of frameworks: few steps, few workers, no accelerator
@pytest.mark.parametrize("name", ["plain_timm", "lightning_module", "hf_trainer"])
def test_frameworks_train_with_text_and_export_the_model_alone(
    name: str, pictures: Path, taught: list[Taught], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train = _main(name)
    for epochs in (2, 1):  # a second time where there is an export already
        taught.clear()
        export = train(root=pictures, store=pictures / "store", name="test_resnet", epochs=epochs)
        assert len(taught) == epochs * TRAIN // 32
        assert all(math.isfinite(out.text) and out.text > 0 and out.loss.requires_grad for out in taught)
    model: Any = timm.create_model(f"local-dir:{export}", pretrained=True)
    assert model.num_classes == CLASSES and model.pretrained_cfg["input_size"] == (3, 64, 64)
    assert model.pretrained_cfg["label_names"] == sorted(path.name for path in (pictures / "test").iterdir())
    assert load_file(export / "model.safetensors").keys() == timm.create_model("test_resnet").state_dict().keys()
    if name == "lightning_module":
        checkpoint = max(tmp_path.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime)
        weights = torch.load(checkpoint, weights_only=True)["state_dict"]
        assert "teacher.head.layers.0.weight" in weights
        deployed = {key.removeprefix("model."): value for key, value in weights.items() if key.startswith("model.")}
        assert all(torch.equal(value, deployed[key]) for key, value in model.state_dict().items())


@pytest.mark.slow
def test_the_notebook_ends_in_a_picture(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one process of torchrun, which trains in this process: Ray is started in test_train_command.py."""
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "1", "RANK": "0", "MPLBACKEND": "agg"}.items():
        monkeypatch.setenv(name, value)
    text, changes = re.subn(
        r"EPOCHS = Path\(.*\n", f"EPOCHS = Path({str(pictures)!r}), 1\n", (EXAMPLES / "notebook.py").read_text()
    )
    assert changes == 1
    (tmp_path / "notebook.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("notebook.py")
    assert (tmp_path / "what_text_buys.png").stat().st_size > 10_000
    for name, has_text in {"base": False, "text": True}.items():
        assert (tmp_path / "runs" / name / "export" / "model.safetensors").exists()
        losses = [
            row["loss_text"] for row in read_rows(tmp_path / "runs" / name / "metrics.jsonl") if "loss_text" in row
        ]
        assert losses and all(math.isfinite(loss) and (loss > 0) is has_text for loss in losses)
