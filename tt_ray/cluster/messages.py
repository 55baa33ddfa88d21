"""Short messages between a run's driver, Ray Train's controller and its workers, kept by the cluster's head."""

import json
from dataclasses import dataclass
from typing import Any

_NAMESPACE = "tt_ray"


@dataclass(frozen=True)
class Mailbox:
    """Named messages of one command; each replaces the one before. Needs a connection to Ray."""

    command: str
    """Tells this command's messages from those of others on the cluster."""

    def put(self, name: str, message: Any) -> None:
        """`message` is JSON."""
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(self._key(name), json.dumps(message).encode(), overwrite=True, namespace=_NAMESPACE)

    def get(self, name: str) -> Any:
        """None when there is no such message."""
        from ray.experimental.internal_kv import _internal_kv_get

        message = _internal_kv_get(self._key(name), namespace=_NAMESPACE)
        return None if message is None else json.loads(message)

    def clear(self) -> None:
        """Removes all messages of this command."""
        from ray.experimental.internal_kv import _internal_kv_del

        _internal_kv_del(f"{self.command}/", del_by_prefix=True, namespace=_NAMESPACE)

    def _key(self, name: str) -> str:
        return f"{self.command}/{name}"
