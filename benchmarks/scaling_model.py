"""What a training step costs on many GPUs, as formulas: no measuring and no input or output here.

All times are seconds, all sizes bytes, and B is the global batch unless said otherwise. Symbols: n workers (one GPU
each) on m nodes of g GPUs. A step takes as long as the slowest of what goes on at the same time: the GPUs' own work,
decoding, reading, and the writing of checkpoints.

Sources
    ring        Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations"
    hierarchy   Jia et al. 2018, arXiv 1807.11205: reduce-scatter in the node, all-reduce between nodes, all-gather
    latencies   NCCL's own cost model, github.com/NVIDIA/nccl, src/graph/tuning.cc
    overlap     Li et al. 2020, arXiv 2006.15704 (DDP): gradients travel in buckets while the backward pass goes on
    MFU         Chowdhery et al. 2022, arXiv 2204.02311, appendix B: FLOPs of the model over peak FLOPs
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

FLOAT = 4
"""Bytes of a float32: parameters, gradients, and what the text loss gathers."""
BUCKET = 25 * 2**20
"""DDP's default bucket_cap_mb."""
BACKWARD = 2 / 3
"""The backward pass's share of a step's FLOPs: two matrix products for each one of the forward pass."""
ALIGN = "text loss"

ROW_NUMBER = 8
"""Bytes of the number by which an image's embedding is looked up."""

Negatives = Literal["global", "gathered", "local"]


class TextCost(NamedTuple):
    """What the text loss costs for each pair of an image and a caption, its balance included."""

    flops: float
    """FLOPs per pair and dimension of the embedding."""
    traffic: float
    """Bytes that operations other than matrix products read and write."""
    peak: float
    """Bytes that live at the same time."""


@dataclass(frozen=True)
class Machine:
    """A cluster of equal nodes."""

    flops: float
    """Peak FLOP/s of the model's precision."""
    mfu: float
    flops_fp32: float
    """Peak FLOP/s of the text loss, which is computed in float32."""
    memory_rate: float
    memory: float
    gpus_per_node: int
    nvlink: float
    """Bytes per s that a GPU sends in an all-reduce within its node (bus bandwidth)."""
    network: float
    """Bytes per s that a node sends to others."""
    latency: float
    """Of any collective."""
    hop_nvlink: float
    hop_network: float
    copy_rate: float
    """From a GPU to main memory."""
    loaders: int
    """Loader processes per GPU, a core each."""
    decode_rate: float
    """Images per s and loader process."""
    storage: float
    """Bytes per s that all nodes together can read; 0 is no limit."""
    write_rate: float
    """At which worker 0 writes checkpoints."""


@dataclass(frozen=True)
class Work:
    """What is trained."""

    name: str
    parameters: int
    flops: float
    """Per image, forward and backward."""
    dim: int
    """D, of the embeddings; 0 trains without text."""
    images: int
    """Per epoch, which is also the time from one checkpoint to the next."""
    image_size: float
    """Bytes of an encoded image."""
    text: TextCost
    log_every: int = 50
    copies: int = 3
    """Of the parameters in a checkpoint: themselves and the optimiser's two moments; one more with an EMA."""
    negatives: Negatives = "global"
    """What a worker computes of the B x B pairs: its own images' rows (as the code does), all of them from gathered
    features (as it does for losses of users), or its own images with its own captions (text.negatives local)."""
    held: bool = False
    """Whether each GPU holds all embeddings (text.on_device), so that numbers of rows are gathered in place of them."""


@dataclass(frozen=True)
class Prediction:
    """One step of n workers."""

    gpus: int
    batch: int
    parts: dict[str, float]
    """Of the GPUs' own work, one after the other."""
    beside: dict[str, float]
    """What goes on at the same time."""
    text_memory: float
    fits: bool
    """Whether the text loss alone fits in a GPU's memory."""

    @property
    def step(self) -> float:
        return max(sum(self.parts.values()), *self.beside.values())

    @property
    def images_per_s(self) -> float:
        return self.batch / self.step

    @property
    def limit(self) -> str:
        """What takes longest: something beside the GPUs' work if they wait for it, else the largest part of that."""
        if not self.fits:
            return "memory of the text loss"
        slowest = max(self.beside, key=lambda name: self.beside[name])
        if self.beside[slowest] > sum(self.parts.values()):
            return slowest
        return max(self.parts, key=lambda name: self.parts[name])


def ring_volume(size: float, n: int) -> float:
    """Bytes that each of n workers sends to all-reduce `size` bytes: 2 (n - 1) / n of them (ring)."""
    return 2 * (n - 1) / n * size


