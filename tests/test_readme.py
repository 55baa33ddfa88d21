"""The README keeps its word: its tour, its size, and its test command, which is what CI runs. See also test_docs.py."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_tour_names_five_files_that_exist() -> None:
    tour = README.split("\n## Tour\n")[1].split("\n## ")[0]
    files = re.findall(r"\]\(([^)]+\.py)\)", tour)
    assert len(files) == 5
    assert all((ROOT / file).is_file() for file in files)


def test_it_is_one_screen_and_a_page() -> None:
    assert len(README.encode()) <= 9 * 1024


def test_set_up_is_two_commands_and_ci_runs_the_second() -> None:
    commands = re.findall(r"^(?:git clone .*&& )?python3\.11 -m venv .*$", README, re.MULTILINE)
    assert len(commands) == 2
    assert commands[1] in (ROOT / ".ci" / "run").read_text()


def test_predictions_at_scale_are_those_of_the_recorded_run() -> None:
    recorded = json.loads((ROOT / "benchmarks" / "results" / "scaling.json").read_text())
    section = (ROOT / "docs" / "speed.md").read_text().split("## At scale")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| (ViT-\w) (\|.*)$", section, re.MULTILINE))
    for row in recorded["predictions"]:
        if row["gpus"] == 1:
            continue
        fits = f"{row['images_per_s']:,.0f} ({row['efficiency']:.2f}; {row['limit']})"
        size = row["model"].split("_")[1][0].upper()
        assert f"| {fits if row['fits'] else 'does not fit'} |" in rows[f"ViT-{size}"]
    assert len(rows) == 3
    assert "{:.2f}, {:.2f} and {:.2f} times".format(*(row["ratio"] for row in recorded["check"])) in section
