"""Search spaces: finding one, checking it against the configuration, and the points that a search tries."""

import importlib
import importlib.util
import itertools
import json
import math
import pkgutil
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

from tt_ray.config import Config
from tt_ray.config.idle import why_idle
from tt_ray.terminal.errors import UserError, nearest, one_line
from tt_ray.tune.conditions import When, active, check_when, example, idle_on, read_when

Values = dict[str, Any]
"""Values by dotted configuration path."""
METRICS: dict[str, str] = {"top1": "max", "top5": "max", "val_loss": "min"}
"""Metrics that validation reports, and whether the highest or the lowest value is the best."""
TOP5_CLASSES = 6
"""Fewest classes at which validation reports top5."""
SEARCHERS = ("random", "grid", "optuna")
SCHEDULERS: dict[str, dict[str, Any]] = {
    "fifo": {},
    # A third of the trials survives each rung, at epochs 1, 3, 9, ... (Li et al. 2020, arXiv 1810.05934).
    "asha": {"grace_period": 1, "reduction_factor": 3},
    "pbt": {"interval": 1, "quantile": 0.25},
}
"""Their options and defaults. asha: grace_period (epochs before a trial may be ended) and reduction_factor. pbt:
interval (epochs between takeovers) and quantile (share of trials that are replaced, and share that replaces them)."""
_OPTION_RANGES: dict[str, tuple[type, float, float]] = {
    "grace_period": (int, 1, math.inf),
    "reduction_factor": (float, 2, math.inf),
    "interval": (int, 1, math.inf),
    "quantile": (float, 0, 0.5),
}
_OWN = ("train.seed", "train.epochs", "data.val_share", "data.group_column", "data.val_split")
_ATTRIBUTES = ("SPACE", "WHEN", "METRIC", "MODE", "NUM_SAMPLES", "SEARCHER", "SCHEDULER", "SCHEDULER_OPTIONS")
_DOMAINS = "tune.uniform(low, high) or tune.choice([...])"
_LAST = 1e30
"""Replaces NaN and infinity in comparisons: Ray's schedulers take NaN for better than anything."""
GRID_POINTS = 5
"""Points of a continuous dimension in a grid."""
_DRAWS = 64
"""Draws for each point that is wanted, after which there are no more different ones."""


@dataclass(frozen=True)
class Space:
    """A search space, as a file of tune_spaces/ defines it."""

    name: str
    question: str
    """First paragraph of its docstring."""
    domains: Mapping[str, Any]
    """ray.tune domain by dotted path."""
    metric: str
    """One of METRICS: top1, top5 (per cent) or val_loss."""
    num_samples: int = 16
    searcher: str = "random"
    scheduler: str = "fifo"
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the scheduler."""
    when: When = field(default_factory=dict)
    """Values of other fields with which a dimension does something; without a condition it always does."""

    def without_idle(self, values: Values) -> Values:
        """`values` without those of dimensions that do nothing beside the others."""
        return {path: value for path, value in values.items() if active(path, values, self.when)}

    def on(self, config: Config) -> "tuple[Space, list[str]]":
        """The space that is left on a base configuration, and a note on each dimension that does nothing there.

        Raises UserError where nothing is left.
        """
        idle = idle_on(config, self.domains, self.when)
        domains = {path: domain for path, domain in self.domains.items() if path not in idle}
        notes = [f"{path} is not searched: it does nothing with {why}" for path, why in idle.items()]
        if not domains:
            raise UserError(f"search space {self.name}: nothing is left: {'; '.join(notes)}")
        own = {path: self.when.get(path, {}) for path in domains}
        when = {path: {other: each for other, each in needs.items() if other in domains} for path, needs in own.items()}
        return replace(self, domains=domains, when={path: needs for path, needs in when.items() if needs}), notes

    @property
    def mode(self) -> str:
        """max or min, whichever is better of the metric."""
        return METRICS[self.metric]

    def better(self, value: float) -> float:
        """Larger is better; what is not finite is worse than any number."""
        if not math.isfinite(value):
            return -_LAST
        return value if self.mode == "max" else -value

    def comparable(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A report without NaN, to compare by metric and mode."""
        value = row.get(self.metric)
        if value is None or math.isfinite(value):
            return dict(row)
        return {**row, self.metric: -_LAST if self.mode == "max" else _LAST}

    def shown(self, value: float) -> str:
        """A value of the metric, or a difference of two: per cent to two places, losses to four."""
        return f"{value:.4f}" if self.mode == "min" else f"{value:.2f}"

    @property
    def heading(self) -> str:
        """The metric, for tables and plots."""
        return f"{self.metric} (lower is better)" if self.mode == "min" else self.metric


