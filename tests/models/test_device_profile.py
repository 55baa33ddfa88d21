"""What is chosen by the kind of device; torch's answers about a GPU are played."""

import ast
from pathlib import Path
from typing import Any

import pytest
import torch

import tt_ray
from tt_ray.models.classifier import mixed_precision
from tt_ray.models.device_profile import precision_note, precision_on, use_gpu_profile

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def play(monkeypatch: pytest.MonkeyPatch, bf16: bool) -> None:
    """A GPU that computes in bf16, or one that only emulates it, as torch reports both."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "fp16"])
def test_auto_is_what_the_device_has_and_others_are_what_they_say(
    device: torch.device, bf16: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, bf16)
    auto = "bf16" if device is GPU and bf16 else "fp32"
    found = precision_on(device, precision)
    assert found == (auto if precision == "auto" else precision)
    note = precision_note(device, precision)
    assert bool(note) is (precision == "auto" and device is GPU and not bf16)
    assert not note or ("Tesla V100" in note and "--train.precision fp16" in note)


@pytest.mark.parametrize(("precision", "dtype"), [("auto", None), ("fp32", None), ("bf16", torch.bfloat16)])
def test_on_a_cpu_auto_computes_in_full_precision(precision: str, dtype: torch.dtype | None) -> None:
    rows = torch.randn(3, 3)
    with mixed_precision(CPU, precision):
        assert (rows @ rows).dtype == (dtype or torch.float32)


def settings() -> dict[str, Any]:
    backends = torch.backends
    return {
        "products": torch.get_float32_matmul_precision(),
        "products of cuBLAS": backends.cuda.matmul.fp32_precision,
        "convolutions": backends.cudnn.conv.fp32_precision,
        "benchmark": backends.cudnn.benchmark,
    }


def test_torch_is_set_for_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = settings()
    use_gpu_profile(CPU)
    assert settings() == before
    try:
        use_gpu_profile(GPU)
        wanted = {"products": "high", "products of cuBLAS": "tf32", "convolutions": "tf32", "benchmark": True}
        assert settings() == wanted
        assert torch.backends.cuda.matmul.allow_tf32, "torch's compiler reads the older name too"
    finally:
        torch.set_float32_matmul_precision(before["products"])
        torch.backends.cudnn.benchmark = before["benchmark"]
    assert torch.get_float32_matmul_precision() == before["products"]  # and the two ways to set it are not mixed
    assert torch.backends.cudnn.allow_tf32


def test_no_other_file_sets_torch_for_a_process() -> None:
    """What users import for loops of their own would otherwise change these, too."""
    names = {"set_float32_matmul_precision", "fp32_precision", "allow_tf32", "benchmark"}
    root, found = Path(tt_ray.__file__).parent, list[str]()
    for path in root.rglob("*.py"):
        text = path.read_text()
        if any(name in text for name in names):
            used = {node.attr for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
            found += [path.relative_to(root).as_posix()] * bool(used & names)
    assert found == ["models/device_profile.py"]
