"""Where a model's files are, and where an export goes: a local folder, the Hugging Face cache or its hub.

Weights are safetensors alone.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from tt_ray.terminal.errors import UserError, first_line, some

_LONGEST_CAUSE = 160
_OWN_FILES = (".gitattributes",)
"""What the hub puts into an empty repository."""


class NotOnHub(Exception):
    """Neither cache nor hub has the model as it is needed; the text is the cause, for the end of an error's line."""


def is_id(name: str) -> bool:
    """Whether a name is one that the hub could have: NAME or USER/NAME."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def push_folder(folder: Path, name: str, tag: str, private: bool) -> str:
    """Uploads a folder as a model of the hub, which is made if it does not exist.

    Args:
        folder: What the model is to hold.
        name: USER/NAME.
        tag: Of the model's card: a model that exists and has content is replaced only if it has the tag.
        private: Whether a new model is for its owner alone.

    Returns:
        The model's address.

    Raises:
        UserError: There is no token, no connection or no right to write, or the model has other content.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if get_token() is None:
        raise UserError("no token of the Hugging Face hub is known: `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    try:
        address = api.create_repo(name, private=private or None, exist_ok=True)
        there = api.model_info(name)
        others = [file.rfilename for file in there.siblings or [] if file.rfilename not in _OWN_FILES]
        if others and tag not in (there.tags or []):
            raise UserError(f"{name} is there with other content ({some(others)}): give another name")
        # Of the state just looked at: what somebody else pushes meanwhile is not written over.
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export", parent_commit=there.sha)
    except UserError:
        raise
    except HfHubHTTPError as error:
        wrong = {401: "the hub does not know the token", 403: f"the token has no right to write {name}"}
        cause = error.server_message or first_line(error)
        told = wrong.get(error.response.status_code)
        raise UserError(f"{told} ({cause[:_LONGEST_CAUSE]})" if told else cause[:_LONGEST_CAUSE]) from None
    except Exception as error:  # as in snapshot
        raise UserError(first_line(error)[:_LONGEST_CAUSE]) from None
    return str(address)


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
        instead: How an error says that a local folder is passed.

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
