"""Where a model's files are: a local folder, the Hugging Face cache or its hub. Weights are safetensors alone."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tt_ray.terminal.errors import UserError, first_line


def find_model(name: str, files: Sequence[str], what: str, instead: str) -> Path:
    """Finds the folder of a model.

    Args:
        name: A local folder, or an id on the hub.
        files: Patterns of the model's files on the hub.
        what: What errors call the model.
        instead: How a folder is passed instead, for errors.

    Raises:
        UserError: The model cannot be found.
    """
    if folder := local_folder(name, what):
        return folder
    cause = ""
    for found, cause in snapshots(name, files):
        if found and (found / "config.json").is_file() and any(found.glob("*.safetensors")):
            return found
        cause = cause or "what was found has no config.json or safetensors"
    raise UserError(
        f"{what} cannot be found ({cause[:160]}): connect to the Hugging Face hub or fill its cache, or pass {instead}"
    )


def local_folder(name: str, what: str) -> Path | None:
    """The folder of this name; None where it is an id on the hub, UserError where it can only be a folder."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or name.startswith(("./", "../", "~")):
        raise UserError(f"{what}: no such folder")
    return None


def snapshots(name: str, files: Sequence[str]) -> Iterator[tuple[Path | None, str]]:
    """Yields a model's folder in the cache, then that of the hub, each None with the reason where there is none.

    The cache comes first: whoever stops there needs no network.
    """
    from huggingface_hub import snapshot_download

    for local in (True, False):
        try:
            found = snapshot_download(name, allow_patterns=[*files], local_files_only=local, etag_timeout=5)
        except Exception as error:  # the hub client raises its own, its HTTP library's and the system's errors
            yield None, first_line(error)
        else:
            yield Path(found), ""
