"""Versions of software that results were made with."""

import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("tt-ray", "torch", "torchvision", "timm", "numpy", "scikit-learn", "datasets", "ray", "pillow")


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages, and the commit where the code is a checkout."""
    found = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that is not installed
            continue
    return found | _commit(Path(__file__).parents[2])


def _commit(root: Path) -> dict[str, str]:
    """The checkout's git commit, with a + where its files differ; nothing where `root` is no checkout."""
    if not (root / ".git").exists():
        return {}
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return {"commit": answer.stdout.strip()}
    except (OSError, subprocess.SubprocessError):  # no git, or a folder of another user's
        return {}
