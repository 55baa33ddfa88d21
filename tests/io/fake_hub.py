"""A Hugging Face hub on this machine: as much of it as pushing and loading a model asks for."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml
from flask import Flask, Response, abort, jsonify, request
from huggingface_hub import close_session, constants
from werkzeug.serving import make_server

TOKEN, USER = "hf_right", "ada"


@dataclass
class FakeHub:
    """Models by USER/NAME, each its files by name; one token, whose user may write below her own name."""

    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    cards: list[str] = field(default_factory=list)
    """What was handed in to be checked before an upload."""
    fails_at: str = ""
    """Part of a path that is answered as a hub does that is out of order."""
    address: str = ""

    def app(self) -> Flask:
        """The endpoints that huggingface_hub calls."""
        app = Flask("hub")

        @app.before_request
        def check() -> Any:
            if self.fails_at and self.fails_at in request.path:
                return jsonify(error="out of order"), 410  # 500 is tried again for half a minute
            if request.method == "POST" and request.headers.get("authorization") != f"Bearer {TOKEN}":
                return jsonify(error="Invalid username or password."), 401
            if request.path.startswith("/api/models/") and request.method == "POST" and f"/{USER}/" not in request.path:
                return jsonify(error="Forbidden"), 403
            return None

        @app.post("/api/repos/create")
        def create() -> Any:
            given = request.get_json()
            name = f"{given['organization']}/{given['name']}"
            answer = {"url": f"{self.address}/{name}"}
            if given["organization"] != USER:
                return jsonify(error="You don't have the rights to create a model under this namespace"), 403
            if name in self.models:
                return jsonify(error="You already created this model repo", **answer), 409
            self.models[name] = {".gitattributes": b"*.safetensors filter=lfs"}
            self.private |= {name} if given.get("visibility") == "private" else set()
            return jsonify(answer)

        @app.get("/api/models/<user>/<name>")
        def info(user: str, name: str) -> Any:
            files = self._files(user, name)
            siblings = [{"rfilename": file} for file in files]
            tags = _front_matter(files.get("README.md", b"").decode()).get("tags", [])
            return jsonify(id=f"{user}/{name}", sha=_sha(files), siblings=siblings, tags=tags, private=False)

        @app.post("/api/validate-yaml")
        def validate() -> Any:
            content = request.get_json()["content"]
            self.cards.append(content)
            return jsonify(errors=[], warnings=[] if _front_matter(content) else [{"message": "empty metadata"}])

        @app.post("/api/models/<user>/<name>/preupload/main")
        def preupload(user: str, name: str) -> Any:
            files = [file["path"] for file in request.get_json()["files"]]
            return jsonify(files=[{"path": file, "uploadMode": "regular", "shouldIgnore": False} for file in files])

        @app.post("/api/models/<user>/<name>/commit/main")
        def commit(user: str, name: str) -> Any:
            files = self._files(user, name)
            for line in request.get_data().splitlines():
                entry = json.loads(line)
                if entry["key"] == "header":
                    assert entry["value"].get("parentCommit") == _sha(files)
                else:
                    files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            return jsonify(
                success=True,
                commitOid=_sha(files),
                commitUrl=f"{self.address}/{user}/{name}/commit/{_sha(files)}",
                hookOutput="",
            )

        @app.get("/<user>/<name>/resolve/<revision>/<file>")  # of HEAD too
        def resolve(user: str, name: str, revision: str, file: str) -> Any:
            files = self._files(user, name)
            if file not in files:
                return Response(status=404, headers={"X-Error-Code": "EntryNotFound"})
            etag = hashlib.sha256(files[file]).hexdigest()
            return Response(files[file], headers={"X-Repo-Commit": _sha(files), "ETag": f'"{etag}"'})

        return app

    def _files(self, user: str, name: str) -> dict[str, bytes]:
        if f"{user}/{name}" not in self.models:
            abort(Response(status=404, headers={"X-Error-Code": "RepoNotFound"}))
        return self.models[f"{user}/{name}"]


def _sha(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


def _front_matter(card: str) -> dict[str, Any]:
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    return yaml.safe_load(found[1]) if found else {}


@contextmanager
def fake_hub(patch: pytest.MonkeyPatch, cache: str) -> Iterator[FakeHub]:
    """The hub of this process while the context lasts, with its token and an empty cache."""
    hub = FakeHub()
    server = make_server("127.0.0.1", 0, hub.app(), threaded=True)
    hub.address = f"http://127.0.0.1:{server.port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    patch.setenv("HF_TOKEN", TOKEN)
    template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    settings = {"ENDPOINT": hub.address, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_CACHE": cache}
    # Weights then travel with the commit, not by a protocol of their own.
    settings |= {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
    for name, value in settings.items():
        patch.setattr(constants, name, value)
    try:
        yield hub
    finally:
        close_session()
        server.shutdown()
        thread.join()
        server.server_close()
