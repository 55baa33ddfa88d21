"""Small things that several tests train on."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import timm
import torch

from tt_ray.config import Config
from tt_ray.data.prepare import open_data, open_images
from tt_ray.embeddings.build import write_store
from tt_ray.models.export import export_model
from tt_ray.recipes import RECIPES
from tt_ray.training.context import LocalContext
from tt_ray.training.run_folder import start_run
from tt_ray.training.trainer import train

# Processes of a server that has imported torch and timm once, which takes most of the time of such tests.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.toy"])
DIM = 12
TOY: dict[str, Any] = {
    "data.label_noise": 0.0,
    "data.shapes.train_size": 48,
    "data.shapes.val_size": 37,
    "data.image_size": 16,
    "model.kwargs": {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2},
    "train.epochs": 2,
    "train.batch_size": 8,
    "run.log_every": 5,
    "run.name": "toy",
}


def toy_config(storage: Path, recipe: str = "shapes_textteacher", **settings: Any) -> Config:
    """A recipe at toy size; `settings` are fields, with __ for the dot. Text comes from a store of random numbers."""
    config = RECIPES[recipe]()
    for path, value in {**TOY, "run.storage": str(storage)}.items():
        config = config.override(path, value)
    for path, value in settings.items():
        config = config.override(path.replace("__", "."), value)
    if config.reads_text and not config.text.embeddings:
        config = config.override("text.embeddings", str(random_store(config, storage / "store")))
    return config


def random_store(config: Config, path: Path) -> Path:
    """An embedding for each training image, in another order than the images."""
    if not path.exists():
        ids = pa.array(open_images(config)[0].ids.to_pylist()[::-1])
        rows = np.random.default_rng(0).normal(1, 1, (len(ids), DIM)).astype(np.float32)
        write_store(path, ids, [rows], DIM, "float32", {"id": "random", "revision": "0"})
    return path


def toy_teacher(folder: Path) -> Path:
    """An export for the toy's classes, of random weights and with an embedding as long as the toy's text."""
    config = toy_config(folder, text__weight=0.0)
    torch.manual_seed(0)
    kwargs = {"patch_size": 8, "embed_dim": DIM, "depth": 1, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=16, img_size=16, **kwargs)
    torch.nn.init.normal_(model.get_classifier().weight)
    export_model(model, config, open_images(config)[0].classes, folder / "export")
    return folder / "export"


def run_toy(config: Config) -> dict[str, Any]:
    """Trains in this process, from the start or on from a checkpoint."""
    torch.set_num_threads(1)
    if os.environ.get("RANK", "0") == "0":
        start_run(config)
    store = Path(config.text.embeddings) if config.reads_text else None
    return train(config, open_data(config, store), LocalContext.start(use_gpu=False))


def weights(config: Config, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    """Of the last checkpoint, read rather than mapped: tests change the file."""
    from safetensors.torch import load

    return load((max((config.run_dir / "checkpoints").iterdir()) / name).read_bytes())


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Over all weights; 0 means bit-identical."""
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)
