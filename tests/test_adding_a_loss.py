"""A loss from outside the package is one function, and one row where it is more than a function of pred and target."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.toy import run_toy, toy_config
from tt_ray.losses import ALIGNMENT_LOSSES, Loss
from tt_ray.terminal.errors import UserError
from tt_ray.training.metrics_log import read_rows

HERE = __name__


def huber(pred: Tensor, target: Tensor) -> Tensor:
    """Mean Huber loss over all elements."""
    return F.smooth_l1_loss(pred, target)


def scaled_clip(pred: Tensor, target: Tensor, log_scale: Tensor, temperature: float = 1.0) -> Tensor:
    """A contrastive loss with a scale that is learned."""
    logits = pred @ target.T * log_scale.exp() / temperature
    return F.cross_entropy(logits, torch.arange(len(pred)))


def pull(pred: Tensor, target: Tensor, labels: Tensor, means: Tensor) -> Tensor:
    """Towards the mean of the class."""
    return F.mse_loss(pred, means[labels])


LEARNED = Loss(scaled_clip, contrastive=True, learned=(0.5,))
PULLS = Loss(pull, per_image=True, needs=("labels", "means"))


@pytest.mark.parametrize("name", ["huber", "LEARNED", "PULLS"])
def test_a_loss_of_another_module_trains(name: str, tmp_path: Path) -> None:
    config = toy_config(tmp_path, text__loss=f"{HERE}:{name}")
    run_toy(config)
    rows = [row for row in read_rows(config.run_dir / "metrics.jsonl") if row["kind"] == "step"]
    assert len(rows) == 12 and all(row["loss_text"] > 0 for row in rows)
    if name == "huber":
        assert rows[-1]["loss_text"] < rows[0]["loss_text"]


def test_a_row_in_the_table_has_a_short_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALIGNMENT_LOSSES, "huber", Loss(huber))
    for loss, name in (("huber", "row"), (f"{HERE}:huber", "module")):
        run_toy(toy_config(tmp_path, text__loss=loss, run__name=name))
    first, second = (read_rows(path) for path in sorted(tmp_path.glob("*/metrics.jsonl")))
    assert [row["loss"] for row in first if "loss" in row] == [row["loss"] for row in second if "loss" in row]


def test_checks_read_the_row(tmp_path: Path) -> None:
    toy_config(tmp_path, text__loss=f"{HERE}:LEARNED", text__temperature=0.5)
    with pytest.raises(UserError, match=re.escape(f"text.loss {HERE}:PULLS has no text.temperature, as clip")):
        toy_config(tmp_path, text__loss=f"{HERE}:PULLS", text__temperature=0.5)
    with pytest.raises(UserError, match="needs the label of each image"):
        toy_config(tmp_path, text__loss=f"{HERE}:PULLS", data__unlabelled=0.5)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("zzz", "text.loss is 'zzz'; known: borlan, clip, "),
        ("infonc", "text.loss is 'infonc'; did you mean infonce?"),
        (f"{HERE}:hubert", "cannot be imported: .*no attribute 'hubert'"),
        ("no_such_module:huber", "cannot be imported: No module named"),
    ],
)
def test_a_wrong_name_is_one_line(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as error:
        toy_config(tmp_path, text__loss=name)
    assert "\n" not in str(error.value)


def test_names_are_checked_without_torch() -> None:
    code = "import sys; from tt_ray.config import Config; Config().override('text.loss', 'siglip')"
    code += "; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
