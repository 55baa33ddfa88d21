"""Figures of the pages are those of the recorded rows."""

import csv
import json
from collections import defaultdict
from math import sqrt

from scipy.stats import t

from benchmarks import picture, searches, text_loss, what_text_buys
from tests.pages import ROOT
from tt_ray.statistics import paired_differences, plus_minus, t_interval
from tt_ray.tune.live_table import winner
from tt_ray.tune.results import margin, no_worse


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


def test_figures_of_the_searches_are_those_of_their_trials() -> None:
    text = (ROOT / "docs" / "results.md").read_text().split("## Search")[1]
    for data, space in ((data, space) for data in ("shapes", "emoji") for space in ("loss_weight", "projection")):
        folder = picture.RESULTS / "tune" / f"{data}-{space}"
        search = searches.recorded(folder)
        records = search.journal.of("search")
        found, gain = (
            no_worse(records, search.space),
            margin(search.journal, search.space, winner(records, search.space)),
        )
        assert found is not None and gain is not None
        low, high = t_interval(gain.gains) or (0.0, 0.0)
        of = len(found.trials) + len(found.worse)
        cells = [f"{data}, {space}", f"{len(found.worse)} of {of}", f"{found.distance:.1f}"]
        cells += [plus_minus(side, ".1f") for side in (gain.base, gain.best)]
        line = f"{sum(gain.gains) / len(gain.gains):+.1f} ({low:+.1f} to {high:+.1f}): within noise"
        assert f"| {' | '.join([*cells, line])} |" in text, (cells, line)
        summary = (folder / "summary.md").read_text()
        assert f"{found.told()[1:]}. Up to {search.space.shown(found.distance)} from the best" in summary
        assert of + search.repeated == 12


def test_intervals_of_the_comparisons_follow_from_their_spread() -> None:
    text = (ROOT / "docs" / "results.md").read_text()
    for folder in ("compare", "compare-emoji"):
        table = (picture.RESULTS / folder / "compare.csv").read_text()
        _, *arms = csv.DictReader(table.splitlines())
        for row in arms:
            seeds = len(row["time_per_epoch_ratios"].split()) if folder == "compare" else 3
            for column in ("top1", "top1_same_time", "transfer"):
                if row[f"{column}_difference"]:
                    mean, std, gain, sd = (
                        float(row[f"{column}_{part}"]) for part in ("mean", "std", "difference", "difference_std")
                    )
                    half = t.ppf(0.975, seeds - 1) * sd / sqrt(seeds)
                    cell = f"{mean:.1f} ± {std:.1f} ({gain:+.1f}, {gain - half:+.1f} to {gain + half:+.1f})"
                    assert f"| {cell} " in text, cell


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
