"""The pages keep their word: links lead somewhere, commands parse, generated pages and figures are up to date."""

import argparse
import contextlib
import importlib
import inspect
import io
import json
import re
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import docs.generate
from benchmarks import picture, what_text_buys
from eval.__main__ import check as check_evaluation
from eval.jobs.plan import read_options
from eval.tasks.registry import tasks
from tests.command_here import Command, without_ray
from tests.command_here import command as command
from tests.pages import PAGES, ROOT, Shell, anchors, blocks, commands, links, spans
from tt_ray.caption_images import main as caption_images
from tt_ray.cli import read_config
from tt_ray.compare.arms import check as check_arms
from tt_ray.compare.arms import read_arms
from tt_ray.config import Config
from tt_ray.statistics import paired_differences, plus_minus
from tt_ray.terminal.command import COMMANDS, parse, read_arguments
from tt_ray.terminal.errors import UserError
from tt_ray.tune.__main__ import read as read_search
from tt_ray.tune.search import Arguments as SearchArguments
from tt_ray.tune.search import Search
from tt_ray.tune.space import find_space

README = ROOT / "README.md"
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
COMMAND_LINES = [shell for page in PAGES for shell in commands(page)]
MINE = ("my_losses:", "my_squares:", "mine.nearest_mean", "mushrooms=", "...")
"""Words of a reader's own, or left out: of such commands only the names of options are checked."""
EXCEPTIONS = {
    ("python", "-m", "tt_ray.train", "[RECIPE"): "says how the command is called, and is none",
    ("python3.11",): "set-up; tests/test_readme.py and .ci/run",
    (".",): "shell",
    (".venv/bin/pip",): "installs; .ci/run",
    (".venv/bin/python", "-m", "pytest"): "tests; .ci/run",
    ("pip",): "installs",
    ("python", "-m", "pytest"): "tests; .ci/run",
    ("ruff",): "tests/test_style.py",
    ("pyright",): "types",
    ("ray",): "needs a cluster; tests/clusters/test_laptop.py",
    ("aws",): "needs an account",
    ("gcloud",): "needs an account",
    ("kubectl",): "needs a cluster; tests/clusters/test_kuberay.py",
    ("docker",): "needs a registry",
    ("sbatch",): "needs Slurm; tests/clusters/test_slurm.py",
    ("scancel",): "needs Slurm; tests/clusters/test_slurm.py",
    ("tail",): "shell",
    ("export",): "shell",
    ("(umask",): "shell",
    ("chmod",): "shell",
    ("sudo",): "shell",
}
"""Beginnings of commands that are not ours, or not run as they stand, and why. Ours inside them are checked."""
OPTIONS_OF_OTHERS = {
    "--debug": "every command of ours takes it",
    "--help": "every command has it",
    "--working-dir": "ray job submit",
    "--no-build": "pip",
    "--head": "ray start",
    "--partition": "sbatch",
    "--time": "sbatch",
    "--nproc-per-node": "torchrun",
    "--generate": "ray get-auth-token",
    "--processes": "benchmarks.embedding_store",
    "--section.field": "says how fields are written",
}
RUN_BY = {
    "tt_ray.pack": "test_pack.py::test_killed_it_continues_and_nothing_is_lost_or_doubled",
    "tt_ray.train": "test_train_command.py::test_the_run_folder_is_complete",
    "tt_ray.tune": "tune/test_tune_command.py::test_a_search_leaves_results_and_a_second_command_does_nothing",
    "tt_ray.compare": "compare/test_command.py::test_arms_train_for_the_same_epochs_then_for_the_same_time",
    "tt_ray.export": "test_export.py::test_a_run_folder",
    "tt_ray.caption_images": "test_caption_images.py::test_every_image_gets_its_caption_and_bad_ones_are_listed",
    "tt_ray.embed_captions": "test_embed_captions.py::test_each_image_gets_the_embedding_of_its_caption",
    "tt_ray.convert_captions": "test_convert_captions.py::test_captions_get_image_ids",
    "tt_ray.embeddings": "embeddings/test_importers.py::test_the_commands",
    "eval": "eval/test_eval_command.py::test_stopped_it_loses_what_was_in_flight_and_ends_with_all_results",
    "eval.report": "eval/report/test_command.py::test_numbers_are_the_same_in_all_formats",
    "eval.why": "eval/why/test_command.py::test_two_runs_side_by_side",
    "eval.similarity": "eval/test_similarity.py::test_the_command_prints_and_writes",
    "eval.efficiency": "eval/test_efficiency.py::test_the_command",
    "eval.text_until": "eval/test_text_until.py::test_the_command",
    "benchmarks.step_cost": "benchmarks/test_benchmarks.py::test_step_cost",
    "benchmarks.loop_efficiency": "benchmarks/test_benchmarks.py::test_loop_efficiency",
    "benchmarks.embedding_store": "benchmarks/test_benchmarks.py::test_embedding_store",
    "benchmarks.ray_overhead": "benchmarks/test_benchmarks.py::test_ray_overhead",
    "benchmarks.start_up": "benchmarks/test_benchmarks.py::test_start_up",
    "benchmarks.comparisons": "benchmarks/test_benchmarks.py::test_comparisons_are_a_table_of_paired_differences",
    "benchmarks.shard_index": "benchmarks/test_shards.py::test_shard_index",
    "benchmarks.packing": "benchmarks/test_shards.py::test_packing",
    "benchmarks.encode": "benchmarks/test_encode.py::test_encode",
    "benchmarks.scaling": "benchmarks/test_scaling.py::test_the_command_says_that_it_predicts",
    "benchmarks.linear_probe": "eval/test_linear_benchmark.py::test_the_benchmark",
    "benchmarks.bad_input": "benchmarks/test_bad_input_table.py::test_the_table_and_the_exit_status",
    "benchmarks.picture": "test_docs.py::test_the_picture_is_that_of_the_rows",
    "docs.generate": "test_docs.py::test_generated_pages_are_up_to_date",
    "tests.golden": "test_golden.py::test_golden_runs",
}
"""The test that really runs a module that pages name, at a small size."""
NOT_RUN = {
    "benchmarks.tune": "a search beside its own trainings takes minutes; its sums are tested",
    "benchmarks.what_text_buys": "an hour; its table is computed below from the rows",
    "benchmarks.faults": "an hour; the faults one by one are in tests/test_train_command.py",
    "benchmarks.transfer": "fixed sizes; what it times is run by tests/eval/test_eval_command.py",
    "benchmarks.checkpoint_cost": "fixed sizes of 260 MB",
    "benchmarks.same_data": "fixed sizes of a million images",
}


