"""What sections have found so far: a Markdown table as it grows, and a JSON file that is whole after each row."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu.sections import Row, Section

DONE = "done"


class Record:
    """Rows and outcomes of sections.

    Args:
        machine: What the rows were measured on.
        out: The file; None writes none.
        merge: Keep what the file has of other sections.
    """

    def __init__(self, machine: dict[str, Any], out: Path | None, merge: bool = False) -> None:
        self.machine, self.out = machine, out
        self.sections: dict[str, dict[str, Any]] = {}
        if merge and out is not None and out.exists():
            self.sections = json.loads(out.read_text())["sections"]
        self._ran: list[str] = []
        print(", ".join(f"{name} {value}" for name, value in machine.items() if value), flush=True)
        print("\n| section | | measured | quartiles | aim |\n| --- | --- | --- | --- | --- |", flush=True)

    @property
    def failed(self) -> list[str]:
        """Sections that ended with an error."""
        return [name for name in self._ran if self.sections[name]["outcome"].startswith("failed")]

    @property
    def missed(self) -> list[str]:
        """Rows that are not what was aimed at."""
        found = [(name, row) for name in self._ran for row in self.sections[name]["rows"]]
        return [f"{name}: {row['what']}" for name, row in found if row["met"] is False]

    def begin(self, section: Section) -> None:
        """Rows that follow are the section's; until it ends it counts as cut off with this command."""
        self._ran.append(section.name)
        self.sections[section.name] = {"claim": section.claim, "rows": [], "outcome": "the command ended before it did"}

    def add(self, row: Row) -> None:
        """One row of the section that has begun last."""
        name = self._ran[-1]
        self.sections[name]["rows"].append({**asdict(row), "aim": row.aim, "met": row.met})
        value = row.value if isinstance(row.value, str) else f"{row.value:.4g} {row.unit}".rstrip()
        low, high = row.quartiles or ("", "")
        spread = f"{low:.4g} - {high:.4g}" if row.quartiles else ""
        aim = row.aim + (": **missed**" if row.met is False and self.machine["card"] else "")
        note = f" ({row.note})" if row.note else ""
        print(f"| {name} | {row.what}{note} | {value} | {spread} | {aim} |", flush=True)
        self.write()

    def end(self, outcome: str, seconds: float = 0.0) -> None:
        """How the section that has begun last ended, and what it took."""
        name = self._ran[-1]
        self.sections[name] |= {"outcome": outcome, "seconds": round(seconds, 1)}
        if outcome != DONE:
            print(f"| {name} | {outcome} | | | |", flush=True)
        self.write()

    def write(self) -> None:
        """The file, replaced as a whole."""
        if self.out is None:
            return
        self.out.parent.mkdir(parents=True, exist_ok=True)
        partial = self.out.with_suffix(".partial")
        partial.write_text(json.dumps({"machine": self.machine, "sections": self.sections}, indent=2) + "\n")
        os.replace(partial, self.out)

    def conclude(self) -> None:
        """Says what did not go as it should."""
        seconds = sum(self.sections[name]["seconds"] for name in self._ran)
        outcomes = {name: self.sections[name]["outcome"] for name in self._ran}
        whole = sum(outcome == DONE for outcome in outcomes.values())
        print(f"\n{whole} of {len(outcomes)} sections measured in {seconds:.0f} s.")
        for name, outcome in outcomes.items():
            if outcome != DONE:
                print(f"- {name}: {outcome}")
        if self.machine["card"]:
            print("\n".join(["Aims missed:", *(f"- {row}" for row in self.missed)]) if self.missed else "All aims met.")
        else:
            print("Toy sizes on a CPU: what was measured means nothing.")
        if self.out is not None:
            print(f"Rows: {self.out}")