def nodes(n: int, machine: Machine) -> tuple[int, int]:
    """m, and the workers of a node."""
    m = -(-n // machine.gpus_per_node)
    return m, -(-n // m)


def all_reduce(size: float, n: int, machine: Machine) -> float:
    """ring_volume(size, g) / nvlink + ring_volume(size, m) / network + latencies (hierarchy).

    The g GPUs of a node share its network, and each carries 1/g of the bytes between nodes. Between nodes the latency
    is that of a tree, 2 log2(m) hops, as NCCL chooses for small messages.
    """
    if n == 1:
        return 0.0
    m, g = nodes(n, machine)
    hops = 2 * (g - 1) * machine.hop_nvlink + 2 * math.ceil(math.log2(m)) * machine.hop_network
    return ring_volume(size, g) / machine.nvlink + ring_volume(size, m) / machine.network + machine.latency + hops


def all_gather(size: float, n: int, machine: Machine) -> float:
    """Gathers `size` bytes, all workers' parts together: half of a ring's volume, and its n - 1 hops."""
    if n == 1:
        return 0.0
    m, g = nodes(n, machine)
    hops = (n - m) * machine.hop_nvlink + (m - 1) * machine.hop_network
    return (ring_volume(size, g) / machine.nvlink + ring_volume(size, m) / machine.network) / 2 + machine.latency + hops


def exposed_gradients(parameters: int, compute: float, n: int, machine: Machine) -> float:
    """What of the gradients' all-reduce the backward pass does not hide: at least the last bucket (overlap)."""
    size = parameters * FLOAT
    buckets = math.ceil(size / BUCKET)
    whole = buckets * all_reduce(size / buckets, n, machine)
    return max(whole - BACKWARD * compute, whole / buckets)


def pairs(batch: int, n: int, negatives: Negatives) -> float:
    """Pairs whose similarity each worker computes, for b = batch / n of its own: b x B, B x B or b x b."""
    share = batch / n
    return {"global": share * batch, "gathered": batch * batch, "local": share * share}[negatives]


def text_exchange(work: Work, batch: int, compute: float, n: int, machine: Machine) -> float:
    """What the forward pass does not hide of the embeddings' gather; and features, where the loss is not by rows.

    Where embeddings are held, numbers of rows are gathered before it instead. By rows a softmax over the batch adds up
    three numbers for each caption: two forward and one backward.
    """
    if work.negatives == "local":
        return 0.0
    if work.held:
        targets = all_gather(batch * ROW_NUMBER, n, machine)
    else:
        targets = max(all_gather(batch * work.dim * FLOAT, n, machine) - (1 - BACKWARD) * compute, 0.0)
    if work.negatives == "gathered":
        return targets + all_gather(batch * work.dim * FLOAT, n, machine)
    return targets + 3 * all_reduce(batch * FLOAT, n, machine)


def text_loss(work: Work, batch: int, n: int, machine: Machine) -> float:
    """pairs x (FLOPs x D / float32 peak + traffic / memory rate): both at their peaks, so a lower bound."""
    each = work.text.flops * work.dim / machine.flops_fp32 + work.text.traffic / machine.memory_rate
    return pairs(batch, n, work.negatives) * each


def predict(work: Work, machine: Machine, gpus: int, batch_per_gpu: float) -> Prediction:
    """One step of `gpus` workers with that many images each."""
    batch = round(gpus * batch_per_gpu)
    taught = work.dim > 0
    compute = batch_per_gpu * work.flops / (machine.flops * machine.mfu)
    saved = work.copies * work.parameters * FLOAT
    steps = max(work.images / batch, 1.0)
    small = all_reduce(FLOAT, gpus, machine)
    alive = pairs(batch, gpus, work.negatives) * work.text.peak * taught
    parts = {
        "compute": compute,
        ALIGN: text_loss(work, batch, gpus, machine) if taught else 0.0,
        "gradients": exposed_gradients(work.parameters, compute, gpus, machine),
        "text exchange": text_exchange(work, batch, compute, gpus, machine) if taught else 0.0,
        # In each step the balance, and the loss forward and backward; the recorder in every log_every-th.
        "small messages": small * (3 * taught + 1 / work.log_every),
        "checkpoint copy": saved / machine.copy_rate / steps,
    }
    beside = {
        "decoding": batch_per_gpu / (machine.loaders * machine.decode_rate),
        "storage": batch * work.image_size / machine.storage if machine.storage else 0.0,
        # The next checkpoint waits for the last one.
        "checkpoint write": saved / machine.write_rate / steps,
    }
    return Prediction(gpus, batch, parts, beside, alive, alive <= machine.memory)


def turning_points(work: Work, machine: Machine, batch_per_gpu: int, most: int = 4096) -> dict[str, int | None]:
    """The fewest GPUs, in whole nodes, from which on the text loss decides; None where not within `most`."""
    counts = range(machine.gpus_per_node, most + 1, machine.gpus_per_node)
    runs = [predict(work, machine, gpus, batch_per_gpu) for gpus in counts]

    def first(found: list[bool]) -> int | None:
        return next((run.gpus for run, yes in zip(runs, found, strict=True) if yes), None)

    rates = [run.images_per_s for run in runs]
    return {
        "a tenth of compute": first([run.parts[ALIGN] > 0.1 * run.parts["compute"] for run in runs]),
        "as long as compute": first([run.parts[ALIGN] > run.parts["compute"] for run in runs]),
        "more than a GPU's memory": first([not run.fits for run in runs]),
        "more GPUs train slower": first(
            [after < rate * (1 - 1e-9) for rate, after in zip(rates, [*rates[1:], rates[-1]], strict=True)]
        ),
    }
