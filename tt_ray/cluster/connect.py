"""Which Ray cluster a command joins: finds out in seconds whether it is there, where Ray itself tries for minutes."""

import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tt_ray.terminal.errors import UserError

# A cluster that just starts is waited for.
_PATIENCE_S = 6.0
_PAUSE_S = 0.3
_TOKEN = "~/.ray/auth_token"
HELP = "start it, or set RAY_ADDRESS=local to start Ray here"


def find_cluster(say: Callable[[str], None]) -> bool:
    """Whether there is a cluster to join, that of RAY_ADDRESS or one started on this machine; else Ray starts here.

    Raises:
        UserError: when the cluster of RAY_ADDRESS does not answer as Ray does, or asks for another token.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if address == "local":
        return False
    by_name = address not in ("", "auto")
    place = address if by_name else _started_here()
    problem = _unreachable(place) if place else ""
    if problem and not address:
        # Nobody has asked for this cluster: without it, a command starts Ray as on any other machine.
        say(f"the Ray cluster that was started here, at {place}, is gone ({problem}): starting Ray here")
        return False
    if problem:
        raise UserError(f"cannot join the Ray cluster at {place} ({problem}): {HELP}")
    if place and _token_refused(place, by_name):
        raise UserError(
            f"the Ray cluster at {place} asks for its token: export RAY_AUTH_MODE=token, with the token in "
            "~/.ray/auth_token, RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN; or set RAY_ADDRESS=local to start Ray here"
        )
    return bool(address or place)


def _started_here() -> str:
    """Address of the last cluster that `ray start` has started on this machine; may be of one that has crashed."""
    folder = os.environ.get("RAY_TMPDIR") or (os.environ.get("TMPDIR") if sys.platform == "linux" else "") or "/tmp"
    with suppress(OSError):
        return (Path(folder) / "ray" / "ray_current_cluster").read_text().strip()
    return ""


def _unreachable(address: str) -> str:
    """Why no Ray answers at the address within `_PATIENCE_S`; empty where one does."""
    scheme, _, place = address.rpartition("://")
    if scheme not in ("", "ray"):
        return f"{scheme}:// is for the dashboard: give HOST:PORT of the head, such as 10.0.0.1:6379"
    host, colon, port = place.partition("/")[0].rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
        return "not an address: give HOST:PORT, such as 10.0.0.1:6379"
    deadline = time.monotonic() + _PATIENCE_S
    problem = _no_listener(host.strip("[]"), int(port), deadline)
    return problem or ("" if _encrypted() else _no_ray(f"{host}:{port}", scheme == "ray", deadline))


def _encrypted() -> bool:
    """Whether only Ray itself, which has the certificates, can ask a cluster anything."""
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def _no_listener(host: str, port: int, deadline: float) -> str:
    while True:
        left = deadline - time.monotonic()
        try:
            socket.create_connection((host, port), timeout=max(left, 0.1)).close()
            return ""
        except (OSError, UnicodeError) as error:
            problem = getattr(error, "strerror", None) or str(error)
        if left < _PAUSE_S:
            return f"{problem}, for {_PATIENCE_S:.0f} s"
        time.sleep(_PAUSE_S)


def _no_ray(place: str, client: bool, deadline: float) -> str:
    """Asks for the health that Ray's head tells everyone; servers for Ray's clients speak gRPC, but do not tell it."""
    code = _ask(place, "/grpc.health.v1.Health/Check", max(deadline - time.monotonic(), 1.0))
    if code == "OK":
        return ""
    if code == "UNIMPLEMENTED":
        return "" if client else "what listens there is no head of a Ray cluster; is it the port for ray:// addresses?"
    return f"what listens there does not answer as Ray does, for {_PATIENCE_S:.0f} s"


def _token_refused(address: str, by_name: bool) -> bool:
    """Whether the cluster asks for a token other than the one that Ray will show: Ray itself tries for 20 seconds."""
    if "://" in address or _encrypted():
        return False
    # Ray shows a token unasked only to a cluster that it has found by itself.
    mode = os.environ.get("RAY_AUTH_MODE", "disabled" if by_name else "token").lower()
    token = _token() if mode == "token" else ""
    shown = (("authorization", f"Bearer {token}"),) if token else ()
    return _ask(address, "/ray.rpc.NodeInfoGcsService/GetClusterId", _PATIENCE_S / 2, shown) == "UNAUTHENTICATED"


def _token() -> str:
    """The token that Ray finds, by its order."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    with suppress(OSError):
        return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or _TOKEN).expanduser().read_text().strip()
    return ""


def _ask(place: str, method: str, seconds: float, metadata: tuple[tuple[str, str], ...] = ()) -> str:
    """The name of gRPC's status for an empty question."""
    import grpc

    # Ray goes past proxies as well.
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", int(1000 * _PAUSE_S))]
    with grpc.insecure_channel(place, options=options) as channel:
        try:
            channel.unary_unary(method)(b"", timeout=seconds, metadata=metadata, wait_for_ready=True)
            return "OK"
        except grpc.RpcError as error:
            return error.code().name  # type: ignore[attr-defined]  # of calls, which these errors are as well