def find_space(name: str) -> Space:
    """The space of tune_spaces/ called `name`, or of the Python file of that path, which is run.

    Raises UserError on an unknown name, and on a file that lacks something that a search needs.
    """
    if not name.endswith(".py"):
        import tune_spaces

        known = [module.name for module in pkgutil.iter_modules(tune_spaces.__path__)]
        if name not in known:
            raise UserError(f"no search space {name!r}; {nearest(name, known)} (a file of your own ends in .py)")
        return _read(importlib.import_module(f"tune_spaces.{name}"), name)
    path = Path(name).expanduser()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"there is no search space {name}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename) == path.absolute()]
        where = f"line {lines[-1]}: " if lines else ""
        raise UserError(f"cannot read search space {name}: {where}{_named(error)}") from None
    return _read(module, path.stem)


def _named(error: BaseException) -> str:
    kind, text = type(error).__name__, one_line(error)
    return kind if text == kind else f"{kind}: {text}"


def _read(module: ModuleType, name: str) -> Space:
    """Reads all that the file defines: a name that nothing reads would be a setting without effect."""
    said = vars(module)
    try:
        _check_attributes(said)
        domains = said.get("SPACE")
        if not isinstance(domains, dict) or not domains:
            raise UserError("there is no SPACE: a dictionary of dotted paths and ray.tune domains")
        for path, domain in domains.items():
            if problem := _not_a_domain(path, domain):
                raise UserError(f"SPACE[{path!r}] {problem}")
        metric = _metric(said)
        count = said.get("NUM_SAMPLES", Space.num_samples)
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise UserError(f"NUM_SAMPLES is {count!r}, but must be a whole number of at least 1")
        searcher, scheduler = said.get("SEARCHER", Space.searcher), said.get("SCHEDULER", Space.scheduler)
        for key, value, known in (("SEARCHER", searcher, SEARCHERS), ("SCHEDULER", scheduler, tuple(SCHEDULERS))):
            if value not in known:
                raise UserError(f"{key} is {value!r}; {nearest(str(value), known)}")
        options = said.get("SCHEDULER_OPTIONS", {})
        _check_options(options, scheduler)
        when = read_when(said.get("WHEN", {}), domains)
    except UserError as error:
        raise UserError(f"{module.__file__}: {error}") from None
    question = (module.__doc__ or "").strip().partition("\n\n")[0]
    return Space(name, " ".join(question.split()), domains, metric, count, searcher, scheduler, options, when)


def _check_attributes(said: Mapping[str, Any]) -> None:
    plain = {name.replace("_", "").lower(): name for name in _ATTRIBUTES}
    for name in said:
        if name in _ATTRIBUTES or name.startswith("_"):
            continue
        if meant := plain.get(name.replace("_", "").lower()):
            raise UserError(f"{name} has no effect: write {meant}")
        # Constants of the user's own are welcome, unless they look like a setting.
        if name.isupper() and (told := nearest(name, _ATTRIBUTES)).startswith("did"):
            raise UserError(f"{name} has no effect; {told} (start the name of a constant of your own with _)")


