"""`python -m tt_ray.audit` from captions to a folder, and a run that trains on what it found."""

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import tt_ray
from tests.command_here import draw, listing, one_line
from tests.text.toy_encoders import bert
from tt_ray.audit.__main__ import main
from tt_ray.audit.audit import measure
from tt_ray.audit.findings import Options
from tt_ray.audit.inputs import taught
from tt_ray.audit.words import how_many_listed, to_train
from tt_ray.config import Config
from tt_ray.data.prepare import open_data, open_images
from tt_ray.embeddings.build import write_store
from tt_ray.terminal.command import run_command
from tt_ray.terminal.errors import UserError
from tt_ray.terminal.progress import Display

NAMES = ("cat", "dog")
WRONG = (*(f"dog/{number}.png" for number in range(3, 13)), *(f"cat/{number}.png" for number in range(20, 30)))
"""Images that lie in the other class's folder."""


def shows(name: str) -> str:
    """The class that an image and its caption show."""
    label = name.partition("/")[0]
    return NAMES[1 - NAMES.index(label)] if name in WRONG else label


def write(root: Path) -> None:
    for split, count in (("train", 60), ("test", 3)):
        rows = []
        for number, label in enumerate(NAMES):
            for image in range(count):
                name = f"{label}/{image}.png"
                path = root / split / name
                if split == "test" or image < 2 or name in WRONG:
                    draw(path, image + 100 * number)
                else:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(b"no image: none is decoded that was not asked for")
                rows.append({"file_name": name, "label": label, "caption": f"a {shows(name)}{' a' * image}"})
        (root / split / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_embeddings(place: Path) -> None:
    """Embeddings of what images show."""
    ids = [f"{label}/{image}.png" for label in NAMES for image in range(60)]
    random, centres = np.random.default_rng(0), 2 * np.eye(8)
    rows = np.stack([centres[NAMES.index(shows(name))] + 0.25 * random.normal(size=8) for name in ids])
    about = {"id": str(place / "encoder"), "revision": "0", "max_tokens": 20}
    write_store(place / "store", pa.array(ids), [rows.astype(np.float32)], 8, "float32", about)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    write(folder / "images")
    bert(folder / "encoder")
    write_embeddings(folder)
    return folder


def words(place: Path, *more: str) -> list[str]:
    where = ["--data.source", "imagefolder", "--data.root", str(place / "images"), "--run.storage", str(place / "runs")]
    return [*where, "--text.embeddings", str(place / "store"), *more]


@pytest.fixture(scope="module")
def done(place: Path) -> Path:
    main(words(place, "--out", str(place / "out"), "--thumbnails", "24", "--corrected", "0.5"))
    return place / "out"


def test_it_finds_the_labels_that_are_wrong(done: Path) -> None:
    with (done / "suspects.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["image_id"] for row in rows[: len(WRONG)]} == set(WRONG)
    assert all(row["label"] != row["suggestion"] and row["caption"] for row in rows[: len(WRONG)])
    assert pq.read_table(done / "suspects.parquet")["image_id"].to_pylist() == [row["image_id"] for row in rows]
    figures = json.loads((done / "audit.json").read_text())
    share = figures["noise"]["share"]
    assert share["low"] <= 20 / 120 <= share["high"] and figures["knowledge"]["accuracy"] > 0.8
    assert figures["captions"]["images"] == 120 and figures["cut_off"]["share"] > 0.5
    assert figures["verdict"]["headline"] in (done / "audit.html").read_text().replace("&#39;", "'")
    page = (done / "suspects.html").read_text()
    assert page.count("data:image/jpeg") >= 3 and "cannot be read" in page


def config_of(place: Path, **changes: object) -> Config:
    plain = {"data.source": "imagefolder", "data.root": str(place / "images"), "text.weight": 0.0}
    return tt_ray.recipe("shapes_baseline").override({**plain, **{k.replace("__", "."): v for k, v in changes.items()}})


def test_a_run_trains_on_what_it_found(done: Path, place: Path) -> None:
    before = open_images(config_of(place))[0]
    for table in ("corrected.csv", "suspects.csv"):
        after, _, notes = open_images(config_of(place, data__labels=str(done / table)))
        differ = set(np.array(before.ids.to_pylist())[after.labels != before.labels])
        assert bool(differ) is (table == "corrected.csv"), "suspects change nothing until edited"
        assert differ <= set(WRONG)
        assert notes == [f"{len(differ)} training labels were corrected, and 0 images left out (data.labels)"]


def test_a_corrected_table_holds_the_noise_of_an_experiment_too(place: Path) -> None:
    """It is read without the noise, which would replace the labels that were corrected."""
    noisy = words(place, "--out", str(place / "noisy"), "--data.label_noise", "0.2")
    main([*noisy, "--corrected", "1"])
    assert r"train with --data.labels corrected.csv --data.label\_noise 0" in (place / "noisy" / "audit.md").read_text()
    figures = json.loads((place / "noisy" / "audit.json").read_text())
    assert to_train(figures, "x.csv") == "--data.labels x.csv --data.label_noise 0"
    seen = open_data(config_of(place, data__label_noise=0.2), None).train
    table = place / "noisy" / "corrected.csv"
    again = open_data(config_of(place, data__labels=str(table)), None).train
    assert again.ids.equals(seen.ids) and np.array_equal(again.labels, seen.labels)


def test_a_corrected_table_holds_the_labels_of_an_experiment_with_few_of_them(place: Path) -> None:
    hidden = {"data__unlabelled": 0.4, "train__seed": 1}
    noisy = words(place, "--out", str(place / "few"), "--data.label_noise", "0.3")
    main([*noisy, "--data.unlabelled", "0.4", "--train.seed", "1", "--corrected", "1"])
    seen = open_data(config_of(place, data__label_noise=0.3, **hidden), None).train
    again = open_data(config_of(place, data__labels=str(place / "few" / "corrected.csv"), **hidden), None).train
    assert again.ids.equals(seen.ids) and np.array_equal(again.labels, seen.labels)


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_a_corrected_table_keeps_labels_of_images_that_no_caption_judges(
    noise: float, place: Path, tmp_path: Path
) -> None:
    """Of images without an embedding: those of data.labels, and those that data.label_noise made wrong."""
    own = open_images(config_of(place))[0]
    known = own.ids.slice(20)
    rows = np.random.default_rng(0).normal(size=(len(known), 8)).astype(np.float32)
    write_store(tmp_path / "store", known, [rows], 8, "float32", {"id": "x", "revision": "0"})
    given = {name: NAMES[1 - NAMES.index(name.partition("/")[0])] for name in own.ids[:3].to_pylist()} | {
        own.ids[3].as_py(): ""
    }
    lines = "".join(f"{name},{label}\n" for name, label in given.items())
    (tmp_path / "mine.csv").write_text(f"image_id,label\n{lines}")
    changes = {"data__labels": str(tmp_path / "mine.csv"), "data__label_noise": noise}
    config = config_of(place, text__embeddings=str(tmp_path / "store"), **changes)
    tt_ray.audit(config, tmp_path / "out", corrected=1)
    seen = open_data(config_of(place, **changes), None).train
    again = open_data(config_of(place, data__labels=str(tmp_path / "out" / "corrected.csv")), None).train
    assert len(seen) == len(own) - 1 and again.ids.equals(seen.ids) and np.array_equal(again.labels, seen.labels)


def test_what_is_said_does_not_contradict_the_figures(done: Path) -> None:
    """The estimate is of how many labels are wrong; which ones, captions may not show."""
    figures = json.loads((done / "audit.json").read_text())
    figures["knowledge"]["noise"]["value"] = 0.2
    for listed, said in ((3, True), (20, False)):
        figures["suspects"]["listed"] = listed
        text = how_many_listed(figures)
        assert text.startswith(f"Labels that are more likely wrong than right: {listed} of 120")
        assert ("the estimate is about 24: of the others" in text) is said
    assert to_train(figures, "my x.csv") == "--data.labels 'my x.csv'"
    assert how_many_listed(figures | {"knowledge": {**figures["knowledge"], "knows": False}}).endswith("of 120")


def test_from_python_from_a_store_of_embeddings_and_again(done: Path, place: Path, tmp_path: Path) -> None:
    config = config_of(place, text__embeddings=str(place / "store"))
    found = tt_ray.audit(config, tmp_path / "out")
    assert (
        found.verdict
        and found.folder == tmp_path / "out"
        and set(WRONG) <= set(found.suspects["image_id"][: len(WRONG)].to_pylist())
    )
    before = listing(tmp_path / "out")
    with pytest.raises(UserError, match="holds an audit: choose another out, or overwrite to replace it"):
        tt_ray.audit(config, tmp_path / "out")
    assert listing(tmp_path / "out") == before
    tt_ray.audit(config, tmp_path / "out", overwrite=True)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="holds something else"):
        tt_ray.audit(config, tmp_path / "thesis", overwrite=True)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("suspects.csv", lambda path: path.write_text(path.read_text().replace("cat", "dog"))),
        ("corrected.csv", lambda path: path.write_text("image_id,label\n")),
        ("mine.csv", lambda path: path.write_text("image_id,label\n")),
        ("more", lambda path: path.mkdir()),
        ("audit.json", lambda path: path.write_text("{")),
    ],
)
def test_replacing_an_audit_deletes_nothing_that_somebody_has_edited(
    name: str, change: Callable[[Path], object], done: Path, place: Path, tmp_path: Path
) -> None:
    shutil.copytree(done, tmp_path / "out")
    change(tmp_path / "out" / name)
    before = listing(tmp_path / "out")
    config = config_of(place, text__embeddings=str(place / "store"))
    with pytest.raises(UserError, match="changed or added since the audit") as refused:
        tt_ray.audit(config, tmp_path / "out", overwrite=True)
    assert (name in str(refused.value)) is (name != "audit.json") and listing(tmp_path / "out") == before


