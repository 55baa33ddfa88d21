"""The command's figures and tables, from checkpoints of toy runs."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from eval.why.__main__ import main
from eval.why.gradients import FEATURE
from tests.toy import run_toy, toy_config
from tt_ray.config import Config
from tt_ray.terminal.errors import UserError

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Config]:
    """Without and with text, a checkpoint an epoch."""
    storage = tmp_path_factory.mktemp("runs")
    settings = {"run__keep_checkpoints": 0, "train__epochs": 3}
    recipes = {"base": "shapes_baseline", "text": "shapes_textteacher"}
    found = [toy_config(storage, recipe, **settings, run__name=name) for name, recipe in recipes.items()]
    for config in found:
        run_toy(config)
    return found


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def grid(path: Path, panel: str) -> dict[tuple[str, str], float]:
    return {(row["row"], row["column"]): float(row["value"]) for row in rows(path) if row["panel"] == panel}


@pytest.mark.slow
def test_two_runs_side_by_side(runs: list[Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*(str(config.run_dir) for config in runs), "--out", str(tmp_path), "--images", "37", "--batches", "2"])
    names = {"cka_layers", "cka_epochs", "gradient_cosine", "alignment_uniformity"}
    assert {path.name for path in tmp_path.iterdir()} == {f"{n}.{kind}" for n in names for kind in ("png", "csv")} | {
        "why.md"
    }
    text = (tmp_path / "why.md").read_text()
    assert all(f"({name}.png)" in text for name in names) and text in capsys.readouterr().out
    assert all((tmp_path / f"{name}.png").read_bytes().startswith(PNG) for name in names)

    layers = ["blocks.0", "blocks.1", "pooled"]
    own = grid(tmp_path / "cka_epochs.csv", "text, with its last")
    assert set(own) == {(layer, epoch) for layer in layers for epoch in "123"}
    assert [own[layer, "3"] for layer in layers] == pytest.approx([1, 1, 1])
    assert max(own[layer, "1"] for layer in layers) < 1
    # The runs' last epoch: what cka_epochs says layer by layer is the diagonal of cka_layers.
    between = grid(tmp_path / "cka_epochs.csv", "base, with text")
    all_layers = grid(tmp_path / "cka_layers.csv", "text (across), base (up)")
    assert [between[layer, "3"] for layer in layers] == pytest.approx([all_layers[layer, layer] for layer in layers])

    gradients = rows(tmp_path / "gradient_cosine.csv")
    assert {row["run"] for row in gradients} == {"text"} and {row["epoch"] for row in gradients} == set("123")
    assert FEATURE in {row["layer"] for row in gradients}
    assert all(-1 <= float(row["cosine"]) <= 1 and float(row["norm_text"]) > 0 for row in gradients)
    sphere = rows(tmp_path / "alignment_uniformity.csv")
    places = [f"{row['run']} {row['epoch']}" for row in sphere]
    assert places == [f"{run} {epoch}" for run in ("base", "text") for epoch in "123"]
    assert all(0 <= float(row["alignment"]) <= 4 and -8 <= float(row["uniformity"]) <= 0 for row in sphere)


@pytest.mark.slow
@pytest.mark.parametrize("modules", [False, True])
def test_one_run_is_compared_with_itself(runs: list[Config], modules: bool, tmp_path: Path) -> None:
    main([str(runs[0].run_dir), "--out", str(tmp_path), "--images", "16", *(["--modules"] if modules else [])])
    found = grid(tmp_path / "cka_layers.csv", "base (across), base (up)")
    assert (("blocks.1.attn", "blocks.1.mlp") in found) == modules and ("pooled", "pooled") in found
    assert np.array([found[layer, layer] for layer, _ in found]) == pytest.approx(1)
    assert not (tmp_path / "gradient_cosine.csv").exists()
    assert "No run has text" in (tmp_path / "why.md").read_text()


def test_damaged_and_missing_checkpoints_are_told(
    runs: list[Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:

    copy = Path(shutil.copytree(runs[0].run_dir, tmp_path / "copy"))
    (copy / "checkpoints" / "step-00000006" / "model.safetensors").write_bytes(b"")
    main([str(copy), "--out", str(tmp_path / "out"), "--images", "16"])
    said = capsys.readouterr().err
    assert "step-00000006/model.safetensors is damaged" in said and "checkpoints of 2 of 3 epochs" in said
    assert {column for _, column in grid(tmp_path / "out" / "cka_epochs.csv", "copy, with its last")} == {"2", "3"}


def test_mistakes_are_told(runs: list[Config], tmp_path: Path) -> None:
    run = str(runs[0].run_dir)
    with pytest.raises(UserError, match="two different ones"):
        main([run, run, "--out", str(tmp_path)])
    with pytest.raises(UserError, match="cannot read"):
        main([str(tmp_path), "--out", str(tmp_path / "out")])
    for option in (["--images", "-3"], ["--batches", "0"]):
        with pytest.raises(UserError, match="but both must be at least 1"):
            main([run, "--out", str(tmp_path / "out"), *option])
    with pytest.raises(UserError, match="at least 4 images"):
        main([run, "--out", str(tmp_path / "out"), "--images", "2"])