def _metric(said: Mapping[str, Any]) -> str:
    metric = said.get("METRIC", "top1")
    if not isinstance(metric, str) or metric not in METRICS:
        raise UserError(f"METRIC is {metric!r}, which validation does not report; {nearest(str(metric), METRICS)}")
    right = METRICS[metric]
    if (mode := said.get("MODE", right)) != right:
        raise UserError(f"MODE is {mode!r}, but the best {metric} is the {right}imum: leave MODE out")
    return metric


def _check_options(options: Any, scheduler: str) -> None:
    known = SCHEDULERS[scheduler]
    if not isinstance(options, dict):
        raise UserError(f"SCHEDULER_OPTIONS is {options!r}, but must be a dictionary, such as {{'interval': 2}}")
    for name, value in options.items():
        if name not in known:
            told = nearest(str(name), known) if known else "it has none: set SCHEDULER, or leave SCHEDULER_OPTIONS out"
            raise UserError(f"SCHEDULER {scheduler} has no option {name!r}; {told}")
        kind, low, high = _OPTION_RANGES[name]
        fits = isinstance(value, int | kind) and not isinstance(value, bool) and low <= value <= high
        if not fits:
            what = "a whole number" if kind is int else "a number"
            ends = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise UserError(f"SCHEDULER_OPTIONS[{name!r}] is {value!r}, but must be {what} {ends}")


def _not_a_domain(path: Any, given: Any) -> str:
    """Why `given` cannot be searched, and what to write in its place; nothing where it can."""
    from ray.tune.search.sample import Categorical, Domain, Float, Function, Integer

    if not isinstance(path, str):
        return "has a key that is no dotted path, such as 'text.weight'"
    if isinstance(given, dict):
        if set(given) == {"grid_search"}:
            return f"is tune.grid_search: write tune.choice({given['grid_search']!r}), and SEARCHER = 'grid' for all"
        inner = f"{path}.{next(iter(given), 'name')}"
        return f"is a dictionary: write each field with its dotted path, such as {inner!r}"
    if isinstance(given, list | tuple | set | range):
        return f"is a list: write tune.choice({list(given)!r})"
    if isinstance(given, Function) or callable(given):
        return f"is a function: write a domain, such as {_DOMAINS}"
    if given is None or isinstance(given, bool | int | float | str):
        return f"is a constant: pass --{path} {given} on the command line, or write a domain, such as {_DOMAINS}"
    if isinstance(given, Categorical):
        return "" if given.categories else "has no values: write tune.choice([first, second])"
    if not isinstance(given, Domain):
        return f"is a {type(given).__name__} and no ray.tune domain: write {_DOMAINS}"
    low, high = (given.lower, given.upper) if isinstance(given, Float | Integer) else (-math.inf, math.inf)
    if not all(isinstance(end, Real) and math.isfinite(end) for end in (low, high)):
        return f"has no ends: write {_DOMAINS}"
    if not low < high:
        return f"goes from {low:g} to {high:g}: the first must be the smaller one"
    return ""


def apply(config: Config, values: Values) -> Config:
    """`config` with `values` over it; raises UserError on an unknown path or a bad value."""
    return config.override(values)


def check_space(space: Space, base: Config) -> None:
    """Raises UserError where the configuration has no such dimension, or does not allow either of its ends."""
    for path in space.domains:
        if path not in Config.paths():
            raise UserError(f"search space {space.name}: no field {path}; {nearest(path, Config.paths())}")
        if path.startswith("run.") or path in _OWN:
            raise UserError(f"search space {space.name}: {path} is not for searching: trials set it themselves")
    try:
        check_when(space.when, base)
        for path, domain in space.domains.items():
            # Fields of runs are the command's: a trial's own are not known yet.
            beside = {
                other: value for other, value in example(path, space.when).items() if not other.startswith("run.")
            }
            for value in grid_values(domain):
                base.override({**beside, path: value})
    except UserError as error:
        raise UserError(f"search space {space.name}: {error}") from None


