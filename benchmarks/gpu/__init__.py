"""One GPU, under six minutes: do training, evaluation and encoding keep it busy, wait for nothing, and stay right?

    python -m benchmarks.gpu                       # every section; writes benchmarks/results/gpu-<card>.json
    python -m benchmarks.gpu --only step syncs     # these alone; the file keeps what it has of the others
    python -m benchmarks.gpu --tiny                # every section at toy size on a CPU: a test of the command itself

Each section measures one claim against its aim, and has seconds that it may take: one that takes longer is cut off, one
that fails or for which no time is left says so, and the others run. Sections run one after the other in a process of
their own, which is replaced when it hangs or dies. Results are written after each row.

Ray, and what else only other commands need, may be missing. A machine without internet takes wheels, which are fetched
where there is one:

    python -m pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \\
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --constraint constraints.txt --dest wheels \\
        annotated-types cloudpickle pillow pydantic pydantic-core rich safetensors simplejpeg threadpoolctl timm \\
        typing-extensions typing-inspection

and there, in the root of the repository, with the Python that has torch, torchvision and TensorBoard:

    python -m pip install --no-index --no-deps --target site wheels/*.whl
    PYTHONPATH=site python -m benchmarks.gpu

These are 14 MB. Add numpy, pyarrow, pyyaml, scikit-learn and scipy (120 MB) where that Python has no recent ones. A
section whose package is missing is skipped by name: `captions` needs transformers and tokenizers, `linear_probe` needs
scikit-learn.
"""

import argparse
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.record import Record
from benchmarks.gpu.sections import SECTIONS
from benchmarks.gpu.watch import Lost, Worker

RESULTS = Path(__file__).parents[1] / "results"
NEEDED = ("torch", "torchvision", "tensorboard", "timm", "numpy", "PIL", "pyarrow", "pydantic", "yaml", "safetensors")
NEEDED += ("simplejpeg", "cloudpickle", "threadpoolctl")


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [section.name for section in SECTIONS]
    parser.add_argument("--only", nargs="+", choices=names, default=[], metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--tiny", action="store_true", help="toy sizes on a CPU; what is measured means nothing")
    parser.add_argument("--seconds", type=float, default=340.0, help="for all sections together")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/gpu-<card>.json, none with --tiny")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; ends with status 1 where a section failed, 2 where nothing could be measured."""
    given = read_arguments(arguments)
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise SystemExit(_wrong(f"{', '.join(missing)} cannot be imported: python -m benchmarks.gpu --help says how"))
    with tempfile.TemporaryDirectory(prefix="tt-ray-gpu-", ignore_cleanup_errors=True) as folder:
        worker = Worker(given.tiny, Path(folder))
        try:
            machine = worker.start()
        except Lost as lost:
            worker.end(0)
            raise SystemExit(_wrong(f"no section could start: {lost}")) from None
        if not machine["card"] and not given.tiny:
            worker.end()
            raise SystemExit(_wrong("torch finds no GPU here; --tiny tries every section on a CPU"))
        out = given.out or (None if given.tiny else RESULTS / f"gpu-{machine['card']}.json")
        record = Record(machine, out, merge=bool(given.only))
        chosen = [section for section in SECTIONS if not given.only or section.name in given.only]
        try:
            worker.run(chosen, given.seconds, record)
        except BaseException:  # the user's Ctrl-C, which the process does not get
            worker.end(0)
            raise
        worker.end()
    record.conclude()
    if record.failed:
        raise SystemExit(1)


def _wrong(message: str) -> int:
    print(f"error: {message}")
    return 2
