"""Files and folders get their name at the end: whole or not at all, whoever else writes, fails or is killed."""

from pathlib import Path

import pytest

from tt_ray.io.files import new_file, new_folder, partials
from tt_ray.terminal.errors import UserError

KINDS = [pytest.param({"first_wins": first_wins}, id=f"first_wins={first_wins}") for first_wins in (False, True)]


def fill(folder: Path, text: str) -> None:
    for name in ("a", "b"):
        (folder / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("options", KINDS)
def test_a_folder_has_its_name_only_once_it_is_whole(tmp_path: Path, options: dict[str, bool]) -> None:
    path = tmp_path / "deep" / "store"
    with new_folder(path, **options) as folder:
        fill(folder, "own")
        assert not path.exists() and partials(path) == [folder] and folder.parent == path.parent
    assert contents(path) == {"a": "own", "b": "own"} and names(path.parent) == ["store"]


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("there", [False, True])
def test_an_exception_leaves_what_was_there(tmp_path: Path, options: dict[str, bool], there: bool) -> None:
    path = tmp_path / "store"
    if there:
        path.mkdir()
        fill(path, "before")
    with pytest.raises(KeyboardInterrupt), new_folder(path, **options) as folder:
        fill(folder, "half")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["store"] * there
    assert not there or contents(path) == {"a": "before", "b": "before"}


def test_the_first_of_several_writers_wins(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with new_folder(path, first_wins=True) as slow:
        fill(slow, "slow")
        with new_folder(path, first_wins=True) as fast:
            assert fast != slow and set(partials(path)) == {fast, slow}
            fill(fast, "fast")
        assert contents(path) == {"a": "fast", "b": "fast"} and partials(path) == [slow]
    assert contents(path) == {"a": "fast", "b": "fast"} and names(tmp_path) == ["store"]


def test_an_empty_folder_wins_nothing(tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.mkdir()
    with new_folder(path, first_wins=True) as folder:
        fill(folder, "own")
    assert contents(path) == {"a": "own", "b": "own"}


def test_a_file_in_the_place_is_an_error_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.write_text("mine")
    with pytest.raises(OSError), new_folder(path, first_wins=True) as folder:
        fill(folder, "own")
    assert path.read_text() == "mine" and names(tmp_path) == ["store"]


def test_one_writer_replaces_what_is_there_and_removes_what_a_killed_one_has_left(tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.mkdir()
    (path / "old").touch()
    (tmp_path / ".store.partial").mkdir()
    (tmp_path / ".store.partial" / "half").touch()
    with new_folder(path) as folder:
        fill(folder, "new")
    assert contents(path) == {"a": "new", "b": "new"} and names(tmp_path) == ["store"]


@pytest.mark.parametrize("options", [{}, {"first_wins": True}])
@pytest.mark.parametrize("there", [False, True])
def test_of_a_link_what_it_leads_to_is_written(there: bool, options: dict[str, bool], tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    target, link = tmp_path / "disk" / "store", tmp_path / "link"
    if there:
        target.mkdir()
    link.symlink_to(target)
    with new_folder(link, **options) as folder:
        fill(folder, "own")
        assert partials(link) == [folder]
    assert link.is_symlink() and contents(target) == {"a": "own", "b": "own"} and names(tmp_path / "disk") == ["store"]


@pytest.mark.parametrize("options", [{}, {"first_wins": True}])
@pytest.mark.parametrize("place", [".", "..", "", "../here"])
def test_the_folder_that_a_command_runs_in_is_not_replaced(
    place: str, options: dict[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "out" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    with pytest.raises(UserError, match="the folder that this command runs in"), new_folder(Path(place), **options):
        pytest.fail("nothing is computed")
    with new_folder(Path("below"), **options) as folder:
        fill(folder, "own")
    assert names(here) == ["below"]


def test_partials_are_those_of_this_name_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.v1"
    own = [".store.v1.partial", ".store.v1.12-0123abcd.partial"]
    others = [".store.partial", ".store_v1.partial", ".store.v10.partial", ".store.v1.2.partial", "store.v1.partial"]
    others += [".store.v1.12-0123abcd.partial.bak", ".store.v1.x-0123abcd.partial"]
    for name in [*own, *others]:
        (tmp_path / name).touch()
    assert sorted(entry.name for entry in partials(path)) == sorted(own)
    assert partials(tmp_path / "none" / "store") == []


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "deep" / "table"
    for text in ("first", "second"):
        with new_file(path, durable) as file:
            file.write_text(text)
            assert partials(path) == [file] and (not path.exists() or path.read_text() == "first")
        assert path.read_text() == text and names(path.parent) == ["table"]
    with pytest.raises(KeyboardInterrupt), new_file(path, durable) as file:
        file.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "second" and names(path.parent) == ["table"]
