"""Copies of the state: whose memory they have, who makes them, what is found in them before they are written."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tt_ray.terminal.errors import NonFiniteLoss
from tt_ray.training.checkpoint import Position, save_checkpoint
from tt_ray.training.snapshot import HostMemory, Snapshot, snapshot


class OnGpu(Tensor):
    """A tensor that says that it is a GPU's."""

    device: Any = torch.device("cuda", 0)
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


def on_gpu(*values: float) -> Tensor:
    return torch.tensor(values).as_subclass(OnGpu)


def test_cpu_tensors_are_cloned_whatever_their_layout() -> None:
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    copy = HostMemory().copy("weight", weight)
    assert torch.equal(copy, weight) and copy.is_contiguous()
    before = copy.clone()
    weight.add_(1)
    assert torch.equal(copy, before)


@pytest.mark.parametrize("pins", [True, False])
def test_memory_next_to_a_gpu_is_pinned_once_and_used_again(pins: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[bool]()
    original = torch.empty

    def empty(*size: Any, pin_memory: bool = False, **how: Any) -> Tensor:
        asked.append(pin_memory)
        if pin_memory and not pins:
            raise RuntimeError("CUDA error: out of memory")
        return original(*size, **how)

    monkeypatch.setattr(torch, "empty", empty)
    memory = HostMemory()
    first = [memory.copy(name, on_gpu(1, 2)) for name in "ab"]
    assert asked == ([True, True] if pins else [True, False, False]), "what cannot be pinned is not tried each time"
    again = [memory.copy(name, on_gpu(3, 4)) for name in "ab"]
    assert [copy.data_ptr() for copy in again] == [copy.data_ptr() for copy in first]
    assert len({copy.data_ptr() for copy in again}) == 2 and all(copy.tolist() == [3, 4] for copy in again)
    assert memory.copy("a", on_gpu(5, 6, 7)).tolist() == [5, 6, 7], "of another shape"


def test_replicas_other_than_the_first_copy_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tt_ray.training.snapshot.rank", lambda: 1)
    model = nn.Linear(2, 2)
    monkeypatch.setattr(model, "state_dict", None)
    assert snapshot(model, torch.optim.SGD(model.parameters()), None, HostMemory()) == Snapshot({}, {})


LARGE = 1e30  # its square overflows
FINITE = [torch.full((3,), LARGE), torch.tensor([2**62]), torch.zeros(0), torch.tensor(-LARGE), torch.tensor([True])]


@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("file", ["model", "ema"])
def test_a_weight_that_is_not_finite_is_named_and_no_other(file: str, bad: float) -> None:
    weights = {str(number): value for number, value in enumerate(FINITE)}
    state = Snapshot({"model": {**weights}, "optimizer": {"a|exp_avg": torch.tensor(bad)}, "ema": {**weights}}, {})
    assert state.not_finite() == ""
    state.tensors[file]["head.weight"] = torch.tensor([[0.0, 1.0], [LARGE, bad]])
    assert state.not_finite() == "head.weight"


def test_on_a_gpu_an_event_follows_the_last_copy_and_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    done = list[str]()

    class Noted(HostMemory):
        def copy(self, name: str, tensor: Tensor) -> Tensor:
            done.append(name)
            return super().copy(name, tensor)

    class Event:
        def __init__(self, blocking: bool) -> None:
            assert blocking, "the thread that writes must not take a processor while it waits"

        def record(self) -> None:
            done.append("event")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    model, ema = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5)
    model(torch.ones(1)).backward()
    optimizer.step()
    for module in (model, ema):
        monkeypatch.setattr(module, "state_dict", lambda: {"weight": on_gpu(1, 2)})
        monkeypatch.setattr(module, "parameters", lambda: [SimpleNamespace(is_cuda=True)])
    state = snapshot(model, optimizer, ema, Noted())
    assert done == ["model/weight", "optimizer/weight|momentum_buffer", "ema/weight", "event"]
    assert isinstance(state.copied, Event)


class Copying:
    """The event of a GPU that has not copied yet."""

    def __init__(self, to: Tensor, value: float) -> None:
        self.to, self.value = to, value

    def synchronize(self) -> None:
        self.to.fill_(self.value)


def test_what_is_written_has_been_copied_before(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    kept = torch.full((2,), float("nan"))
    state: Any = Snapshot({"model": {"weight": kept}}, {}, Copying(kept, 3.0))  # type: ignore[arg-type]
    save_checkpoint(tmp_path / "good", Position(1, 0, 0), state, {}, "")
    assert load_file(tmp_path / "good" / "model.safetensors")["weight"].tolist() == [3, 3]
    state = Snapshot({"model": {"weight": kept}}, {}, Copying(kept, float("inf")))  # type: ignore[arg-type]
    with pytest.raises(NonFiniteLoss, match=r"^weights \(weight\) are not finite after step 6$"):
        save_checkpoint(tmp_path / "bad", Position(7, 0, 0), state, {}, "")
    assert [path.name for path in tmp_path.iterdir()] == ["good"]
