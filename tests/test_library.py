"""`import tt_ray` as a library: light until it is used, and the same as the commands."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

import tt_ray
from tests.cluster.ray_here import stop_ray
from tests.toy import run_toy, toy_config
from tt_ray.models.pretrained import timm_preprocessing
from tt_ray.recipes import RECIPES
from tt_ray.terminal.errors import UserError
from tt_ray.training.metrics_log import read_rows

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"


def test_importing_it_loads_neither_torch_nor_ray() -> None:
    look = "import sys, tt_ray; dir(tt_ray); print(sorted({'torch', 'ray', 'numpy', 'tyro'} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_name_is_there_and_no_other() -> None:
    for name in tt_ray.__all__:
        assert callable(getattr(tt_ray, name)) and name in dir(tt_ray)
    for wrong, right in (("trian", "train"), ("emebd", "embed"), ("textteacher", "TextTeacher"), ("Congif", "Config")):
        with pytest.raises(AttributeError, match=f"no attribute {wrong!r}; did you mean {right}") as error:
            getattr(tt_ray, wrong)
        assert "\n" not in str(error.value)
    assert not hasattr(tt_ray, "__wrapped__")


@pytest.mark.parametrize(
    ("function", "arguments", "wrong", "right"),
    [
        ("TextTeacher", (8, None), "wieght", "weight"),
        ("LinearProbe", (), "max_iters", "max_iter"),
        ("probe", (np.eye(4), [0, 0, 1, 1]), "max_iters", "max_iter"),
        ("embed", ([],), "encodr", "encoder"),
        ("export", (None, "out"), "imagesize", "image_size"),
        ("evaluate", ({},), "task_root", "task_roots"),
        ("train", (), "cofnig", "config"),
        ("audit", (None,), "thumbnial", "thumbnails"),
    ],
)
def test_a_misspelt_argument_has_a_nearest_one(
    function: str, arguments: tuple[Any, ...], wrong: str, right: str
) -> None:
    with pytest.raises(TypeError, match=rf"\(\) has no argument {wrong!r}; did you mean {right}"):
        getattr(tt_ray, function)(*arguments, **{wrong: 1})


def test_errors_in_python_speak_of_arguments_and_fields(tmp_path: Path) -> None:
    """Those of commands speak of options: tests/eval/test_eval_command.py, tests/test_bad_input.py."""
    models = {"a": "random:test_resnet"}
    for options, words in (
        ({"tasks": "mine"}, r"task_roots=\{'mine': 'DIR'\}"),
        (
            {"tasks": "digits", "task_roots": {"mine": tmp_path}},
            r"^task_roots=\{'mine': .* is for a task that tasks lacks",
        ),
        ({"tasks": "mine", "task_roots": {"mine": "none"}}, r"^task_roots=\{'mine': 'none'\}: there is no such folder"),
        ({"tasks": "digits", "options": {"linear.x": 1}}, r"^options=\{'linear.x': '1'\}: linear has no field"),
        ({"gpus_per_job": 2}, "^gpus_per_job is 2"),
        ({"tasks": ("digits", "digits")}, "^tasks has something twice"),
    ):
        with pytest.raises(UserError, match=words) as error:
            tt_ray.evaluate(models, **{"out": tmp_path / "out", **options})
        assert "--" not in str(error.value)
    run = tmp_path / "runs" / "r"
    run.mkdir(parents=True)
    (run / "thesis.tex").touch()
    config = tt_ray.recipe("shapes_baseline").override({"run.storage": str(tmp_path / "runs"), "run.name": "r"})
    with pytest.raises(UserError, match="choose another run.name or run.storage"):
        tt_ray.train(config)


def test_the_history_of_a_run_is_a_table_of_what_it_logged(tmp_path: Path) -> None:
    config = toy_config(tmp_path, text__weight=0.0)
    run = tt_ray.Run(config, run_toy(config))
    rows = read_rows(run.folder / "metrics.jsonl")
    both = run.history()
    assert [{name: row.get(name) for name in both.column_names} for row in rows] == both.to_pylist()
    steps, validations = run.history("step"), run.history("validation")
    assert steps["step"].to_pylist() == list(range(12)) and not steps["loss"].null_count
    assert validations["epoch"].to_pylist() == [1, 2] and validations["top1"].to_pylist()[-1] == run.top1
    assert tt_ray.Run(config.override("run.name", "none"), {}).history().num_rows == 0


def test_types_and_names_are_those_of_one_table() -> None:
    """Names for type checkers, for `*` and for __getattr__ stand in three lists of one file."""
    source = Path(tt_ray.__file__).read_text()
    for name, home in tt_ray._HOMES.items():
        assert any(f"from {home} import" in line and name in line for line in source.splitlines()), name
    assert list(tt_ray._HOMES) == tt_ray.__all__


def test_a_commands_module_in_the_place_of_a_function_can_be_called(tmp_path: Path) -> None:
    import tt_ray.export as export_module
    import tt_ray.train as train_module

    assert isinstance(train_module, type(sys)) and export_module.main is not None
    model = timm.create_model("test_vit", num_classes=2)
    assert tt_ray.export(model, tmp_path / "out") == tmp_path / "out"
    with pytest.raises(UserError, match="must name one folder"):
        train_module(tt_ray.recipe("shapes_baseline").override("run.name", ""))


def test_recipes_by_name() -> None:
    assert tt_ray.recipe("shapes_baseline") == RECIPES["shapes_baseline"]()
    with pytest.raises(UserError, match="did you mean shapes_baseline"):
        tt_ray.recipe("shape_baseline")


# export


@pytest.mark.parametrize("wrapped", ["plain", "parallel", "compiled"])
def test_an_export_is_the_model_itself(wrapped: str, tmp_path: Path) -> None:
    model = timm.create_model("test_convnext", num_classes=3, drop_path_rate=0.1).eval()
    whole: Any = {"plain": model, "parallel": nn.DataParallel(model), "compiled": torch.compile(model)}[wrapped]
    path = tt_ray.export(whole, tmp_path / "out", classes=["cat", "dog", "eel"])
    again: Any = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    images = torch.randn(2, 3, 160, 160)
    assert torch.equal(model(images), again(images)) and model.state_dict().keys() == again.state_dict().keys()
    assert json.loads((path / "config.json").read_text())["label_names"] == ["cat", "dog", "eel"]
    assert timm_preprocessing(again) == timm_preprocessing(model)


def test_an_export_says_how_its_images_are_prepared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As given; else the size is the model's own where it has one, and timm's where not. A wrong one is refused."""
    own = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1)
    free = timm.create_model("test_resnet")
    sizes = []
    for name, model, options in (
        ("a", own, {}),
        ("b", free, {}),
        ("c", free, {"image_size": 64, "mean": (0.1, 0.2, 0.3)}),
    ):
        path = tt_ray.export(model, tmp_path / name, **options)
        found = timm_preprocessing(timm.create_model(f"local-dir:{path}", pretrained=True))
        sizes.append(found.size)
        assert f"its images are {found.size} px" in capsys.readouterr().out
    assert sizes == [32, 160, 64] and found.mean == (0.1, 0.2, 0.3)
    with pytest.raises(UserError, match="does not run on images of 64 px .*image_size="):
        tt_ray.export(own, tmp_path / "d", image_size=64)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (nn.Linear(2, 2), {}, "Linear is no model of timm's"),
        ("test_vit", {"classes": ["cat"]}, "1 classes for a model of 2"),
        ("test_vit", {"path": "."}, "exists.*choose another path"),
        ("test_vit", {"path": "/proc/none/out"}, "cannot write"),
    ],
)
def test_exports_that_would_be_wrong_are_refused(
    model: Any, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    made = timm.create_model(model, num_classes=2) if isinstance(model, str) else model
    with pytest.raises(UserError, match=words):
        tt_ray.export(made, **{"path": tmp_path / "out", **options})
    assert not list(tmp_path.iterdir())


# embed


def test_captions_become_an_array_or_a_store(tmp_path: Path) -> None:
    captions = {"a.png": "a red square", "b.png": "a blue circle"}
    array = tt_ray.embed(list(captions.values()), device="cpu")
    store = tt_ray.embed(captions, out=tmp_path / "store", device="cpu")
    assert array.shape == (2, store.dim) and array.dtype == np.float32
    np.testing.assert_allclose(store.embeddings[store.rows_of(["a.png", "b.png"])], array, atol=1e-3)
    assert store.rows_of(["c.png"]).tolist() == [-1]
    assert tt_ray.open_store(tmp_path / "store").manifest["encoder"]["id"] == ENCODER
    pulled = tt_ray.open_store(f"file://{tmp_path}/store", local_cache=str(tmp_path / "cache"))
    assert pulled.path.is_relative_to(tmp_path / "cache") and pulled.sha256 == store.sha256
    with pytest.raises(UserError, match="file:///.*/none is no embedding store"):
        tt_ray.open_store(f"file://{tmp_path}/none", local_cache=str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("captions", "options", "words"),
    [
        ("a red square", {}, "one string"),
        ({"a.png": "a red square"}, {}, "out=FOLDER"),
        (["a red square"], {"out": "store"}, "out=FOLDER"),
        (["a red square", None], {}, "must be strings, but 1 are not, such as None"),
        (["a red square"], {"encoder": "nobody/none"}, "nobody/none"),
    ],
)
def test_captions_that_cannot_be_embedded_are_refused(captions: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        tt_ray.embed(captions, **options)


# train


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Data, in its own settings
def test_a_training_from_a_thread_is_the_loop_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As notebooks and servers have them. Several in one process, one after the other: tests/test_train_command.py."""
    monkeypatch.setenv("RAY_ADDRESS", "local")
    config, runs = toy_config(tmp_path, run__cpus_per_worker=1), list[tt_ray.Run]()
    try:
        thread = threading.Thread(target=lambda: runs.append(tt_ray.train(config)))
        thread.start()
        thread.join()
        with pytest.raises(UserError, match="is finished"):
            tt_ray.train(config)
    finally:
        stop_ray()
    (run,) = runs
    here = config.override("run.name", "here")
    assert run.folder == tmp_path / "toy" and run.top1 == run.result["top1"] == run_toy(here)["top1"]
    models: list[Any] = [
        timm.create_model(f"local-dir:{folder}/export", pretrained=True) for folder in (run.folder, here.run_dir)
    ]
    first, second = (model.state_dict() for model in models)
    assert run.export == run.folder / "export" and all(torch.equal(first[name], second[name]) for name in first)
