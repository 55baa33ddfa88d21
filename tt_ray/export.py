"""Checkpoint -> plain timm model folder: `python -m tt_ray.export RUN --out DIR`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tt_ray import library
from tt_ray.io.one_writer import beside, one_writer
from tt_ray.terminal.command import program, read_arguments, run_command
from tt_ray.terminal.errors import UserError, reason


@dataclass(frozen=True)
class Arguments:
    """Turn a run or a checkpoint into a folder that timm.create_model("local-dir:OUT", pretrained=True) loads."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder (its newest checkpoint), or one checkpoint folder."""
    out: Path
    """Folder to write; must not exist."""


def main(arguments: list[str]) -> None:
    """Exports a checkpoint folder, or the newest intact checkpoint of a run; the averaged weights where there are."""
    given = read_arguments(Arguments, arguments, program("tt_ray.export"))
    with one_writer(beside(given.out), str(given.out)):
        if given.out.exists():
            raise UserError(f"{given.out} exists: give another --out")
        if not given.run.is_dir():
            raise UserError(f"no run or checkpoint {given.run}: give the folder of one")
        # Only now: they bring torch and timm, which take seconds.
        from safetensors import SafetensorError

        from tt_ray.models.export import find_checkpoint, write_export

        checkpoint, problems = find_checkpoint(given.run)
        try:
            write_export(checkpoint, given.out)
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot write {given.out}: {reason(error)}: give another --out") from None
    for problem in problems:
        print(f"note: {problem}")
    print(f"exported {checkpoint} to {given.out}: timm.create_model({f'local-dir:{given.out}'!r}, pretrained=True)")


library.callable_as(__name__, library.export)

if __name__ == "__main__":
    run_command(main)
