"""The token that Ray's clusters ask for is nobody else's to read."""

import os
from pathlib import Path

import pytest

from tt_ray.cluster.auth_token import keep_token_private


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / ".ray" / "auth_token"


def test_a_missing_token_is_made_private_and_stays(token: Path) -> None:
    before = os.umask(0)
    try:
        keep_token_private()
    finally:
        os.umask(before)
    text = token.read_text()
    assert len(text) == 64 and token.stat().st_mode & 0o777 == 0o600
    keep_token_private()
    assert token.read_text() == text and [path.name for path in token.parent.iterdir()] == ["auth_token"]


def test_a_token_that_others_can_read_is_made_private(token: Path) -> None:
    token.parent.mkdir()
    token.write_text("a" * 64)
    token.chmod(0o644)
    keep_token_private()
    assert token.read_text() == "a" * 64 and token.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("name", "value"), [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "x"), ("RAY_AUTH_TOKEN_PATH", "/x")]
)
def test_no_token_is_made_that_ray_would_not_take(
    name: str, value: str, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    keep_token_private()
    assert not token.exists()


def test_a_home_that_cannot_be_written_is_ray_s_to_report(token: Path) -> None:
    token.parent.write_text("a file")
    keep_token_private()
