"""The record of a search: a line for every trial, every report and every end, written before anything else.

Nothing else needs to survive the command: a search resumes from its journal and its trials' run folders.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tt_ray.tune.space import Values

Status = str
"""running, done, stopped (by the scheduler), failed, or died (its process did: the trial is tried again)."""


@dataclass
class Record:
    """One trial."""

    name: str
    phase: str
    """search, or final: the comparison with the base recipe."""
    values: Values
    seeds: list[int]
    reports: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Reports in order of arrival: means over seeds, each seed's own in `seeds`, epoch, seconds, values."""
    status: Status = "running"
    reason: str = ""

    @property
    def epoch(self) -> int:
        """Epochs reported so far."""
        return self.reports[-1]["epoch"] if self.reports else 0

    @property
    def ended(self) -> bool:
        return self.status in ("done", "stopped", "failed")

    def last(self, metric: str) -> float | None:
        """The value of the last report; None before the first."""
        return self.reports[-1].get(metric) if self.reports else None

    def job(self) -> dict[str, Any]:
        """Arguments of the trial's function."""
        values = self.reports[-1]["values"] if self.reports else self.values
        return {"name": self.name, "values": values, "seeds": self.seeds, "reported": self.epoch}


class Journal:
    """`journal.jsonl` in a search's folder. An unfinished last line, left by a killed command, is dropped."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journal.jsonl"
        self.records: dict[str, Record] = {}
        text = self.path.read_text() if self.path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        self._whole = len(whole.encode())
        for line in whole.splitlines():
            self._take(json.loads(line))

    def add(self, name: str, phase: str, values: Values, seeds: list[int]) -> Record:
        """Adds a trial."""
        self._write({"kind": "trial", "trial": name, "phase": phase, "values": values, "seeds": seeds})
        return self.records[name]

    def report(self, name: str, row: dict[str, Any]) -> None:
        """Records a validation, in place of one of the same epoch and generation from before a crash."""
        self._write({"kind": "report", "trial": name, "row": row})

    def end(self, name: str, status: Status, reason: str = "") -> None:
        """Records how a trial has ended."""
        self._write({"kind": "end", "trial": name, "status": status, "reason": reason})

    def lineage(self, record: Record) -> list[dict[str, Any]]:
        """Reports on a trial's weights, epoch by epoch, those of the trials that they were taken over from included."""
        return self._lineage(record, float("inf"), float("inf"))

    def _lineage(self, record: Record, before: float, epochs: float) -> list[dict[str, Any]]:
        rows = [row for row in record.reports if row["at"] < before and row["epoch"] <= epochs]
        if not rows:
            return []
        own = [row for row in rows if row["generation"] == rows[-1]["generation"]]
        donor = self.records.get(own[0].get("donor", ""))
        return [*(self._lineage(donor, own[0]["at"], own[0]["epoch"] - 1) if donor else []), *own]

    def of(self, phase: str) -> list[Record]:
        """The trials of a phase, in the order in which they began."""
        return [record for record in self.records.values() if record.phase == phase]

    def _write(self, entry: dict[str, Any]) -> None:
        line = (json.dumps(entry) + "\n").encode()
        with self.path.open("r+b" if self.path.exists() else "wb") as file:
            file.truncate(self._whole)
            file.seek(self._whole)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._whole += len(line)
        self._take(entry)

    def _take(self, entry: dict[str, Any]) -> None:
        name = entry["trial"]
        if entry["kind"] == "trial":
            self.records[name] = Record(name, entry["phase"], entry["values"], entry["seeds"])
            return
        record = self.records[name]
        if entry["kind"] == "end":
            record.status, record.reason = entry["status"], entry["reason"]
            return
        row = entry["row"]
        same = (row["epoch"], row["generation"])
        record.reports = [old for old in record.reports if (old["epoch"], old["generation"]) != same]
        record.reports.append(row)
        # Nothing is lost if the command was killed before it wrote the end of the trial.
        record.status = "done" if row.get("finished") else "running"
