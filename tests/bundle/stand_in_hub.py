# SPDX-License-Identifier: Apache-2.0
"""A hub of one process: what huggingface_hub asks of the real one, over real HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """Commits of repositories: {repo: {commit: {file: bytes}}}, newest last."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.address = ""
        self.requests: list[str] = []

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        """Add a commit and return its id."""
        commits = self.repos.setdefault(repo, {})
        text = f"{repo}{len(commits)}{sorted(files)}"
        name = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        commits[name] = files
        return name

    def files(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.repos.get(repo, {})
        if revision == "main" and commits:
            return list(commits.items())[-1]
        return (revision, commits[revision]) if revision in commits else None


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")

    def answer(self, status: int, body: Any, **headers: str) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def missing(self) -> None:
        self.answer(404, {"error": "not found"}, X_Error_Code="RepoNotFound")

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self.describe("/".join(parts[2:4]), parts[4:])
        elif len(parts) > 4 and parts[2] == "resolve":
            self.file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self.missing()

    do_HEAD = do_GET

    def describe(self, repo: str, rest: list[str]) -> None:
        found = self.hub.files(repo, rest[1] if len(rest) > 1 else "main")
        if found is None:
            self.missing()
            return
        commit, files = found
        if rest[:1] == ["tree"]:
            tree = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(data),
                    "oid": hashlib.sha1(data, usedforsecurity=False).hexdigest(),
                }
                for name, data in files.items()
            ]
            self.answer(200, tree)
        else:
            siblings = [{"rfilename": name} for name in files]
            self.answer(200, {"id": repo, "sha": commit, "siblings": siblings})

    def file(self, repo: str, revision: str, name: str) -> None:
        found = self.hub.files(repo, revision)
        if found is None or name not in found[1]:
            self.missing()
            return
        data = found[1][name]
        etag = hashlib.sha256(data).hexdigest()
        self.answer(200, data, ETag=f'"{etag}"', X_Repo_Commit=found[0])

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            repo = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
            if repo not in self.hub.repos:
                self.hub.commit(repo, {})
            self.answer(200, {"url": f"{self.hub.address}/{repo}"})
            return
        repo = "/".join(parts[2:4])
        if repo not in self.hub.repos:
            self.missing()
        elif parts[4] == "preupload":
            files = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in files
            ]
            self.answer(200, {"files": modes})
        else:
            self.take(repo, body)

    def take(self, repo: str, body: bytes) -> None:
        found = self.hub.files(repo, "main")
        files = dict(found[1]) if found else {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                files = {
                    n: d for n, d in files.items() if not fnmatch(n, value["path"])
                }
        commit = self.hub.commit(repo, files)
        address = f"{self.hub.address}/{repo}/commit/{commit}"
        self.answer(200, {"commitOid": commit, "commitUrl": address, "success": True})


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve a hub while in the block."""
    hub = Hub()
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
