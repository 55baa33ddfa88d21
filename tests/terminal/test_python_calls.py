"""Calls from Python: arguments that do not exist, and errors of shared code in the caller's words."""

import inspect

import pytest

from tt_ray.terminal.errors import UserError
from tt_ray.terminal.python_calls import from_python


def refuse(text: str, batch_size: int = 1, *, task_roots: object = None) -> None:
    """Refuses."""
    raise UserError(text)


call = from_python({"task_root": "task_roots"})(refuse)


@pytest.mark.parametrize(
    ("command", "python"),
    [
        ("--batch-size is 0", "batch_size is 0"),
        ("--batch_size and --batch-size", "batch_size and batch_size"),
        ("pass --task-root mine=DIR, which has train/", "pass task_roots={'mine': 'DIR'}, which has train/"),
        ("--task-root a.b=/x/y: there is none", "task_roots={'a.b': '/x/y'}: there is none"),
        ("or --task-root {x}", "or task_roots {x}"),
        ("choose another --run.name, or --run.overwrite True", "choose another run.name, or run.overwrite True"),
        ("--data.mean=0.5", "data.mean=0.5"),
        ("run pip install --force-reinstall x", "run pip install --force-reinstall x"),
        ("python -m eval --check", "python -m eval --check"),
        ("a--b and --, -- x", "a--b and --, -- x"),
    ],
)
def test_options_become_arguments_and_fields_and_others_stay(command: str, python: str) -> None:
    with pytest.raises(UserError) as error:
        call(command)
    assert str(error.value) == python
    with pytest.raises(UserError) as error:
        refuse(command)
    assert str(error.value) == command


def test_an_argument_that_does_not_exist_is_named_with_the_nearest_one() -> None:
    with pytest.raises(TypeError, match=r"^refuse\(\) has no argument 'bacth_size'; did you mean batch_size\?$"):
        call("", bacth_size=2)  # type: ignore[call-arg]
    assert inspect.signature(call) == inspect.signature(refuse) and call.__doc__ == "Refuses."


def test_a_function_that_takes_any_argument_is_not_asked() -> None:
    assert from_python()(lambda **options: options)(a=1) == {"a": 1}