class Parsed(Exception):
    """The arguments of a benchmark were accepted."""


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_reached_from_the_readme() -> None:
    reached, todo = set[Path](), [README]
    while todo:
        page = todo.pop()
        if page in reached:
            continue
        reached.add(page)
        for link in links(page):
            target = (page.parent / link.partition("#")[0]).resolve()
            target = target / "README.md" if target.is_dir() else target
            todo += [target] if target in PAGES else []
    assert reached == set(PAGES)


def test_generated_pages_are_up_to_date() -> None:
    for name, text in docs.generate.pages().items():
        assert (ROOT / "docs" / name).read_text() == text, "run python -m docs.generate"


def test_the_page_of_fields_has_them_all() -> None:
    text = docs.generate.configuration(Config())
    assert re.findall(r"^\| `([\w.]+\.\w+)` \|", text, re.MULTILINE) != []
    assert set(re.findall(r"^\| `(\w+\.[\w.]+)` \|", text, re.MULTILINE)) == set(Config.paths())
    assert "| `text.weight` | `0.5` | number, 0 to 1 |" in text
    assert not re.search(r"\| +\|$", re.sub(r"\| field .*", "", text.split("## Recipes")[0]), re.MULTILINE)


def test_the_page_of_the_library_shows_signatures_and_docstrings() -> None:
    text = docs.generate.api(importlib.import_module("tt_ray.embeddings.store"))
    assert "open_store(path: str | Path, verify: bool = False) -> EmbeddingStore" in text
    assert "- `path`: Folder of the store." in text and "### `EmbeddingStore.rows_of`" in text


def test_the_picture_is_that_of_the_rows() -> None:
    assert picture.OUT.read_text() == picture.picture(), "run python -m benchmarks.picture"


# Commands


