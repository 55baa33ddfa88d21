"""Claim: the linear probe takes at most 1/8 of scikit-learn's CPU time (1/5 at the largest size) to the same answer.

    python -m benchmarks.linear_probe                # sizes A, B and F, about 8 minutes of CPU time
    python -m benchmarks.linear_probe --sizes L

Both choose C on a fifth of the images, refit on all and test once, on the same features, standardised by the same
numbers, over the same path, with the same tolerance (1e-5 on each entry of the gradient) and at most 1000 iterations.
scikit-learn: LogisticRegression (lbfgs, float64), each fit from zero. Ours: what the protocol `linear` does: its path
ends a decade past the best value and 0.5 points below it. So there are two ratios: one to scikit-learn's whole path,
and one that counts scikit-learn's seconds for the refit and the values that ours fitted alone. Each side runs in its
own process, in one thread; seconds are the process's CPU time, from the float32 file of features (ours) or from
standardised float64 features in memory (scikit-learn) to the test's predictions.

Features (images, d, classes; values of C):
A, B, L  drawn, with what is hard about real ones: variances that fall as a power of the rank, classes in families that
         differ most where features vary most, tails, unlike spread by class, a leaky ReLU and a mixing matrix that
         correlate features, and images between two classes, which weakly regularised fits learn by heart.
         A: 3,680 x 384, 37, 45 values (the size of Oxford-IIIT Pets); B: 20,000 x 384, 100, 12;
         L: 50,000 x 768, 100, 12.
F        features of a network, in place of Fashion-MNIST's, which would have to be downloaded: 20,000 pictures of the
         built-in shapes through a ResNet-18 with random weights, 512, 16 shapes, 12. About a third of the test images
         are named right: unlike the others, this is a problem that even the weakest penalty does not separate.

Objectives are compared at every value whose validation accuracy is within 0.5 points of scikit-learn's best, relative
to scikit-learn's; values among them that our path did not reach are told as missed. scikit-learn's are computed in
float64 from its weights; ours are what the solver reports: float32 probabilities, whose logarithms are summed in
float64. Unconverged fits are told by number, of those that each side made. Memory is the peak above what was resident
before features were opened, once a few images of the same width have been solved for: libraries have their code and
buffers by then, about 10 MB.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

RESULTS = Path(__file__).parent / "results"
_THREADS = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
_ENOUGH = 0.5
"""Points of validation accuracy below the best within which objectives must agree."""
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Size(NamedTuple):
    """One comparison."""

    images: int
    tests: int
    dim: int
    classes: int
    values: int
    """Values of C from 1e-6 to 1e5."""
    apart: float
    """How far classes are from each other; chosen so that about four fifths of the test images are named right."""
    aim: float
    """CPU seconds of scikit-learn over ours, at least."""


SIZES = {
    "A": Size(3_680, 3_669, 384, 37, 45, 0.22, 8),
    "B": Size(20_000, 5_000, 384, 100, 12, 0.2, 8),
    "F": Size(20_000, 5_000, 512, 16, 12, 0.0, 8),
    "L": Size(50_000, 10_000, 768, 100, 12, 0.16, 5),
    "toy": Size(400, 200, 16, 4, 6, 0.5, 0),
}


def draw(size: Size, seed: int = 0) -> tuple[Floats, Ints]:
    """Drawn features of training and test images, (n, d), and their classes; see the module's docstring."""
    rng = np.random.default_rng(seed)
    rank = np.arange(1, size.dim + 1)
    families = rng.integers(0, max(2, size.classes // 5), size.classes)
    centres = 0.8 * rng.normal(size=(size.classes, size.dim))[families] + 0.6 * rng.normal(
        size=(size.classes, size.dim)
    )
    centres *= size.apart * rank**-0.5
    spread = rank**-0.8 * np.exp(0.3 * rng.normal(size=(size.classes, size.dim)))
    first, second = (rng.normal(size=(size.dim, size.dim)) / np.sqrt(size.dim) for _ in range(2))
    siblings = np.array([rng.choice(np.flatnonzero(families == family)) for family in families])
    total = size.images + size.tests
    labels = rng.integers(0, size.classes, total)
    x = np.empty((total, size.dim), np.float32)
    for start in range(0, total, 4096):
        own = labels[start : start + 4096]
        between = np.where(rng.random(len(own)) < 0.2, rng.uniform(0.3, 0.7, len(own)), 0)[:, None]
        middle = (1 - between) * centres[own] + between * centres[siblings[own]]
        tails = np.sqrt(5 / rng.chisquare(5, (len(own), 1)))
        latent = middle + tails * rng.normal(size=(len(own), size.dim)) * spread[own]
        hidden = latent @ first
        x[start : start + 4096] = np.maximum(hidden, 0.1 * hidden) @ second
    return x, labels


def shapes(size: Size) -> tuple[Floats, Ints]:
    """Pooled features of a ResNet-18 with random weights for pictures of shapes, 32 px, and the shapes."""
    import timm
    import torch

    from tt_ray.config import ShapesConfig
    from tt_ray.data.sources.shapes import shapes_source

    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=0, zero_init_last=False).eval()
    parts: list[Floats] = []
    labels: list[Ints] = []
    for split in ("train", "val"):
        source = shapes_source(ShapesConfig(train_size=size.images, val_size=size.tests), split, 32)
        labels.append(source.labels)
        for start in range(0, len(source), 500):
            pixels = source.pixels(np.arange(start, min(start + 500, len(source))), 32)
            with torch.inference_mode():
                images = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).float().div_(127.5).sub_(1)
                parts.append(model(images).numpy())
    return np.concatenate(parts), np.concatenate(labels)


