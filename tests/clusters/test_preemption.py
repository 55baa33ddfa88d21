"""The notice of a spot machine's end, from a metadata server on loopback."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from clusters import preemption


class Metadata(BaseHTTPRequestHandler):
    """Answers as AWS and Google do, `ends` telling whether the machine's end is near."""

    ends = False

    def do_PUT(self) -> None:
        known = self.path == "/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"] == "60"
        self.answer(200 if known else 400, "secret")

    def do_GET(self) -> None:
        if self.path == "/instance/preempted" and self.headers["Metadata-Flavor"] == "Google":
            self.answer(200, "TRUE" if self.ends else "FALSE")
        elif self.path == "/meta-data/spot/instance-action" and self.headers["X-aws-ec2-metadata-token"] == "secret":
            self.answer(200 if self.ends else 404, '{"action": "terminate", "time": "2026-01-01T00:00:00Z"}')
        else:
            self.answer(403, "")

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[str]:
    Metadata.ends = False
    server = HTTPServer(("127.0.0.1", 0), Metadata)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_a_notice_is_seen_when_there_is_one(metadata: str, cloud: str) -> None:
    assert not preemption.noticed(cloud, metadata)
    Metadata.ends = True
    assert preemption.noticed(cloud, metadata)


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_a_machine_without_metadata_has_no_notice(cloud: str) -> None:
    assert not preemption.noticed(cloud, "http://127.0.0.1:9")


def test_ray_is_told_node_reason_and_deadline(metadata: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Metadata.ends = True
    ray = tmp_path / "ray"
    ray.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/told\n')
    ray.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setitem(preemption.CLOUDS, "aws", (metadata, 110))
    monkeypatch.setattr(preemption, "this_node", lambda address: "abc")
    preemption.main("aws", "10.0.0.1:6379")
    told = (tmp_path / "told").read_text()
    assert told.startswith("drain-node --address 10.0.0.1:6379 --node-id abc --reason DRAIN_NODE_REASON_PREEMPTION")
    assert told.endswith("--deadline-remaining-seconds 110\n")
