"""Why it works: what one run, or two side by side, learn in which layer and when, from their checkpoints.

    python -m tt_ray.train shapes_baseline --run.keep_checkpoints 0
    python -m tt_ray.train shapes_textteacher --run.keep_checkpoints 0
    python -m eval.why runs/shapes_baseline runs/shapes_textteacher --out why

Every part makes a PNG and a CSV, and why.md has them all:

- cka_layers: linear CKA of every layer of the one with every layer of the other (of a run with itself where it is
  alone), from shuffled minibatches by the unbiased HSIC_1 (Nguyen et al., 2021, arXiv 2010.15327; Song et al., 2012).
- cka_epochs: the same, layer by layer, of every epoch with the run's last one (how early a layer is what it will be),
  and of the two runs after the same epoch (where and when the teacher makes a difference).
- gradient_cosine: of the two losses' gradients, by layer and epoch, for runs with text.
- alignment_uniformity: of the pooled features on the unit sphere, by epoch (Wang and Isola, 2020, arXiv 2005.10242);
  positive pairs are images of one class.

CKA and features are of validation images, gradients of training batches. When the text loss may stop is
`python -m eval.text_until`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tt_ray.terminal.command import program, read_arguments, run_command
from tt_ray.terminal.errors import UserError
from tt_ray.terminal.gpu import device_of
from tt_ray.terminal.progress import Display

_MOST_RUNS = 2


@dataclass(frozen=True)
class Arguments:
    """CKA by layer and epoch, gradient cosines, alignment and uniformity of one run, or of two side by side."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of one or two runs, trained with --run.keep_checkpoints 0."""
    out: Path
    """Folder of why.md, and of a PNG and a CSV for each part."""
    images: int = 512
    """Validation images, drawn at random; the same for both runs."""
    modules: bool = False
    """CKA of the outputs of every attention and MLP, as in the paper's analysis, in place of those of blocks."""
    batches: int = 8
    """Training batches that gradients are averaged over, for each epoch."""
    device: str = "cpu"
    """cpu or cuda."""


def main(arguments: list[str]) -> None:
    """Analyses one run, or two side by side, and writes why.md."""
    given = read_arguments(Arguments, arguments, program("eval.why"))
    if not 1 <= len(given.runs) <= _MOST_RUNS or len(set(given.runs)) < len(given.runs):
        raise UserError(f"pass one run, or two different ones, not {' '.join(map(str, given.runs)) or 'none'}")
    if min(given.images, given.batches) < 1:
        raise UserError(f"--images is {given.images} and --batches is {given.batches}, but both must be at least 1")
    _analyse(given)


def _analyse(given: Arguments) -> None:
    # Not at the top: they bring torch and timm, which take seconds.
    import numpy as np
    import torch

    from eval.contract import EvalConfig
    from eval.why.analysis import gradients, open_run, representations
    from eval.why.figures import write
    from tt_ray.config import Config
    from tt_ray.data.prepare import open_images

    device_of(given.device)
    _, source, _ = open_images(Config.from_yaml(given.runs[0] / "config.yaml"))
    chosen = np.sort(np.random.default_rng(0).permutation(len(source))[: given.images])
    source = source.select(chosen)
    config = EvalConfig(None, Path(), device=given.device, threads=torch.get_num_threads())
    with Display() as display:
        runs = [open_run(path, display) for path in given.runs]
        if len(runs) == _MOST_RUNS and runs[0].name == runs[1].name:
            runs = [run._replace(name=str(path)) for run, path in zip(runs, given.runs, strict=True)]
        try:
            given.out.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"{given.out} is not a folder: choose another --out") from None
        kind = "modules" if given.modules else "blocks"
        parts = representations(runs, source, config, kind, given.out, display)
        parts.append(gradients(runs, given.batches, torch.device(given.device), given.out, display))
    text = "\n\n".join(["# Why it works", *parts]) + "\n"
    write(given.out / "why.md", text)
    print(f"{text}\n{given.out / 'why.md'}")


if __name__ == "__main__":
    run_command(main)
