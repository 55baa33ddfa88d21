"""The configuration tree: YAML and dictionaries give it back, unknown or unusable values are refused by path."""

import ast
import dataclasses
from pathlib import Path

import pytest

import tt_ray.config.sections
from tt_ray.config import Config, DataConfig, ModelConfig, RunConfig, TextConfig, TrainConfig
from tt_ray.config.checks import ranges
from tt_ray.losses import ALIGNMENT_LOSSES
from tt_ray.terminal.errors import UserError

ODD = Config(
    data=DataConfig(mean=(0.1, 0.25, 1 / 3), cutmix=1.0, augment="none", root="Bilder/größe: 'x'\n#"),
    text=TextConfig(weight=0.1 + 0.2, schedule="jump-3-7-0.25", balance=False, loss="siglip"),
    model=ModelConfig("vit_small_patch16_224", {"depth": 4, "init_values": 1e-4, "qkv_bias": True, "pool": "no"}),
    train=TrainConfig(batch_size=96, precision="bf16"),
    run=RunConfig(name="off", num_workers=3),
)


def _flat(config: Config) -> dict:
    return {path: config.get(path) for path in Config.paths()}


@pytest.mark.parametrize("config", [Config(), ODD], ids=["default", "odd"])
def test_yaml_and_dictionary_give_the_same_tree(config: Config, tmp_path: Path) -> None:
    config.to_yaml(tmp_path / "c.yaml")
    for again in (Config.from_dict(config.to_dict()), Config.from_yaml(tmp_path / "c.yaml")):
        assert again == config
        assert [type(value) for value in _flat(again).values()] == [type(value) for value in _flat(config).values()]
        types = {key: type(value) for key, value in again.model.kwargs.items()}
        assert types == {key: type(value) for key, value in config.model.kwargs.items()}