def prepare(name: str, folder: Path) -> None:
    """Writes what both sides read."""
    size = SIZES[name]
    write(folder, size.images, *(shapes(size) if name == "F" else draw(size)))


def write(folder: Path, images: int, x: Floats, labels: Ints) -> None:
    """The files of `read`; the first `images` rows are for training."""
    np.save(folder / "x.npy", x[:images])
    np.save(folder / "test_x.npy", x[images:])
    np.save(folder / "y.npy", labels)


class Task(NamedTuple):
    """Features as memory maps, classes, and the rows to fit and to select on."""

    x: Floats
    y: Ints
    test_x: Floats
    test_y: Ints
    fit: Ints
    val: Ints


def read(folder: Path, images: int) -> Task:
    """What `prepare` wrote."""
    from eval.tasks.origins import mark_share

    labels = np.load(folder / "y.npy")
    held_out = mark_share(labels[:images], 0.2, 0)
    maps = (np.load(folder / name, mmap_mode="r") for name in ("x.npy", "test_x.npy"))
    x, test_x = maps
    fit, val = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    return Task(x, labels[:images], test_x, labels[images:], fit, val)


def run_ours(task: Task, size: Size) -> dict[str, Any]:
    """The protocol's own selection, refit and test."""
    from eval.metrics import top1
    from eval.protocols.linear import Options, select, spaced

    options = Options(spaced(-6, 5, size.values))
    reset_peak()
    before, start = resident(), time.process_time()
    found = select(task.x, task.y, task.fit, task.val, top1, classes=size.classes, options=options)
    test = top1(task.test_y, found.predict(task.test_x).argmax(1))
    seconds = time.process_time() - start
    path = {f"{tried.fit.strength:.6g}": [tried.score, tried.fit.objective] for tried in found.path}
    iterations = [tried.fit.iterations for tried in found.path] + [found.final.iterations]
    memory = peak() - before
    best = f"{found.best.fit.strength:.6g}"
    fits = [*(tried.fit for tried in found.path), found.final]
    return {
        "seconds": seconds, "test": test, "best": best, "path": path, "iterations": iterations, "memory": memory,
        "unconverged": sum(not fit.converged for fit in fits),
    }  # fmt: skip


def run_reference(task: Task, size: Size) -> dict[str, Any]:
    """scikit-learn, each value from zero."""
    from sklearn.linear_model import LogisticRegression

    from eval.protocols.linear import TOLERANCE, spaced
    from tt_ray.logistic.design import moments

    scaling = moments(task.x, task.fit)
    x, test_x = ((part - scaling.mean) / scaling.scale for part in (task.x, task.test_x))
    fit_x, val_x = x[task.fit], x[task.val]
    fit_y, val_y = task.y[task.fit], task.y[task.val]
    warnings.simplefilter("ignore")  # a fit that ends at 1000 iterations is counted below
    seconds, iterations, path = dict[str, float](), list[int](), dict[str, list[float]]()
    for strength in spaced(-6, 5, size.values):
        start = time.process_time()
        model = LogisticRegression(C=strength, tol=TOLERANCE, max_iter=1000).fit(fit_x, fit_y)
        score = 100 * float(model.score(val_x, val_y))
        seconds[f"{strength:.6g}"] = time.process_time() - start
        iterations.append(int(model.n_iter_.max()))
        own = model.predict_log_proba(fit_x)[np.arange(len(fit_y)), fit_y]
        objective = float(-own.mean() + np.square(model.coef_).sum() / 2 / strength / len(fit_y))
        path[f"{strength:.6g}"] = [score, objective]
        print(f"  scikit-learn C {strength:.3g}: {score:.2f}, {iterations[-1]} iterations", flush=True)
    best = max(path, key=lambda key: (path[key][0], -float(key)))
    start = time.process_time()
    model = LogisticRegression(C=float(best), tol=TOLERANCE, max_iter=1000).fit(x, task.y)
    test = 100 * float(model.score(test_x, task.test_y))
    refit = time.process_time() - start
    iterations.append(int(model.n_iter_.max()))
    return {
        "seconds": sum(seconds.values()) + refit, "test": test, "best": best, "path": path, "iterations": iterations,
        "seconds of values": seconds, "seconds of refit": refit,
        "unconverged": sum(each >= 1000 for each in iterations),
    }  # fmt: skip


