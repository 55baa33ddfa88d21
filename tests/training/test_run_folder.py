"""Who may write to a run folder, and what is never deleted."""

import json
from pathlib import Path

import pytest

from tt_ray.config import Config, RunConfig
from tt_ray.terminal.errors import UserError
from tt_ray.training.run_folder import check_run, next_time, read_result, start_run, starts_over


def _config(tmp_path: Path, **changes: object) -> Config:
    config = Config(run=RunConfig(name="r", storage=str(tmp_path / "runs")))
    for path, value in changes.items():
        config = config.override(path.replace("__", "."), value)
    return config


def _checkpoint(config: Config) -> None:
    (config.run_dir / "checkpoints" / "step-00000001").mkdir(parents=True)


def _finish(config: Config) -> None:
    (config.run_dir / "result.json").write_text(json.dumps({"top1": 71.25}))


def test_a_new_run_starts_and_goes_on(tmp_path: Path) -> None:
    config = _config(tmp_path)
    assert not check_run(config) and not tmp_path.joinpath("runs").exists(), "checking writes nothing"
    start_run(config)
    assert [file.name for file in config.run_dir.iterdir()] == ["config.yaml"]
    assert Config.from_yaml(config.run_dir / "config.yaml") == config
    assert check_run(config)
    (config.run_dir / "metrics.jsonl").write_text("kept")
    start_run(config)
    assert (config.run_dir / "metrics.jsonl").read_text() == "kept"


def test_a_run_does_not_go_with_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    job.mkdir(parents=True)
    monkeypatch.chdir(job)
    with pytest.raises(UserError, match="run.storage runs lies in this job's copy"):
        check_run(Config(run=RunConfig(name="r")))
    assert not check_run(_config(tmp_path)), "given in full"


def test_an_empty_folder_is_a_new_run(tmp_path: Path) -> None:
    config = _config(tmp_path)
    config.run_dir.mkdir(parents=True)
    assert not check_run(config)
    start_run(config)
    assert check_run(config)


def test_a_finished_run_is_refused_with_its_result(tmp_path: Path) -> None:
    config = _config(tmp_path)
    start_run(config)
    _finish(config)
    with pytest.raises(UserError, match=r"finished \(top-1 71\.25 %\): choose another --run\.name, or --run\.overw"):
        check_run(config)
    assert read_result(config.run_dir) == {"top1": 71.25}


@pytest.mark.parametrize(
    ("path", "value"),
    [("optim__lr", 0.5), ("data__shapes__seed", 3), ("model__kwargs", {"depth": 3}), ("train__seed", 1)],
)
def test_a_changed_configuration_is_refused_by_path(path: str, value: object, tmp_path: Path) -> None:
    start_run(_config(tmp_path))
    _checkpoint(_config(tmp_path))
    before = (_config(tmp_path).run_dir / "config.yaml").read_text()
    with pytest.raises(UserError) as error:
        check_run(_config(tmp_path, **{path: value}))
    assert path.replace("__", ".") in str(error.value) and f"(now {value})" in str(error.value)
    assert str(_config(tmp_path).get(path.replace("__", "."))) in str(error.value)
    assert (_config(tmp_path).run_dir / "config.yaml").read_text() == before


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("run__num_workers", 2),
        ("run__keep_checkpoints", 9),
        ("run__use_gpu", True),
        ("data__num_loaders", 1),
        ("data__cache_gb", 0.0),
        ("data__local_cache", "/elsewhere"),
        ("data__index", "/elsewhere/index.parquet"),
        ("train__max_batch_per_worker", 7),
        ("train__activation_checkpointing", True),
        ("train__compile", True),
        ("train__compile_mode", "max-autotune"),
        ("train__precision", "fp32"),  # as a run of an earlier version says; auto is the same on a CPU
        ("run__strategy", "hsdp"),
    ],
)
def test_how_it_runs_may_change(path: str, value: object, tmp_path: Path) -> None:
    start_run(_config(tmp_path))
    _checkpoint(_config(tmp_path))
    assert check_run(_config(tmp_path, **{path: value}))


@pytest.mark.parametrize(("gpu", "value"), [(True, "fp32"), (False, "bf16")])
def test_another_precision_is_refused_where_it_computes_other_things(gpu: bool, value: str, tmp_path: Path) -> None:
    start_run(_config(tmp_path))
    _checkpoint(_config(tmp_path))
    with pytest.raises(UserError, match=rf"train\.precision auto \(now {value}\)"):
        check_run(_config(tmp_path, train__precision=value, run__use_gpu=gpu))


