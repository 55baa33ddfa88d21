"""What the repository promises about itself."""

import subprocess
import sys
from pathlib import Path

from tt_ray.recipes import RECIPES

ROOT = Path(__file__).parent.parent


def test_ruff_has_nothing_to_say() -> None:
    answer = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", ROOT], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout


def test_recipes_are_named_after_their_functions_and_tell_their_command() -> None:
    for name, recipe in RECIPES.items():
        assert recipe.__name__ == recipe().run.name == name
        assert "python -m tt_ray.train" in (recipe.__doc__ or "")
