"""The README keeps its word: the paths that it names exist, and its test command is what CI runs."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_tour_names_five_files_that_exist() -> None:
    tour = README.split("## Tour")[1].split("\n## ")[0]
    files = re.findall(r"\]\(([^)]+\.py)\)", tour)
    assert len(files) == 5
    assert all((ROOT / file).is_file() for file in files)


def test_every_link_into_the_repository_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links and all((ROOT / link).exists() for link in links)


def test_set_up_is_two_commands_and_ci_runs_the_second() -> None:
    commands = re.findall(r"^(?:git clone .*&& )?python3\.11 -m venv .*$", README, re.MULTILINE)
    assert len(commands) == 2
    assert commands[1] in (ROOT / ".ci" / "run").read_text()


def test_modules_that_the_readme_runs_exist() -> None:
    modules = set(re.findall(r"python -m ((?:tt_ray|benchmarks|eval)[\w.]*)", README))
    assert {"tt_ray.train", "tt_ray.export", "eval", "eval.report"} <= modules
    paths = [ROOT / module.replace(".", "/") for module in modules]
    assert all(path.with_suffix(".py").is_file() or (path / "__main__.py").is_file() for path in paths)


def test_predictions_at_scale_are_those_of_the_recorded_run() -> None:
    recorded = json.loads((ROOT / "benchmarks" / "results" / "scaling.json").read_text())
    section = README.split("### At scale")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| (ViT-\w) (\|.*)$", section, re.MULTILINE))
    for row in recorded["predictions"]:
        if row["gpus"] == 1:
            continue
        fits = f"{row['images_per_s']:,.0f} ({row['efficiency']:.2f}; {row['limit']})"
        size = row["model"].split("_")[1][0].upper()
        assert f"| {fits if row['fits'] else 'does not fit'} |" in rows[f"ViT-{size}"]
    assert len(rows) == 3
    assert "{:.2f}, {:.2f} and {:.2f} times".format(*(row["ratio"] for row in recorded["check"])) in section
