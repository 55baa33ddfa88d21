"""Models of open_clip (the extra `coca`): CoCa, which captions images, and image towers as teachers.

Weights are safetensors, and loaded strictly; no code comes with them.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tt_ray.io.hub import find_model
from tt_ray.terminal.errors import UserError, nearest, one_line

PREFIX = "open_clip:"
"""Before ARCHITECTURE/WEIGHTS, as open_clip lists them, or the folder of a model with its open_clip_config.json."""
_CONFIG = "open_clip_config.json"
_FILES = ["*.safetensors", _CONFIG]


def find_open_clip(name: str, what: str) -> Path:
    """Finds the folder of a model: a local one, the Hugging Face cache, or a hub download.

    Args:
        name: ARCHITECTURE/WEIGHTS, or a folder.
        what: What the model is for, at the beginning of errors.

    Raises:
        UserError: There is none, or open_clip is not installed.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        architecture, _, tag = name.partition("/")
        known = _library().pretrained.get_pretrained_cfg(architecture, tag)
        if not known.get("hf_hub"):
            pairs = [f"{one}/{other}" for one, other in _library().list_pretrained()]
            raise UserError(f"{what}: open_clip has no {name!r}, and there is no such folder; {nearest(name, pairs)}")
        repository = known["hf_hub"].rstrip("/")
        folder = find_model(repository, _FILES, f"{what} ({repository})", f"{PREFIX}FOLDER")
    if not (folder / _CONFIG).is_file() or not any(folder.glob("*.safetensors")):
        raise UserError(f"{what}: {folder} has no {_CONFIG}, or no *.safetensors weights (others can hold code)")
    return folder


def load_open_clip(folder: Path, what: str) -> tuple[Any, Any]:
    """The frozen model in a folder, in float32, and how its images are prepared (open_clip's PreprocessCfg).

    Raises:
        UserError: Its configuration cannot be read or used, or weights are lacking or left over.
    """
    library = _library()
    weights = sorted(folder.glob("*.safetensors"))
    try:
        tower = json.loads((folder / _CONFIG).read_text())["model_cfg"]
        if "hf_model_name" in tower.get("text_cfg", {}) or "timm_model_name" in tower.get("vision_cfg", {}):
            raise UserError(f"{what}: {folder} is made of models of other libraries, which has not been tried")
        with _quiet():  # a model without weights is worth a warning to open_clip, which would take other files too
            model = library.create_model(f"local-dir:{folder}", load_weights=False)
        library.load_checkpoint(model, str(weights[0]), strict=True)
    except UserError:
        raise
    # Files, JSON, architectures and state dicts each raise their own; none of it is a mistake of this program.
    except Exception as error:
        raise UserError(f"{what}: cannot load {folder}: {one_line(error)[:300]}") from None
    return model.eval().requires_grad_(False), library.transform.PreprocessCfg(**model.visual.preprocess_cfg)


@contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _library() -> Any:
    try:
        import open_clip
    except ImportError:
        raise UserError("open_clip is not installed: pip install 'tt-ray[coca]'") from None
    return open_clip
