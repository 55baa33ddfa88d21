"""The house's rules, read from the syntax tree: what may import what, and how large files and functions may be.

ROOMS is the one list of rooms. Each may import from itself and from rooms above it in the list, inside functions too.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = (
    "tt_ray",
    "tt_ray.terminal",
    "tt_ray.statistics",
    "tt_ray.bootstrap",
    "tt_ray.losses",
    "tt_ray.schedules",
    "tt_ray.stateless_random",
    "tt_ray.io",
    "tt_ray.logistic",
    "tt_ray.config",
    "tt_ray.recipes",
    "tt_ray.cli",
    "tt_ray.data.sources",
    "tt_ray.text",
    "tt_ray.embeddings",
    "tt_ray.data",
    "tt_ray.models",
    "tt_ray.training",
    "tt_ray.cluster",
    "tune_spaces",
    "tt_ray.tune",
    "tt_ray.compare",
    "tt_ray.library",
    "tt_ray.audit",
    "commands of tt_ray",
    "eval",
    "eval.tasks",
    "eval.metrics",
    "eval.feature_metrics",
    "eval.contract",
    "eval.features",
    "eval.protocols",
    "eval.jobs",
    "eval.evaluate",
    "eval.report",
    "eval.why",
    "commands of eval",
)
COMMANDS = {
    "tt_ray.train",
    "tt_ray.export",
    "tt_ray.embed_captions",
    "tt_ray.caption_images",
    "tt_ray.convert_captions",
    "tt_ray.pack",
    "eval.similarity",
    "eval.picture",
    "eval.efficiency",
    "eval.text_until",
}
"""Modules that are commands; every `__main__` is one too. No other module imports them."""
FRONT_DOOR = "tt_ray"
"""The package itself: names what it offers for type checkers, and imports it, from wherever it is, when it is used."""
ITS_OWN = ("tt_ray.cluster.own_eval", "tt_ray.terminal.errors")
"""What it needs for that; both are light."""
MAY_IMPORT_RAY = ("tt_ray.cluster", "tt_ray.tune", "eval.jobs", "tune_spaces")
PRIVATE = "tt_ray.cluster.ray_internals"
LIBRARIES = ("ray", "torch", "timm", "transformers", "datasets", "optuna", "pyarrow", "sklearn", "tyro", "PIL")
LONGEST_FILE, LONGEST_FUNCTION = 400, 60


@dataclass(frozen=True)
class Import:
    """One imported name: `module` imports `target`, at a line of its file; at run time unless only for types."""

    module: str
    target: str
    where: str
    for_types: bool


@cache
def modules() -> dict[str, Path]:
    """Files of tt_ray, eval and tune_spaces by dotted name."""
    found = {}
    for path in sorted(p for top in ("tt_ray", "eval", "tune_spaces") for p in (ROOT / top).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


@cache
def imports() -> list[Import]:
    """Every import of the three packages."""
    return [each for name, path in modules().items() for each in _imports(name, path)]


def _imports(name: str, path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text())
    types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.relative_to(ROOT)}:{node.lineno}: a relative import"
            targets = [f"{node.module}.{each.name}" for each in node.names]
        else:
            continue
        for target in targets:
            yield Import(name, target, f"{path.relative_to(ROOT)}:{node.lineno}", node in types)


def module_of(target: str) -> str:
    """The module of ours that an imported name lives in; empty for a library's."""
    while target and target not in modules():
        target = target.rpartition(".")[0]
    return target


def is_command(module: str) -> bool:
    return module in COMMANDS or module.endswith(".__main__")


def room_of(module: str) -> str:
    """The room of a module of ours."""
    if is_command(module):
        return f"commands of {module.split('.')[0]}"
    return max((room for room in ROOMS if f"{module}.".startswith(f"{room}.")), key=len)


def complaints(wrong: Iterator[str]) -> str:
    return "\n".join(sorted(set(wrong)))


def test_every_room_is_in_the_list_and_every_entry_is_a_room() -> None:
    assert {room_of(module) for module in modules()} == set(ROOMS)
    alone = {"tt_ray", "eval"}  # the packages themselves hold nothing but rooms and commands
    strangers = [module for module in modules() if room_of(module) in alone and module not in alone]
    assert not strangers, f"in no room: {strangers}"


