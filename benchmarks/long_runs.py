"""Do captions help on clean labels in long runs of a larger model? For a GPU, in under ten minutes.

    python -m benchmarks.long_runs --minutes 9
    python -m benchmarks.long_runs --tiny

Built-in clip art at 64 px, a ViT of 21 M parameters (ViT-S with patches of 8), 200 epochs in batches of 256: without
text, with it, and with captions of other images. Several runs share the GPU, as one of this size does not fill it. No
run is started that would not end in time by what the ones before took. Rows go to OUT one by one, and running again
does what is missing. The text encoder runs once, before the clock starts.
"""

import argparse
import json
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.does_it_help import BASELINE, SHUFFLED, TAUGHT, Setting, table
from benchmarks.what_text_buys import read, run
from tt_ray.config import Config
from tt_ray.recipes import RECIPES

RESULTS = Path(__file__).parent / "results"
_VIT_S = {
    **{"patch_size": 8, "embed_dim": 384, "depth": 12, "num_heads": 6},
    **{"global_pool": "avg", "class_token": False},
}
SETTING = Setting(
    "clipart",
    "64 px, ViT-S, 200 epochs",
    {
        "data.image_size": 64,
        "model.kwargs": {**_VIT_S, "drop_path_rate": 0.1},
        "train.batch_size": 256,
        "train.epochs": 200,
        "optim.warmup_epochs": 10.0,
        "run.use_gpu": True,
    },
    {"baseline": BASELINE, "TextTeacher": TAUGHT, "captions shuffled": SHUFFLED},
)
TINY = {
    "data.image_size": 16,
    "model.kwargs": {**_VIT_S, "embed_dim": 32, "depth": 1, "num_heads": 2},
    "train.epochs": 1,
    "optim.warmup_epochs": 0.0,
    "run.use_gpu": False,
}


def configure(arm: str, seed: int, storage: Path, tiny: bool) -> Config:
    """The configuration of one run."""
    changes = {**SETTING.shared, **(TINY if tiny else {}), **SETTING.arms[arm]}
    name = f"{arm}-{seed}".replace(" ", "_")
    places = {"run.storage": str(storage), "run.name": name, "run.overwrite": True, "train.seed": seed}
    config = RECIPES["clipart_textteacher"]().override({**changes, **places})
    return config.override("train.eval_every", config.train.epochs)


def run_in_time(jobs: list[tuple[Config, dict[str, Any]]], workers: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Rows as runs end, `workers` at a time; none is started when the longest so far would not fit any more."""
    started, longest = time.perf_counter(), 0.0
    going: dict[Future[dict[str, float]], tuple[dict[str, Any], float]] = {}
    left = iter(jobs)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        while True:
            while len(going) < workers and time.perf_counter() - started + longest < seconds:
                job = next(left, None)
                if job is None:
                    break
                going[pool.submit(run, job[0], False)] = (job[1], time.perf_counter())
            if not going:
                return
            for done in wait(going, return_when=FIRST_COMPLETED).done:
                key, since = going.pop(done)
                longest = max(longest, time.perf_counter() - since)
                yield {**key, **done.result()}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="in which runs must end")
    parser.add_argument("--workers", type=int, default=5, help="runs at a time on the GPU")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--tiny", action="store_true", help="a trial on a CPU, whose figures say nothing")
    parser.add_argument("--storage", type=Path, default=Path("runs", "long-runs"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=RESULTS / "long-runs.jsonl")
    given = parser.parse_args()
    storage = given.storage.absolute()
    keys = [
        {"data": SETTING.data, "setting": SETTING.name, "arm": arm, "seed": seed}
        for seed in given.seeds
        for arm in SETTING.arms
    ]
    there = read(given.out)
    jobs = [
        (configure(key["arm"], key["seed"], storage, given.tiny), key)
        for key in keys
        if not any(key.items() <= row.items() for row in there)
    ]
    _embed(configure("TextTeacher", 0, storage, given.tiny))
    for row in run_in_time(jobs, given.workers, 60 * given.minutes):
        with given.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)
    print(table(read(given.out), [SETTING]))


def _embed(config: Config) -> None:
    """Makes the store of embeddings that all runs read."""
    from tt_ray.data.prepare import find_store, open_images

    find_store(config, open_images(config)[0])


if __name__ == "__main__":
    main()