@cache
def form_of(module: str) -> Any:
    """What a command's arguments are read into."""
    if module == "tt_ray.embeddings":
        return importlib.import_module("tt_ray.embeddings.__main__").Command
    if module == "tt_ray.tune":
        return SearchArguments
    found = importlib.import_module(module)
    return (importlib.import_module(f"{module}.__main__") if hasattr(found, "__path__") else found).Arguments


@cache
def options_of(module: str) -> set[str]:
    """The names of a command's options, with dashes between words."""
    if module == "tt_ray.train":
        return {f"--{path}" for path in Config.paths()}
    text = io.StringIO()
    each = [[name] for name in ("inspect", "import-zip", "import-dataset", "export")]
    for words in each if module == "tt_ray.embeddings" else [[]]:
        with contextlib.redirect_stdout(text), pytest.raises(SystemExit):
            parse(form_of(module), args=[*words, "--help"], prog="prog")
    own = {name.rstrip(".") for name in re.findall(r"--[\w.-]+", text.getvalue())}
    return own | options_of("tt_ray.train") if module == "tt_ray.tune" else own


def known(option: str, names: set[str]) -> bool:
    option = option.partition("=")[0]
    return option.startswith("--model.kwargs") or any(
        name.replace("_", "-") == option.replace("_", "-") for name in names
    )


