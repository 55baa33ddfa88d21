from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.text.toy_encoders import bert
from tests.toy import DIM, toy_config
from tt_ray.data.prepare import find_store, open_data, open_images
from tt_ray.embeddings.build import write_store
from tt_ray.embeddings.store import open_store
from tt_ray.terminal.errors import UserError


def test_captions_are_embedded_once_for_runs_that_share_them(tmp_path: Path) -> None:
    config = toy_config(tmp_path).override("text.embeddings", "")
    train = open_images(config)[0]
    shown: list[tuple[str, int, int]] = []
    path = find_store(config, train, lambda *news: shown.append(news))
    assert path is not None and path.parent == tmp_path / "embeddings"
    store = open_store(path, verify=True)
    assert (len(store), store.dim) == (48, 384) and shown[-1][1] == shown[-1][2]
    assert (store.rows_of(train.ids) >= 0).all()
    del shown[:]
    other = config.override("run.name", "other").override("optim.lr", 1.0)
    assert find_store(other, train, lambda *news: shown.append(news)) == path and not shown
    less = config.override("data.shapes.caption", "class")
    assert find_store(less, open_images(less)[0]) != path


def test_a_store_that_another_run_makes_meanwhile_serves_both(tmp_path: Path) -> None:
    config = toy_config(tmp_path).override("text.embeddings", "")
    train = open_images(config)[0]
    made = list[Path | None]()
    path = find_store(config, train, before=lambda: made.append(find_store(config, train)))
    assert made == [path] and path is not None and len(open_store(path, verify=True)) == 48


def test_an_encoder_that_was_edited_makes_a_store_of_its_own(tmp_path: Path) -> None:
    bert(tmp_path / "encoder")
    config = toy_config(tmp_path).override("text.embeddings", "").override("text.encoder", str(tmp_path / "encoder"))
    train = open_images(config)[0]
    path = find_store(config, train)
    assert find_store(config, train) == path
    words = tmp_path / "encoder" / "tokenizer.json"
    words.write_text(words.read_text().replace('"red"', '"blue"'))
    assert find_store(config, train) != path


def test_rows_of_a_caption_table_that_are_left_out_are_told(tmp_path: Path) -> None:
    table = tmp_path / "captions.csv"
    config = toy_config(tmp_path).override("text.embeddings", "").override("text.captions", str(table))
    train = open_images(config)[0]
    table.write_text("image_id,caption\n" + "".join(f"{name},a star\n" for name in train.ids.to_pylist()) + "odd,\n")
    said: list[str] = []
    find_store(config, train, say=said.append)
    assert len(said) == 1 and "1 rows of" in said[0] and "captions.csv:50" in said[0]


def test_the_baseline_needs_no_captions(tmp_path: Path) -> None:
    config = toy_config(tmp_path, text__weight=0.0)
    assert find_store(config, open_images(config)[0]) is None
    assert open_data(config, None).targets is None


def test_label_noise_is_exact_and_spares_validation_and_text(tmp_path: Path) -> None:
    clean, noisy = toy_config(tmp_path), toy_config(tmp_path, data__label_noise=0.5)
    store = Path(clean.text.embeddings)
    before, after = open_data(clean, store), open_data(noisy, store)
    assert (before.train.labels != after.train.labels).sum() == 24
    assert (before.val.labels == after.val.labels).all()
    assert any("24 of 48" in note for note in after.notes)
    rows = np.arange(48)
    assert before.targets is not None and after.targets is not None
    assert (before.targets[rows] == after.targets[rows]).all() and after.targets.dim == DIM


def test_images_without_an_embedding_change_no_label_of_the_others(tmp_path: Path) -> None:
    taught = toy_config(tmp_path, data__label_noise=0.5, text__max_missing=0.7)
    ids = open_images(taught)[0].ids[::3]
    rows = np.zeros((len(ids), DIM), np.float32)
    write_store(tmp_path / "some", ids, [rows], DIM, "float32", {"id": "random", "revision": "0"})
    some, every = open_data(taught, tmp_path / "some"), open_data(taught.override("text.weight", 0.0), None)
    assert len(some.train) == 16 and some.train.ids.equals(ids)
    assert (some.train.labels == every.train.labels[::3]).all()
    assert (every.train.labels != open_images(taught)[0].labels).sum() == 24


