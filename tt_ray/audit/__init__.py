"""Will it help on my data? What captions know, and which labels look wrong, before any training."""

from typing import Any

from tt_ray import library


def _audit(*arguments: Any, **options: Any) -> Any:
    from tt_ray.audit.audit import audit

    return audit(*arguments, **options)


library.callable_as(__name__, _audit)