def check_benchmark(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the module's `main` as far as its parser."""
    read = argparse.ArgumentParser.parse_args

    def parsed(parser: argparse.ArgumentParser, *words: Any, **options: Any) -> None:
        read(parser, *words, **options)
        raise Parsed

    main = importlib.import_module(shell.module).main
    source = inspect.getsource(importlib.import_module(shell.module))
    if "ArgumentParser" not in source:
        assert not shell.arguments, "it takes none"
        return
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    monkeypatch.setattr(sys, "argv", [shell.module, *shell.arguments])
    with pytest.raises(Parsed):
        main()


def check_command(shell: Shell) -> None:
    """Reads the arguments as the command does, and looks up what they name, short of opening files."""
    arguments = shell.arguments
    if shell.module == "tt_ray.train":
        read_config(arguments, "prog")
    elif shell.module == "tt_ray.tune":
        given, base = read_search(arguments)
        Search(given, base, find_space(given.space)).check()
    else:
        given = read_arguments(form_of(shell.module), arguments, "prog")
        if shell.module == "tt_ray.compare":
            arms = read_arms(given.arms, given.set)
            check_arms(arms, given.seeds)
        if shell.module == "eval":
            check_evaluation(given)
            tasks(given.tasks, {}, given.data_root, {})
            read_options(given.protocols, given.set)
        if shell.module == "eval.text_until":
            read_config([given.recipe], "prog")


@pytest.mark.parametrize("shell", COMMAND_LINES, ids=lambda shell: f"{shell.page.name}: {' '.join(shell.words)[:60]}")
def test_every_command_is_read_as_it_stands(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known_exception = any(shell.words[: len(start)] == start for start in EXCEPTIONS)
    assert shell.module or known_exception, "neither a command of ours nor in EXCEPTIONS"
    if not shell.module or shell.words[3:4] == ("[RECIPE",) or shell.module.startswith("tests."):
        return
    monkeypatch.chdir(tmp_path)
    for word in shell.arguments:
        if word.endswith((".yaml", ".py")):
            (tmp_path / word).parent.mkdir(parents=True, exist_ok=True)
            source = (ROOT / "tune_spaces" / "loss_weight.py").read_text() if word.endswith(".py") else ""
            (tmp_path / word).write_text(source)
    for teacher in ("shapes_vision_teacher", "emoji_teacher"):  # runs of other commands, which compare asks for
        (tmp_path / "runs" / teacher).mkdir(parents=True)
    if shell.module.startswith("benchmarks."):
        check_benchmark(shell, monkeypatch)
    elif shell.module.startswith("docs."):
        assert not shell.arguments
    elif any(word in " ".join(shell.words) for word in MINE):
        options = [word for word in shell.arguments if word.startswith("--")]
        assert all(known(option, options_of(shell.module)) for option in options)
    else:
        check_command(shell)


@pytest.mark.parametrize(
    "line",
    [
        "python -m tt_ray.train shapes_basline",
        "python -m tt_ray.train shapes_baseline --optim.lrr 0.1",
        "torchrun --nproc-per-node 2 -m tt_ray.train --text.loss clop",
        "python -m tt_ray.tune loss_wieght --out tune/a",
        "python -m tt_ray.compare --out compare --arms a=shapes_baseline b=shapes_texteacher",
        "python -m eval --models a=RUN --out results --tasks builtni",
        "python -m eval --models a=RUN --out results --protocols linaer",
        "tt-ray embed captions.parquet --outt STORE",
        "python -m tt_ray.embeddings inspct STORE",
        "python -m benchmarks.step_cost --repeat 5 --rounds 1",
    ],
)
def test_a_command_with_a_typo_would_be_seen(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = Shell(README, tuple(line.split()))
    with pytest.raises((UserError, SystemExit)):
        check_benchmark(shell, monkeypatch) if "benchmarks" in line else check_command(shell)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_options_that_a_page_names_exist(page: Path) -> None:
    names = {name for command in COMMANDS.values() for name in options_of(command.module)} | set(OPTIONS_OF_OTHERS)
    named = [word for span in spans(page) if span.startswith("--") for word in span.split() if word.startswith("--")]
    assert not [option for option in named if not known(option, names)]
    fields = [span.split() for span in spans(page) if re.match(r"--\w+\.\w", span)]
    training = {name.partition(".")[0] for name in Config.paths()}
    for words in fields:
        if words[0][2:].partition(".")[0] in training and len(words) > 1 and not any(w in words[1] for w in MINE):
            read_config(words, "prog")


def test_each_exception_is_of_a_command_that_pages_have() -> None:
    for start in EXCEPTIONS:
        assert any(shell.words[: len(start)] == start for shell in COMMAND_LINES), start


def test_a_test_runs_each_module_that_pages_name() -> None:
    named = {shell.module for shell in COMMAND_LINES if shell.module}
    mentioned = [re.fullmatch(r"python -m ([\w.]+)", span) for page in PAGES for span in spans(page)]
    named |= {mention[1] for mention in mentioned if mention and mention[1] != "pytest"}
    assert named == {*RUN_BY, *NOT_RUN} and not set(RUN_BY) & set(NOT_RUN)
    for place in RUN_BY.values():
        file, _, function = place.partition("::")
        assert f"def {function}(" in (ROOT / "tests" / file).read_text(), place


@pytest.mark.slow
def test_your_images_in_three_commands(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand but for a captioner, which would be fetched, and for sizes."""
    without_ray(command)
    monkeypatch.chdir(tmp_path)
    (block,) = [text for text in blocks(README, "bash") if "caption_images" in text]
    lines = block.replace("ROOT", str(command.root)).splitlines()
    captions, text, base = (line.split()[3:] for line in lines)
    where = captions.index("--model")
    caption_images([*captions[:where], "--template", "a photo of a {label}", *captions[where + 2 :]])
    small = "--data.image_size 32 --train.batch_size 4 --train.epochs 1 --model.name test_resnet".split()
    for name, words in {"text": text, "base": base}.items():
        code, _, err = command.run([*words, *small])
        assert code == 0, err
        assert timm.create_model(f"local-dir:runs/{name}/export", pretrained=True).num_classes == 2
        assert json.loads((tmp_path / "runs" / name / "result.json").read_text())


# Figures


def test_figures_of_the_studies_are_those_of_their_rows() -> None:
    text, front = (ROOT / "docs" / "results.md").read_text(), README.read_text()
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


# Python


def test_the_loop_of_the_readme_and_mixup_of_the_faq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.command_here import embed

    monkeypatch.chdir(tmp_path)
    ids = [f"train/{number}.png" for number in range(4)]
    embed(tmp_path / "STORE", ids)
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    loader = [(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]), ids)]
    names: dict[str, Any] = {"torch": torch, "timm": timm, "model": model, "loader": loader}
    before = model.get_classifier().weight.detach().clone()
    (loop,), (mixup,) = blocks(README, "python"), blocks(ROOT / "docs" / "faq.md", "python")
    exec(loop.replace("range(90)", "range(2)"), names)
    assert not torch.equal(model.get_classifier().weight, before)
    assert timm.create_model("local-dir:OUT", pretrained=True).num_classes == 3
    names["out"] = None
    exec(mixup, names)
    assert names["out"].loss.isfinite() and names["out"].text.isfinite()
