"""TextTeacher under the Trainer of Hugging Face: it trains one module that holds the model and its teacher.

pip install '.[examples]' && python examples/pictures.py && python examples/hf_trainer.py
"""

from pathlib import Path
from typing import Any

import numpy as np
import timm
import tyro
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from torch.utils.data import default_collate
from torchvision.datasets import ImageFolder
from transformers import Trainer, TrainingArguments

import tt_ray


class TaughtClassifier(nn.Module):
    def __init__(self, model: Any, teacher: tt_ray.TextTeacher) -> None:
        super().__init__()
        self.model, self.teacher = model, teacher

    def forward(self, images: Tensor, labels: Any) -> dict[str, Tensor]:
        features = self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        logits = self.model.get_classifier()(features)
        # In training `labels` are the labels and the rows of the captions in the store.
        loss = self.teacher(features, logits, *labels).loss if self.training else nn.CrossEntropyLoss()(logits, labels)
        return {"loss": loss, "logits": logits}


def main(root: Path = Path("pictures"), store: Path = Path("pictures/store"), name: str = "resnet18", epochs: int = 8):
    """Trains on ROOT/train, validates on ROOT/test; STORE has the embedding of each training image's caption."""
    folders: Any = [ImageFolder(str(root / split)) for split in ("train", "test")]
    (train, val), captions, size = folders, tt_ray.open_store(store), {"input_size": (3, 64, 64)}
    rows = captions.rows_of([Path(path).relative_to(root / "train").as_posix() for path, _ in train.samples])
    train.samples = [(path, (label, row)) for (path, label), row in zip(train.samples, rows, strict=True)]
    model: Any = timm.create_model(name, num_classes=len(train.classes), pretrained_cfg_overlay=size)
    train.transform = val.transform = create_transform(**resolve_model_data_config(model))
    args = TrainingArguments("output/hf", eval_strategy="epoch", remove_unused_columns=False)
    args.set_training(learning_rate=1e-3, batch_size=32, num_epochs=epochs)
    trainer = Trainer(
        TaughtClassifier(model, tt_ray.TextTeacher(model.get_classifier().in_features, captions, by_row=True)),
        args,
        lambda batch: dict(zip(("images", "labels"), default_collate(batch), strict=True)),
        train,
        val,
        compute_metrics=lambda found: {"top1": 100 * np.mean(np.argmax(found.predictions, 1) == found.label_ids)},
    )
    trainer.train()
    if trainer.is_world_process_zero():
        return tt_ray.export(model, "output/hf/export", train.classes, overwrite=True)


if __name__ == "__main__":
    tyro.cli(main)