def resident() -> int:
    """Bytes of memory that this process holds."""
    return _status("VmRSS")


def reset_peak() -> None:
    """Starts `peak` anew, where the system lets us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # then the peak is that since the start: too high rather than too low
        return


def peak() -> int:
    """The most bytes this process held since `reset_peak`."""
    return _status("VmHWM")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(side: str, name: str, folder: Path) -> None:
    """One side in this process; its result goes to a file in the folder."""
    import torch

    torch.set_num_threads(1)
    task, size = read(folder, SIZES[name].images), SIZES[name]
    if side == "ours":
        with tempfile.TemporaryDirectory() as warm:
            small = size._replace(images=8 * size.classes, tests=size.classes, values=2)
            write(Path(warm), small.images, *draw(small))
            run_ours(read(Path(warm), small.images), small)
        result = run_ours(task, size)
    else:
        result = run_reference(task, size)
    (folder / f"{side}.json").write_text(json.dumps(result))


def compare(name: str, folder: Path) -> dict[str, Any]:
    """Both sides one after the other."""
    prepare(name, folder)
    found: dict[str, dict[str, Any]] = {}
    for side in ("ours", "scikit-learn"):
        command = [sys.executable, "-m", "benchmarks.linear_probe", "--side", side, "--folder", str(folder)]
        subprocess.run([*command, "--sizes", name], check=True, env={**os.environ, **_THREADS})
        found[side] = json.loads((folder / f"{side}.json").read_text())
    ours, theirs = found["ours"], found["scikit-learn"]
    top = max(score for score, _ in theirs["path"].values())
    gaps = {
        key: ours["path"][key][1] / objective - 1
        for key, (score, objective) in theirs["path"].items()
        if score >= top - _ENOUGH and key in ours["path"]
    }
    same = theirs["seconds of refit"] + sum(theirs["seconds of values"][key] for key in ours["path"])
    missed = [key for key, (score, _) in theirs["path"].items() if score >= top - _ENOUGH and key not in ours["path"]]
    size = SIZES[name]
    return {
        "ratio": theirs["seconds"] / ours["seconds"],
        "ratio on the same values": same / ours["seconds"],
        "aim": size.aim,
        "test difference (points)": ours["test"] - theirs["test"],
        "same C": ours["best"] == theirs["best"],
        "objective above scikit-learn's (relative)": max(gaps.values()),
        "objective below scikit-learn's (relative)": -min(gaps.values()),
        "values near the best that the path did not reach": missed,
        "memory over features": ours["memory"] / (4 * size.images * size.dim),
        "objectives": gaps,
        "sides": found,
    }


def show(results: dict[str, dict[str, Any]]) -> None:
    """The table."""
    columns = ["ours (CPU s)", "scikit-learn (CPU s)", "ratio", "aim", "ratio on the same values"]
    columns += ["values ours / theirs", "unconverged ours / theirs", "C ours / theirs", "test ours / theirs (%)"]
    columns += ["objective above / below theirs", "near the best but missed", "memory / features"]
    print(f"| size | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
    for name, row in results.items():
        ours, theirs = row["sides"]["ours"], row["sides"]["scikit-learn"]
        gaps = [row[f"objective {where} scikit-learn's (relative)"] for where in ("above", "below")]
        cells = [f"{ours['seconds']:.2f}", f"{theirs['seconds']:.1f}", f"{row['ratio']:.1f}", f">= {row['aim']:g}"]
        cells += [f"{row['ratio on the same values']:.1f}", f"{len(ours['path'])} / {len(theirs['path'])}"]
        cells += [f"{ours[what]} / {theirs[what]}" for what in ("unconverged", "best")]
        cells += [f"{ours['test']:.2f} / {theirs['test']:.2f}", " / ".join(f"{gap:.1e}" for gap in gaps)]
        missed = row["values near the best that the path did not reach"]
        cells += [", ".join(missed) or "none", f"{row['memory over features']:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["A", "B", "F"])
    parser.add_argument("--side", choices=("ours", "scikit-learn"), help="used by the command itself")
    parser.add_argument("--folder", type=Path, help="used by the command itself")
    parser.add_argument("--out", type=Path, default=RESULTS / "linear_probe.json")
    given = parser.parse_args(arguments)
    if given.side:
        work(given.side, given.sizes[0], given.folder)
        return
    results: dict[str, dict[str, Any]] = {}
    machine: dict[str, Any] = {"cores": os.cpu_count(), "load_1min before": os.getloadavg()[0]}
    for name in given.sizes:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = compare(name, Path(folder))
    show(results)
    machine["load_1min after"] = os.getloadavg()[0]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"sizes": results, "machine": machine}, indent=2) + "\n")


if __name__ == "__main__":
    main()
