"""Memory and throughput of known things, and the report's table of models."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.efficiency import main
from eval.evaluate import Arguments, open_evaluation
from eval.jobs.costs import Costs, Measured, keep_costs, missing_counts, read_costs
from eval.jobs.measurement import measure, peak_bytes, tensors_of, training_step
from eval.report.__main__ import write_report
from tests.eval.sample_results import Job, finish
from tests.eval.toy_task import SIZE, toy_backbone
from tt_ray.models.flops import count
from tt_ray.terminal.errors import UserError

CPU = torch.device("cpu")
MB = 1_000_000


def test_the_peak_is_that_of_tensors_that_live_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    held = [torch.zeros(MB // 4)]

    def run() -> torch.Tensor:
        first = torch.ones(2 * MB // 4)
        second = first + 1
        del first
        return second.sum() + torch.zeros(MB // 4).sum()

    assert peak_bytes(run, CPU, held) == pytest.approx(5 * MB, rel=0.001)
    assert capfd.readouterr().err == ""


def test_a_training_step_holds_parameters_gradients_and_both_moments() -> None:
    layer = torch.nn.Linear(500, 1000)
    step, state = training_step(layer, torch.zeros(1, 500))
    step()
    size = sum(tensor.nbytes for tensor in layer.parameters())
    assert sum(tensor.nbytes for tensor in state()) == pytest.approx(2 * size, rel=0.01)
    found = peak_bytes(step, CPU, [*tensors_of(layer), *state()])
    assert 4 * size <= found < 7 * size, "AdamW takes some of its steps in copies"


def test_larger_batches_take_more_memory_and_training_more_than_inference() -> None:
    backbone = toy_backbone()
    before = backbone.weights
    small, large = (measure(backbone, batch_size, CPU) for batch_size in (1, 64))
    assert small.inference_mb < large.inference_mb < large.training_mb and small.training_mb < large.training_mb
    assert small.inference_mb * 1e6 > sum(tensor.nbytes for tensor in backbone.model.parameters())
    assert small.images_per_s > 0 and not any(p.requires_grad for p in backbone.model.parameters())
    assert toy_backbone().identity == backbone.identity and backbone.weights == before


def test_counts_do_not_take_the_place_of_what_was_measured(tmp_path: Path) -> None:
    backbone = toy_backbone()
    counts = Costs.of(count(backbone.model, SIZE))
    assert missing_counts(tmp_path, backbone) == counts
    measured = replace(counts, device="a machine", measured=(Measured(8, 100.0, 1.0, 2.0),))
    for costs in (counts, measured):
        keep_costs(tmp_path, backbone.identity, costs)
        assert missing_counts(tmp_path, backbone) is None and read_costs(tmp_path, backbone.identity) == costs
    (tmp_path / "models" / f"{backbone.identity}.json").write_text("{")
    assert read_costs(tmp_path, backbone.identity) is None and missing_counts(tmp_path, backbone) == counts
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --out"):
        keep_costs(tmp_path / "file", backbone.identity, counts)


def test_the_report_has_a_table_of_models(tmp_path: Path) -> None:
    backbone = toy_backbone()
    weights, counts, labels = backbone.identity, count(backbone.model, SIZE), np.arange(20) % 4
    for model, own in (("base", ""), ("mine", weights)):
        job = Job(model, "a", weights=own)
        finish(tmp_path, job, labels, labels)
    write_report(tmp_path, "mine", tmp_path / "without")
    assert "models cost" not in (tmp_path / "without" / "report.html").read_text()
    keep_costs(tmp_path, weights, Costs(*counts, "a machine", (Measured(8, 123.45, 1.5, 2.5),)))
    write_report(tmp_path, "mine")
    row = f"{counts.params / 1e6:.2f} | {counts.flops / 1e9:.2f} | {counts.activations / 1e6:.2f} | 16 | 8 | 123.5"
    assert row in (tmp_path / "report.md").read_text()
    assert "<h2>What the models cost</h2>" in (tmp_path / "report.html").read_text()
    assert "& 123.5 & 1.5 & 2.5 & a machine" in (tmp_path / "report.tex").read_text()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "report.csv").read_text())))
    figures = {row["metric"]: float(row["mean"]) for row in rows if row["status"] in ("counted", "measured")}
    assert figures["flops"] == counts.flops and figures["images_per_s_batch_8"] == 123.45


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--models", "a=random:test_vit", "--batch-sizes", "1", "2", "--out", str(tmp_path)])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("CPU, ") and len([line for line in shown if line.startswith("| a |")]) == 2
    assert len(list((tmp_path / "models").iterdir())) == 1
    with pytest.raises(UserError, match="--batch-sizes"):
        main(["--models", "a=random:test_vit", "--batch-sizes", "0"])


def test_an_evaluation_counts_its_models_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = Arguments(tmp_path / "out", ("a=random:test_vit",), tasks=("digits",), protocols=("knn",))
    planned = open_evaluation(given)
    jobs, counted = planned.jobs, planned.costs
    assert not given.out.exists(), "nothing is written before all is known to be right"
    keep_costs(given.out, jobs[0].weights, counted[jobs[0].weights])
    costs = read_costs(given.out, jobs[0].weights)
    assert costs is not None and costs.params > 0 and costs.measured == ()
    monkeypatch.setattr("tt_ray.models.flops.count", None)
    again = open_evaluation(given)
    assert (again.jobs, again.costs) == (jobs, {})


def test_no_model_is_no_empty_table() -> None:
    with pytest.raises(UserError, match="--models is empty"):
        main(["--models"])