@pytest.mark.parametrize("drops", [{"model__drop_path": 0.1}, {"model__kwargs": {"attn_drop_rate": 0.1}}])
def test_parts_of_a_batch_may_not_change_where_each_draws_its_own(drops: dict[str, object], tmp_path: Path) -> None:
    start_run(_config(tmp_path, **drops))
    _checkpoint(_config(tmp_path, **drops))
    assert check_run(_config(tmp_path, **drops, run__num_workers=2))
    with pytest.raises(UserError, match=r"train\.max_batch_per_worker 0 \(now 4\)"):
        check_run(_config(tmp_path, **drops, train__max_batch_per_worker=4))


def test_many_changes_name_the_first(tmp_path: Path) -> None:
    start_run(_config(tmp_path))
    _checkpoint(_config(tmp_path))
    changed = _config(tmp_path, optim__lr=0.5, train__epochs=3)
    with pytest.raises(UserError, match=r"optim\.lr 0\.001 \(now 0\.5\), train\.epochs 20 \(now 3\)"):
        check_run(changed)


def test_a_run_without_a_checkpoint_may_start_again_with_other_settings(tmp_path: Path) -> None:
    first, other = _config(tmp_path), _config(tmp_path, optim__lr=0.5)
    start_run(first)
    (first.run_dir / "metrics.jsonl").write_text("{}")
    assert check_run(first) and not starts_over(first)
    assert not check_run(other) and starts_over(other)
    start_run(other)
    assert [path.name for path in first.run_dir.iterdir()] == ["config.yaml"]
    assert check_run(other) and not starts_over(other)
    _checkpoint(other)
    with pytest.raises(UserError, match="was started with"):
        check_run(first)


def test_what_the_same_command_would_do_is_said_as_it_is(tmp_path: Path) -> None:
    config = _config(tmp_path)
    assert "no checkpoint yet: the same command starts it from the beginning" in next_time(config)
    start_run(config)
    (config.run_dir / "checkpoints" / "step-00000004").mkdir(parents=True)  # torn: it has no manifest
    assert "no checkpoint yet" in next_time(config)
    (config.run_dir / "checkpoints" / "step-00000004" / "manifest.json").write_text("{}")
    assert next_time(config) == f"the same command resumes run {config.run.name} from its last checkpoint"
    assert next_time(config.override("run.storage", "s3://bucket/runs")).endswith("if it has one")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    config = _config(tmp_path)
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not a run of tt-ray"):
        check_run(config)
    with pytest.raises(UserError, match="will not be deleted"):
        start_run(config.override("run.overwrite", True))
    assert (config.run_dir / "thesis.tex").read_text() == "x"


@pytest.mark.parametrize("finished", [True, False])
def test_overwrite_deletes_a_run_and_nothing_beside_it(finished: bool, tmp_path: Path) -> None:
    config = _config(tmp_path)
    start_run(config)
    (config.run_dir / "checkpoints" / "step-1").mkdir(parents=True)
    beside = config.run_dir.with_name("r2")
    beside.mkdir()
    if finished:
        _finish(config)
    again = config.override("optim.lr", 0.5).override("run.overwrite", True)
    assert not check_run(again)
    assert (config.run_dir / "checkpoints").exists(), "checking deletes nothing"
    start_run(again)
    assert [file.name for file in config.run_dir.iterdir()] == ["config.yaml"] and beside.exists()
    assert Config.from_yaml(config.run_dir / "config.yaml") == again


def test_overwrite_of_nothing_starts(tmp_path: Path) -> None:
    config = _config(tmp_path, run__overwrite=True)
    assert not check_run(config)
    start_run(config)
    assert (config.run_dir / "config.yaml").exists()


def test_overwrite_spares_a_folder_with_another_tools_config(tmp_path: Path) -> None:
    config = _config(tmp_path, run__overwrite=True)
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "config.yaml").write_text("defaults: [db]\n")
    (config.run_dir / "thesis.tex").write_text("x")
    with pytest.raises(UserError):
        start_run(config)
    assert (config.run_dir / "thesis.tex").exists()


@pytest.mark.parametrize("name", ["", ".", "a/.."])
def test_a_run_is_a_folder_below_storage(name: str, tmp_path: Path) -> None:
    other = _config(tmp_path)
    start_run(other)
    config = _config(tmp_path, run__overwrite=True, run__name=name)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    config.to_yaml(config.run_dir / "config.yaml")
    with pytest.raises(UserError, match=r"run\.name"):
        check_run(config)
    with pytest.raises(UserError):
        start_run(config)
    assert other.run_dir.exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match="cannot write the run folder"):
        start_run(_config(tmp_path))
