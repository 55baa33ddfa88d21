"""Time of a training step of several configurations, measured in turns on a machine that does other things as well."""

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tt_ray.config import Config
from tt_ray.schedules import build_schedule

_STEPS = 5
"""Steps between two readings of the clock."""
_MANY = 10**9
"""Batches without end."""


def step_times(configs: Mapping[str, Config], rounds: int) -> dict[str, list[float]]:
    """Seconds of a step of each, one value a round; a first round, of warm-up, is left out.

    All train in this process, in turns of a few steps: the halves of a round find the machine in the same state, so
    that their ratio means something where times do not. Where text.schedule has epochs with and without a teacher,
    both take a turn, and count by their number. Loading, augmentation and the optimiser count; validation,
    checkpoints and exchange with other workers do not. A run of several workers is measured as one of its workers,
    with its share of the batch. Needs embeddings that exist, or makes them.
    """
    found: dict[str, list[float]] = {name: [] for name in configs}
    with tempfile.TemporaryDirectory(prefix="tt-ray-times-") as folder:
        sides = {name: _stepper(config, Path(folder) / name) for name, config in configs.items()}
        for number in range(-1, rounds):
            # Every other round the other way round, so that no side is always first.
            for name in list(sides) if number % 2 else reversed(list(sides)):
                seconds = sides[name]()
                if number >= 0:
                    found[name].append(seconds)
    return found


def _stepper(config: Config, folder: Path) -> Callable[[], float]:
    """A function that takes some steps and returns the seconds of one."""
    import torch

    from tt_ray.data.loader import TrainBatches, load
    from tt_ray.data.prepare import find_store, open_data, open_images
    from tt_ray.terminal.gpu import gpu
    from tt_ray.training.context import LocalContext
    from tt_ray.training.trainer import Trainer

    cuda = config.run.use_gpu
    context = LocalContext(0, 1, gpu() if cuda else torch.device("cpu"))
    store = find_store(config, open_images(config)[0])
    data = open_data(config, store)
    batch = config.train.batch_size // config.workers[1]
    config = config.override("train.batch_size", batch)
    trainer = Trainer(config.override("run.storage", str(folder)), data, context)
    trainer.model.train()
    targets = None if trainer.text_teacher.held else data.targets
    batches = TrainBatches(data.train, targets, trainer.order, config)
    loaded = iter(load(batches, range(_MANY), config, context.device))
    epochs = epochs_to_time(config)

    def seconds_in(epoch: int) -> float:
        # Its last step: in the first of a training nothing is left out yet by optim.small_loss.
        start, step = time.perf_counter(), (epoch + 1) * trainer.order.steps_per_epoch - 1
        for _ in range(_STEPS):
            trainer.step(next(loaded), step)
        if cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / _STEPS

    return lambda: sum(share * seconds_in(epoch) for epoch, share in epochs.items())


def epochs_to_time(config: Config) -> dict[int, float]:
    """The first epoch with a teacher and the first without, where there are such, with their share of all epochs."""
    epochs = config.train.epochs
    schedule = build_schedule(config.text.schedule, config.text.weight, epochs)
    taught = [schedule(epoch) > 0 for epoch in range(epochs)]
    return {taught.index(kind): taught.count(kind) / epochs for kind in (True, False) if kind in taught}