def test_random_class_vectors_follow_the_clean_label(tmp_path: Path) -> None:
    config = toy_config(tmp_path, data__label_noise=0.5, text__control="random_class")
    data = open_data(config, Path(config.text.embeddings))
    clean = open_images(config)[0].labels
    assert data.targets is not None
    vectors = data.targets[np.arange(48)].numpy()
    for label in np.unique(clean):
        assert (vectors[clean == label] == vectors[clean == label][0]).all()
    assert len(np.unique(vectors, axis=0)) == len(np.unique(clean))


def test_a_damaged_store_is_found_before_training(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    file = Path(config.text.embeddings) / "embeddings.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="checksum|damaged|sha256"):
        find_store(config, open_images(config)[0])


def test_a_subset_is_kept_and_reported(tmp_path: Path) -> None:
    whole, part = toy_config(tmp_path), toy_config(tmp_path, data__subset=0.25)
    all_of_it, kept = open_images(whole)[0], open_images(part)[0]
    data = open_data(part, Path(part.text.embeddings))
    assert len(kept) == len(data.train) == 12 and "12 of 48 training images were kept" in data.notes[0]
    assert kept.classes == all_of_it.classes and set(kept.ids.to_pylist()) < set(all_of_it.ids.to_pylist())
    assert len(data.val) == 37


def test_classes_that_are_not_learned_any_more_are_named(tmp_path: Path) -> None:
    names = open_images(toy_config(tmp_path))[0].classes
    few = toy_config(tmp_path, data__subset=0.1)
    train, _, notes = open_images(few)
    lost = len(names) - len(set(train.labels.tolist()))
    assert lost and f"{lost} classes are not learned, as none of their labels is left (data.subset): " in notes[1]
    config = toy_config(tmp_path, data__unlabelled=0.9)
    data = open_data(config, Path(config.text.embeddings))
    assert f"{lost} classes are not learned, as none of their labels is left (data.unlabelled): " in data.notes[1]
    assert names[int(np.setdiff1d(np.arange(len(names)), data.train.labels)[0])] in data.notes[1]
    whole = toy_config(tmp_path)
    assert open_data(whole, Path(whole.text.embeddings)).notes == ()


def test_labels_are_taken_away_and_noise_counts_the_rest(tmp_path: Path) -> None:
    clean = open_images(toy_config(tmp_path))[0].labels
    config = toy_config(tmp_path, data__unlabelled=0.75, data__label_noise=0.5)
    data = open_data(config, Path(config.text.embeddings))
    known = data.train.labels >= 0
    assert known.sum() == 12 and (data.train.labels[~known] == -1).all() and len(data.train) == 48
    assert (data.train.labels != clean)[known].sum() == 6
    assert "36 of 48 training images have no label (data.unlabelled)" in data.notes
    assert "6 of 12 training labels were replaced at random" in data.notes
    assert (data.val.labels >= 0).all()


def test_where_labels_alone_teach_images_without_one_are_left_out(tmp_path: Path) -> None:
    config = toy_config(tmp_path, data__unlabelled=0.75, text__weight=0.0)
    data = open_data(config, None)
    taught = toy_config(tmp_path, data__unlabelled=0.75)
    labels = open_data(taught, Path(taught.text.embeddings)).train.labels
    assert (data.train.labels == labels[labels >= 0]).all() and "left out" in data.notes[0]


def test_no_label_at_all_is_refused(tmp_path: Path) -> None:
    config = toy_config(tmp_path, data__unlabelled=0.99)
    with pytest.raises(UserError, match="data.unlabelled 0.99 leaves none of 48 images a label"):
        open_data(config, Path(config.text.embeddings))


def test_labels_of_images_without_an_embedding_alone_are_refused(tmp_path: Path) -> None:
    config = toy_config(tmp_path, data__unlabelled=0.75, text__max_missing=0.5)
    train = open_images(config)[0]
    assert train.hidden is not None
    ids = train.select(np.flatnonzero(train.hidden)).ids
    rows = np.random.default_rng(0).normal(size=(len(ids), DIM)).astype(np.float32)
    store = write_store(tmp_path / "hidden", ids, [rows], DIM, "float32", {"id": "x", "revision": "0"})
    with pytest.raises(UserError, match="none of the 36 training images with an embedding has a label"):
        open_data(config, store.path)


def test_one_class_alone_is_refused_rather_than_learned_to_100_per_cent(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / split / "cat" / "0.png")
    config = toy_config(tmp_path, data__source="imagefolder", data__root=str(tmp_path), text__weight=0.0)
    with pytest.raises(UserError, match=f"imagefolder {tmp_path} has one class alone, cat: there is nothing to tell"):
        open_images(config)
