"""Where a model's files are: a local folder, the Hugging Face cache or its hub. Weights are safetensors alone."""

from collections.abc import Sequence
from pathlib import Path

from tt_ray.terminal.errors import UserError, first_line


def find_model(name: str, files: Sequence[str], what: str, instead: str) -> Path:
    """The folder of a model; on the hub, of its `files` (patterns).

    Raises UserError when it cannot be had; there it is called `what`, and `instead` says how a folder is given.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or name.startswith(("./", "../", "~")):
        raise UserError(f"{what}: no such folder")
    from huggingface_hub import snapshot_download

    cause = ""
    for local in (True, False):  # the cache first: no network is asked for what is there
        try:
            found = Path(snapshot_download(name, allow_patterns=[*files], local_files_only=local, etag_timeout=5))
        except Exception as error:  # the hub client raises its own, its HTTP library's and the system's errors
            cause = first_line(error)
            continue
        if (found / "config.json").is_file() and any(found.glob("*.safetensors")):
            return found
        cause = "what was found has no config.json or safetensors"
    raise UserError(
        f"{what} cannot be had ({cause[:160]}): connect to the Hugging Face hub or fill its cache, or give {instead}"
    )
