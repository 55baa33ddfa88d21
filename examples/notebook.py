# %% [markdown]
"""
# What does a language teacher buy?

From captioned pictures, half of whose labels are wrong, to a picture of the answer, in a few minutes:

    pip install '.[demo]' && python examples/pictures.py && python examples/notebook.py

Editors such as VS Code and Spyder run it cell by cell; `jupytext --to ipynb examples/notebook.py` makes it a notebook.
"""

# %% Each training image has a label, which may be wrong, and a caption.
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import timm
import torch
from timm.data import ImageDataset, create_loader, resolve_model_data_config

import tt_ray

ROOT, EPOCHS = Path("pictures").absolute(), 40
images = [json.loads(line) for line in (ROOT / "train" / "metadata.jsonl").read_text().splitlines()]

# %% What do captions say of the classes? The share of labels that a linear probe of their embeddings finds.
probe = tt_ray.probe(tt_ray.embed([image["caption"] for image in images]), [image["label"] for image in images])
print(f"labels that follow from captions: {probe.scores_[probe.C_]:.0f} %")

# %% Train without and with text; a run that is there already is not trained again.
changes = {"data.source": "imagefolder", "data.root": str(ROOT), "data.augment": "none"}
config = tt_ray.recipe("shapes_textteacher").override({**changes, "train.epochs": EPOCHS, "train.batch_size": 32})
base = tt_ray.train(config.override({"text.weight": 0.0, "run.name": "base"}))
text = tt_ray.train(config.override({"text.embeddings": str(ROOT / "store"), "run.name": "text"}))

# %% The answer: accuracy over epochs, and features of test images, which a fresh probe reads, in two dimensions.
figure, (left, *others) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
for axis, run in zip(others, (base, text), strict=True):
    left.plot(run.history("validation")["top1"].to_numpy(), label=run.config.run.name)
    model: Any = timm.create_model(f"local-dir:{run.export}", pretrained=True).eval()
    data: dict[str, Any] = {**resolve_model_data_config(model), "batch_size": 64, "use_prefetcher": False}
    batches = list(create_loader(ImageDataset(str(ROOT / "test")), **data))
    labels = np.concatenate([labels for _, labels in batches])
    with torch.inference_mode():
        features = torch.cat(
            [model.forward_head(model.forward_features(x), pre_logits=True) for x, _ in batches]
        ).numpy()
    score = tt_ray.probe(features[::2], labels[::2]).score(features[1::2], labels[1::2])
    centred = features - features.mean(0)
    axis.scatter(*(centred @ np.linalg.svd(centred)[2][:2].T).T, c=labels, cmap="tab20", s=8)
    axis.set_title(f"features of {run.config.run.name}: a probe reads {100 * score:.0f} %")
left.set(title="top-1 on test images (%)", xlabel="epoch")
left.legend()
figure.savefig("what_text_buys.png")
