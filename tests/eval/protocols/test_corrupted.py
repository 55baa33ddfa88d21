"""Protocols on corrupted images: one fit on clean ones, the clean score bit for bit, intervals in the report."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from eval.contract import Corruption, EvalConfig, Result
from eval.evaluate import Arguments, check, open_evaluation
from eval.features import cache, corruptions, extract
from eval.jobs import worker
from eval.jobs.evaluation import Origin, keep
from eval.jobs.plan import Job, read_options
from eval.jobs.results import read_rows, read_table
from eval.jobs.worker import Answer
from eval.protocols import finetune
from eval.protocols.corrupted import Corrupted, Options, corrupted_options
from eval.protocols.registry import PROTOCOLS, protocol, protocol_hash
from eval.report.numbers import build_report
from tests.eval.toy_task import COLOURS, ToyTask, toy_backbone
from tt_ray.terminal.errors import UserError

TWO = (Corruption("gaussian_noise", 1), Corruption("gaussian_noise", 5), Corruption("contrast", 5))
SMALL = {
    "finetune": ("finetune.steps=2", "finetune.batch_size=4", "finetune.rates=[0.001]"),
    "linear_sgd": ("linear_sgd.steps=4", "linear_sgd.batch_size=4", "linear_sgd.rates=[0.1]"),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_one_fit_on_clean_images_serves_all_corruptions(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt: list[tuple[str, ...]] = []

    def spoil(images: Any, ids: Any, corruption: Corruption) -> Any:
        spoilt.append((str(corruption), *ids))
        return corruptions.corrupt_all(images, ids, corruption)

    monkeypatch.setattr(extract, "corrupt_all", spoil)
    monkeypatch.setattr(finetune, "corrupt_all", spoil)
    own = read_options((name,), SMALL.get(name, ()))[name]
    config = EvalConfig(own, tmp_path / "cache", batch_size=16)
    task: Any = ToyTask()
    backbone = toy_backbone(3, COLOURS)
    clean = protocol(name).evaluate(backbone, task, config)
    assert not spoilt
    module = protocol(f"{name}_corrupted")
    fits: list[EvalConfig] = []
    monkeypatch.setattr(module, "fit", lambda *given, fit=module.fit: fits.append(given[2]) or fit(*given))  # type: ignore[attr-defined]
    given = replace(config, options=Options(own, TWO))
    found = module.evaluate(backbone, task, given)
    assert fits == [config]
    assert found.n == clean.n and (found.labels == clean.labels).all() and found.chosen.keys() == clean.chosen.keys()
    metrics = found.metrics
    assert metrics["top1@clean"] == clean.metrics["top1"]
    assert {image for _, *ids in spoilt for image in ids} == set(task.open("test").ids.to_pylist())
    single = [metrics[f"top1@{corruption}"] for corruption in TWO]
    assert metrics["top1"] == pytest.approx(fmean(single))
    assert metrics["top1@gaussian_noise"] == pytest.approx(fmean(single[:2]))
    assert metrics["top1@severity-5"] == pytest.approx(fmean(single[1:])) and metrics["top1@contrast"] == single[2]
    assert metrics["relative_drop"] == pytest.approx(100 * (1 - metrics["top1"] / clean.metrics["top1"]))
    assert clean.metrics.keys() < metrics.keys()
    draws = 3 if name == "few_shot" else 1
    assert found.predictions is not None and found.predictions.shape == (draws * len(TWO), found.n)
    assert 100 * (found.predictions == found.labels).mean() == pytest.approx(metrics["top1"])


def test_severity_0_is_the_clean_score(tmp_path: Path) -> None:
    own = read_options(("linear",), ())["linear"]
    config = EvalConfig(Options(own, (Corruption("fog", 0),)), tmp_path)
    task: Any = ToyTask()
    metrics = protocol("linear_corrupted").evaluate(toy_backbone(), task, config).metrics
    assert metrics["top1"] == metrics["top1@clean"] and metrics["relative_drop"] == 0


def test_features_of_each_corruption_are_extracted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, backbone = EvalConfig(None, tmp_path), toy_backbone()
    task: Any = ToyTask()
    cache.fill_cache([backbone], task, config, TWO)
    assert len(list(tmp_path.glob("*/features.npy"))) == 2 + len(TWO)
    monkeypatch.setattr(cache, "extract_together", lambda *_: pytest.fail("it is in the cache"))
    found = {str(each): cache.test_features(backbone, task, config, each)[0].tobytes() for each in (None, *TWO)}
    assert len(set(found.values())) == 1 + len(TWO)
    module = protocol("knn_corrupted")
    module.evaluate(backbone, task, replace(config, options=Options(read_options(("knn",), ())["knn"], TWO)))


def test_the_extraction_before_the_jobs_has_all_corruptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_open", lambda *_: toy_backbone())
    ((name, options),) = corrupted_options(read_options(("knn",), ()), TWO).items()
    job = Job("m", "m", "w", "coloured", 1, name, options, 0, 9)
    task: Any = ToyTask()
    request = worker.Request(job, task, EvalConfig(options, tmp_path), extraction=True)
    assert not worker.work(request).kind and len(list(tmp_path.glob("*/features.npy"))) == 2 + len(TWO)
    monkeypatch.setattr(cache, "extract_together", lambda *_: pytest.fail("it is in the cache"))
    result = worker.work(replace(request, extraction=False)).result
    assert result is not None and result.metrics["top1@clean"] > 0 and result.chosen["k"]


def test_hashes_and_features_without_corruptions_are_those_of_before() -> None:
    hashes = {name: protocol_hash(name, protocol(name).Options()) for name in PROTOCOLS}
    assert hashes == {
        "linear": "596289d4a99fae0d",
        "linear_sgd": "4b355d9d938b3aa4",
        "knn": "23b737932d282131",
        "few_shot": "90deb9cdd1ca4025",
        "finetune": "55b72c34e60c9244",
        "classifier": "3ee8f9dd9d581cc2",
    }
    backbone: Any = SimpleNamespace(weights="0" * 64, preprocessing=toy_backbone().preprocessing)
    assert cache.cache_key(backbone, ["1 test abc"]) == "4bec50059648a3f70bbc9897da52d5df"


def test_what_corrupts_is_a_part_of_the_key() -> None:
    job = Job("m", "s", "w", "digits", 1, "linear", read_options(("linear",), ())["linear"], 0, 9)
    keys = {job.key}
    for given in (TWO, TWO[:1], (Corruption("fog", 1),), (Corruption("fog", 2),)):
        for changes in ((), ("linear.tolerance=0.1",)):
            ((name, options),) = corrupted_options(read_options(("linear",), changes), given).items()
            keys.add(replace(job, protocol=name, options=options).key)
    assert len(keys) == 9
    fast, slow = (read_options(("finetune",), changes) for changes in ((), ("finetune.steps=150",)))
    hashes = {protocol_hash("finetune_corrupted", *corrupted_options(each, TWO).values()) for each in (fast, slow)}
    assert len(hashes) == 1  # 150 steps are what the recipe has


def test_the_report_compares_means_over_corruptions_with_intervals(tmp_path: Path) -> None:
    rng, labels = np.random.default_rng(0), np.arange(300, dtype=np.int32) % 3
    ((name, options),) = corrupted_options(read_options(("linear",), ()), TWO).items()
    for model, share in (("base", 0.5), ("text", 0.8)):

        def test(corruption: Corruption | None, share: float = share) -> Result:
            right = rng.random(300) < (share if corruption else 0.9)
            predictions = np.where(right, labels, (labels + 1) % 3).astype(np.int32)
            return Result({"top1": 100 * float((predictions == labels).mean())}, 300, predictions, labels)

        module = Corrupted("linear", SimpleNamespace(TRAITS=protocol("linear").TRAITS, fit=lambda *_, test=test: test))
        task: Any = ToyTask()
        result = module.evaluate(None, task, EvalConfig(options, tmp_path))  # type: ignore[arg-type]
        job = Job(model, model, model, "coloured", 1, name, options, 0, 9)
        keep(tmp_path, job, "top1", Answer(result, 1.0), Origin("{}", f"eval --models {model}=x"))
    (section,) = build_report(tmp_path, read_table(tmp_path), None, lambda *_: None).sections
    assert section.protocol == "linear_corrupted" and {"top1@clean", "relative_drop"} <= section.others.keys()
    difference = section.cells["coloured", "text"].difference
    assert difference is not None and difference.interval is not None and difference.mark == 1
    assert difference.interval.low < difference.value < difference.interval.high
    kept = json.loads(read_rows(tmp_path)[0].chosen)["options"]
    assert kept["corruptions"][0] == {"kind": "gaussian_noise", "severity": 1} and "tolerance" in kept["of"]


def test_commands_are_checked_before_anything_runs(tmp_path: Path) -> None:
    given = Arguments(tmp_path, ("a=random:test_vit",), ("digits",), ("linear", "knn"), corruptions=("fog", "jpeg"))
    assert {job.protocol for job in open_evaluation(given).jobs} == {"linear_corrupted", "knn_corrupted"}
    for changes, text in (
        ({"corruptions": ("foq",)}, "--corruptions has no kind 'foq'"),
        ({"severities": (6,)}, "--severities 6 must be 1 to 5"),
        ({"protocols": ("linear_corrupted",)}, "--protocols linear_corrupted: write linear, and kinds after --corrup"),
        ({"protocols": ("liner_corrupted",)}, "no protocol 'liner'"),
    ):
        with pytest.raises(UserError, match=f"^{text}"):
            open_evaluation(replace(given, **changes))
    for changes in ({"severities": ()}, {"corruptions": ("fog", "fog")}):
        with pytest.raises(UserError, match=f"^--{next(iter(changes))} "):
            check(replace(given, **changes))


def test_a_protocol_without_fit_is_refused() -> None:
    module = SimpleNamespace(TRAITS=protocol("knn").TRAITS, Options=protocol("knn").Options, evaluate=print)
    with pytest.raises(UserError, match=r"^--corruptions: protocol unfitted cannot test again .* fit\(\)"):
        Corrupted("unfitted", module)
