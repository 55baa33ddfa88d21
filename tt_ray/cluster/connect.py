"""Joins a Ray cluster, or starts Ray here; decides in seconds which, where Ray itself tries for minutes.

Ray 2.60, quietly, and in a session of its own.
"""

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tt_ray.cluster.auth_token import keep_token_private
from tt_ray.terminal.errors import UserError, one_line
from tt_ray.terminal.signals import signals_act_soon

_QUIET = {
    # How soon the end of training is noticed; each look wakes every worker.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    # After a node is lost, Ray still counts on it for a while: how long it waits for workers there.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    # Ray starts its workers at niceness 15, after everything else on the machine, its own helpers included.
    "RAY_worker_niceness": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Idle workers started beforehand cannot serve Ray Train, whose processes have an environment of their own.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    # Ray reports dead processes on stdout, whatever log_to_driver is; no line passes this.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",
}

# A cluster that just starts is waited for.
_PATIENCE_S = 6.0
_PAUSE_S = 0.3
_TOKEN = "~/.ray/auth_token"
_HELP = "start it, or set RAY_ADDRESS=local to start Ray here"

_started = False
_session_dir = ""
_starter = 0
"""The thread that is just starting Ray."""


def keep_ray_quiet() -> None:
    """Sets the environment variables that Ray reads, some of them when it is imported."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def join_ray(say: Callable[[str], None] = print) -> bool:
    """Joins the cluster of RAY_ADDRESS or of this machine (true), or starts Ray on this machine; quietly.

    Raises:
        UserError: when the cluster of RAY_ADDRESS cannot be reached.
        SystemExit: on SIGTERM.
    """
    keep_ray_quiet()
    import ray

    if not ray.is_initialized():
        with signals_act_soon():
            _init(say)
    return not _started


def worker_logs() -> str:
    """Folder of the logs of Ray Train's workers on this machine; empty where it is not known."""
    import ray

    folder = Path(_session_dir or _ray_folder() / ray.get_runtime_context().get_session_name()) / "logs" / "train"
    return str(folder) if folder.is_dir() else ""


def cluster_address() -> str:
    """Host and port of the cluster that this process has joined."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


def _init(say: Callable[[str], None]) -> None:
    global _started, _session_dir
    import ray
    from ray.exceptions import RayError

    there = find_cluster(say)
    keep_token_private()
    # "auto" is RAY_ADDRESS where it is set; it fails where the cluster has gone meanwhile, while None would start Ray.
    try:
        with _session_of_its_own():
            # A Ray that ends with the command needs no dashboard: eleven processes less, which would run next to it.
            ray_context = ray.init(
                address="auto" if there else "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=False,
            )
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        if not there:
            raise
        place = os.environ.get("RAY_ADDRESS") or "of this machine"
        raise UserError(
            f"cannot join the Ray cluster at {place} ({one_line(error.__cause__ or error)}): {_HELP}"
        ) from None
    _started, _session_dir = not there, getattr(ray_context, "address_info", {}).get("session_dir") or ""


@contextmanager
def _session_of_its_own() -> Iterator[None]:
    """Starts Ray's processes, and so all that these start, in a session of their own.

    Signals to the command's process group, as from `timeout` and Ctrl-C, then reach the command alone, which takes a
    checkpoint first. They die with the command all the same: the kernel kills them when it ends, which Ray calls
    fate sharing. Where the kernel is not Linux, Ray ends them by their group instead, and they must stay in it.
    """
    global _starter
    _starter = threading.get_ident() if sys.platform == "linux" else 0
    try:
        yield
    finally:
        _starter = 0


def _begin_session() -> None:
    if _starter == threading.get_ident():
        os.setsid()


# Ray starts its processes with a preexec_fn, before which Python calls this in the child. It cannot be taken back.
os.register_at_fork(after_in_child=_begin_session)


def find_cluster(say: Callable[[str], None]) -> bool:
    """Whether there is a cluster to join, that of RAY_ADDRESS or one started on this machine; else Ray starts here.

    Raises:
        UserError: when the cluster of RAY_ADDRESS does not answer as Ray does, or asks for another token.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if address == "local":
        return False
    by_name = address not in ("", "auto")
    place = address if by_name else _last_cluster()
    problem = _unreachable(place) if place else ""
    if problem and not address:
        # Nobody has asked for this cluster: without it, a command starts Ray as on any other machine.
        say(f"the Ray cluster that was started here, at {place}, is gone ({problem}): starting Ray here")
        return False
    if problem:
        raise UserError(f"cannot join the Ray cluster at {place} ({problem}): {_HELP}")
    if place and _token_refused(place, by_name):
        raise UserError(
            f"the Ray cluster at {place} asks for its token: export RAY_AUTH_MODE=token, with the token in "
            "~/.ray/auth_token, RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN; or set RAY_ADDRESS=local to start Ray here"
        )
    return bool(address or place)


def _last_cluster() -> str:
    """Address of the last cluster that `ray start` has started on this machine, which may have crashed since."""
    with suppress(OSError):
        return (_ray_folder() / "ray_current_cluster").read_text().strip()
    return ""


def _ray_folder() -> Path:
    """Where Ray keeps its sessions unless `ray start --temp-dir` says otherwise."""
    folder = os.environ.get("RAY_TMPDIR") or (os.environ.get("TMPDIR") if sys.platform == "linux" else "") or "/tmp"
    return Path(folder) / "ray"


def _unreachable(address: str) -> str:
    """Why no Ray answers at the address within `_PATIENCE_S`; empty where one does."""
    scheme, _, place = address.rpartition("://")
    if scheme not in ("", "ray"):
        return f"{scheme}:// is for the dashboard: use HOST:PORT of the head, such as 10.0.0.1:6379"
    host, colon, port = place.partition("/")[0].rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
        return "not an address: use HOST:PORT, such as 10.0.0.1:6379"
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
    """Asks for the health that Ray's head reports; servers for Ray's clients speak gRPC, but do not report it."""
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
    """The name of gRPC's status after an empty request."""
    import grpc

    # Ray goes past proxies as well.
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", int(1000 * _PAUSE_S))]
    with grpc.insecure_channel(place, options=options) as channel:
        try:
            channel.unary_unary(method)(b"", timeout=seconds, metadata=metadata, wait_for_ready=True)
            return "OK"
        except grpc.RpcError as error:
            return error.code().name  # type: ignore[attr-defined]  # of calls, which these errors are as well
