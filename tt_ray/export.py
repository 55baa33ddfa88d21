"""Checkpoint -> plain timm model folder: `python -m tt_ray.export RUN --out DIR [--push-to-hub USER/NAME]`."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tt_ray import library
from tt_ray.io.hub import is_id, push_folder
from tt_ray.io.one_writer import beside, one_writer
from tt_ray.terminal.command import program, read_arguments, run_command
from tt_ray.terminal.errors import UserError, reason, shown


@dataclass(frozen=True)
class Arguments:
    """Turn a run or a checkpoint into a folder that timm.create_model("local-dir:OUT", pretrained=True) loads."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder (its newest checkpoint), or one checkpoint folder."""
    out: Path
    """Folder to write, with a model card; must not exist."""
    push_to_hub: str = ""
    """USER/NAME: upload the folder to the Hugging Face hub as well, from where timm loads it as hf-hub:USER/NAME."""
    private: bool = False
    """Only you can see what is uploaded, if it is new."""


def main(arguments: list[str]) -> None:
    """Exports a checkpoint folder, or the newest intact checkpoint of a run; the averaged weights where there are."""
    given = read_arguments(Arguments, arguments, program("tt_ray.export"))
    name = given.push_to_hub
    if name and not (name.count("/") == 1 and is_id(name)):
        raise UserError(f"--push-to-hub {shown(name)} must be USER/NAME, of letters, digits, -, _ and .")
    with one_writer(beside(given.out), str(given.out)):
        if given.out.exists():
            raise UserError(f"{given.out} exists: choose another --out")
        if not given.run.is_dir():
            raise UserError(f"no run or checkpoint {given.run}: give the folder of one")
        # Only now: they bring torch and timm, which take seconds.
        from safetensors import SafetensorError

        from tt_ray.models.export import find_checkpoint, write_export
        from tt_ray.training.model_card import TAG, model_card

        checkpoint, problems = find_checkpoint(given.run)
        try:
            write_export(checkpoint, given.out, model_card(checkpoint.absolute(), name))
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot write {given.out}: {reason(error)}: choose another --out") from None
    for problem in problems:
        print(f"note: {problem}")
    print(f"exported {checkpoint} to {given.out}: timm.create_model({f'local-dir:{given.out}'!r}, pretrained=True)")
    if name:
        try:
            address = push_folder(given.out, name, TAG, given.private)
        except UserError as error:
            later = f"hf upload USER/NAME {shlex.quote(str(given.out))}"
            raise UserError(f"cannot push to {name}: {error}; {given.out} is kept, to be pushed by `{later}`") from None
        print(f"pushed to {address}: timm.create_model({f'hf-hub:{name}'!r}, pretrained=True)")


library.callable_as(__name__, library.export)

if __name__ == "__main__":
    run_command(main)
