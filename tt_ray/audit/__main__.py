"""Will it help on my data? `python -m tt_ray.audit [RECIPE | FILE.yaml] [--dotted.path value ...] --out DIR`.

Looks at labels, captions and embeddings as a training with the same options would read them, before any training and
without Ray: what captions know of the classes, how many labels are wrong and which, what captions say besides the
class, and what that made of a training where it was measured. Decodes no image unless it is asked for thumbnails or
for the agreement of images with captions.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tt_ray.cli import read_config, split_fields
from tt_ray.config import Config
from tt_ray.terminal.command import program, read_arguments, run_command
from tt_ray.terminal.progress import Display

MODULE = "tt_ray.audit"


@dataclass(frozen=True)
class Arguments:
    """Audit captions and labels before any training. Further options are those of a training, --data.root and so on."""

    recipe: Annotated[str, tyro.conf.Positional] = "shapes_textteacher"
    """Recipe or config.yaml, of which data and text count."""
    out: Path = Path("audit")
    """Folder to write: audit.html, audit.md, audit.json, suspects.csv and .parquet, corrected.csv."""
    images: str = ""
    """timm:NAME, or a run or export folder: look for captions that belong to other images, by this model's features."""
    thumbnails: int = 0
    """Images to show in suspects.html, of those whose labels are the most suspicious."""
    corrected: float = 0.9
    """Least probability that a suggestion is right, for its place in corrected.csv, which --data.labels reads."""
    overwrite: bool = False
    """Replace an earlier audit in the folder."""


def main(arguments: list[str]) -> None:
    """Audits, and prints the verdict with its evidence."""
    given, config = read(arguments)
    # Only now: they bring torch, which takes seconds.
    from tt_ray.audit.audit import run_audit
    from tt_ray.audit.findings import Options
    from tt_ray.audit.words import how_many_listed, to_train

    command = shlex.join([*program(MODULE).split(), *arguments])
    options = Options(given.images, given.thumbnails, given.corrected, given.overwrite, command)
    with Display() as display:
        done = run_audit(config, given.out, options, display)
    found = done.figures["verdict"]
    lines = [found["headline"], *(f"- {each}" for each in found["evidence"])]
    lines += [f"note: {note}" for note in done.figures["notes"]]
    count = done.figures["suspects"]
    lines.append(f"{how_many_listed(done.figures)}, {given.out / 'suspects.csv'}; the page: {given.out / 'audit.html'}")
    if count["corrected"]:
        lines.append(
            f"suggestions that are right with a probability of {given.corrected:g} or more: {count['corrected']}, "
            f"{to_train(done.figures, str(given.out / 'corrected.csv'))}"
        )
    print("\n".join(lines))


def read(arguments: list[str]) -> tuple[Arguments, Config]:
    """Returns the command's own options, and the configuration with the --dotted.path changes."""
    own, fields = split_fields(Arguments, arguments, [f"--{path}" for path in Config.paths()])
    given = read_arguments(Arguments, own, program(MODULE))
    return given, read_config([given.recipe, *fields], program(MODULE))


if __name__ == "__main__":
    run_command(main)
