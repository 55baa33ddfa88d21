"""The library's functions that do what a command does: `tt_ray.train`, `export`, `embed`, `open_store`, `recipe`."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, overload

from tt_ray.config import Config
from tt_ray.recipes import RECIPES
from tt_ray.terminal.errors import UserError, nearest, one_line, reason
from tt_ray.terminal.gpu import device_of
from tt_ray.terminal.python_calls import from_python

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa
    from torch import nn

    from tt_ray.embeddings.store import EmbeddingStore
    from tt_ray.models.pretrained import Preprocessing

_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True)
class Run:
    """A finished training."""

    config: Config
    """What was trained."""
    result: dict[str, Any]
    """What the run's result.json holds: top1, val_images, train_seconds, notes, ...; empty in all processes of
    torchrun but the first."""

    @property
    def folder(self) -> Path:
        """The run folder: config.yaml, metrics.jsonl, checkpoints, export."""
        return self.config.run_dir

    @property
    def export(self) -> Path:
        """The deployed model: `timm.create_model(f"local-dir:{run.export}", pretrained=True)`."""
        return self.folder / "export"

    @property
    def top1(self) -> float:
        """Accuracy on the validation images, in per cent."""
        return float(self.result["top1"])

    def history(self, kind: Literal["step", "validation"] | None = None) -> "pa.Table":
        """What the run has logged, as a table: rows of its metrics.jsonl, with nulls where one has no such number.

        Args:
            kind: Rows of steps alone (step, epoch, loss, loss_cls, loss_text, balance, grad_norm, lr, ...), or of
                validations (step, epoch, top1, val_loss, ...); None returns both, in their order.
        """
        import pyarrow as pa

        from tt_ray.training.metrics_log import read_rows

        rows = [row for row in read_rows(self.folder / "metrics.jsonl") if kind in (None, row["kind"])]
        names = dict.fromkeys(name for row in rows for name in row)
        return pa.table({name: [row.get(name) for row in rows] for name in names})


def recipe(name: str) -> Config:
    """A complete configuration by name, as `python -m tt_ray.train` takes it; `override` changes fields.

    Raises:
        UserError: There is no such recipe.
    """
    if name not in RECIPES:
        raise UserError(f"no recipe {name!r}; {nearest(name, RECIPES)}")
    return RECIPES[name]()


@from_python()
def open_store(place: str | Path, verify: bool = False, local_cache: str = "") -> "EmbeddingStore":
    """Opens a store of embeddings, memory-mapped.

    Args:
        place: Its folder, or a URI (s3://, gs://), from which it is pulled to this machine once.
        verify: Read everything once and compare checksums.
        local_cache: Folder of what is pulled; empty takes tt-ray/data in the user's cache (~/.cache).

    Raises:
        UserError: There is no complete store of a known version, or its files are not as its manifest says.
    """
    from tt_ray.embeddings.ensure import store_here
    from tt_ray.embeddings.store import open_store

    return open_store(store_here(place, local_cache), verify)


@from_python()
def train(config: Config) -> Run:
    """Trains as `python -m tt_ray.train` does: on Ray, or as one of the processes that torchrun has started.

    A run of the same name and settings that was cut off is resumed.

    Args:
        config: The run, such as `tt_ray.recipe("shapes_textteacher").override("train.epochs", 2)`.

    Raises:
        UserError: The run, its data, its model or the cluster cannot be used as configured.
        Stopped: A signal has ended the run, after a checkpoint.
    """
    return run_training(config)


def run_training(config: Config) -> Run:
    """`train`, for the command: its errors name options."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from tt_ray.training.torchrun import train_under_torchrun

        return Run(config, train_under_torchrun(config) or {})
    from tt_ray.cluster.run import train_run

    return Run(config, train_run(config))


@from_python()
def export(
    model: "nn.Module",
    path: str | Path,
    classes: Sequence[str] | None = None,
    *,
    image_size: int | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    crop_pct: float | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a timm model as a folder that `timm.create_model("local-dir:PATH", pretrained=True)` opens.

    Args:
        model: A timm model, also inside DistributedDataParallel or compiled.
        path: Folder to write.
        classes: Names of its classes, in the order of its logits.
        image_size: Height and width of its input in pixels. What is None here and below is taken from the model, where
            it has a size of its own, or from timm's configuration of it (`model.pretrained_cfg`), and printed: it is
            right only if the model was trained so.
        mean, std: Channel means and deviations of its normalisation, on the 0-1 scale.
        crop_pct: Centre crop's share of the resized image's side, in validation.
        overwrite: Whether an earlier export at `path` is replaced. A folder that holds anything else never is.

    Returns:
        The folder.

    Raises:
        UserError: The model is none of timm's, `path` exists and is not to be replaced, or cannot be written, or there
            are more or fewer classes than logits.
    """
    from timm.utils.model import unwrap_model

    from tt_ray.models.export import is_export, write_model

    plain: Any = unwrap_model(model)
    plain = getattr(plain, "_orig_mod", plain)
    if not (hasattr(plain, "pretrained_cfg") and hasattr(plain, "num_classes")):
        kind = type(plain).__name__
        raise UserError(f"{kind} is no model of timm's: export the backbone that timm.create_model made")
    if classes is not None and len(classes) != plain.num_classes:
        raise UserError(f"{len(classes)} classes for a model of {plain.num_classes}: give a name for each logit")
    path = Path(path).expanduser().absolute()
    if path.exists() and not is_export(path):
        raise UserError(f"{path} exists, and holds something else than an export: choose another path")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: choose another path, or overwrite=True to replace the earlier export")
    given = {"size": image_size, "mean": mean, "std": std, "crop_pct": crop_pct}
    preprocessing = _preprocessing(plain, {name: value for name, value in given.items() if value is not None})
    try:
        write_model(plain, classes, preprocessing, path)
    except (RuntimeError, AssertionError) as error:  # of the forward pass that counts its operations
        fails = f"does not run on images of {preprocessing.size} px ({one_line(error)})"
        raise UserError(f"the model {fails}: pass image_size=") from None
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}: choose another path") from None
    size, crop_pct = preprocessing.size, preprocessing.crop_pct
    print(f"exported to {path}: its images are {size} px, crop_pct {crop_pct:g}, mean {preprocessing.mean}")
    return path


def _preprocessing(model: Any, given: Mapping[str, Any]) -> "Preprocessing":
    """What is given, the rest as timm has it; a model with position embeddings for one size knows its own."""
    from tt_ray.models.pretrained import timm_preprocessing

    own_size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    own = {"size": own_size[0]} if isinstance(own_size, tuple) else {}
    return replace(timm_preprocessing(model), **{**own, **given})


@overload
def embed(captions: Sequence[str], encoder: str = ..., *, device: str | None = ...) -> "npt.NDArray[np.float32]": ...


@overload
def embed(
    captions: Mapping[str, str], encoder: str = ..., *, out: str | Path, device: str | None = ...
) -> "EmbeddingStore": ...


@from_python()
def embed(
    captions: Sequence[str] | Mapping[str, str],
    encoder: str = _ENCODER,
    *,
    out: str | Path | None = None,
    device: str | None = None,
) -> "npt.NDArray[np.float32] | EmbeddingStore":
    """Embeds captions with a frozen text encoder, in this process; for millions: `python -m tt_ray.embed_captions`.

    Args:
        captions: Captions, or the caption of each image id, for a store.
        encoder: Hugging Face id or folder; CLIP's projected output with +projection after it.
        out: Folder of the new store of embeddings by image id.
        device: Where the encoder computes; None takes a GPU if there is one.

    Returns:
        Embeddings (N, D) in the captions' order, float32; or the open store, float16.

    Raises:
        UserError: The encoder cannot be loaded, the GPU cannot be used, or the store cannot be written.
    """
    if isinstance(captions, str):
        raise UserError("captions is one string: give a list of captions, or {image id: caption}")
    if isinstance(captions, Mapping) != (out is not None):
        raise UserError("for a store give {image id: caption} and out=FOLDER, for an array a list of captions alone")
    texts = list(captions.values() if isinstance(captions, Mapping) else captions)
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise UserError(f"captions must be strings, but {len(wrong)} are not, such as {wrong[0]!r}: leave them out")
    import pyarrow as pa
    import torch

    from tt_ray.embeddings.build import embed_captions
    from tt_ray.text.encoder import load_text_encoder

    chosen = device_of(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    loaded = load_text_encoder(encoder, str(chosen))
    if not isinstance(captions, Mapping):
        return loaded.encode(texts)
    assert out is not None
    try:
        return embed_captions(pa.array(list(captions), pa.string()), pa.array(texts, pa.string()), loaded, Path(out))
    except OSError as error:
        raise UserError(f"cannot write {out}: {reason(error)}: choose another out=") from None


def callable_as(module: str, function: Any) -> None:
    """Lets `module(...)` call the function: a command's module takes the place of the library's name in `tt_ray`."""

    class Callable(ModuleType):
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            return function(*arguments, **options)

    sys.modules[module].__class__ = Callable
