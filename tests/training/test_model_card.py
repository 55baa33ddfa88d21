"""The model card states what is known of a run, compares it with the right baseline, and gives no folder away."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from huggingface_hub import ModelCard

from tt_ray.cli import read_config
from tt_ray.config import Config
from tt_ray.recipes import RECIPES
from tt_ray.training.model_card import find_baseline, model_card, public
from tt_ray.training.same_data import keep_data

STEPS = 20


def finished(storage: Path, name: str, top1: float, recipe: str = "shapes_baseline", **changes: Any) -> Path:
    """The folder of a finished run of 10 steps an epoch, without its weights; returns its last checkpoint."""
    config = RECIPES[recipe]()
    settings = {"train__epochs": 2, "run__storage": str(storage), "run__name": name, **changes}
    for path, value in settings.items():
        config = config.override(path.replace("__", "."), value)
    checkpoint = config.run_dir / "checkpoints" / f"step-{STEPS:08d}"
    checkpoint.mkdir(parents=True)
    for folder in (config.run_dir, checkpoint):
        config.to_yaml(folder / "config.yaml")
    position = {"step": STEPS, "epoch": 2, "samples_seen": 64 * STEPS}
    (checkpoint / "state.json").write_text(
        json.dumps({"position": position, "extra": {"classes": ["a", "b"], "precision": "bf16"}})
    )
    scores = {"top1": top1, "val_loss": 1.0, "val_images": 1000}
    (config.run_dir / "metrics.jsonl").write_text(json.dumps({"kind": "validation", "step": STEPS, **scores}) + "\n")
    result = {**scores, "steps": STEPS, "versions": {"torch": "1.2.3", "commit": "abc"}}
    (config.run_dir / "result.json").write_text(json.dumps(result))
    keep_images(config.run_dir)
    return checkpoint


def keep_images(run: Path, label: str = "a") -> None:
    record = pa.table({"split": ["training", "validation"], "image_id": ["0", "0"], "label": [label, "b"]})
    keep_data(run, record.replace_schema_metadata({"digest": run.name + label}), [])


def card_of(checkpoint: Path, hub_id: str = "") -> str:
    card = model_card(checkpoint, hub_id)
    assert (
        ModelCard(card).data.to_dict().items()
        >= {"library_name": "timm", "pipeline_tag": "image-classification"}.items()
    )
    return card


def command(card: str) -> Config:
    """The configuration of the command that the card gives."""
    found = re.search(r"```bash\npython -m tt_ray.train (.*)\n```", card)
    assert found is not None
    return read_config(shlex.split(found[1]), "prog")


def test_a_run_beside_its_baseline(tmp_path: Path) -> None:
    checkpoint = finished(tmp_path, "taught", 70.0, "shapes_textteacher")
    finished(tmp_path, "plain", 60.0)
    card = card_of(checkpoint, "ada/net")
    assert 'timm.create_model("hf-hub:ada/net", pretrained=True)' in card
    assert "| this model | 70.00 |" in card and "| the same without its teacher | 60.00 |" in card
    # Newcombe's interval of 700 and 600 of 1000.
    assert "Gain: +10.00 points of top-1, 95 % interval +5.82 to +14.13." in card
    assert "In per cent of 1000 validation images, split `test`." in card
    assert "`text.weight 0` and `optim.lr 0.0005`" in card, "in what they differ"
    assert "0.5 of the training labels were made wrong" in card
    assert "2 of 2 epochs, 20 steps of 64 images, in bf16" in card
    assert "Trained with torch 1.2.3, commit abc." in card and "Exported with python 3" in card
    config = Config.from_yaml(checkpoint / "config.yaml")
    assert replace(command(card), run=config.run) == config


SAME = "shapes_textteacher"


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"optim__lr": 0.1, "head__kind": "mlp", "data__shapes__caption": "full"}, True),
        ({"run__num_workers": 2, "data__num_loaders": 0, "train__compile": True}, True),
        ({"train__epochs": 3}, False),
        ({"train__seed": 1}, False),
        ({"train__batch_size": 32}, False),
        ({"data__augment": "none"}, False),
        ({"data__label_noise": 0.0}, False),
        ({"model__drop_path": 0.1}, False),
        ({"text__weight": 0.1}, False),
    ],
)
def test_which_run_is_a_baseline(changes: dict[str, Any], fits: bool, tmp_path: Path) -> None:
    run = finished(tmp_path, "taught", 70.0, SAME).parents[1]
    finished(tmp_path, "other", 60.0, SAME, **{"text__weight": 0.0, **changes})
    assert (find_baseline(run, Config.from_yaml(run / "config.yaml")) is not None) == fits


def spoil_result(run: Path) -> None:
    (run / "result.json").write_text("{")


def drop_result(run: Path) -> None:
    (run / "result.json").unlink()


def spoil_config(run: Path) -> None:
    (run / "config.yaml").write_text("data: {none: 1}")


def drop_record(run: Path) -> None:
    (run / "data.parquet").unlink()


def other_labels(run: Path) -> None:
    keep_images(run, "b")


@pytest.mark.parametrize("spoil", [spoil_result, drop_result, spoil_config, drop_record, other_labels])
def test_a_run_that_is_unknown_is_no_baseline(spoil: Any, tmp_path: Path) -> None:
    checkpoint = finished(tmp_path, "taught", 70.0, SAME)
    spoil(finished(tmp_path, "plain", 60.0).parents[1])
    (tmp_path / "embeddings").mkdir()
    (tmp_path / "notes.txt").write_text("no run")
    assert "No baseline was trained beside it." in card_of(checkpoint)


def test_of_several_baselines_the_best_counts(tmp_path: Path) -> None:
    checkpoint = finished(tmp_path, "taught", 70.0, SAME)
    for name, top1 in (("a", 60.0), ("b", 66.0), ("c", 64.0)):
        finished(tmp_path, name, top1)
    card = card_of(checkpoint)
    assert "| the same without its teacher | 66.00 |" in card and "It is the best of 3 such runs." in card


def test_a_baseline_has_none(tmp_path: Path) -> None:
    checkpoint = finished(tmp_path, "plain", 60.0)
    finished(tmp_path, "taught", 70.0, SAME)
    card = card_of(checkpoint)
    assert "trained with tt-ray without a teacher" in card and "aseline was" not in card and "Gain" not in card


def test_an_earlier_checkpoint_claims_nothing(tmp_path: Path) -> None:
    last = finished(tmp_path, "taught", 70.0, SAME)
    finished(tmp_path, "plain", 60.0)
    early = last.rename(last.with_name("step-00000010"))
    state = json.loads((early / "state.json").read_text())
    (early / "state.json").write_text(json.dumps({**state, "position": {"step": 10, "epoch": 1, "samples_seen": 640}}))
    card = card_of(early)
    assert "No validation of this checkpoint is known." in card and "Gain" not in card and "Trained with" not in card
    copied = early.rename(tmp_path / "elsewhere")
    assert "No validation" in card_of(copied)


PRIVATE = "/home/ada/secret-project"


@pytest.mark.parametrize(
    "changes",
    [
        {"data__source": "imagefolder", "data__root": f"{PRIVATE}/pets"},
        {"data__source": "imagefolder", "data__root": "secret-project/pets"},
        {"data__source": "datasets", "data__root": f"s3://secret-project/data/pets?key={PRIVATE}"},
        {"data__source": "datasets", "data__root": f"~{PRIVATE}/pets.parquet"},
        {"data__source": "torchvision", "data__name": "CIFAR10", "data__root": f"{PRIVATE}/sets"},
        {"text__captions": f"{PRIVATE}/captions.csv"},
        {"text__embeddings": f"{PRIVATE}/store"},
        {"text__encoder": f"{PRIVATE}/clip+projection"},
        {"text__encoder": "../secret-project/clip"},
        {"teacher__model": f"{PRIVATE}/teacher"},
        {"teacher__model": f"hf:{PRIVATE}/dino+projection"},
        {"teacher__model": f"open_clip:{PRIVATE}/coca"},
        {"text__loss": "borlan", "text__class_embeddings": f"{PRIVATE}/classes"},
    ],
)
def test_no_folder_of_the_machine_is_named(changes: dict[str, str], tmp_path: Path) -> None:
    checkpoint = finished(tmp_path / "secret-storage", "secret-name", 70.0, SAME, **changes)
    card = card_of(checkpoint)
    assert not re.search(r"secret|home|ada|\.\./|://[^a]", card) and str(tmp_path) not in card
    for path in changes:
        assert command(card).get(path.replace("__", ".")), "the last name is left"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("text.encoder", "sentence-transformers/all-MiniLM-L6-v2"),
        ("text.encoder", "openai/clip-vit-base-patch32+projection"),
        ("teacher.model", "timm:vit_small_patch14_dinov2"),
        ("teacher.model", "hf:openai/clip-vit-base-patch32+projection"),
        ("teacher.model", "open_clip:coca_ViT-L-14/mscoco_finetuned_laion2B-s13B-b90k"),
    ],
)
def test_public_names_stay(path: str, value: str) -> None:
    config = RECIPES[SAME]().override(path, value)
    assert public(config) == config


def test_data_of_the_hub_are_linked(tmp_path: Path) -> None:
    settings = {"data__source": "datasets", "data__root": "ada/pets", "data__name": "small"}
    card = card_of(finished(tmp_path, "taught", 70.0, SAME, **settings))
    assert yaml.safe_load(card.split("---\n")[1])["datasets"] == ["ada/pets"] and "on ada/pets small" in card
