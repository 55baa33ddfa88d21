"""The training images that TensorBoard shows: as the model gets them, with the text that is really theirs."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.utils import make_grid

from tests.toy import run_toy, toy_config
from tt_ray.config import Config
from tt_ray.data.augment import normalize
from tt_ray.data.loader import Batch
from tt_ray.data.prepare import Data, open_data
from tt_ray.terminal.errors import Interrupted
from tt_ray.training import trainer
from tt_ray.training.context import LocalContext
from tt_ray.training.run_folder import start_run
from tt_ray.training.samples import first_of, samples

ROWS = [5, 3, 8, 0, 1, 2, 40, 6]


def opened(tmp_path: Path, **settings: Any) -> tuple[Config, Data]:
    """Toy data whose images have captions of their own: `a picture of ID`."""
    config = toy_config(tmp_path, **settings)
    data = open_data(config, Path(config.text.embeddings) if config.reads_text else None)
    captions = pa.array([f"a picture of {name}" for name in data.train.ids.to_pylist()])
    return config, replace(data, train=replace(data.train, captions=captions))


def batch_of(data: Data, more: int = 4) -> Batch:
    rows = np.array([*ROWS, *range(10, 10 + more)])
    images = torch.from_numpy(data.train.pixels(rows, 16)).permute(0, 3, 1, 2).contiguous()
    return Batch(images, torch.from_numpy(data.train.labels[rows]), None, torch.from_numpy(rows))


def lines(table: str) -> list[list[str]]:
    """Cells of the rows."""
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


def test_images_and_their_own_captions(tmp_path: Path) -> None:
    config, data = opened(tmp_path)
    batch = batch_of(data)
    made = samples(config.override("text.embeddings", ""), data, first_of(batch))
    assert torch.equal(made.grid, make_grid(batch.images[:8], 4))
    ids = data.train.ids.to_pylist()
    expected = [
        [str(n), ids[row], data.train.classes[data.train.labels[row]], f"a picture of {ids[row]}"]
        for n, row in enumerate(ROWS, 1)
    ]
    assert lines(made.table) == expected


def test_embeddings_of_one_s_own_are_named_by_their_image(tmp_path: Path) -> None:
    config, data = opened(tmp_path)
    ids = data.train.ids.to_pylist()
    texts = [line[-1] for line in lines(samples(config, data, first_of(batch_of(data))).table)]
    assert texts == [f"the embedding of {ids[row]}" for row in ROWS]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_caption_table_is_looked_up(suffix: str, tmp_path: Path) -> None:
    config, data = opened(tmp_path)
    ids = data.train.ids.to_pylist()
    path = tmp_path / f"captions.{suffix}"
    if suffix == "csv":
        path.write_text("image_id,caption\n" + "".join(f'{name},"of | {name}\nhere"\n' for name in ids[1:]))
    else:
        path.write_text("".join(f'{{"image_id": "{name}", "caption": "of | {name}\\nhere"}}\n' for name in ids[1:]))
    config = config.override("text.embeddings", "").override("text.captions", str(path))
    texts = [line[-1] for line in lines(samples(config, data, first_of(batch_of(data))).table)]
    expected = [f"of \\| {ids[row]} here" if row else f"the embedding of {ids[0]}" for row in ROWS]
    assert texts == expected, "one line each, and where the table has none, whose it is"


def test_a_wrong_join_is_seen(tmp_path: Path) -> None:
    config, data = opened(tmp_path, text__control="shuffle")
    assert data.targets is not None
    owners = data.targets.store.ids.take(pa.array(data.targets.index[ROWS])).to_pylist()
    texts = [
        line[-1]
        for line in lines(samples(config.override("text.embeddings", ""), data, first_of(batch_of(data))).table)
    ]
    assert texts == [f"a picture of {owner}" for owner in owners]
    assert owners != data.train.ids.take(pa.array(ROWS)).to_pylist()


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"text__weight": 0.0}, "none"), ({"text__control": "random_class"}, "a random vector for its class")],
)
def test_without_captions(settings: dict[str, Any], text: str, tmp_path: Path) -> None:
    config, data = opened(tmp_path, **settings)
    batch = first_of(batch_of(data))
    batch.labels[2] = -1
    table = lines(samples(config, data, batch).table)
    assert {line[-1] for line in table} == {text} and table[2][2] == "none"


def test_normalised_images_are_shown_as_they_look(tmp_path: Path) -> None:
    config, data = opened(tmp_path)
    batch = batch_of(data)
    floats = batch._replace(images=normalize(batch.images, config.data.mean, config.data.std))
    grids = [samples(config, data, first_of(each)).grid for each in (batch, floats)]
    assert torch.equal(*grids)


def test_no_random_number_is_drawn_and_the_batch_stays(tmp_path: Path) -> None:
    config, data = opened(tmp_path)
    batch = batch_of(data)
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    copy = first_of(batch)
    samples(config, data, copy)
    copy.images.zero_()
    assert batch.images.any(), "what is shown is a copy, since steps mix in place"
    assert torch.equal(states[0], torch.get_rng_state()) and states[2] == random.getstate()
    assert all(np.array_equal(a, b) for a, b in zip(states[1], np.random.get_state(), strict=True))


def shown(run: Path) -> dict[str, list[str]]:
    """Tags of images and texts in each file of a run's TensorBoard."""
    found = {}
    for path in sorted(run.glob("tensorboard/*")):
        events = EventAccumulator(str(path))
        events.Reload()
        found[path.name] = [*events.Tags()["images"], *events.Tags()["tensors"]]
    return found


def test_a_run_shows_them_once(tmp_path: Path) -> None:
    config = toy_config(tmp_path, train__epochs=2, data__shapes__train_size=16)
    start_run(config)
    with pytest.raises(Interrupted):
        trainer.train(config, open_data(config, Path(config.text.embeddings)), LocalContext.start(False), until=1)
    run_toy(config)
    assert [*shown(config.run_dir).values()] == [["training images", "training images/text_summary"], []]


def test_a_run_goes_on_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no captions here")

    monkeypatch.setattr(trainer, "samples", fail)
    config = toy_config(tmp_path, train__epochs=1, data__shapes__train_size=16)
    assert run_toy(config)["steps"] == 2 and [*shown(config.run_dir).values()] == [[]]
