"""Checkpoint folders from the outside: their names, the manifest that proves each complete, and the newest intact one.

Their content is written by tt_ray/training/checkpoint.py. No torch here: it takes seconds to import.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tt_ray.io.files import sha256
from tt_ray.terminal.errors import UserError

FORMAT = 1


def checkpoint_name(step: int) -> str:
    """Name of the checkpoint after `step` steps; names sort as steps do."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """Steps that a checkpoint's folder is named after."""
    return int(path.name.removeprefix("step-"))


def write_manifest(folder: Path, **entries: Any) -> None:
    """Describes every file of `folder` by size and sha256; its presence means that the folder is complete."""
    files = {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in sorted(folder.iterdir())}
    (folder / "manifest.json").write_text(json.dumps({"format": FORMAT, **entries, "files": files}, indent=2))


def check_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, after comparing every file with it.

    Raises:
        UserError: A file is missing or damaged (the first one is named), or the format is another version's.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        files = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder} is not complete: it has no readable manifest.json") from None
    if manifest.get("format") != FORMAT:
        raise UserError(f"{folder} has format {manifest.get('format')}, but this version reads {FORMAT}")
    for name, entry in files.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != entry.get("bytes") or sha256(file) != entry.get("sha256"):
            raise UserError(f"{file} is damaged: it differs from manifest.json")
    return manifest


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first, complete or not."""
    return sorted(folder.glob("step-*"), reverse=True)


def newest_intact(paths: Iterable[Path]) -> tuple[Path | None, list[str]]:
    """The first of `paths`, newest first, that agrees with its manifest, and what is wrong with those before it."""
    problems: list[str] = []
    for path in paths:
        try:
            if (step := check_manifest(path).get("step")) != step_of(path):  # the manifest has no checksum of itself
                raise UserError(f"{path / 'manifest.json'} is damaged: it is of step {step}")
        except UserError as error:
            problems.append(str(error))
        else:
            return path, problems
    return None, problems
