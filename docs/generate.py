"""Writes the pages that follow from the code, docs/configuration.md and docs/api.md: `python -m docs.generate`."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from math import inf
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, get_args, get_origin, get_overloads, get_type_hints

import tt_ray
from tt_ray.config import Config
from tt_ray.config.sections import Range
from tt_ray.recipes import RECIPES

FOLDER = Path(__file__).parent
_GENERATED = "<!-- Written by python -m docs.generate; a test compares. -->"
_LONGEST_LINE = 100


def main() -> None:
    """Writes both pages."""
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(FOLDER / name)


def pages() -> dict[str, str]:
    """The text of each generated page, by its file name."""
    return {"configuration.md": configuration(Config()), "api.md": api(tt_ray)}


def configuration(config: Config) -> str:
    """The page of all fields, by section: default, values, and what the field does."""
    introduction = """Every field is an option of `python -m tt_ray.train`, as `--section.field value`, a key of a YAML
        file, and a key of a search space. Defaults are those of the fields; recipes have their own, which `--help`
        shows after a recipe's name. What is asked for often is in [training.md](training.md)."""
    recipes = [f"| `{name}` | {_cell(_first_line(recipe))} |" for name, recipe in RECIPES.items()]
    parts = [
        f"# Which fields are there?\n\n{_GENERATED}",
        _wrapped(introduction),
        *_sections(config),
        "\n".join(["## Recipes", "", "| recipe | |", "| --- | --- |", *recipes]),
    ]
    return "\n\n".join(parts) + "\n"


def _sections(node: Any, prefix: str = "") -> Iterator[str]:
    """A heading and a table for each dataclass of the tree, the outer ones first."""
    docs, hints = field_docs(type(node)), get_type_hints(type(node), include_extras=True)
    inner = [item.name for item in fields(node) if is_dataclass(getattr(node, item.name))]
    rows = [
        f"| `{prefix}{item.name}` | {_default(getattr(node, item.name))} | {_values(hints[item.name])} "
        f"| {_cell(docs[item.name])} |"
        for item in fields(node)
        if item.name not in inner
    ]
    if rows:
        title = prefix.rstrip(".")
        lines = [
            f"## {title}",
            "",
            _cell(inspect.getdoc(type(node)) or ""),
            "",
            "| field | default | values | |",
            "| --- | --- | --- | --- |",
        ]
        yield "\n".join([*lines, *rows])
    for name in inner:
        yield from _sections(getattr(node, name), f"{prefix}{name}.")


def field_docs(cls: type) -> dict[str, str]:
    """The docstring under each annotated name of a class; empty where there is none."""
    body = _definition(cls).body
    found: dict[str, str] = {}
    for statement, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = after.value if isinstance(after, ast.Expr) else None
            found[statement.target.id] = inspect.cleandoc(str(text.value)) if isinstance(text, ast.Constant) else ""
    return found


def _default(value: Any) -> str:
    if value == "" or value == {}:
        return "empty"
    return f"`{' '.join(map(str, value))}`" if isinstance(value, tuple) else f"`{value}`"


def _values(hint: Any) -> str:
    """What a field takes, in words: its choices, or its kind and range."""
    if get_origin(hint) is Annotated:
        kind, *more = get_args(hint)
        ranges = [each for each in more if isinstance(each, Range)]
        return f"{_values(kind)}{_range(ranges[0])}" if ranges else _values(kind)
    if get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(hint))
    if get_origin(hint) is tuple:
        return f"{len(get_args(hint))} numbers"
    if get_origin(hint) is dict:
        return "pairs of key and value"
    names = {bool: "`True`, `False`", int: "integer", float: "number", str: "text"}
    kinds = get_args(hint) or (hint,)
    return " or ".join(names[kind] for kind in kinds)


def _range(bounds: Range) -> str:
    return f", at least {bounds.low:g}" if bounds.high == inf else f", {bounds.low:g} to {bounds.high:.10g}"


def api(package: ModuleType) -> str:
    """The page of a package's public names: signature and docstring of each, and of the public methods of classes."""
    introduction = """Importing it costs next to nothing: torch is imported when a name is first used, and Ray when
        something is to run on it. A loop of your own is in the [README](../README.md#your-own-loop); mixup, several
        GPUs and other trainers are in the [faq](faq.md)."""
    parts = [f"# What does `import {package.__name__}` offer?\n\n{_GENERATED}", _wrapped(introduction)]
    homes = homes_of(package)
    for name in public_names(package):
        value = getattr(import_module(homes[name]), name) if name in homes else getattr(package, name)
        parts += list(_entry(name, value, "##"))
    return "\n\n".join(parts) + "\n"


def homes_of(package: ModuleType) -> dict[str, str]:
    """The modules that names come from, by the import statements in the package's file, those for types included.

    Asking the package is not enough: a module of the same name, such as a command's, may be in the place of a function.
    """
    nodes = (node for node in ast.walk(ast.parse(inspect.getsource(package))) if isinstance(node, ast.ImportFrom))
    return {alias.asname or alias.name: node.module for node in nodes if node.module for alias in node.names}


def public_names(package: ModuleType) -> list[str]:
    """The names in `__all__`, or else those of `dir` that the package itself defines."""
    listed = getattr(package, "__all__", None)
    if listed is not None:
        return list(listed)
    own = {name: getattr(package, name) for name in dir(package) if name[0] != "_"}
    return [name for name, value in own.items() if getattr(value, "__module__", "").startswith(package.__name__)]


