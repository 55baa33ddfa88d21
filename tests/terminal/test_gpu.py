"""A GPU that cannot be used ends a command with one line: which machine, why, what to do. Nothing trains on its CPU."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toy import toy_config
from tt_ray.terminal import gpu as module
from tt_ray.terminal.errors import UserError
from tt_ray.terminal.gpu import device_of, gpu

OLD = (
    "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx Alternatively, go to: "
    "https://pytorch.org to install a PyTorch version that has been compiled with your version of the CUDA driver."
)
NONE = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver from ..."
SICK = "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before? Error 802: not initialized"
HERE = f"no GPU can be used on {socket.gethostname()}: "
CASES: dict[str, tuple[Exception, str, str]] = {
    "an old driver": (RuntimeError(OLD), "13.2", "its NVIDIA driver is for CUDA 12.4 at most, but torch .+ is built "
                      r"for CUDA 13.2: install driver 580 or newer, or another torch \(clusters/README.md#drivers\)"),
    "an older one": (RuntimeError(OLD.replace("12040", "11080")), "12.6", "CUDA 11.8 at most.+ 525 or newer"),
    "a CUDA to come": (RuntimeError(OLD.replace("12040", "13010")), "14.0", "CUDA 13.1 at most.+ a newer driver"),
    "no driver": (RuntimeError(NONE), "13.2", "it has no NVIDIA driver: install one"),
    "no GPU": (RuntimeError("No CUDA GPUs are available"), "13.2", "No CUDA GPUs are available .+CUDA 13.2"),
    "built without": (AssertionError("Torch not compiled with CUDA enabled"), "", "torch .+ is built without CUDA"),
    "a sick one": (RuntimeError(f"{SICK}\n\nand more"), "13.2", "Unexpected error .+Error 802: not initialized .torch"),
    "an older card": (
        torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel"),
        "13.2",
        "CUDA 13.2, but not for this kind of GPU: install another torch",
    ),
}  # fmt: skip


def breaks(monkeypatch: pytest.MonkeyPatch, error: Exception, cuda: str = "13.2") -> None:
    """CUDA cannot be initialised, whatever this machine has."""

    def init() -> None:
        raise error

    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda or None)


@pytest.mark.parametrize("case", CASES)
def test_the_line_names_machine_cause_and_way(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error, cuda, line = CASES[case]
    breaks(monkeypatch, error, cuda)
    for use in (gpu, lambda: device_of("cuda:1")):
        with pytest.raises(UserError, match=f"^{HERE}(?:.* )?{line}") as raised:
            use()
        assert "\n" not in str(raised.value)
    assert device_of("cpu") == torch.device("cpu")


def test_one_that_computes_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = list[Any]()
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda size, device: (chosen.append(device), ones(size))[1])
    assert device_of("cuda:2") == torch.device("cuda", 2) == gpu(2) and chosen == [torch.device("cuda", 2)] * 4


def _by_torchrun(folder: Path) -> None:
    from tt_ray.training.torchrun import train_under_torchrun

    train_under_torchrun(toy_config(folder, run__use_gpu=True))


def _by_ray_train(folder: Path) -> None:
    from tt_ray.cluster import context, launch

    class Context:
        rank, world, device = 0, 1, torch.device("cpu")

        def __init__(self, *_: Any) -> None: ...

    class Nothing(dict[str, Any]):
        def put(self, *_: Any) -> None: ...

    tree = toy_config(folder, run__use_gpu=True).to_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "RayContext", Context)
        launch._train_worker({"config": tree, "store": None, "threads": 1, "messages": Nothing()})


def _by_an_actor(folder: Path) -> None:
    from tt_ray.cluster.actor_pool import Actor, Pool

    made = list[Pool]()
    actor: Any = object.__new__(Actor)
    actor._failed = False
    if problem := actor._try(lambda: actor._make(made.append, Pool(1, 1, True))):
        assert not actor._failed and not made
        raise UserError(problem)


def _by_an_evaluation(folder: Path) -> None:
    from eval.contract import EvalConfig
    from eval.jobs.worker import Request, work

    config = EvalConfig(None, folder, 0, "cuda", 1)
    answer = work(Request(None, None, config))  # type: ignore[arg-type]
    assert answer.kind == "mistake"
    raise UserError(answer.problem)


def _by_a_validation(folder: Path) -> None:
    from tt_ray.training import validation

    tree = toy_config(folder, text__weight=0.0, run__use_gpu=True).to_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "0")
        patch.setattr(validation, "load_backbone", None)
        validation.validate_checkpoint(tree, str(folder / "step-00000001"))


def _by_the_library(folder: Path) -> None:
    import tt_ray

    tt_ray.embed(["a cat"], str(folder), device="cuda")


def _by_a_command(*words: str) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        import importlib

        importlib.import_module(words[0]).main([*words[1:], "--device", "cuda"])

    return run


WAYS: dict[str, Callable[[Path], None]] = {
    "torchrun": _by_torchrun,
    "Ray Train": _by_ray_train,
    "an actor that embeds or captions": _by_an_actor,
    "a job of an evaluation": _by_an_evaluation,
    "a validation next to the training": _by_a_validation,
    "the library": _by_the_library,
    "efficiency": _by_a_command("eval.efficiency", "--models", "a=vit_tiny_patch16_224"),
    "similarity": _by_a_command("eval.similarity", "--task", "pets", "--models", "a=vit_tiny_patch16_224"),
}


@pytest.mark.parametrize("way", WAYS)
def test_it_is_asked_before_anything_else_happens(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks(monkeypatch, RuntimeError(OLD))
    monkeypatch.setattr(module.socket, "gethostname", lambda: "node-7")
    for opens in ("tt_ray.data.prepare.open_data", "tt_ray.training.torchrun.prepare"):
        monkeypatch.setattr(opens, None)
    with pytest.raises(UserError, match="^no GPU can be used on node-7: its NVIDIA driver is for CUDA 12.4 at most"):
        WAYS[way](tmp_path)
