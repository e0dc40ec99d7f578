"""A stand-in for the Hub's HTTP API, as far as uploads go: it keeps what it is sent.

Repositories, visibility, branches, cards that are checked, commits of small files, and large files
by git-lfs's basic transfer; the paths are those of huggingface_hub's modules.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

OWNER, TOKEN = "me", "hf_stand_in"
LARGE = ".safetensors"
"""Files of this ending go by git-lfs."""


class Hub:
    """What the stand-in has been sent.

    Attributes:
        repositories: full name -> {"private": bool, branch: {path: content}}.
        messages: of the commits, in order.
        requests: method and path of each request.
        refuse: path's part -> status that such requests are answered with.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Any]] = {}
        self.objects: dict[str, bytes] = {}
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.refuse: dict[str, int] = {}
        self.url = ""

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        found: dict[str, bytes] = self.repositories[name][branch]
        return found

    # one method a request: each returns status and answer

    def create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name = f"{asked['organization'] or OWNER}/{asked['name']}"
        answer = {"url": f"{self.url}/{name}"}
        if name in self.repositories:
            return 409, answer
        private = asked.get("private", asked.get("visibility") == "private")
        self.repositories[name] = {"private": private, "main": {}}
        return 200, answer

    def model(self, name: str) -> tuple[int, Any]:
        if name not in self.repositories:
            return 404, {"error": "not found"}
        return 200, {"id": name, "private": self.repositories[name]["private"]}

    def check(self, asked: dict[str, Any]) -> tuple[int, Any]:
        bad = not asked["content"].startswith("---\n")
        errors = [{"message": "no metadata"}] if bad else []
        return (400 if bad else 200), {"errors": errors, "warnings": []}

    def preupload(self, asked: dict[str, Any]) -> tuple[int, Any]:
        files = [
            {"path": file["path"], "shouldIgnore": False,
             "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular"}
            for file in asked["files"]
        ]  # fmt: skip
        return 200, {"files": files}

    def batch(self, asked: dict[str, Any]) -> tuple[int, Any]:
        objects = [
            {"oid": o["oid"], "size": o["size"],
             "actions": {"upload": {"href": f"{self.url}/objects/{o['oid']}"}}}
            for o in asked["objects"]
        ]  # fmt: skip
        return 200, {"transfer": "basic", "objects": objects}

    def commit(self, name: str, branch: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        files = self.files(name, branch)
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
        oid = hashlib.sha1(repr(sorted(files)).encode()).hexdigest()
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{oid}", "commitOid": oid}

    def answer(self, method: str, path: str, body: bytes, token: str) -> tuple[int, Any]:
        parts = path.strip("/").split("/")
        refused = next((code for part, code in self.refuse.items() if part in path), None)
        if refused is not None:
            return refused, {"error": "no"}
        if parts[0] == "objects" and method == "PUT":
            assert hashlib.sha256(body).hexdigest() == parts[1]
            self.objects[parts[1]] = body
            return 200, {}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "bad token"}
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.check(json.loads(body))
        if path.endswith("/info/lfs/objects/batch"):
            return self.batch(json.loads(body))
        name, rest = "/".join(parts[2:4]), parts[4:]
        if method == "GET":
            return self.model(name)
        if rest[0] == "preupload":
            return self.preupload(json.loads(body))
        if rest[0] == "branch":
            self.repositories[name].setdefault(rest[1], {})
            return 200, {}
        assert rest[0] == "commit", path
        return self.commit(name, rest[1], [json.loads(line) for line in body.splitlines()])


@contextmanager
def serving() -> Iterator[Hub]:
    """Answer at a port of this machine until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            hub.requests.append(f"{self.command} {path}")
            token = self.headers.get("Authorization") or ""
            status, answer = hub.answer(self.command, path, body, token)
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = _serve  # noqa: N815 (names of the library's)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