def write_made_of_labels(root: Path) -> None:
    """Captions and embeddings that follow from the class alone, and a table that gives each fifth image another one."""
    names, random, rows, corrected = ("cat", "dog"), np.random.default_rng(0), [], ["image_id,label"]
    for split, count in (("train", 100), ("test", 2)):
        part = [(f"{names[image % 2]}/{image}.png", names[image % 2]) for image in range(count)]
        for name, _ in part:
            draw(root / split / name, 0)
        lines = [
            {"file_name": name, "caption": f"picture {place} of a {own}"} for place, (name, own) in enumerate(part)
        ]
        (root / split / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        rows += part if split == "train" else []
    corrected += [f"{name},{names[1 - names.index(own)]}" for name, own in rows[::5]]
    (root / "labels.csv").write_text("\n".join(corrected) + "\n")
    table = np.stack([2 * np.eye(8)[names.index(own)] + 0.1 * random.normal(size=8) for _, own in rows])
    about = {"id": "x", "revision": "0", "max_tokens": 20}
    write_store(root / "store", pa.array([name for name, _ in rows]), [table.astype(np.float32)], 8, "float32", about)


def test_captions_made_from_labels_are_compared_with_the_labels_of_the_data(tmp_path: Path) -> None:
    """Not with those that data.labels or data.label_noise have changed: captions repeat the old ones there."""
    write_made_of_labels(tmp_path / "images")
    plain = config_of(tmp_path, text__embeddings=str(tmp_path / "images" / "store"))
    changes = {
        "as they are": {},
        "corrected": {"data.labels": str(tmp_path / "images" / "labels.csv")},
        "noise": {"data.label_noise": 0.3},
        "noise of the next class": {"data.label_noise": 0.3, "data.label_noise_kind": "pair"},
    }
    with Display() as display:
        found = {name: measure(plain.override(each), Options(), display) for name, each in changes.items()}
    for name, each in found.items():
        assert each.knowledge.named == 1 and each.knowledge.repeated > 0.95, name
        assert (each.knowledge.accuracy > 0.95) is (name == "as they are"), name
        assert (each.verdict.kind == "labels") is ("noise" not in name), (name, each.verdict)
        assert any("wrong in the data themselves" in line for line in each.verdict.evidence) is ("noise" in name)


@pytest.mark.parametrize(
    "more",
    [
        {"text.loss": "borlan", "text.class_variance": "sample", "text.mixed_class": "argmax"},
        {"text.loss": "borlan", "text.class_embeddings": "STORE"},
        {"text.loss": "siglip", "text.temperature": 0.1, "text.schedule": "vl2", "head.freeze": True},
        {"text.loss": "vl2lite", "teacher.model": "timm:resnet18", "data.sampling": "balanced"},
    ],
)
def test_it_audits_for_whatever_loss_a_run_has(more: dict[str, Any]) -> None:
    plain = tt_ray.recipe("shapes_textteacher")
    assert taught(plain.override(more)).text == taught(plain).text


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--outt", "x"], ["no option --outt", "--out"]),
        (["--data.rooot", "x"], ["no option --data.rooot", "--data.root"]),
        (["--corrected", "1.5"], ["--corrected is 1.5", "0.5 to 1"]),
        (["--thumbnails", "-1"], ["--thumbnails is -1"]),
        (["--text.embeddings", "", "--text.captions", "none.csv"], ["no caption table none.csv"]),
        (["--images", "no/such/run"], ["--images no/such/run", "no such model"]),
        (["--data.labels", "none.csv"], ["none.csv"]),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    more: list[str], parts: list[str], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["prog", *words(place, "--out", str(place / "bad")), *more])
    with pytest.raises(SystemExit) as stop:
        run_command(main)
    text = one_line(capsys.readouterr().err)
    assert stop.value.code == 2 and all(part in text for part in parts), text
    assert not (place / "bad").exists()