def drawn_in_vain(space: Space, base: Config) -> list[str]:
    """A note on each dimension that is drawn where it does nothing, of which WHEN says nothing.

    Raises UserError where no dimension does anything: all trials would be of one configuration.
    """
    idle: dict[str, list[str]] = {path: [] for path in space.domains}
    points = random_points(space, _DRAWS, distinct=False)
    for values in points:
        try:
            config = apply(base, values)
        except UserError:  # a trial says why it cannot be
            continue
        for path in values:
            if why := why_idle(path, config):
                idle[path].append(why)
    drawn = Counter(path for values in points for path in values)
    notes = [
        f"{path} does nothing with {Counter(whys).most_common(1)[0][0]}, and is drawn all the same "
        f"({len(whys)} of {drawn[path]} draws): trials that differ in it alone are equal; say so in WHEN"
        for path, whys in idle.items()
        if whys
    ]
    if all(len(whys) == drawn[path] for path, whys in idle.items()):
        raise UserError(f"search space {space.name}: no dimension does anything: {'; '.join(notes)}")
    return notes


def at(domain: Any, share: float) -> Any:
    """The quantile `share` (in [0, 1)) of a domain; choices count in their order."""
    from ray.tune.search.sample import Categorical, Integer, LogUniform, Quantized

    if isinstance(domain, Categorical):
        return domain.categories[int(share * len(domain))]
    sampler, step = domain.get_sampler(), 0
    if isinstance(sampler, Quantized):
        sampler, step = sampler.get_sampler(), sampler.q
    whole, low, high = isinstance(domain, Integer), domain.lower, domain.upper
    if step:  # the outermost of its multiples inside
        low, high = math.ceil(low / step - 1e-9) * step, math.floor(high / step + 1e-9) * step
    # Whole numbers are cut off to the one below: the last has a place of its own above it. Ray's randint, and qrandint
    # with a step of 1, leave out the upper end.
    top = high + step if whole and step > 1 else high
    value = low * (top / low) ** share if isinstance(sampler, LogUniform) else low + share * (top - low)
    if whole:
        unit = max(step, 1)
        return int(min(value // unit * unit, top - unit))
    if step:
        value = round(round(value / step) * step, 12)
    # Four digits are as many as people read or type again.
    return min(max(float(f"{value:.4g}"), float(low)), float(high))


def identity(values: Values) -> str:
    """A text that two configurations share where they are the same."""
    return json.dumps(values, sort_keys=True, default=str)


def random_points(space: Space, count: int, distinct: bool = True) -> list[Values]:
    """The first `count` points of a scrambled Halton sequence: random, but evenly spread over every dimension.

    Few trials then leave fewer gaps than independent draws do (Bergstra & Bengio 2012, section 4, JMLR 13). A longer
    search begins with the points of a shorter one. A configuration that has come before is passed over if `distinct`:
    there are fewer points where the space has no more.
    """
    from scipy.stats.qmc import Halton

    sequence, items = Halton(len(space.domains), scramble=True, rng=0), space.domains.items()
    points: dict[str, Values] = {}
    for number in range(_DRAWS * count):
        row = sequence.random(1)[0]
        drawn = {path: at(domain, float(u)) for (path, domain), u in zip(items, row, strict=True)}
        values = space.without_idle(drawn)
        points.setdefault(identity(values) if distinct else str(number), values)
        if len(points) == count:
            break
    return list(points.values())


def grid_points(space: Space) -> Iterator[Values]:
    """All different configurations that `grid_values` make."""
    axes = [grid_values(domain) for domain in space.domains.values()]
    points = (space.without_idle(dict(zip(space.domains, point, strict=True))) for point in itertools.product(*axes))
    return iter({identity(values): values for values in points}.values())


def grid_values(domain: Any) -> list[Any]:
    """All values of a choice; GRID_POINTS evenly spaced values of a range, both ends included."""
    from ray.tune.search.sample import Categorical, Integer

    if isinstance(domain, Categorical):
        return list(domain.categories)
    last = 1 - 1e-12 if isinstance(domain, Integer) else 1.0
    values = [at(domain, last * number / (GRID_POINTS - 1)) for number in range(GRID_POINTS)]
    return list(dict.fromkeys(values))
