"""The journal: what is read is what was written, and a line that a crash has cut off is no line."""

from pathlib import Path
from typing import Any

from tt_ray.tune.journal import Journal


def row(epoch: int, generation: int = 0, **more: Any) -> dict[str, Any]:
    values = {"text.weight": 0.5}
    return {"epoch": epoch, "generation": generation, "top1": 1.0 * epoch, "values": values, "at": 1.0 * epoch, **more}


def test_a_journal_is_read_as_it_was_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add("t0", "search", {"text.weight": 0.5}, [1, 2])
    journal.report("t0", row(1))
    journal.add("t1", "search", {}, [1])
    journal.end("t1", "failed", "no such dimension")
    again = Journal(tmp_path)
    assert again.records == journal.records
    assert [record.name for record in again.of("search")] == ["t0", "t1"]
    assert again.records["t1"].ended and not again.records["t0"].ended
    assert again.records["t0"].job() == {"name": "t0", "values": {"text.weight": 0.5}, "seeds": [1, 2], "reported": 1}


def test_a_line_that_was_cut_off_is_dropped_and_overwritten(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add("t0", "search", {}, [1])
    journal.report("t0", row(1))
    whole = journal.path.read_bytes()
    for cut in range(1, len(whole.splitlines()[-1])):
        journal.path.write_bytes(whole[:-cut])
        again = Journal(tmp_path)
        assert again.records["t0"].epoch == 0
        again.report("t0", row(1))
        assert journal.path.read_bytes() == whole


def test_reading_changes_nothing(tmp_path: Path) -> None:
    Journal(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "journal.jsonl").write_text("{half a li")
    Journal(tmp_path)
    assert (tmp_path / "journal.jsonl").read_text() == "{half a li"


def test_a_report_that_comes_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add("t0", "search", {}, [1])
    for each in (row(1), row(2), row(2, at=9.0), row(1, generation=1)):
        journal.report("t0", each)
    assert [(r["epoch"], r["generation"], r["at"]) for r in journal.records["t0"].reports] == [
        (1, 0, 1.0),
        (2, 0, 9.0),
        (1, 1, 1.0),
    ]


def test_lineages_follow_donors(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for name in ("a", "b"):
        journal.add(name, "search", {}, [1])
    for epoch, at in ((1, 1.0), (2, 2.0), (3, 5.0)):
        journal.report("a", row(epoch, at=at, top1=10.0))
    journal.report("b", row(1, at=1.5))
    journal.report("b", row(3, 1, at=6.0, donor="a", top1=20.0))
    lineage = journal.lineage(journal.records["b"])
    assert [(each["epoch"], each["top1"]) for each in lineage] == [(1, 10.0), (2, 10.0), (3, 20.0)]


def test_a_trial_that_was_killed_after_its_last_report_is_done(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add("t0", "search", {}, [1])
    journal.report("t0", row(1, finished=False))
    assert not journal.records["t0"].ended
    journal.report("t0", row(2, finished=True))
    assert Journal(tmp_path).records["t0"].status == "done"
