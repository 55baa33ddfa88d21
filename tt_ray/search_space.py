"""Search spaces: how one is found and held against the configuration, and the points that a search tries."""

import importlib
import importlib.util
import itertools
import math
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from tt_ray.config import Config
from tt_ray.errors import UserError, nearest

Values = dict[str, Any]
"""By dotted configuration path."""
_OWN = ("train.seed", "train.epochs", "data.val_share", "data.group_column", "data.val_split")
GRID_POINTS = 5
"""Points of a continuous dimension in a grid."""


@dataclass(frozen=True)
class Space:
    """What a file of tune_spaces/ says."""

    name: str
    question: str
    """First paragraph of its docstring."""
    domains: Mapping[str, Any]
    """ray.tune domain by dotted path."""
    metric: str
    """What validation reports: top1, top5 (per cent) or val_loss."""
    mode: str
    """max or min."""
    num_samples: int = 16
    searcher: str = "random"
    scheduler: str = "fifo"
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the scheduler."""

    def better(self, value: float) -> float:
        """Larger is better."""
        return value if self.mode == "max" else -value


def find_space(name: str) -> Space:
    """The space of tune_spaces/ called `name`, or of the Python file of that path, which is run.

    Raises UserError on an unknown name, and on a file without a SPACE of ray.tune domains.
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
    except Exception as error:
        raise UserError(f"cannot read search space {name}: {type(error).__name__}: {error}") from None
    return _read(module, path.stem)


def _read(module: ModuleType, name: str) -> Space:
    from ray.tune.search.sample import Domain

    domains = getattr(module, "SPACE", None)
    if not isinstance(domains, dict) or not domains:
        raise UserError(f"{module.__file__} has no SPACE: a dictionary of dotted paths and ray.tune domains")
    for path, domain in domains.items():
        if not isinstance(domain, Domain) or not hasattr(domain.get_sampler(), "sample"):
            raise UserError(f"{module.__file__}: SPACE[{path!r}] is no ray.tune domain, such as tune.uniform(0, 1)")
    options = {
        key.lower() if key != "SCHEDULER_OPTIONS" else "options": getattr(module, key)
        for key in ("NUM_SAMPLES", "SEARCHER", "SCHEDULER", "SCHEDULER_OPTIONS")
        if hasattr(module, key)
    }
    metric, mode = getattr(module, "METRIC", "top1"), getattr(module, "MODE", "max")
    if metric not in ("top1", "top5", "val_loss") or mode not in ("max", "min"):
        told = f"METRIC {metric!r} must be top1, top5 or val_loss, MODE {mode!r} max or min"
        raise UserError(f"{module.__file__}: {told}")
    question = (module.__doc__ or "").strip().partition("\n\n")[0]
    return Space(name, " ".join(question.split()), domains, metric, mode, **options)


def apply(config: Config, values: Values) -> Config:
    """`config` with `values` over it; raises UserError on an unknown path or a bad value."""
    for path, value in values.items():
        config = config.override(path, value)
    return config


def check_space(space: Space, base: Config) -> None:
    """Raises UserError where a dimension is unknown to the configuration, or either of its ends is no value for it."""
    for path in space.domains:
        if path not in Config.paths():
            raise UserError(f"search space {space.name}: no field {path}; {nearest(path, Config.paths())}")
        if path.startswith("run.") or path in _OWN:
            raise UserError(f"search space {space.name}: {path} is not for searching: trials set it themselves")
        for value in grid_values(space.domains[path]):
            try:
                base.override(path, value)
            except UserError as error:
                raise UserError(f"search space {space.name}: {error}") from None


def at(domain: Any, share: float) -> Any:
    """The value that `share` (in [0, 1)) of a domain's probability lies below; choices count in their order."""
    from ray.tune.search.sample import Categorical, Integer, LogUniform, Quantized, Uniform

    if isinstance(domain, Categorical):
        return domain.categories[int(share * len(domain))]
    sampler, step = domain.get_sampler(), None
    if isinstance(sampler, Quantized):
        sampler, step = sampler.get_sampler(), sampler.q
    if not isinstance(sampler, Uniform | LogUniform) or not math.isfinite(domain.lower + domain.upper):
        raise UserError(f"{domain} cannot be searched: give uniform, loguniform, randint, choice or their q variants")
    low, high = domain.lower, domain.upper
    value = low * (high / low) ** share if isinstance(sampler, LogUniform) else low + share * (high - low)
    if step:
        value = round(round(value / step) * step, 12)
    if isinstance(domain, Integer):
        return min(int(value), int(high) - 1)
    # Four digits are what anybody will read or type again.
    return min(max(float(f"{value:.4g}"), float(low)), float(high))


def random_points(space: Space, count: int) -> list[Values]:
    """The first `count` points of a scrambled Halton sequence: random, but evenly spread over every dimension.

    Few trials then leave fewer gaps than independent draws do (Bergstra & Bengio 2012, section 4, JMLR 13). A longer
    search begins with the points of a shorter one.
    """
    from scipy.stats.qmc import Halton

    shares = Halton(len(space.domains), scramble=True, rng=0).random(count)
    items = space.domains.items()
    return [{path: at(domain, float(u)) for (path, domain), u in zip(items, row, strict=True)} for row in shares]


def grid_points(space: Space) -> Iterator[Values]:
    """All combinations of `grid_values`."""
    axes = [grid_values(domain) for domain in space.domains.values()]
    return (dict(zip(space.domains, point, strict=True)) for point in itertools.product(*axes))


def grid_values(domain: Any) -> list[Any]:
    """All values of a choice; of a range both ends and what lies evenly between, GRID_POINTS in all."""
    from ray.tune.search.sample import Categorical, Integer

    if isinstance(domain, Categorical):
        return list(domain.categories)
    last = 1 - 1e-12 if isinstance(domain, Integer) else 1.0
    values = [at(domain, last * number / (GRID_POINTS - 1)) for number in range(GRID_POINTS)]
    return list(dict.fromkeys(values))