def test_yaml_leaves_out_what_is_default(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("optim:\n  lr: 1e-4\ntrain: {epochs: 3}\n")
    expected = Config().override("optim.lr", 1e-4).override("train.epochs", 3)
    assert Config.from_yaml(tmp_path / "c.yaml") == expected
    (tmp_path / "empty.yaml").write_text("")
    assert Config.from_yaml(tmp_path / "empty.yaml") == Config()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("optim: {lrr: 1}", ["c.yaml", "optim.lrr", "optim.lr"]),
        ("data: {shapes: {train: 1}}", ["c.yaml", "data.shapes.train", "did you mean"]),
        ("optimizer: {lr: 1}", ["c.yaml", "optimizer"]),
        ("train: {epochs: many}", ["c.yaml", "train.epochs", "'many'"]),
        ("train: {epochs: 1.5}", ["train.epochs", "1.5"]),
        ("train: {epochs: 0}", ["c.yaml", "train.epochs is 0", "between 1"]),
        ("text: {loss: clop}", ["text.loss", "'clop'", "did you mean clip"]),
        ("model: {kwargs: {depth: {a: 1}}}", ["model.kwargs"]),
        ("- a\n- b", ["c.yaml", "mapping", "data, text"]),
        ("a: [1", ["c.yaml", "not YAML"]),
    ],
)
def test_yaml_mistakes_are_one_line_with_file_and_path(text: str, parts: list[str], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        Config.from_yaml(tmp_path / "c.yaml")
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_yaml_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes("run: {storage: läufe}".encode("latin-1"))
    with pytest.raises(UserError, match=r"c\.yaml is not YAML: .*utf-8"):
        Config.from_yaml(tmp_path / "c.yaml")


def test_exponents_in_arguments_of_the_model_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: {kwargs: {init_values: 1e-4}}\n")
    assert Config.from_yaml(tmp_path / "c.yaml").model.kwargs == {"init_values": 1e-4}


def test_yaml_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: No such file"):
        Config.from_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("optim.lr", 0.25),
        ("data.shapes.label", "colour"),
        ("data.mean", [0.0, 0.5, 1.0]),
        ("model.kwargs", {"depth": 2}),
        ("run.use_gpu", True),
        ("text.schedule", "cntrcos"),
    ],
)
def test_override_changes_one_path_of_a_new_tree(path: str, value: object) -> None:
    before = _flat(ODD)
    after = _flat(ODD.override(path, value))
    assert _flat(ODD) == before
    assert [name for name in after if after[name] != before[name]] == [path]
    assert after[path] == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(
    ("path", "value", "parts"),
    [
        ("optim.learning_rate", 1, ["no field optim.learning_rate"]),
        ("lr", 1, ["no field lr", "did you mean", "optim.lr"]),
        ("optim.lrr", 1, ["optim.lr"]),
        ("optim", {}, ["no field optim"]),
        ("optim.lr.x", 1, ["no field optim.lr.x"]),
        ("", 1, ["no field"]),
        ("optim.lr", "fast", ["optim.lr", "'fast'", "number"]),
        ("optim.lr", None, ["optim.lr", "None"]),
        ("optim.lr", -1e-3, ["optim.lr", "between 0"]),
        ("data.mean", [0.5, 0.5], ["data.mean"]),
        ("data.mean", [0.5, float("nan"), 0.5], ["data.mean is", "all must be between"]),
        ("data.std", [0.5, 0.5, 0.0], ["data.std is", "between"]),
        ("data.std", [float("inf"), 0.5, 0.5], ["data.std is", "between"]),
        ("text.loss", "triplet", ["text.loss", "'triplet'", *ALIGNMENT_LOSSES]),
        ("text.temperature", -1.0, ["text.temperature is -1.0", "between 0"]),
        ("text.schedule", "cosine", ["text.schedule", "cos"]),
        ("train.epochs", 2.5, ["train.epochs", "2.5"]),
    ],
)
def test_override_refuses(path: str, value: object, parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        Config().override(path, value)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_a_temperature_is_for_losses_that_have_one() -> None:
    for loss in ALIGNMENT_LOSSES:
        config = Config().override("teacher.model", "timm:vit_tiny_patch16_224" if loss == "vl2lite" else "")
        config = config.override("text.loss", loss)
        if ALIGNMENT_LOSSES[loss].contrastive:
            config.override("text.temperature", 0.5)
        else:
            with pytest.raises(UserError, match=f"text.loss {loss} has no text.temperature, as clip, "):
                config.override("text.temperature", 0.5)


def _config_classes() -> list[ast.ClassDef]:
    source = Path(tt_ray.config.sections.__file__).read_text()
    return [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name.endswith("Config")]


def test_every_field_has_a_docstring_right_below() -> None:
    documented = 0
    for node in _config_classes():
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            name = field.target.id if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) else "_"
            if name.startswith("_") or ast.unparse(field.annotation).endswith("Config"):
                continue
            value = after.value if isinstance(after, ast.Expr) else None
            text = value.value if isinstance(value, ast.Constant) else ""
            assert isinstance(text, str) and len(text) > 10 and text.endswith("."), f"{node.name}.{name}"
            documented += 1
    assert documented == len(Config.paths())


def test_paths_are_the_leaves_of_the_dictionary() -> None:
    def leaves(tree: dict, prefix: str) -> list[str]:
        paths = []
        for key, value in tree.items():
            inner = isinstance(value, dict) and key != "kwargs"
            paths += leaves(value, f"{prefix}{key}.") if inner else [prefix + key]
        return paths

    assert Config.paths() == leaves(Config().to_dict(), "")
    assert len(set(Config.paths())) == len(Config.paths())


RANGES = [
    (f"{field.name}.{path}", allowed.low, allowed.high)
    for field in dataclasses.fields(Config)
    for path, allowed in ranges(type(getattr(Config(), field.name)))
]


def test_numbers_have_ranges() -> None:
    numbers = {path for path in Config.paths() if type(Config().get(path)) in (int, float)}
    seeds = {"data.shapes.seed", "train.seed"}
    assert numbers - {path for path, _, _ in RANGES} == seeds | {"data.color_jitter", "run.num_workers"}


@pytest.mark.parametrize(("path", "low", "high"), RANGES)
def test_ranges_hold_at_their_ends_and_not_beyond(path: str, low: float, high: float) -> None:
    kind = type(Config().get(path))
    config = Config().override("run.num_workers", 1)
    if path != "train.batch_size":
        assert config.override(path, kind(low)).get(path) == low
    beyond = [low - 1, float("nan")] if kind is float else [low - 1]
    if high < float("inf"):
        assert config.override(path, kind(high)).get(path) == high
        beyond.append(high + 1)
    for value in beyond:
        with pytest.raises(UserError, match=rf"^{path} is"):
            config.override(path, kind(value) if value == value else value)


