"""TextTeacher in a LightningModule: validation, checkpoints, any number of GPUs.

pip install '.[examples]' && python examples/pictures.py && python examples/lightning_module.py
"""

from pathlib import Path
from typing import Any

import lightning as L
import timm
import torch
import tyro
from timm.data import create_transform, resolve_model_data_config
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import tt_ray


class TaughtClassifier(L.LightningModule):
    def __init__(self, model: Any, teacher: tt_ray.TextTeacher) -> None:
        super().__init__()
        self.model, self.teacher = model, teacher

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        images, (labels, rows) = batch
        features = self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        out = self.teacher(features, self.model.get_classifier()(features), labels, rows, self.current_epoch)
        self.log_dict({"classification": out.classification, "text": out.text})
        return out.loss

    def validation_step(self, batch: Any, _: int) -> None:
        top1 = (self.model(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log("top1", top1, prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.05)


def main(root: Path = Path("pictures"), store: Path = Path("pictures/store"), name: str = "resnet18", epochs: int = 8):
    """Trains on ROOT/train, validates on ROOT/test; STORE has the embedding of each training image's caption."""
    folders: Any = [ImageFolder(str(root / split)) for split in ("train", "test")]
    (train, val), captions, size = folders, tt_ray.open_store(store), {"input_size": (3, 64, 64)}
    rows = captions.rows_of([Path(path).relative_to(root / "train").as_posix() for path, _ in train.samples])
    train.samples = [(path, (label, row)) for (path, label), row in zip(train.samples, rows, strict=True)]
    model: Any = timm.create_model(name, num_classes=len(train.classes), pretrained_cfg_overlay=size)
    data: dict[str, Any] = resolve_model_data_config(model)
    # Captions name colours, sizes and sides, which augmentation must leave alone.
    train.transform = create_transform(**data, is_training=True, scale=(0.8, 1.0), hflip=0.0, color_jitter=0.0)
    val.transform = create_transform(**data)
    module = TaughtClassifier(model, tt_ray.TextTeacher(model.num_features, captions, epochs=epochs, by_row=True))
    trainer = L.Trainer(max_epochs=epochs, default_root_dir="output/lightning")
    trainer.fit(module, DataLoader(train, 32, shuffle=True, num_workers=2), DataLoader(val, 32, num_workers=2))
    if trainer.is_global_zero:
        return tt_ray.export(model, "output/lightning/export", train.classes, overwrite=True)


if __name__ == "__main__":
    tyro.cli(main)
