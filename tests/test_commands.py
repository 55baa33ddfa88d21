"""Every command refuses a typo before it imports what takes seconds, and `tt-ray` runs them all."""

import subprocess
import sys
from pathlib import Path

import pytest

import tt_ray
from tt_ray.terminal.command import COMMANDS, program

HEAVY = {"torch", "ray", "transformers", "datasets", "timm", "matplotlib", "sklearn", "scipy"}
TYPO = """
import runpy, sys
module, *sys.argv[1:] = sys.argv[1:]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
finally:
    print("imported", *{name.partition(".")[0] for name in sys.modules})
"""
# Where options are complete but for one word: what the values name is looked up before anything heavy, too.
VALUES = {
    "tt_ray.train": ["shapes_basline"],
    "tt_ray.tune": ["loss_wieght"],
    "tt_ray.compare": ["--out", "OUT", "--arms", "a=shapes_basline", "b=shapes_textteacher"],
    "tt_ray.audit": ["shapes_basline"],
    "tt_ray.export": ["no_such_run", "--out", "OUT"],
    "eval": ["--models", "a=random:test_resnet", "--out", "OUT", "--tasks", "builtni"],
    "eval.text_until": ["--out", "OUT", "--recipe", "shapes_basline"],
}
CASES = [(command.module, ["--nosuchoption", "1"]) for command in COMMANDS.values()]


@pytest.mark.parametrize(("module", "words"), [*CASES, *VALUES.items()])
def test_a_typo_is_refused_before_heavy_imports(module: str, words: list[str], tmp_path: Path) -> None:
    words = [str(tmp_path / word) if word == "OUT" else word for word in words]
    done = subprocess.run([sys.executable, "-c", TYPO, module, *words], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    imported = set(done.stdout.splitlines()[-1].split())
    assert "tt_ray" in imported and not imported & HEAVY


def test_the_package_alone_imports_next_to_nothing() -> None:
    code = "import sys; before = set(sys.modules); import tt_ray; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name.partition(".")[0] for name in done.stdout.split()} == {"tt_ray"}


def test_every_command_of_the_package_is_in_the_table() -> None:
    root = Path(tt_ray.__file__).parents[1]
    files = [*(root / "tt_ray").rglob("*.py"), *(root / "eval").rglob("*.py")]
    found = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__main__")
        for path in files
        if "\n    run_command(main)\n" in path.read_text()
    }
    assert found == {command.module for command in COMMANDS.values()}


def _script(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tt_ray", *words], capture_output=True, text=True, cwd=cwd)


def test_the_script_lists_the_commands_and_offers_the_near_name(tmp_path: Path) -> None:
    text = _script("--help", cwd=tmp_path).stdout
    assert all(f"  {name} " in text and command.line in text for name, command in COMMANDS.items())
    done = _script("trian", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: no command 'trian'; did you mean train?\n")
    assert _script("--version", cwd=tmp_path).stdout == f"tt-ray {tt_ray.__version__}\n"


def test_help_and_errors_name_the_command_as_it_was_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _script("train", "--help", cwd=tmp_path).stdout.startswith("usage: tt-ray train ")
    assert "tt-ray export --help" in _script("export", cwd=tmp_path).stderr
    assert program("eval.report") == "python -m eval.report"
    monkeypatch.setattr(sys, "argv", ["tt-ray eval", "--out", "x"])
    assert program("eval.report") == "tt-ray report"


def test_a_folder_eval_of_the_users_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "__init__.py").write_text("raise RuntimeError('somebody else')")
    done = _script("report", "no_such_folder", cwd=tmp_path)
    assert done.returncode == 2 and "no folder no_such_folder" in done.stderr
