"""The package `eval` that was installed with this one, where a user's folder has an `eval/` that comes first.

`tt-ray eval` is found by its script, but Python and Ray both put the folder of the command at the head of the path.
"""

import importlib.util
import pickle
import sys
from pathlib import Path
from typing import Any

import tt_ray


def import_own_eval() -> None:
    """Imports the `eval` next to `tt_ray`, so that later imports find it."""
    folder = Path(tt_ray.__file__).parents[1] / "eval"
    if list(getattr(sys.modules.get("eval"), "__path__", [])) == [str(folder)]:
        return
    places = [str(folder)]
    spec = importlib.util.spec_from_file_location("eval", folder / "__init__.py", submodule_search_locations=places)
    assert spec is not None and spec.loader is not None, "the file exists"
    sys.modules["eval"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def call_pickled(call: bytes) -> Any:
    """Runs a pickled (function, argument) of that package in a Ray task; returns the function's result.

    Ray would import the function's module to unpickle it, before any line of ours could say where that is.
    """
    import_own_eval()
    function, argument = pickle.loads(call)
    return function(argument)
