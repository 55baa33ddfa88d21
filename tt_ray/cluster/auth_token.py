"""Ray's token file, readable by its owner alone: a user who reads it can run code on the cluster."""

import os
import secrets
from contextlib import suppress
from pathlib import Path


def keep_token_private() -> None:
    """Makes `~/.ray/auth_token` with mode 0600 where it is missing, and sets that mode on an existing one that we own.

    To be called before Ray starts: Ray 2.60 makes the file when it first starts a cluster of its own, readable by all,
    and every later `ray start --head` asks for what it holds. Does nothing where RAY_AUTH_MODE, RAY_AUTH_TOKEN or
    RAY_AUTH_TOKEN_PATH say that Ray takes no token, or another one. What cannot be written is left for Ray to report.
    """
    other = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    makes = os.environ.get("RAY_AUTH_MODE", "token").lower() == "token" and not other
    path = Path.home() / ".ray" / "auth_token"
    with suppress(OSError):
        if makes and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_once(path, secrets.token_hex(32))
        state = path.stat()
        if state.st_uid == os.geteuid() and state.st_mode & 0o077:
            path.chmod(0o600)


def _write_once(path: Path, text: str) -> None:
    """The file appears whole and private; of several commands that start at once the first one's stays."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        with suppress(FileExistsError):
            os.link(partial, path)
    finally:
        partial.unlink(missing_ok=True)
