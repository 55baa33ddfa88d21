"""Tests mirror the rooms: a module `tt_ray/ROOM/NAME.py` has `tests/ROOM/test_NAME.py`, or a line here that says which
test covers it. `eval/` is mirrored by `tests/eval/`; a `__main__` by a test of the command.
"""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COVERED_BY = {
    "eval/__main__": "eval/test_eval_command",
    "eval/evaluate": "eval/test_eval_command",
    "eval/contract": "eval/jobs/test_scheduler",
    "eval/features/cka": "eval/test_similarity",
    "eval/features/extract": "eval/features/test_cache",
    "eval/jobs/costs": "eval/test_efficiency",
    "eval/jobs/evaluation": "eval/test_eval_command",
    "eval/jobs/measurement": "eval/test_efficiency",
    "eval/jobs/summary": "eval/test_eval_command",
    "eval/features/projection": "eval/test_picture",
    "eval/report/feature_picture": "eval/test_picture",
    "eval/protocols/finetune_data": "eval/protocols/test_finetune",
    "eval/protocols/finetune_recipes": "eval/protocols/test_finetune",
    "tt_ray/logistic/design": "logistic/test_solver",
    "eval/protocols/registry": "eval/jobs/test_plan",
    "eval/report/__main__": "eval/report/test_command",
    "eval/report/charts": "eval/test_report_page",
    "eval/report/content": "eval/report/test_command",
    "eval/report/examples": "eval/report/test_classes",
    "eval/report/html": "eval/test_report_page",
    "eval/report/kept": "eval/report/test_classes",
    "eval/tasks/origins": "eval/tasks/test_registry",
    "eval/tasks/table": "eval/tasks/test_registry",
    "eval/why/__main__": "eval/why/test_command",
    "eval/why/analysis": "eval/why/test_command",
    "eval/why/figures": "eval/why/test_command",
    "tt_ray/__main__": "test_commands",
    "tt_ray/audit/__main__": "audit/test_audit_command",
    "tt_ray/audit/audit": "audit/test_audit_command",
    "tt_ray/audit/findings": "audit/test_audit_command",
    "tt_ray/audit/inputs": "audit/test_audit_command",
    "tt_ray/audit/learning": "audit/test_noise",
    "tt_ray/audit/tables": "audit/test_audit_command",
    "tt_ray/audit/words": "audit/test_audit_command",
    "tt_ray/cluster/context": "cluster/test_messages",
    "tt_ray/cluster/own_eval": "test_packaging",
    "tt_ray/cluster/run": "test_train_command",
    "tt_ray/compare/__main__": "compare/test_command",
    "tt_ray/compare/arms": "compare/test_command",
    "tt_ray/compare/comparison": "compare/test_command",
    "tt_ray/compare/epoch_times": "compare/test_command",
    "tt_ray/compare/runs": "compare/test_command",
    "tt_ray/compare/step_times": "compare/test_command",
    "tt_ray/compare/table": "compare/test_command",
    "tt_ray/compare/transfer": "compare/test_command",
    "tt_ray/config/checks": "config/test_sections",
    "tt_ray/config/sources": "test_adding_a_source",
    "tt_ray/config/tree": "config/test_sections",
    "tt_ray/data/sources/tar_index": "data/sources/test_webdataset",
    "tt_ray/data/sampling": "data/test_loader",
    "tt_ray/data/sources/base": "data/sources/test_registry",
    "tt_ray/data/sources/image_folder": "data/sources/test_registry",
    "tt_ray/data/sources/shape_outlines": "data/sources/test_shapes",
    "tt_ray/data/sources/torchvision": "data/sources/test_registry",
    "tt_ray/embeddings/__main__": "embeddings/test_inspection",
    "tt_ray/embeddings/build": "embeddings/test_store",
    "tt_ray/embeddings/ensure": "data/test_prepare",
    "tt_ray/embeddings/exporter": "embeddings/test_importers",
    "tt_ray/embeddings/zip_archive": "embeddings/test_importers",
    "tt_ray/io/checkpoint_folder": "training/test_checkpoint",
    "tt_ray/io/csv_rows": "text/test_caption_table",
    "tt_ray/io/provenance": "eval/test_eval_command",
    "tt_ray/models/export": "test_export",
    "tt_ray/models/hf_vision": "models/test_teacher",
    "tt_ray/models/pretrained": "models/test_teacher",
    "tt_ray/models/trial_pass": "models/test_classifier",
    "tt_ray/recipes/changes": "recipes/test_registry",
    "tt_ray/recipes/backbones": "recipes/test_registry",
    "tt_ray/recipes/clipart": "recipes/test_registry",
    "tt_ray/recipes/imagenet": "recipes/test_registry",
    "tt_ray/recipes/rows": "recipes/test_registry",
    "tt_ray/recipes/shapes": "recipes/test_registry",
    "tt_ray/terminal/command": "test_cli",
    "tt_ray/text/open_clip_model": "text/test_coca",
    "tt_ray/train": "test_train_command",
    "tt_ray/training/async_validation": "test_train_command",
    "tt_ray/training/checkpoint_manager": "io/test_storage",
    "tt_ray/training/context": "training/test_trainer",
    "tt_ray/training/preflight": "tune/test_tune_command",
    "tt_ray/tune/__main__": "tune/test_tune_command",
    "tt_ray/tune/live_table": "tune/test_search_direction",
    "tt_ray/tune/results": "tune/test_search_direction",
    "tt_ray/tune/runner": "tune/test_tune_command",
    "tt_ray/tune/search": "tune/test_tune_command",
    "tt_ray/data/shard_folder": "data/sources/test_shard_files",
    "tt_ray/data/sources/tar_scan": "data/sources/test_webdataset",
}
MODULES = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix()
    for top in ("tt_ray", "eval")
    for path in (ROOT / top).rglob("*.py")
    if path.name != "__init__.py"
)


def _own_test(module: str) -> Path:
    room, _, name = module.removeprefix("tt_ray/").rpartition("/")
    return ROOT / "tests" / room / f"test_{name}.py"


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_its_test(module: str) -> None:
    if module in COVERED_BY:
        assert (ROOT / "tests" / f"{COVERED_BY[module]}.py").is_file()
        assert not _own_test(module).exists(), "it has a test of its name: drop the line"
    else:
        assert _own_test(module).is_file(), f"no {_own_test(module).relative_to(ROOT)}, and no line in COVERED_BY"


def test_no_line_is_of_a_module_that_is_gone() -> None:
    assert COVERED_BY.keys() <= set(MODULES)
