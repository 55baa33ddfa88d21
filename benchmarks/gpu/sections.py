"""The claims that `python -m benchmarks.gpu` measures, and what a measurement is; imports nothing that takes time."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import NamedTuple


@dataclass(frozen=True)
class Row:
    """One measurement."""

    what: str
    value: float | str
    """Text where there is nothing to measure."""
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None
    quartiles: tuple[float, float] | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the value is what is aimed at; None without an aim or without a number."""
        if isinstance(self.value, str) or (self.at_most is None and self.at_least is None):
            return None
        low = self.at_least is None or self.value >= self.at_least
        return low and (self.at_most is None or self.value <= self.at_most)

    @property
    def aim(self) -> str:
        """The aim in words; empty without one."""
        parts = [(self.at_least, "at least"), (self.at_most, "at most")]
        return ", ".join(f"{words} {value:g}" for value, words in parts if value is not None)


class Section(NamedTuple):
    """One claim, and the function that measures it: `name` of `module`, which yields rows."""

    name: str
    module: str
    seconds: float
    """It is cut off after so many."""
    claim: str
    packages: tuple[str, ...] = ()
    """What it needs besides what all need."""

    @property
    def missing(self) -> list[str]:
        """Those that are not installed."""
        return [name for name in self.packages if find_spec(name) is None]


_STEPS, _LOOP, _VARIANTS, _RUNS, _ENCODERS = (
    f"benchmarks.gpu.{name}" for name in ("steps", "loop", "variants", "runs", "encoders")
)
_ENCODES = ("transformers", "tokenizers")
SECTIONS = (
    Section("machine", _STEPS, 15, "the card gives what its kind is known for"),
    Section("step", _STEPS, 45, "the text loss makes a step at most 3 % slower (best 1 %)"),
    Section("compiled_step", _STEPS, 110, "the same with train.compile; CUDA graphs make small batches faster"),
    Section("syncs", _STEPS, 50, "the host waits for the GPU at no step, but where metrics are read"),
    Section("from_memory", _LOOP, 45, "the loop trains at 0.97 of the rate of bare steps"),
    Section("from_jpegs", _LOOP, 70, "loaders keep up with the GPU where images are packed and the GPU augments"),
    Section("prefetch", _LOOP, 25, "copying and augmenting the next batch runs beside the step"),
    Section("augmentation", _LOOP, 20, "the GPU augments as loaders do, within two grey levels"),
    Section("resume", _RUNS, 45, "a killed run resumes to the weights of one that was not"),
    Section("checkpoint", _RUNS, 40, "a checkpoint of 1.4 GB delays training by less than half a step"),
    Section("text_loss", _STEPS, 25, "the text loss stays a small share of the step as the batch grows"),
    Section("memory", _VARIANTS, 20, "training takes no more of the GPU's memory than a bare loop"),
    Section("fp16", _VARIANTS, 20, "fp16 with its scaler stays finite and is as fast as bf16"),
    Section("ema", _VARIANTS, 20, "the average of weights costs little"),
    Section("channels_last", _VARIANTS, 30, "channels-last makes a ConvNeXt faster"),
    Section("parts", _VARIANTS, 30, "a batch in parts gives the same step in less memory"),
    Section("checkpointing", _VARIANTS, 25, "activations computed again give the same step in less memory"),
    Section("fsdp", _VARIANTS, 40, "a sharded model trains, saves and validates as a whole one does"),
    Section("export", _RUNS, 25, "timm's model of an export gives the training model's logits"),
    Section(
        "captions", _ENCODERS, 40, "captions are encoded as fast as by a plain loop", ("transformers", "tokenizers")
    ),
    Section("features", _ENCODERS, 30, "extraction of features keeps up with bare forward passes"),
    Section("linear_probe", _ENCODERS, 45, "the linear probe finds its model sooner than scikit-learn", ("sklearn",)),
)
"""The most important first: the time may not last for all."""
