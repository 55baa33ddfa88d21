"""Where a model's files are: a local folder, the Hugging Face cache or its hub. Weights are safetensors alone."""

from collections.abc import Callable, Sequence
from pathlib import Path

from tt_ray.terminal.errors import UserError, first_line

_LONGEST_CAUSE = 160


class NotOnHub(Exception):
    """Neither cache nor hub has the model as it is needed; the text is the cause, for the end of an error's line."""


def local_folder(name: str, what: str) -> Path | None:
    """The folder that a model's name stands for; None where it is an id of the hub.

    Raises:
        UserError: The name can only be a folder's, and there is none; the text calls the model `what`.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or name.startswith(("./", "../", "~")):
        raise UserError(f"{what}: no such folder")
    return None


def snapshot(name: str, files: Sequence[str], lack: Callable[[Path], str]) -> Path:
    """The first snapshot of a hub's model that is complete: from the cache, else from the network.

    Args:
        name: Id on the hub.
        files: Patterns of the files to fetch.
        lack: Returns what a snapshot lacks, as "no config.json"; empty where nothing.

    Raises:
        NotOnHub: There is no such snapshot.
    """
    from huggingface_hub import snapshot_download

    cause = ""
    for local in (True, False):  # the cache first: what is there needs no network
        try:
            found = Path(snapshot_download(name, allow_patterns=[*files], local_files_only=local, etag_timeout=5))
        except Exception as error:  # the hub client raises its own, its HTTP library's and the system's errors
            cause = first_line(error)
            continue
        if not (missing := lack(found)):
            return found
        cause = f"what was found has {missing}"
    raise NotOnHub(cause[:_LONGEST_CAUSE])


def find_model(name: str, files: Sequence[str], what: str, instead: str) -> Path:
    """The folder of a model.

    Args:
        name: A local folder, or an id of the hub.
        files: Patterns of the files that are needed.
        what: What an error calls the model.
        instead: A local folder and its option, for the error: "pass ...".

    Raises:
        UserError: The model cannot be found.
    """
    if folder := local_folder(name, what):
        return folder

    def lack(found: Path) -> str:
        complete = (found / "config.json").is_file() and any(found.glob("*.safetensors"))
        return "" if complete else "no config.json or safetensors"

    try:
        return snapshot(name, files, lack)
    except NotOnHub as cause:
        raise UserError(
            f"{what} cannot be found ({cause}): connect to the Hugging Face hub or fill its cache, or pass {instead}"
        ) from None
