"""Reading a command line, and what every command does about mistakes."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tt_ray.audit import __main__ as audit
from tt_ray.cli import as_words, read_config
from tt_ray.config import Config
from tt_ray.embed_captions import Arguments
from tt_ray.recipes import RECIPES
from tt_ray.terminal.command import read_arguments, run_command
from tt_ray.terminal.errors import UserError


def _read(*arguments: str) -> Config:
    return read_config(list(arguments), "prog")


def _mistake(*arguments: str) -> str:
    with pytest.raises(UserError) as error:
        _read(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["shapes_textteacher", "shapes_baseline"])
def test_a_recipe_by_name(name: str) -> None:
    config = _read(name)
    assert config == RECIPES[name]() and config.run.name == name


def test_the_default_recipe() -> None:
    assert _read() == _read("shapes_textteacher")
    assert _read("--train.epochs", "3") == _read("shapes_textteacher", "--train.epochs", "3")


@pytest.mark.parametrize(
    ("arguments", "path", "value"),
    [
        (["--optim.lr", "3e-4"], "optim.lr", 3e-4),
        (["--optim.lr=3e-4"], "optim.lr", 3e-4),
        (["--train.batch_size", "32"], "train.batch_size", 32),
        (["--train.batch-size", "32"], "train.batch_size", 32),
        (["--data.shapes.label", "colour"], "data.shapes.label", "colour"),
        (["--data.mean", "0.5", "0.25", "0"], "data.mean", (0.5, 0.25, 0.0)),
        (["--run.use_gpu", "True"], "run.use_gpu", True),
        (["--run.use_gpu", "true"], "run.use_gpu", True),
        (["--run.use_gpu", "TRUE"], "run.use_gpu", True),
        (["--optim.lr", "1", "--optim.lr", "3e-4"], "optim.lr", 3e-4),
        (["--text.balance", "False"], "text.balance", False),
        (["--text.balance", "false"], "text.balance", False),
        (["--text.schedule", "jump-1-2-0.5"], "text.schedule", "jump-1-2-0.5"),
        (["--run.storage", "a b/ü"], "run.storage", "a b/ü"),
    ],
)
def test_overrides_change_one_path(arguments: list[str], path: str, value: object) -> None:
    base, config = _read("shapes_baseline"), _read("shapes_baseline", *arguments)
    assert config.get(path) == value and type(config.get(path)) is type(value)
    assert config == base.override(path, value) != base


def _changed(recipe: str, **changes: object) -> Config:
    config = RECIPES[recipe]()
    for path, value in changes.items():
        config = config.override(path.replace("__", "."), value)
    return config


@pytest.mark.parametrize(
    ("config", "words"),
    [
        *((RECIPES[name](), [name]) for name in ("shapes_textteacher", "shapes_baseline", "in1k_vit_s_clip_b")),
        (_changed("shapes_textteacher", optim__lr=1e-5), ["shapes_textteacher", "--optim.lr", "1e-05"]),
        (_changed("shapes_textteacher", data__source="imagefolder"), None),
        (_changed("shapes_textteacher", data__source="imagefolder", data__label_noise=0.0), None),
        (_changed("shapes_textteacher", model__kwargs={}), None),
        (_changed("shapes_textteacher", model__name="resnet18", model__kwargs={"channels": [8, 16], "x": "3"}), None),
        (_changed("shapes_textteacher", model__kwargs={"patch_size": 8, "a": True, "b": "tanh", "c": 1e-6}), None),
        (_changed("shapes_baseline", data__mean=(0.5, 0.25, 0.0), data__root="a b/ü", text__balance=False), None),
        (_changed("in1k_vit_s_textteacher", data__root=""), None),
    ],
)
def test_a_configuration_as_words_reads_as_itself(config: Config, words: list[str] | None) -> None:
    found = as_words(config)
    assert words is None or found == words
    assert replace(_read(*found), run=config.run) == config


def test_several_overrides() -> None:
    config = _read("shapes_baseline", "--run.num_workers", "3", "--train.batch_size", "33", "--data.cutmix", "0")
    assert (config.run.num_workers, config.train.batch_size) == (3, 33)


def test_a_yaml_file_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("train: {epochs: 7, seed: 3}\n")
    config = _read(str(tmp_path / "mine.yaml"), "--train.seed", "4")
    expected = Config().override("train.epochs", 7).override("train.seed", 4)
    assert config == expected.override("run.name", "mine"), "the run is named after the file"
    (tmp_path / "named.yaml").write_text("run: {name: other}\n")
    assert _read(str(tmp_path / "named.yaml")).run.name == "other"


def test_a_saved_run_reads_back(tmp_path: Path) -> None:
    config = _read("shapes_baseline", "--optim.lr", "0.1")
    config.to_yaml(tmp_path / "config.yaml")
    assert _read(str(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["shapes_basline"], ["no recipe 'shapes_basline'", "shapes_baseline"]),
        (["none.yaml"], ["cannot read none.yaml"]),
        (["--optim.lrr", "1"], ["no option --optim.lrr", "did you mean", "optim.lr"]),
        (["--lr", "1"], ["no option --lr", "optim.lr"]),
        (["--run.use_gpus", "True"], ["no option --run.use_gpus", "run.use_gpu"]),
        (["--optim.lr", "fast"], ["optim.lr is 'fast'", "number"]),
        (["--optim.lr", "-1"], ["optim.lr is -1", "between 0"]),
        (["--train.epochs", "1.5"], ["train.epochs is '1.5'"]),
        (["--train.epochs", "0"], ["train.epochs is 0"]),
        (["--text.loss", "clop"], ["text.loss is 'clop'; did you mean clip?"]),
        (["--text.schedule", "cosine"], ["text.schedule is 'cosine'", "cos"]),
        (["--run.use_gpu", "maybe"], ["run.use_gpu is 'maybe', but must be True or False"]),
        (["--run.use_gpu", "yes"], ["run.use_gpu is 'yes', but must be True or False"]),
        (["--run.use_gpu", "1"], ["run.use_gpu is '1', but must be True or False"]),
        (["--optim.lr", "inf"], ["optim.lr is inf, but must be a finite number"]),
        (["--optim.lr", "nan"], ["optim.lr is nan, but must be"]),
        (["--optim.lr", "1e300"], ["optim.lr is 1e+300, but must be a finite number"]),
        (["--run.name", "a\nb"], [r"run.name is 'a\nb', but must have no line breaks"]),
        (["--model.kwargs", "num_classes", "7"], ["model.kwargs has num_classes, which is not for choosing"]),
        (["--model.kwargs", "pretrained", "True"], ["model.kwargs has pretrained"]),
        (["--model.kwargs", "checkpoint_path", "/weights"], ["model.kwargs has checkpoint_path"]),
        (["--zzzz"], ["no option --zzzz; known: --data.augment,", "more"]),
        (["--run.use_gpu"], ["--run.use_gpu needs a value"]),
        (["--run.use_gpu", "--train.epochs", "3"], ["--run.use_gpu needs a value"]),
        (["--data.mean", "0.5", "0.5"], ["data.mean"]),
        (["--run.num_workers", "99"], ["train.batch_size", "run.num_workers, 99"]),
        (["shapes_baseline", "extra"], ["extra"]),
    ],
)
def test_mistakes_are_one_line_that_names_them(arguments: list[str], parts: list[str]) -> None:
    text = _mistake(*arguments)
    for part in parts:
        assert part in text


def test_mistakes_in_a_file_name_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("train: {epoch: 7}\n")
    text = _mistake(str(tmp_path / "mine.yaml"))
    assert "mine.yaml" in text and "train.epoch" in text and "train.epochs" in text


def test_a_switch_that_the_help_shows_is_read() -> None:
    audited = audit.read(["clipart_textteacher", "--no-overwrite", "--data.subset", "0.5"])
    assert not audited[0].overwrite and audited[1].data.subset == 0.5 and audit.read(["--overwrite"])[0].overwrite
    with pytest.raises(UserError, match="no option --no-out"):
        audit.read(["--no-out", "x"])


@pytest.mark.parametrize("uri", ["s3://bucket/store", "gs://bucket/a b?region=x", "file:///tmp/x", "hf://datasets/x"])
def test_a_uri_is_no_folder_of_this_machine(uri: str) -> None:
    """A Path of it is a folder "s3:" here, which nobody looks for."""
    with pytest.raises(UserError, match=r"is a URI, but must be a folder on this machine") as refused:
        audit.read(["--out", uri])
    assert uri.replace("///", "//") in str(refused.value)
    with pytest.raises(UserError, match="is a URI"):
        read_arguments(Arguments, ["captions.csv", "--out", uri], "embed")
    for plain in ("runs/s3", "/data/a:b", "./a:/b", "s3:"):
        assert audit.read(["--out", plain])[0].out == Path(plain)


@pytest.mark.parametrize(("word", "value"), [("true", True), ("false", False)])
def test_booleans_after_an_equals_sign(word: str, value: bool) -> None:
    assert _read(f"--run.use_gpu={word}").run.use_gpu is value


def test_strings_stay_as_they_are() -> None:
    assert _read("--run.name", "true").run.name == "true"


@pytest.mark.parametrize(
    ("words", "kwargs"),
    [
        (["embed_dim", "48", "depth", "2"], {"embed_dim": 48, "depth": 2}),
        (["qkv_bias", "false", "global_pool", "avg"], {"qkv_bias": False, "global_pool": "avg"}),
        (["init_values", "0.0001"], {"init_values": 1e-4}),
        pytest.param(["init_values", "1e-4"], {"init_values": 1e-4}),
    ],
)
def test_arguments_of_the_model_are_added_to_the_recipes(words: list[str], kwargs: dict[str, object]) -> None:
    base = _read("shapes_baseline")
    config = _read("shapes_baseline", "--model.kwargs", *words, "--train.epochs", "3")
    expected = base.override("model.kwargs", {**base.model.kwargs, **kwargs}).override("train.epochs", 3)
    assert config == expected
    assert [type(config.model.kwargs[key]) for key in kwargs] == [type(value) for value in kwargs.values()]


def test_arguments_of_another_model_are_dropped() -> None:
    assert _read("--model.name", "resnet18").model.kwargs == {}
    assert _read("--model.name", "resnet18", "--model.kwargs", "stem_width", "8").model.kwargs == {"stem_width": 8}
    assert _read("--model.kwargs", "stem_width", "8", "--model.name", "resnet18").model.kwargs == {"stem_width": 8}


def test_of_models_given_twice_the_last_counts() -> None:
    own = _read().model
    assert _read("--model.name", "resnet18", "--model.name", own.name).model == own
    assert _read("--model.name", own.name, "--model.name", "resnet18").model.kwargs == {}


@pytest.mark.parametrize(
    "words",
    [
        ["--model.kwargs", "depth", "1", "--model.kwargs", "embed_dim", "48"],
        ["--model.kwargs", "depth", "2", "embed_dim", "48", "--train.epochs", "3", "--model.kwargs", "depth", "1"],
        ["--model.kwargs.depth", "1", "--model.kwargs.embed_dim", "48"],
        ["--model.kwargs.depth=1", "--model.kwargs=embed_dim", "48"],
        ["--model.kwargs", "embed_dim", "48", "--model.kwargs.depth", "1"],
    ],
)
def test_arguments_of_the_model_given_in_several_places_add_up(words: list[str]) -> None:
    base = _read().model.kwargs
    assert _read(*words).model.kwargs == {**base, "depth": 1, "embed_dim": 48}
    new = _read("--model.name", "vit_small_patch16_224", *words)
    assert new.model.kwargs == {"depth": 1, "embed_dim": 48}, "keys that the recipe does not have"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--model.kwargs"], "takes pairs of key and value, such as depth 4, but there is none"),
        (["--model.kwargs", "--train.epochs", "3"], "but there is none"),
        (["--model.kwargs", "depth"], "but depth has no value"),
        (["--model.kwargs", "depth", "1", "embed_dim"], "but embed_dim has no value"),
        (["--model.kwargs.depth"], "but depth has no value"),
        (["--model.kwargs", "depth", "1", "depth", "2"], "--model.kwargs has depth twice"),
        (["--model.kwargs", "depth=1", "embed_dim=24"], "'depth=1' is no key"),
        (["--model.kwargs", "", "1"], "'' is no key"),
        (["--model.kwargs", "depth", "null"], "model.kwargs.depth is None, but must be a number"),
        (["--model.kwargs", "depth", "{}"], "model.kwargs.depth is {}, but must be a number"),
        (["--model.kwargs", "depth", '[1, "x"]'], "model.kwargs.depth is [1, 'x'], but must be a number"),
    ],
)
def test_arguments_of_the_model_that_are_no_pairs_are_refused(words: list[str], complaint: str) -> None:
    assert complaint in _mistake(*words)


def test_arguments_of_another_model_are_dropped_after_an_equals_sign() -> None:
    assert _read("--model.name=resnet18").model.kwargs == {}


@pytest.mark.parametrize("before", [["--run.num_workers", "3", "--train.batch_size", "66"]])
def test_the_mistake_is_named_and_not_a_good_option_before_it(before: list[str]) -> None:
    assert "optim.lr is 'fast'" in _mistake(*before, "--optim.lr", "fast")


@pytest.mark.parametrize("argument", ["extra", "-x"])
def test_left_over_words_are_reported_without_a_box(argument: str) -> None:
    assert "─" not in _mistake("shapes_baseline", argument)


def test_help_names_every_option_and_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        _read("--help")
    assert not stop.value.code
    text = capsys.readouterr().out
    for path in Config.paths():
        assert f"--{path}" in text or path == "model.kwargs"
    assert "Seed of initialisation" in text and all(name in " ".join(text.split()) for name in RECIPES)


def _run(monkeypatch: pytest.MonkeyPatch, main: Callable[[list[str]], None], *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["prog", *arguments])
    try:
        run_command(main)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def _raise(error: BaseException) -> Callable[[list[str]], None]:
    def main(arguments: list[str]) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UserError("no such\n thing; did you mean this?"), 2, "error: no such thing; did you mean this?"),
        (RuntimeError("it\nbroke"), 1, "error: it broke (--debug shows more)"),
        (ValueError("odd"), 1, "error: odd (--debug shows more)"),
        (AssertionError(), 1, "error: AssertionError (--debug shows more)"),
        (KeyboardInterrupt(), 130, "error: interrupted; what is finished is kept: the same command does the rest"),
    ],
)
def test_errors_are_one_line_on_stderr_with_a_code(
    error: BaseException, code: int, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, _raise(error)) == code
    assert capsys.readouterr() == ("", text + "\n")


def test_success_is_0_and_arguments_arrive(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[str] = []
    assert _run(monkeypatch, seen.extend, "a", "--debug", "--b", "c") == 0
    assert seen == ["a", "--b", "c"] and capsys.readouterr() == ("", "")


def test_debug_shows_where(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(monkeypatch, _raise(RuntimeError("broke")), "--debug") == 1
    text = capsys.readouterr().err
    assert "Traceback" in text and "in main" in text and text.endswith("error: broke (--debug shows more)\n")


def test_a_wrong_command_line_is_code_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(monkeypatch, lambda arguments: print(read_config(arguments, "prog")), "--optim.lrr", "1") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: no option --optim.lrr; did you mean") and err.count("\n") == 1


def test_an_unknown_option_is_told_once() -> None:
    with pytest.raises(UserError) as error:
        read_arguments(Arguments, ["captions.csv", "--out", "store", "--encodr", "x"], "prog")
    assert str(error.value).startswith("Unrecognized options: --encodr, x Perhaps you meant: --encoder")
