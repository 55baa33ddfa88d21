"""Figures of the pages are those of the recorded rows."""

import json
from collections import defaultdict

from benchmarks import picture, text_loss, what_text_buys
from tests.pages import ROOT
from tt_ray.statistics import paired_differences, plus_minus


def test_figures_of_the_studies_are_those_of_their_rows() -> None:
    text, front = (ROOT / "docs" / "results.md").read_text(), (ROOT / "README.md").read_text()
    for study, (mean, spread) in ((name, picture.figures(name)["textteacher"]) for name in picture.STUDIES):
        assert f"{mean:.1f} ± {spread:.1f}" in front, study
        mean, spread = picture.figures(study)["baseline"]
        assert f"{mean:.1f} ± {spread:.1f}" in front, study
    names = {"textteacher": "**TextTeacher**", "captions shuffled": "control: captions shuffled"}
    names["random vector per class"] = "control: random vector per class"
    rows = what_text_buys.read(picture.RESULTS / "shapes-noise.jsonl")
    rates = what_text_buys.best_rates(rows, list(what_text_buys.STUDIES["shapes-noise"].arms))
    found: dict[str, dict[int, dict[str, float]]] = defaultdict(dict)
    for row in rows:
        if row["seed"] != what_text_buys.TUNING_SEED and row["rate"] == rates[row["arm"]]:
            found[row["arm"]][row["seed"]] = row
    for arm, seeds in found.items():
        cells = [f"{names.get(arm, arm)} ({rates[arm]:g}, {len(seeds)})"]
        for metric in ("top1", "probe colour", "probe count", "probe relation", "probe background"):
            own, other = ({seed: row[metric] for seed, row in each.items()} for each in (seeds, found["baseline"]))
            cell = plus_minus([own[seed] for seed in sorted(own)], ".1f")
            if arm != "baseline":
                gains = plus_minus(paired_differences(own, other), ".1f", "+")
                cell += f" ({gains if metric == 'top1' else gains.partition(' ')[0]})"
            cells.append(cell)
        assert f"| {' | '.join(cells)} |" in text, arm


def test_figures_of_the_comparisons_are_those_of_their_rows() -> None:
    text = (ROOT / "docs" / "results.md").read_text().split("## Other teachers")[1]
    for kind in ("shapes", "emoji"):
        found: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
        for line in (picture.RESULTS / f"comparisons-{kind}.jsonl").read_text().splitlines():
            row = json.loads(line)
            found[row["setting"], row["arm"]][row["seed"]] = row["top1"]
        for (setting, arm), values in found.items():
            gains = plus_minus(paired_differences(values, found[setting, "baseline"]), ".1f", "+")
            cells = f"{plus_minus(values.values(), '.1f')} | {'' if arm == 'baseline' else gains + ' '}|"
            assert f"| {arm} | {cells}" in text or f"| {cells}\n" in text, (setting, arm)


def test_figures_of_the_text_loss_are_those_of_its_rows() -> None:
    text = (ROOT / "docs" / "speed.md").read_text()
    rows = json.loads((text_loss.RESULTS / "text_loss.json").read_text())["rows"]
    for line in text_loss.table([row for row in rows if row["loss"] in ("clip", "siglip")])[2:]:
        assert line in text, line


def test_figures_of_the_prediction_are_those_of_its_rows() -> None:
    text = (ROOT / "docs" / "speed.md").read_text().split("## At scale, on paper")[1]
    found = json.loads((text_loss.RESULTS / "scaling.json").read_text())
    for size, name in (("S", "small"), ("B", "base"), ("L", "large")):
        cells = [
            f"{row['images_per_s']:,.0f} ({row['efficiency']:.2f}; {row['limit']})"
            for row in found["predictions"]
            if name in row["model"] and row["gpus"] > 1 and row["fits"]
        ]
        assert f"| ViT-{size} | {' | '.join(cells)} |" in text, cells
    ratios = [f"{row['ratio']:.2f}" for row in found["check"]]
    assert f"the prediction was {ratios[0]}, {ratios[1]} and {ratios[2]} times" in " ".join(text.split())
