"""A plain loop of timm's own parts (loader, mixup, optimiser, schedule) with TextTeacher's loss.

pip install '.[demo]' && python examples/pictures.py && python examples/plain_timm.py
"""

from pathlib import Path
from typing import Any

import timm
import torch
import tyro
from timm.data import ImageDataset, Mixup, create_loader, resolve_model_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler

import tt_ray


def main(root: Path = Path("pictures"), store: Path = Path("pictures/store"), name: str = "resnet18", epochs: int = 8):
    """Trains on ROOT/train, validates on ROOT/test; STORE has the embedding of each training image's caption."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    captions, train = tt_ray.open_store(store), ImageDataset(str(root / "train"))
    reader: Any = train.reader  # of each image it returns the label, and from here on its caption's row in the store
    rows = captions.rows_of(train.filenames())
    reader.samples = [(path, (label, row)) for (path, label), row in zip(reader.samples, rows, strict=True)]
    val, classes = ImageDataset(str(root / "test"), class_map=reader.class_to_idx), list(reader.class_to_idx)
    model: Any = timm.create_model(name, num_classes=len(classes), pretrained_cfg_overlay={"input_size": (3, 64, 64)})
    data: dict[str, Any] = {**resolve_model_data_config(model), "batch_size": 32, "use_prefetcher": False}
    # Captions name colours, sizes and sides, which augmentation must leave alone.
    loader = create_loader(train, is_training=True, scale=(0.8, 1.0), hflip=0.0, color_jitter=0.0, **data)
    val_loader = create_loader(val, **data)
    teacher = tt_ray.TextTeacher(
        model.get_classifier().in_features, captions, epochs=epochs, label_smoothing=0.1, by_row=True
    )
    both = torch.nn.ModuleList([model, teacher]).to(device)
    optimizer = create_optimizer_v2(both, "adamw", lr=1e-3, weight_decay=0.05)
    scheduler = CosineLRScheduler(optimizer, epochs)
    # Mixing the places of images in the batch, as if they were classes, says how much of which image is in which.
    mixup = Mixup(mixup_alpha=0.1, cutmix_alpha=1.0, prob=0.5, label_smoothing=0.0, num_classes=32)
    for epoch in range(epochs):
        both.train()
        for images, (labels, rows) in loader:
            images, shares = mixup(images.to(device), torch.arange(32, device=device))
            features = model.forward_head(model.forward_features(images), pre_logits=True)
            out = teacher(features, model.get_classifier()(features), labels.to(device), rows, epoch, shares)
            out.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        scheduler.step(epoch + 1)
        both.eval()
        with torch.inference_mode():
            right = torch.cat([model(images.to(device)).argmax(1).cpu() == labels for images, labels in val_loader])
        print(f"epoch {epoch}: top-1 {100 * right.float().mean():.1f} %")
    return tt_ray.export(model, "output/timm", classes, overwrite=True)


if __name__ == "__main__":
    tyro.cli(main)
