"""Shards: what is finished stays, what is torn is made anew, other work and a second process are refused."""

from pathlib import Path

import pytest

from tt_ray.io.resumable import open_shards
from tt_ray.terminal.errors import UserError

WORK = {"captions": "0123", "captions per shard": 2}
ABOUT = {"id": "toy", "revision": "1"}
CONTENTS = [b"first", b"", b"x" * 100_000]


def _finish(folder: Path, shards_done: int = 3) -> list[Path]:
    """Shards 0..n-1 finished; their files, in order."""
    with open_shards(folder, WORK, 4) as shards:
        for shard in range(shards_done):
            shards.add(shard, ABOUT, CONTENTS[shard])
    return sorted(folder.glob("*.shard"))


def test_finished_shards_stay(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "work"
    _finish(folder)
    with open_shards(folder, WORK, 4) as shards:
        assert shards.missing() == [3] and shards.done == 3
        assert [shards.read(shard) for shard in range(3)] == CONTENTS
        assert shards.about == ABOUT
        shards.remove()
    assert not folder.exists()


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"y" + data[1:], lambda data: data + b"x"])
def test_a_torn_shard_is_not_taken_for_one(tmp_path: Path, damage: object) -> None:
    torn = _finish(tmp_path)[2]
    torn.write_bytes(damage(torn.read_bytes()))  # type: ignore[operator]
    (tmp_path / ".0000003-0.shard.1-0123abcd.partial").write_bytes(b"half")
    with open_shards(tmp_path, WORK, 4) as shards:
        assert shards.missing() == [2, 3]
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".shard") == [
        path.name for path in sorted(tmp_path.glob("000000[01]*"))
    ]
    assert not list(tmp_path.glob(".*.partial"))


def test_damage_after_opening_is_told(tmp_path: Path) -> None:
    torn = _finish(tmp_path)[2]
    with open_shards(tmp_path, WORK, 4) as shards:
        torn.write_bytes(b"y" * 100_000)
        with pytest.raises(UserError, match="is damaged: the same command makes it again"):
            shards.read(2)


@pytest.mark.parametrize(
    ("work", "about", "message"),
    [
        (WORK | {"captions": "4567"}, ABOUT, r"was begun with other captions \(0123, now 4567\)"),
        (WORK | {"more": 1}, ABOUT, r"was begun with other more \(None, now 1\)"),
        (WORK, ABOUT | {"revision": "2"}, r"was begun with other revision \(1, now 2\)"),
        (WORK, {"id": "toy"}, r"was begun with other revision \(1, now None\)"),
        (WORK, ABOUT | {"prompt": "a"}, r"was begun with other prompt \(None, now a\)"),
    ],
)
def test_other_work_is_refused(tmp_path: Path, work: dict[str, str], about: dict[str, str], message: str) -> None:
    before = [(path.name, path.read_bytes()) for path in _finish(tmp_path)]
    with pytest.raises(UserError, match=message) as caught, open_shards(tmp_path, work, 4) as shards:
        shards.add(3, about, b"other")
    assert "\n" not in str(caught.value)
    assert before == [(path.name, path.read_bytes()) for path in sorted(tmp_path.glob("*.shard"))]


def test_only_one_process_at_a_time(tmp_path: Path) -> None:
    again = open_shards(tmp_path, WORK, 4)
    with open_shards(tmp_path, WORK, 4), pytest.raises(UserError, match="is being written by process"), again:
        pytest.fail("opened twice")
    with open_shards(tmp_path, WORK, 4) as shards:  # a lock ends with its holder
        assert shards.done == 0


@pytest.mark.parametrize("plan", ["{", "[]", '{"format_version": 2, "work": {}, "about": null}'])
def test_a_strange_plan_is_refused(tmp_path: Path, plan: str) -> None:
    _finish(tmp_path)
    (tmp_path / "plan.json").write_text(plan)
    with pytest.raises(UserError, match="is not a plan of this tt-ray"), open_shards(tmp_path, WORK, 4):
        pytest.fail("opened")
    assert len(list(tmp_path.glob("*.shard"))) == 3


def test_shards_without_a_plan_are_not_trusted(tmp_path: Path) -> None:
    _finish(tmp_path)
    (tmp_path / "plan.json").unlink()
    with open_shards(tmp_path, WORK, 4) as shards:
        assert shards.done == 0 and shards.about is None


def test_a_full_disk(mounted: Path) -> None:
    folder = mounted / "work"
    with open_shards(folder, WORK, 4) as shards:
        shards.add(0, ABOUT, b"a" * 2**20)
        with pytest.raises(UserError, match=f"cannot write {folder}.*: No space left on device; fix this") as caught:
            shards.add(1, ABOUT, b"b" * 2**23)
        assert "\n" not in str(caught.value)
        shards.add(1, ABOUT, b"b")  # there is room again
    assert not list(folder.glob(".*.partial"))
    with open_shards(folder, WORK, 4) as shards:
        assert shards.missing() == [2, 3]