def test_rooms_import_only_from_rooms_above_them() -> None:
    def wrong() -> Iterator[str]:
        for each in imports():
            target = module_of(each.target)
            if each.module == FRONT_DOOR and (each.for_types or target in ITS_OWN):
                continue
            if target and ROOMS.index(room_of(each.module)) < ROOMS.index(room_of(target)):
                yield f"{each.where}: {room_of(each.module)} imports {target}"

    assert not (found := complaints(wrong())), found


def test_tt_ray_never_imports_eval() -> None:
    wrong = (
        f"{e.where}: {e.target}"
        for e in imports()
        if e.module.startswith("tt_ray")
        and e.target.startswith("eval")
        and not (e.module == FRONT_DOOR and e.for_types)
    )
    assert not (found := complaints(wrong)), found


def test_no_module_imports_a_command() -> None:
    wrong = (f"{e.where}: {e.target}" for e in imports() if is_command(module_of(e.target)))
    assert not (found := complaints(wrong)), found


def test_only_three_rooms_import_ray() -> None:
    wrong = (
        f"{e.where}: {e.target}"
        for e in imports()
        if e.target.split(".")[0] == "ray" and not f"{e.module}.".startswith(tuple(f"{r}." for r in MAY_IMPORT_RAY))
    )
    assert not (found := complaints(wrong)), found


def test_private_names_of_libraries_stand_in_one_file() -> None:
    def wrong() -> Iterator[str]:
        for e in imports():
            parts = e.target.split(".")
            private = any(part.startswith("_") and not part.startswith("__") for part in parts)
            if e.module != PRIVATE and parts[0] in LIBRARIES and (private or "_internal" in e.target):
                yield f"{e.where}: {e.target}"
        for name, path in modules().items():
            if name != PRIVATE:
                yield from _private_attributes(path)

    assert not (found := complaints(wrong())), found


def _private_attributes(path: Path) -> Iterator[str]:
    """Attributes with a leading underscore of whatever was imported from a library."""
    tree = ast.parse(path.read_text())
    names = {
        (alias.asname or alias.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if (node.module if isinstance(node, ast.ImportFrom) else alias.name or "").split(".")[0] in LIBRARIES
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or node.attr.startswith("__"):
            continue
        base: ast.expr = node
        while isinstance(base, ast.Attribute | ast.Call):
            base = base.value if isinstance(base, ast.Attribute) else base.func
        if isinstance(base, ast.Name) and base.id in names:
            yield f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"


def test_there_are_no_circles() -> None:
    """Of modules, at run time; what only type checkers import makes none."""
    arrows: dict[str, set[str]] = {module: set() for module in modules()}
    for each in imports():
        target = module_of(each.target)
        # A package's own modules need not count the package, whose __init__ re-exports them.
        if target and target != each.module and not each.for_types and not each.module.startswith(f"{target}."):
            arrows[each.module].add(target)
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for target in sorted(arrows[module]):
                visit(target, (*path, module))
            done.add(module)

    for module in arrows:
        visit(module, ())


TOPS = ("tt_ray", "eval", "benchmarks", "tune_spaces", "examples")
SOURCES = sorted(path for top in TOPS for path in (ROOT / top).rglob("*.py"))


@pytest.mark.parametrize("kind", ["files", "functions"])
def test_files_and_functions_fit_in_the_head(kind: str) -> None:
    def wrong() -> Iterator[str]:
        for path in SOURCES:
            text = path.read_text()
            where = path.relative_to(ROOT)
            if kind == "files" and (lines := len(text.splitlines())) > LONGEST_FILE:
                yield f"{where}: {lines} lines"
            if kind == "functions":
                for node in ast.walk(ast.parse(text)):
                    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                        lines = (node.end_lineno or node.lineno) - node.lineno + 1
                        if lines > LONGEST_FUNCTION:
                            yield f"{where}:{node.lineno}: {node.name} has {lines} lines"

    assert not (found := complaints(wrong())), found


def test_functions_take_and_return_few_things() -> None:
    def wrong() -> Iterator[str]:
        for path in SOURCES:
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    continue
                where = f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}"
                taken = [each.arg for each in [*node.args.posonlyargs, *node.args.args]]
                if len([name for name in taken if name not in ("self", "cls")]) >= 8:
                    yield f"{where} takes eight positional parameters or more"
                if re.fullmatch(
                    r"tuple\[([^\[\],]+(\[.*\])?, ){4,}.*\]", ast.unparse(node.returns) if node.returns else ""
                ):
                    yield f"{where} returns a tuple of five or more"

    assert not (found := complaints(wrong())), found
