"""The body of a job: what it says of its precision, and what it leaves to the process."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.contract import EvalConfig
from eval.jobs import worker
from eval.jobs.evaluation import Origin, keep
from eval.jobs.image_names import read_names
from eval.jobs.plan import Job, read_options
from eval.jobs.results import read_confidence, read_predictions, read_rows
from eval.jobs.worker import Request, work
from eval.metrics import calibration_error
from eval.protocols import knn
from eval.protocols.registry import PROTOCOLS
from tests.eval.toy_task import COLOURS, ToyTask, toy_backbone
from tests.io.pulled_here import Sent, copy_of_one_file


def request(folder: Path, name: str, **changes: Any) -> Request:
    changes_of = {"finetune": ("finetune.steps=2",), "linear_sgd": ("linear_sgd.steps=3",)}
    options = read_options((name,), changes_of.get(name, ()))[name]
    job = Job("toy", "spec", "weights", "coloured", 1, name, options, 0, 1)
    return Request(job, ToyTask(), EvalConfig(options, folder, batch_size=16, **changes))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_open", lambda *_: toy_backbone())


@pytest.mark.parametrize("name", PROTOCOLS)
def test_kept_confidence_gives_the_same_calibration_error(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every protocol that has probabilities; all keep the names of classes and images."""
    monkeypatch.setattr(worker, "_open", lambda *_: toy_backbone(3, COLOURS))
    given = request(tmp_path, name)
    answer = work(given)
    assert not answer.problem and answer.result is not None
    keep(tmp_path, given.job, "top1", answer, Origin("{}", "command"))
    rows, kept = read_rows(tmp_path), read_predictions(tmp_path, given.job.key)
    assert kept is not None
    confidence = read_confidence(tmp_path, given.job.key, kept.predictions.shape)
    values = {row.metric: row.value for row in rows}
    assert ("ece" in values) == (confidence is not None) == (name != "few_shot")
    if confidence is not None:
        assert calibration_error(confidence[0], kept.predictions[0] == kept.labels) == values["ece"]
    names = read_names(tmp_path, json.loads(rows[0].chosen)["image_names"])
    assert names is not None and names.classes == COLOURS
    assert names.ids.to_pylist() == ToyTask().open("test").ids.to_pylist()


@pytest.mark.parametrize("name", ["knn", "finetune"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_results_say_their_precision(tmp_path: Path, name: str, precision: Any) -> None:
    answer = work(request(tmp_path, name, precision=precision))
    assert not answer.problem and answer.result is not None
    assert answer.result.chosen["precision"] == precision and answer.result.chosen["batch_size"] == 16


def test_a_solver_does_not_compute_in_the_tf32_of_a_training_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    evaluate = knn.evaluate

    def watched(*given: Any) -> Any:
        seen.append(torch.get_float32_matmul_precision())
        return evaluate(*given)

    monkeypatch.setattr(knn, "evaluate", watched)
    torch.set_float32_matmul_precision("high")
    work(request(tmp_path, "knn"))
    assert seen == ["highest"] and torch.get_float32_matmul_precision() == "highest"


def test_an_extraction_serves_the_models_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(worker, "_open", lambda name, *_: opened.append(name) or toy_backbone())
    given = request(tmp_path, "knn")
    answer = work(replace(given, extraction=True, beside=(replace(given.job, model="other"),)))
    assert not answer.problem and answer.result is None and opened == ["toy", "other"]
    assert [path for path in tmp_path.iterdir() if path.is_dir()]


def test_what_a_job_pulls_is_sent_to_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent, copy = Sent(monkeypatch), copy_of_one_file(tmp_path)
    monkeypatch.setattr(knn, "evaluate", lambda *_: copy.pull())
    work(request(tmp_path, "knn"), sent)  # type: ignore[arg-type]
    sent.assert_pulled(tmp_path)
