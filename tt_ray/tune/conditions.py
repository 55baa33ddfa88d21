"""Conditions of a search space: in which configurations a dimension does something, and is drawn.

A space says so beside its SPACE, by the values that other fields must have, one or several of them:

    WHEN = {
        "head.hidden_dim": {"head.kind": "mlp"},
        "text.temperature": {"text.loss": ["normclip", "infonce"]},
        "text.negatives": {"run.num_workers": range(2, 10_000)},
    }

A field that is searched itself has the value that is drawn, and where it is not drawn, what depends on it is not
either. Every other field has the value of the base configuration, or of the command.
"""

from collections.abc import Collection, Mapping
from typing import Any

from tt_ray.config import Config
from tt_ray.terminal.errors import UserError, nearest

When = Mapping[str, Mapping[str, Collection[Any]]]
"""Values that other fields must have, by the path of the dimension and the path of the field."""


def read_when(given: Any, domains: Mapping[str, Any]) -> When:
    """WHEN as a file has it; raises UserError where it is about no dimension, never true, or a circle."""
    if not isinstance(given, dict):
        raise UserError(
            f"WHEN is {given!r}, but must be a dictionary, such as {{'head.depth': {{'head.kind': 'mlp'}}}}"
        )
    when: dict[str, dict[str, Collection[Any]]] = {}
    for path, needs in given.items():
        if path not in domains:
            raise UserError(f"WHEN[{path!r}] is about nothing in SPACE; {nearest(str(path), domains)}")
        if not isinstance(needs, dict) or not needs:
            raise UserError(f"WHEN[{path!r}] is {needs!r}, but must be a dictionary, such as {{'head.kind': 'mlp'}}")
        when[path] = {}
        for other, value in needs.items():
            allowed = value if isinstance(value, list | tuple | set | frozenset | range) else (value,)
            if problem := _never(allowed, domains.get(other)):
                raise UserError(f"WHEN[{path!r}] asks for {other} {value!r}, {problem}")
            when[path][str(other)] = allowed
    for path in when:
        _follow(path, when, ())
    return when


def _never(allowed: Collection[Any], domain: Any) -> str:
    """Why a condition is never true; nothing where it can be, or where its field is not searched."""
    if not allowed:
        return "which no value is: leave the dimension out of SPACE"
    if domain is None:
        return ""
    drawn = getattr(domain, "categories", None)
    if drawn is None:
        return "of which SPACE draws a range: a condition needs a tune.choice"
    missing = [] if isinstance(allowed, range) else [value for value in allowed if value not in drawn]
    if missing or not any(value in allowed for value in drawn):
        return f"but SPACE draws {', '.join(map(repr, drawn))} alone"
    return ""


def _follow(path: str, when: When, before: tuple[str, ...]) -> None:
    if path in before:
        raise UserError(f"WHEN goes in a circle: {' needs '.join([*before[before.index(path) :], path])}")
    for other in when.get(path, {}):
        _follow(other, when, (*before, path))


def check_when(when: When, base: Config) -> None:
    """Raises UserError where a condition is about a field, or a value, that a configuration does not have."""
    for path, needs in when.items():
        for other, allowed in needs.items():
            if other not in Config.paths():
                raise UserError(f"WHEN[{path!r}]: no field {other}; {nearest(other, Config.paths())}")
            for value in () if isinstance(allowed, range) else allowed:
                try:
                    read = base.override(other, value).get(other)
                except UserError as error:
                    raise UserError(f"WHEN[{path!r}]: {error}") from None
                if read != value:  # what is drawn, or configured, would never be equal to it
                    raise UserError(f"WHEN[{path!r}] asks for {other} {value!r}, which is read as {read!r}: write that")


def active(path: str, values: Mapping[str, Any], when: When) -> bool:
    """Whether a dimension does something beside these values of others."""
    return all(
        other in values and values[other] in allowed and active(other, values, when)
        for other, allowed in when.get(path, {}).items()
    )


def example(path: str, when: When) -> dict[str, Any]:
    """Values of other fields with which a dimension does something."""
    found: dict[str, Any] = {}
    for other, allowed in when.get(path, {}).items():
        found |= {**example(other, when), other: next(iter(allowed))}
    return found


def depth(path: str, when: When) -> int:
    """How many dimensions have to be drawn, one after the other, before this one."""
    return max((1 + depth(other, when) for other in when.get(path, {})), default=0)


def idle_on(config: Config, domains: Mapping[str, Any], when: When) -> dict[str, str]:
    """Dimensions that do nothing whatever is drawn, by path, each with the field of `config` that it is due to."""
    found: dict[str, str] = {}
    for path in sorted(domains, key=lambda each: depth(each, when)):
        for other, allowed in when.get(path, {}).items():
            if other in found:
                found[path] = found[other]
            elif other not in domains and config.get(other) not in allowed:
                found[path] = f"{other} {config.get(other)}"
    return found
