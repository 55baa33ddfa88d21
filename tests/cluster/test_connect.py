"""A cluster that is gone is told in seconds, one that answers is joined."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import pytest

from tests.cluster.test_job import free_ports
from tt_ray.cluster import connect
from tt_ray.cluster.connect import find_cluster
from tt_ray.terminal.errors import UserError

HEALTH, CLUSTER = "/grpc.health.v1.Health/Check", "/ray.rpc.NodeInfoGcsService/GetClusterId"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Impatient, without a cluster of this machine, and with a home of its own."""
    monkeypatch.setattr(connect, "_PATIENCE_S", 0.5)
    monkeypatch.setattr(connect, "_PAUSE_S", 0.1)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_USE_TLS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))


def refused(address: str) -> str:
    os.environ["RAY_ADDRESS"] = address
    with pytest.raises(UserError) as error:
        find_cluster(lambda text: pytest.fail(text))
    assert address in str(error.value) and "RAY_ADDRESS=local" in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda text: monkeypatch.setenv("RAY_ADDRESS", text)


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")  # restored afterwards


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("foo", "not an address"),
        ("127.0.0.1", "not an address"),
        ("127.0.0.1:x", "not an address"),
        ("127.0.0.1:99999", "not an address"),
        (":6379", "not an address"),
        ("http://127.0.0.1:8265", "http:// is for the dashboard"),
        ("https://head:8265/", "https:// is for the dashboard"),
        ("no such host.invalid:6379", "for 0 s"),
    ],
)
def test_what_is_no_address_is_refused(text: str, part: str) -> None:
    assert part in refused(text)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_nobody_listens(scheme: str) -> None:
    (port,) = free_ports(1)
    assert "Connection refused" in refused(f"{scheme}127.0.0.1:{port}")


def test_a_listener_that_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "does not answer as Ray does" in refused(f"127.0.0.1:{silent.getsockname()[1]}")


def test_a_web_server() -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert "does not answer as Ray does" in refused(f"127.0.0.1:{server.server_port}")
        server.shutdown()


class Head(grpc.GenericRpcHandler):
    """Answers as the head of a cluster does that has this token."""

    def __init__(self, token: str = "", methods: tuple[str, ...] = (HEALTH, CLUSTER)) -> None:
        self.token, self.methods = token, methods

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        method, shown = handler_call_details.method, dict(handler_call_details.invocation_metadata or ())

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            if method == CLUSTER and self.token and shown.get("authorization") != f"Bearer {self.token}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer) if method in self.methods else None


@pytest.fixture
def serve() -> Iterator[Callable[..., int]]:
    servers: list[grpc.Server] = []

    def start(head: Head, port: int = 0) -> int:
        servers.append(grpc.server(ThreadPoolExecutor(2), handlers=[head], options=[("grpc.so_reuseport", 0)]))
        port = servers[-1].add_insecure_port(f"127.0.0.1:{port}")
        servers[-1].start()
        return port

    yield start
    for server in servers:
        server.stop(None).wait()


def test_a_cluster_that_answers_is_joined(serve: Callable[..., int], address: Callable[[str], None]) -> None:
    address(f"127.0.0.1:{serve(Head())}")
    assert find_cluster(pytest.fail)
    address(f"ray://127.0.0.1:{serve(Head(methods=()))}")  # a server for Ray's clients tells no health
    assert find_cluster(pytest.fail)


def test_another_server_is_no_head(serve: Callable[..., int]) -> None:
    assert "no head of a Ray cluster" in refused(f"127.0.0.1:{serve(Head(methods=()))}")


def test_a_cluster_that_is_just_starting_is_waited_for(
    serve: Callable[..., int], address: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    address(f"127.0.0.1:{port}")
    monkeypatch.setattr(connect, "_PATIENCE_S", 30.0)
    real, started = time.sleep, []

    def sleep(seconds: float) -> None:
        if not started:
            started.append(serve(Head(), port))
        real(0)

    monkeypatch.setattr(connect.time, "sleep", sleep)
    assert find_cluster(pytest.fail) and started == [port]


@pytest.mark.parametrize(
    ("settings", "file", "joins"),
    [
        ({}, "", False),
        ({}, "secret", False),  # Ray shows it unasked only to a cluster that it has found by itself
        ({"RAY_AUTH_MODE": "token"}, "secret", True),
        ({"RAY_AUTH_MODE": "token"}, "other", False),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "secret"}, "other", True),
    ],
)
def test_a_cluster_that_asks_for_a_token(
    settings: dict[str, str],
    file: str,
    joins: bool,
    serve: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    if file:
        token_file(tmp_path, 0o600, file)
    place = f"127.0.0.1:{serve(Head('secret'))}"
    if joins:
        monkeypatch.setenv("RAY_ADDRESS", place)
        assert find_cluster(pytest.fail)
    else:
        assert "asks for its token: export RAY_AUTH_MODE=token" in refused(place)


def started_here(folder: Path, place: str) -> None:
    (folder / "ray").mkdir()
    (folder / "ray" / "ray_current_cluster").write_text(place)


def test_a_crashed_cluster_of_this_machine_is_told_and_left(tmp_path: Path, address: Callable[[str], None]) -> None:
    (port,) = free_ports(1)
    started_here(tmp_path, f"127.0.0.1:{port}")
    told: list[str] = []
    address("")
    assert not find_cluster(told.append)
    assert len(told) == 1 and f"127.0.0.1:{port}, is gone (Connection refused" in told[0]
    address("auto")
    with pytest.raises(UserError, match=f"cannot join the Ray cluster at 127.0.0.1:{port}"):
        find_cluster(pytest.fail)
    address("local")
    assert not find_cluster(pytest.fail)


def test_a_cluster_of_this_machine_is_joined_with_its_token(
    tmp_path: Path, address: Callable[[str], None], serve: Callable[..., int]
) -> None:
    address("")
    assert not find_cluster(pytest.fail)
    started_here(tmp_path, f"127.0.0.1:{serve(Head('secret'))}")
    token_file(tmp_path, 0o600, "secret")
    assert find_cluster(pytest.fail)


def token_file(home: Path, mode: int, text: str = "secret") -> Path:
    path = home / ".ray" / "auth_token"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("number", [None, signal.SIGINT, signal.SIGTERM])
def test_a_command_without_its_cluster_ends_with_one_line(number: signal.Signals | None, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        command = subprocess.Popen(
            [sys.executable, "-m", "tt_ray.train", "shapes_baseline", "--run.storage", str(tmp_path / "runs")],
            env={**os.environ, "RAY_ADDRESS": place},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        silent.accept()[0].close()  # it connects
        if number:
            command.send_signal(number)
        out, err = command.communicate(timeout=60)
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and not (tmp_path / "runs").exists()
    assert command.returncode == (128 + number if number else 2)
    assert number or f"cannot join the Ray cluster at {place} (what listens there does not answer" in err
