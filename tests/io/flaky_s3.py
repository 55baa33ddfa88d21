"""A real S3 server (moto's) behind a proxy that can answer 503, drop connections, and count requests."""

import http.client
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

import pytest
from pyarrow import fs

Fault = Literal["", "busy", "drop"]


class Proxy(ThreadingHTTPServer):
    """Hands requests on; `fault` says what goes wrong with a request, by its method, its path and its number there."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behind = port
        self.fault: Callable[[str, str, int], Fault] = lambda method, path, number: ""
        self.counts: Counter[tuple[str, str]] = Counter()
        self.sent: Counter[str] = Counter()
        """Bytes of the bodies sent, by path."""
        self.lock = threading.Lock()

    def handle_error(self, *_: object) -> None:
        """Clients that are killed say nothing."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy  # type: ignore[assignment]

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        with self.server.lock:
            self.server.counts[self.command, path] += 1
            fault = self.server.fault(self.command, path, self.server.counts[self.command, path])
        body = self._body()
        if fault == "busy":
            self._send(503, [("Content-Type", "application/xml")], b"<Error><Code>SlowDown</Code></Error>")
            return
        behind = http.client.HTTPConnection("127.0.0.1", self.server.behind)
        sent = {key: value for key, value in self.headers.items() if key.lower() not in _OWN | {"expect"}}
        behind.request(self.command, self.path, body, sent | {"Host": self.headers["Host"]})
        answer = behind.getresponse()
        content = answer.read()
        behind.close()
        headers = [(key, value) for key, value in answer.getheaders() if key.lower() not in _OWN]
        if self.command == "HEAD":
            headers.append(("Content-Length", answer.getheader("Content-Length") or "0"))
        self._send(answer.status, headers, content, cut=fault == "drop")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(parts)

    def _send(self, status: int, headers: list[tuple[str, str]], content: bytes, cut: bool = False) -> None:
        self.send_response(status)
        for key, value in headers:
            self.send_header(key, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        self.server.sent[self.path.partition("?")[0]] += len(content)
        if cut:
            self.wfile.flush()
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer

    def log_message(self, *_: object) -> None:
        pass


_OWN = {"content-length", "transfer-encoding", "connection", "date", "server", "host"}


class Bucket:
    """An empty bucket behind the proxy."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.options = f"scheme=http&endpoint_override=127.0.0.1:{proxy.server_address[1]}&region=us-east-1"
        self.system, _ = fs.FileSystem.from_uri(f"s3://bucket?{self.options}&allow_bucket_creation=true")
        self.system.create_dir("bucket")

    def uri(self, path: str) -> str:
        return f"s3://bucket/{path}?{self.options}"

    def put(self, path: str, content: bytes) -> None:
        with self.system.open_output_stream(f"bucket/{path}") as stream:
            stream.write(content)


@contextmanager
def flaky_bucket() -> Iterator[Bucket]:
    """The bucket, and the environment that clients in this process and in others need."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    proxy = Proxy(server.get_host_and_port()[1])
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield Bucket(proxy)
    proxy.shutdown()
    proxy.server_close()
    server.stop()
