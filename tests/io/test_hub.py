"""Pushing a folder to the hub, played on this machine: what arrives, what is refused, and in which words."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.io.fake_hub import FakeHub, fake_hub
from tt_ray.io.hub import is_id, push_folder
from tt_ray.terminal.errors import UserError

CARD = b"---\ntags: [ours]\n---\nA model.\n"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub(monkeypatch, str(tmp_path / "cache")) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "README.md").write_bytes(CARD)
    (path / "weights").write_bytes(b"1")
    return path


def refused(folder: Path, name: str = "ada/net") -> str:
    with pytest.raises(UserError) as error:
        push_folder(folder, name, "ours", private=False)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("private", [True, False])
def test_a_folder_becomes_a_model_and_again_a_newer_one(private: bool, hub: FakeHub, folder: Path) -> None:
    assert push_folder(folder, "ada/net", "ours", private) == f"{hub.address}/ada/net"
    assert {"README.md": CARD, "weights": b"1"}.items() <= hub.models["ada/net"].items()
    assert ("ada/net" in hub.private) == private
    (folder / "weights").write_bytes(b"2")
    push_folder(folder, "ada/net", "ours", private)
    assert hub.models["ada/net"]["weights"] == b"2"


def test_what_is_there_already_and_not_ours_is_left_alone(hub: FakeHub, folder: Path) -> None:
    hub.models["ada/net"] = {".gitattributes": b"", "pytorch_model.bin": b"years of work"}
    before = dict(hub.models["ada/net"])
    assert refused(folder) == "ada/net is there with other content (pytorch_model.bin): give another name"
    assert hub.models["ada/net"] == before


def test_an_empty_model_is_filled(hub: FakeHub, folder: Path) -> None:
    hub.models["ada/net"] = {".gitattributes": b""}
    push_folder(folder, "ada/net", "ours", private=False)
    assert hub.models["ada/net"]["weights"] == b"1"


def test_without_a_token_nothing_is_asked(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "none"))
    assert "hf auth login" in refused(folder) and not hub.models


def test_a_wrong_token(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert refused(folder) == "the hub does not know the token (Invalid username or password.)"


def test_no_right_to_write(hub: FakeHub, folder: Path) -> None:
    assert refused(folder, "bob/new").startswith("the token has no right to write bob/new (You don't have the")
    hub.models["bob/net"] = {"README.md": CARD}
    assert refused(folder, "bob/net") == "the token has no right to write bob/net (Forbidden)"


@pytest.mark.parametrize("where", ["create", "api/models/ada/net", "preupload", "commit"])
def test_a_hub_that_is_out_of_order(where: str, hub: FakeHub, folder: Path) -> None:
    hub.fails_at = where
    assert "out of order" in refused(folder)


def test_no_network(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "offline mode is enabled" in refused(folder)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert refused(folder)


@pytest.mark.parametrize(("name", "fits"), [("net", True), ("a/net-1.b", True), ("/a/net", False), ("../net", False)])
def test_ids(name: str, fits: bool) -> None:
    assert is_id(name) == fits
