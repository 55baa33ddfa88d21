"""What a run draws by its seed is the same in a search: its images, and which of them have a label."""

from pathlib import Path

import pytest

from tests.toy import run_toy, toy_config
from tests.tune.test_trial import Tune, job, plan
from tests.tune.test_tune_command import TOY
from tt_ray.terminal.progress import Display
from tt_ray.tune.__main__ import read
from tt_ray.tune.search import Search
from tt_ray.tune.space import find_space
from tt_ray.tune.trial import run_trial


@pytest.mark.parametrize("path", ["data.subset", "data.unlabelled"])
def test_a_seed_draws_as_a_run_of_that_seed(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune, config = Tune(monkeypatch), toy_config(tmp_path).override(path, 0.5)
    run_trial(job("t", {}, (1, 2)), plan(config), {})
    for seed in (1, 2):
        alone = config.override({"train.seed": seed, "run.name": f"alone-{seed}"})
        assert run_toy(alone)["val_loss"] == tune.rows[-1]["seeds"][str(seed)]["val_loss"]


def test_trials_share_neither_images_nor_captions_where_each_draws_a_subset(tmp_path: Path) -> None:
    prepared = list[tuple[str, bool]]()
    for subset in ("1", "0.5"):
        words = ["loss_weight", "--out", str(tmp_path / subset), *TOY, "--run.storage", str(tmp_path / "runs")]
        given, base = read([*words, "--data.subset", subset])
        search = Search(given, base, find_space("loss_weight"))
        search.check()
        pixels = search._prepare(Display())
        prepared.append((Path(search.store or "none").name.split("-")[0], bool(pixels)))
    assert prepared == [("all", True), ("none", False)]
