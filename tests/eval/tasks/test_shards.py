"""Tasks whose images lie in WebDataset shards."""

import pickle
from pathlib import Path

import pytest

from eval.tasks.registry import folder_task, load_tasks, tasks
from tests.data.sources.test_webdataset import jpeg, write
from tests.eval.tasks.test_registry import COLOURS, message
from tt_ray.data.sources.tar_index import INDEX


def sharded(folder: Path, counts: dict[str, int]) -> Path:
    """Shards of the splits, with class names."""
    for split, count in counts.items():
        files: dict[str, bytes | str] = {}
        for number in range(count):
            for name in COLOURS:
                files |= {f"{split}{name}{number}.jpg": jpeg(number), f"{split}{name}{number}.cls": name}
        write(folder / f"{split}-000.tar", files)
    return folder


@pytest.mark.parametrize("val", [False, True])
def test_own_shards(tmp_path: Path, val: bool) -> None:
    """In a folder, by a pattern, behind a URI, and in a task file: the same task."""
    folder = sharded(tmp_path / "wds", {"train": 5, "test": 2, **({"validation": 3} if val else {})})
    (tmp_path / "tasks.yaml").write_text("d: {root: wds}\ne: {root: wds, train: test, test: train}\n")
    uri = f"file://{folder}"
    roots = {"a": str(folder), "b": f"{folder}/{{train,test{',validation' * val}}}-000.tar", "c": uri}
    found = {**tasks([*roots], roots, local_cache=str(tmp_path / "cache")), **load_tasks(tmp_path / "tasks.yaml")}
    swapped = found.pop("e")
    assert swapped.sizes["train"] == 6 and swapped.sizes["test"] == 15
    for task in found.values():
        assert task.sizes == {"train": 15, "test": 6, **({"val": 9} if val else {})} and task.classes == 3
        assert (
            task.data == found["a"].data
            and pickle.loads(pickle.dumps(task)).open("test").labels.tolist() == [0, 1, 2] * 2
        )
        assert task.open("test").read(0).size == task.open("train").read(14).size == (12, 8)
    assert len(list((tmp_path / "cache").rglob("*.tar"))) == 2
    sharded(folder, {"test": 1})
    (folder / INDEX).unlink()
    assert folder_task("a", folder).data != found["a"].data, "other images make another task"


def test_shards_of_a_task_of_the_table(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {}
    for number in range(3):
        files |= {f"{number}.jpg": jpeg(number), f"{number}.cls": str(number)}
    write(tmp_path / "imagenet1k-train-0000.tar", files)
    write(tmp_path / "imagenet1k-validation-00.tar", files)
    task = tasks(["imagenet"], {"imagenet": f"{tmp_path}/imagenet1k-*.tar"})["imagenet"]
    assert "must have 50,000 images, but 3 are there" in message(lambda: task.open("test"))
    behind = tasks(["imagenet"], {"imagenet": f"file://{tmp_path}"}, local_cache=str(tmp_path / "cache"))["imagenet"]
    assert f"OTHER_NAME=file://{tmp_path}" in message(lambda: behind.open("test")), "a URI stays one"


def test_shards_that_lack_a_split(tmp_path: Path) -> None:
    folder = sharded(tmp_path, {"train": 5})
    assert "has no shards of split 'test' for test" in message(lambda: folder_task("mine", folder))
    assert "no folder of .tar files" in message(lambda: folder_task("mine", f"file://{tmp_path}/none"))