def _entry(name: str, value: Any, heading: str) -> Iterator[str]:
    if not callable(value):
        return
    forms = get_overloads(value) if inspect.isfunction(value) else []
    code = "\n".join(signature(name, form, value) for form in forms or [value])
    yield f"{heading} `{name}`\n\n```python\n{code}\n```"
    if text := own_doc(value):
        yield _markdown(text)
    if inspect.isclass(value):
        told = {field: text for field, text in field_docs(value).items() if text and field[0] != "_"}
        if told:
            lines = [f"- `{field}`: {' '.join(text.split())}" for field, text in told.items()]
            yield "\n".join(["**Fields**", "", *lines])
        for inner, member in vars(value).items():
            if inner[0] == "_":
                continue
            if isinstance(member, property) and member.__doc__:
                yield f"{heading}# `{name}.{inner}`\n\n{_markdown(inspect.cleandoc(member.__doc__))}"
            elif function := _function(member):
                yield from _entry(f"{name}.{inner}", function, f"{heading}#")


def _function(member: Any) -> Any:
    member = member.__func__ if isinstance(member, classmethod | staticmethod) else member
    return member if inspect.isfunction(member) else None


def own_doc(value: Any) -> str:
    """The docstring, but not one that a dataclass or a base class has written."""
    text = (
        inspect.cleandoc(value.__dict__.get("__doc__") or "") if inspect.isclass(value) else inspect.getdoc(value) or ""
    )
    return "" if text.startswith(f"{value.__name__}(") else text


def signature(name: str, value: Any, body: Any = None) -> str:
    """`name(arguments) -> result`, with types as they are written in the source, on lines that fit a page.

    Args:
        name: How it is called.
        value: A function, one of its overloads, or a class.
        body: The function that has the defaults, where `value` is an overload.
    """
    try:
        items = inspect.signature(value).parameters.values()
        defaults = {each.name: each.default for each in inspect.signature(body or value).parameters.values()}
    except ValueError:  # an exception without an __init__ of its own
        return name
    types = _written_types(value)
    rest = [item for item in items if item.name not in ("self", "cls")]
    words = [_parameter(item, types.get(item.name, ""), defaults.get(item.name)) for item in rest]
    starred = next((place for place, item in enumerate(rest) if item.kind is item.KEYWORD_ONLY), None)
    if starred is not None and not any(item.kind is item.VAR_POSITIONAL for item in rest):
        words.insert(starred, "*")
    result = f" -> {types['return']}" if types.get("return", "None") != "None" else ""
    line = f"{name}({', '.join(words)}){result}"
    if len(line) <= _LONGEST_LINE:
        return line
    return f"{name}(\n" + "".join(f"    {word},\n" for word in words) + f"){result}"


def _written_types(value: Any) -> dict[str, str]:
    """Annotations of a function's parameters and result, of a class's fields or `__init__`, as the source has them."""
    if inspect.isclass(value):
        own = vars(value).get("__init__")
        if not is_dataclass(value) and inspect.isfunction(own):
            return _written_types(own)
        body = _definition(value).body
        return {
            each.target.id: ast.unparse(each.annotation)
            for each in body
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
        }
    node = _definition(value)
    assert isinstance(node, ast.FunctionDef)
    each = node.args
    arguments = [*each.posonlyargs, *each.args, *each.kwonlyargs, *filter(None, (each.vararg, each.kwarg))]
    types = {item.arg: _unquoted(item.annotation) for item in arguments if item.annotation}
    return types | ({"return": _unquoted(node.returns)} if node.returns else {})


def _unquoted(annotation: ast.expr) -> str:
    return ast.unparse(annotation).strip("'").replace("'", '"')


def _definition(value: Any) -> ast.ClassDef | ast.FunctionDef:
    node = ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]
    assert isinstance(node, ast.ClassDef | ast.FunctionDef)
    return node


def _parameter(item: inspect.Parameter, kind: str, default: Any) -> str:
    star = {item.VAR_POSITIONAL: "*", item.VAR_KEYWORD: "**"}.get(item.kind, "")
    typed = f"{star}{item.name}: {kind}" if kind else f"{star}{item.name}"
    if item.default is item.empty:
        return typed
    shown = "..." if repr(default).startswith("<") else repr(default).replace("'", '"')
    return f"{typed} = {shown}" if kind else f"{typed}={shown}"


def _markdown(doc: str) -> str:
    """A Google-style docstring with its sections as lists."""
    lines: list[str] = []
    section = ""
    for line in doc.splitlines():
        if found := re.fullmatch(r"(Args|Returns|Raises|Attributes|Yields):", line):
            section = found[1]
            lines += [f"**{section}**", ""]
        elif section in ("Returns", "Yields") and line.startswith("    "):
            lines.append(line.strip())
        elif section and (found := re.fullmatch(r" {4}(\S.*)", line)):
            lines.append("- " + re.sub(r"^(\*{0,2}\w+)(?: \([^)]*\))?: ", r"`\1`: ", found[1]))
        elif section and line.startswith("     "):
            lines[-1] += f" {line.strip()}"
        else:
            section = "" if line else section
            lines.append(line)
    return "\n".join(lines)


def _first_line(value: Any) -> str:
    return (inspect.getdoc(value) or "").partition("\n")[0].rstrip(".")


def _wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def _cell(text: str) -> str:
    """Text on one line that a table's cell can hold."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    main()
