"""Every command of the pages is read as it stands by its own parser, and every option that they name exists.

Which of them run is in tests/test_page_runs.py.
"""

import argparse
import contextlib
import importlib
import inspect
import io
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from eval.__main__ import check as check_evaluation
from eval.jobs.plan import read_options
from eval.tasks.registry import tasks
from tests.pages import PAGES, ROOT, Shell, commands, spans
from tests.test_page_runs import COMMANDS as READERS_COMMANDS
from tests.test_page_runs import RUN, begun
from tt_ray.audit.__main__ import read as read_audit
from tt_ray.cli import read_config
from tt_ray.compare.arms import check as check_arms
from tt_ray.compare.arms import read_arms
from tt_ray.config import Config
from tt_ray.terminal.command import COMMANDS, parse, read_arguments
from tt_ray.terminal.errors import UserError
from tt_ray.tune.__main__ import read as read_search
from tt_ray.tune.search import Arguments as SearchArguments
from tt_ray.tune.search import Search
from tt_ray.tune.space import find_space

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
    ("python", "-c"): "needs a GPU",
    ("nvidia-smi",): "needs a GPU",
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
    ("grep",): "tests/clusters/test_slurm.py",
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
    "--account": "sbatch",
    "--gpus-per-node": "sbatch",
    "--partition": "sbatch",
    "--qos": "sbatch",
    "--time": "sbatch",
    "--nproc-per-node": "torchrun",
    "--generate": "ray get-auth-token",
    "--processes": "benchmarks.embedding_store",
    "--tiny": "benchmarks.gpu",
    "--section.field": "says how fields are written",
}
MENTIONED = {
    "tests.golden": "test_golden.py::test_golden_runs",
    "docs.generate": "test_docs.py::test_generated_pages_are_up_to_date",
    "benchmarks.searches": "test_page_figures.py::test_figures_of_the_searches_are_those_of_their_trials",
    "benchmarks.picture": "test_docs.py::test_the_picture_is_that_of_the_rows",
    "benchmarks.bad_input": "benchmarks/test_bad_input_table.py::test_the_table_and_the_exit_status",
    "benchmarks.step_cost": "benchmarks/test_benchmarks.py::test_step_cost",
    "benchmarks.loader_memory": "benchmarks/test_benchmarks.py::test_loader_memory",
    "benchmarks.end_to_end": "benchmarks/test_benchmarks.py::test_end_to_end",
    "benchmarks.shard_index": "benchmarks/test_shards.py::test_shard_index",
    "benchmarks.packing": "benchmarks/test_shards.py::test_packing",
    "benchmarks.loop_efficiency": "benchmarks/test_benchmarks.py::test_loop_efficiency",
    "benchmarks.loading": "benchmarks/test_benchmarks.py::test_loading",
    "benchmarks.embedding_store": "benchmarks/test_benchmarks.py::test_embedding_store",
    "benchmarks.ray_overhead": "benchmarks/test_benchmarks.py::test_ray_overhead",
    "benchmarks.start_up": "benchmarks/test_benchmarks.py::test_start_up",
    "benchmarks.gpu": "benchmarks/test_gpu.py::test_every_section_runs_at_toy_size_without_ray",
    "benchmarks.encode": "benchmarks/test_encode.py::test_encode",
    "benchmarks.scaling": "benchmarks/test_scaling.py::test_the_command_says_that_it_predicts",
}
"""The test that runs a module of which pages name no command to run, or only one that takes minutes."""
NOT_RUN = {
    "benchmarks.tune": "a search beside its own trainings takes minutes; its sums are tested",
    "benchmarks.faults": "an hour; the faults one by one are in tests/test_train_command.py",
    "benchmarks.transfer": "fixed sizes; what it times is run by tests/eval/test_eval_command.py",
    "benchmarks.long_runs": "minutes on a GPU; its clock is tested by tests/benchmarks/test_does_it_help.py",
    "benchmarks.same_data": "fixed sizes of a million images",
}


class Parsed(Exception):
    """The arguments of a benchmark were accepted."""


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
    return own | options_of("tt_ray.train") if module in ("tt_ray.tune", "tt_ray.audit") else own


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
    elif shell.module == "tt_ray.audit":
        read_audit(arguments)
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
    shell = Shell(ROOT / "README.md", tuple(line.split()))
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


def test_a_module_that_pages_only_mention_runs_in_a_test_or_has_a_reason_not_to() -> None:
    mentioned = [re.fullmatch(r"python -m ([\w.]+)", span) for page in PAGES for span in spans(page)]
    named = {mention[1] for mention in mentioned if mention and mention[1] != "pytest"}
    run = {READERS_COMMANDS[text].module for start in RUN for text in begun(start)}
    assert named - run == {*MENTIONED, *NOT_RUN} and not set(MENTIONED) & set(NOT_RUN)
    for place in MENTIONED.values():
        file, _, function = place.partition("::")
        assert f"def {function}(" in (ROOT / "tests" / file).read_text(), place