def test_rows_of_captions_that_cannot_be_used_stand_on_the_page(place: Path, tmp_path: Path) -> None:
    ids = open_images(config_of(place))[0].ids.to_pylist()
    rows = [f"{name},a {shows(name)}" for name in ids] + [f"{ids[0]},another", f"{ids[1]},"]
    (tmp_path / "captions.csv").write_text("image_id,caption\n" + "\n".join(rows) + "\n")
    named = {"text__captions": str(tmp_path / "captions.csv"), "text__encoder": str(place / "encoder")}
    config = config_of(place, run__storage=str(tmp_path / "runs"), **named)
    for attempt in ("embedded", "found again"):
        notes = tt_ray.audit(config, tmp_path / attempt).figures["notes"]
        assert any("2 rows of" in note and "captions.csv:122" in note for note in notes), notes
        assert "2 rows of" in (tmp_path / attempt / "audit.md").read_text()


def test_captions_that_know_nothing_judge_no_label(place: Path, tmp_path: Path) -> None:
    """Captions are embedded by an encoder of random weights, for a recipe that reads none."""
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"text": {"weight": 0.0}, "train": {"epochs": 1}}))
    more = ["--text.embeddings", "", "--text.encoder", str(place / "encoder"), "--data.label_noise", "0.5"]
    main([str(tmp_path / "mine.yaml"), *words(place, "--out", str(tmp_path / "out")), *more])
    figures = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert figures["verdict"]["kind"] == "unknown" and figures["suspects"]["listed"] == 0
    assert figures["suspects"]["corrected"] == 0 and "cannot be judged" in (tmp_path / "out" / "audit.md").read_text()