@pytest.mark.parametrize(
    ("batch", "workers", "cutmix", "fine"),
    [
        (12, 3, 0.0, True),
        (12, 5, 0.0, True),
        (9, 3, 1.0, False),
        (12, 7, 1.0, False),
        (12, "1:7", 1.0, False),
        (12, "1:6", 1.0, True),
        (1, 1, 0.0, True),
        (1, 1, 1.0, False),
        (2, 1, 1.0, True),
        (2, 4, 0.0, False),
    ],
)
def test_each_worker_gets_an_image_and_with_mixing_a_pair(
    batch: int, workers: int | str, cutmix: float, fine: bool
) -> None:
    def build() -> Config:
        train, run = TrainConfig(batch_size=batch), RunConfig(num_workers=workers)
        return Config(data=DataConfig(cutmix=cutmix), train=train, run=run)

    if fine:
        assert build().train.batch_size == batch
        return
    with pytest.raises(
        UserError, match=rf"train\.batch_size is {batch}, but must be|train\.batch_size is {batch}, but mixing"
    ):
        build()


GRAPHS = {"train.compile": True, "train.compile_mode": "reduce-overhead"}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"run.strategy": "fsdp", "train.precision": "fp16"}, r"run\.strategy fsdp .*--train\.precision bf16"),
        ({"run.strategy": "hsdp", "train.precision": "fp16"}, r"run\.strategy hsdp .*--train\.precision bf16"),
        ({**GRAPHS, "train.max_batch_per_worker": 8}, r"train\.max_batch_per_worker adds up gradients"),
        ({**GRAPHS, "train.compile_mode": "max-autotune", "run.strategy": "fsdp"}, r"run\.strategy gathers weights"),
        ({**GRAPHS, "run.strategy": "hsdp"}, r"run\.strategy gathers weights"),
        ({**GRAPHS, "train.sync_batchnorm": True}, r"train\.sync_batchnorm exchanges statistics"),
        (
            {"data.sampling": "balanced", "optim.class_weights": "balanced"},
            r"data\.sampling balanced and optim\.class_weights balanced .* count them twice: leave out one of them",
        ),
    ],
)
def test_what_cannot_be_together_is_one_line(changes: dict[str, object], problem: str) -> None:
    with pytest.raises(UserError, match=problem) as error:
        Config().override(changes)
    assert "\n" not in str(error.value)
    if "train.compile" in changes:
        assert "choose --train.compile_mode max-autotune-no-cudagraphs" in str(error.value)
        for fine in ({"train.compile_mode": "max-autotune-no-cudagraphs"}, {"train.compile": False}):
            assert not Config().override({**changes, **fine}).train.replays_graphs


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_precisions_of_saved_configurations_keep_their_meaning(precision: str) -> None:
    assert Config.from_dict({"train": {"precision": precision}}).train.precision == precision
    assert Config.from_dict({}).train.precision == "auto"


@pytest.mark.parametrize(("given", "fewest", "most"), [(3, 3, 3), ("3", 3, 3), ("1:4", 1, 4), ("2:2", 2, 2)])
def test_workers_are_a_number_or_a_range(given: int | str, fewest: int, most: int) -> None:
    assert Config().override("run.num_workers", given).workers == (fewest, most)


@pytest.mark.parametrize("given", [0, -1, "", "0:2", "4:1", "1:", ":4", "1-4", "all", "1:2:3"])
def test_other_numbers_of_workers_are_refused(given: int | str) -> None:
    with pytest.raises(UserError, match=r"run\.num_workers is .*MIN:MAX"):
        Config().override("run.num_workers", given)


def test_nothing_can_be_changed() -> None:
    config = Config()
    groups = [field.name for field in dataclasses.fields(config)]
    for path in [*groups, *Config.paths()]:
        *above, name = path.split(".")
        node = config.get(".".join(above)) if above else config
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(node, name, config.get(path))


def test_run_folder_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = Config(run=RunConfig(name="a", storage="runs"))
    monkeypatch.chdir(tmp_path)
    assert config.run_dir == tmp_path / "runs" / "a"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config.override("run.storage", "~/x").run_dir == tmp_path / "x" / "a"


def test_teaches_with_any_positive_weight() -> None:
    assert [Config(text=TextConfig(weight=weight)).teaches for weight in (0.0, 1e-9, 1.0)] == [False, True, True]
