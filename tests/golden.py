"""Golden runs: trainings, an evaluation and a search, of which every weight and number is kept as a checksum.

    python -m tests.golden --against REV    # the working tree beside a commit, bit for bit, on this machine
    python -m tests.golden --record         # writes tests/golden.json, after a change of numbers that is meant

tests/test_golden.py holds the working tree to tests/golden.json. Bits differ between kinds of CPUs, so that on another
kind than the recorded one it compares losses and accuracies instead.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
RECORD = Path(__file__).with_name("golden.json")
_SMALL = ["--data.shapes.train_size", "96", "--data.shapes.val_size", "48", "--data.image_size", "16"]
_SMALL += ["--model.kwargs", "patch_size", "8", "embed_dim", "24", "depth", "2", "num_heads", "2"]
_SMALL += ["--train.batch_size", "16", "--train.epochs", "2", "--run.log_every", "3", "--run.cpus_per_worker", "1"]
_TRAINED = ("shapes_vision_teacher", "shapes_textteacher", "shapes_distilled")
# Of rows: what is measured by the clock, and names of folders.
_PASSING = ("second", "time", "images_per_s", "wait", "wall", "path", "folder", "host", "storage", "when", "memory")


def machine() -> str:
    """What the bits of a float32 sum depend on."""
    import torch

    with Path("/proc/cpuinfo").open() as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "")
    return f"{platform.machine()} {model}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def run_all(tree: Path, out: Path) -> dict[str, Any]:
    """Runs them all with the code of `tree`: checksums and numbers by name.

    Raises:
        subprocess.CalledProcessError: One of the commands failed; its stderr was printed.
    """
    storage = ["--run.storage", str(out)]
    for recipe in _TRAINED:
        teacher = ["--teacher.model", str(out / _TRAINED[0])] if recipe == "shapes_distilled" else []
        _command(tree, out, ["-m", "tt_ray.train", recipe, *storage, *teacher, *_SMALL])
    run = out / "shapes_textteacher"
    task = ["--tasks", "digits", "--protocols", "knn", "linear", "--models", f"m={run}", "--seeds", "0"]
    _command(tree, out, ["-m", "eval", *task, "--out", str(out / "eval")])
    space = out / "golden_space.py"
    space.write_text('"""Which weight?"""\nfrom ray import tune\n\nSPACE = {"text.weight": tune.choice([0.5, 1.0])}\n')
    search = ["--base", "shapes_textteacher", "--searcher", "grid", "--out", str(out / "search")]
    _command(tree, out, ["-m", "tt_ray.tune", str(space), *search, *_SMALL])
    return {"machine": machine(), "bits": bits(out), "numbers": numbers(out)}


def _command(tree: Path, out: Path, arguments: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(tree), "RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1"}
    environment["PYTHONHASHSEED"] = "0"
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-2000:], sep="\n", file=sys.stderr)
        done.check_returncode()


def bits(out: Path) -> dict[str, str]:
    """A checksum of each exported weight file and of each table's rows, but for what the clock decides."""
    found = {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.glob("*/export/*.safetensors"))
    }
    for name, rows in _tables(out).items():
        found[name] = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    return found


def numbers(out: Path) -> dict[str, Any]:
    """The last row of each table, for machines whose sums differ in their last bits."""
    return {name: rows[-1] for name, rows in _tables(out).items()}


def _tables(out: Path) -> dict[str, list[dict[str, Any]]]:
    import pyarrow.parquet as pq

    tables = {
        f"{name}/metrics.jsonl": [json.loads(line) for line in (out / name / "metrics.jsonl").read_text().splitlines()]
        for name in _TRAINED
    }
    tables["search"] = pq.read_table(out / "search" / "results.parquet").to_pylist()
    files = sorted((out / "eval" / "rows").glob("*.parquet"))
    tables["eval"] = [row for path in files for row in pq.read_table(path).to_pylist()]
    kept = {name: [_lasting(row) for row in rows] for name, rows in tables.items()}
    # Trials and jobs end in any order.
    return kept | {name: sorted(kept[name], key=json.dumps) for name in ("search", "eval")}


def _lasting(row: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in row.items()
        if isinstance(value, int | float) and key != "at" and not any(word in key for word in _PASSING)
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("--against", metavar="REV", help="a commit whose code is run as well")
    parser.add_argument("--record", action="store_true", help="write tests/golden.json")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        ours = run_all(REPOSITORY, Path(folder) / "ours")
        if given.record:
            RECORD.write_text(json.dumps(ours, indent=1, sort_keys=True) + "\n")
        if not given.against:
            print(json.dumps(ours, indent=1))
            return 0
        tree = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--detach", tree, given.against], cwd=REPOSITORY, check=True)
        try:
            theirs = run_all(tree, Path(folder) / "theirs")
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=REPOSITORY, check=True)
    different = [name for name in ours["bits"] | theirs["bits"] if ours["bits"].get(name) != theirs["bits"].get(name)]
    print(f"{len(ours['bits']) - len(different)} of {len(ours['bits'])} are the same bit for bit", *different, sep="\n")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
