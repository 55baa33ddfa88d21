"""Train any timm image classifier with a language teacher, on any Ray cluster.

The names below are imported when they are first used: `import tt_ray` alone loads neither torch nor Ray.
"""

TYPE_CHECKING = False  # as type checkers take it; `typing` is not imported for a name
if TYPE_CHECKING:
    from eval.evaluate import evaluate
    from eval.protocols.estimator import LinearProbe, probe
    from tt_ray.audit.audit import Audit, audit
    from tt_ray.config import Config
    from tt_ray.embeddings.store import EmbeddingStore
    from tt_ray.library import Run, embed, export, open_store, recipe, train
    from tt_ray.terminal.errors import UserError
    from tt_ray.training.text_teacher import Taught, TextTeacher

__version__ = "0.1.0"
__all__ = [
    "Audit",
    "Config",
    "EmbeddingStore",
    "LinearProbe",
    "Run",
    "Taught",
    "TextTeacher",
    "UserError",
    "audit",
    "embed",
    "evaluate",
    "export",
    "open_store",
    "probe",
    "recipe",
    "train",
]

_HOMES = {
    "Audit": "tt_ray.audit.audit",
    "Config": "tt_ray.config",
    "EmbeddingStore": "tt_ray.embeddings.store",
    "LinearProbe": "eval.protocols.estimator",
    "Run": "tt_ray.library",
    "Taught": "tt_ray.training.text_teacher",
    "TextTeacher": "tt_ray.training.text_teacher",
    "UserError": "tt_ray.terminal.errors",
    "audit": "tt_ray.audit.audit",
    "embed": "tt_ray.library",
    "evaluate": "eval.evaluate",
    "export": "tt_ray.library",
    "open_store": "tt_ray.library",
    "probe": "eval.protocols.estimator",
    "recipe": "tt_ray.library",
    "train": "tt_ray.library",
}


def _find(name: str) -> object:
    if name not in _HOMES:
        near = ""
        if not name.startswith("_"):  # those are asked for by tools, not by people
            from tt_ray.terminal.errors import nearest

            near = f"; {nearest(name, __all__)}"
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{near}")
    from importlib import import_module

    if _HOMES[name].startswith("eval."):
        from tt_ray.cluster.own_eval import import_own_eval

        import_own_eval()
    # Not kept in this module: `tt_ray.train` and `tt_ray.export` are commands too, and importing one puts its module
    # here, which can be called likewise (see `library.callable_as`).
    return getattr(import_module(_HOMES[name]), name)


if not TYPE_CHECKING:  # to which a module with this function has every name
    __getattr__ = _find


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
