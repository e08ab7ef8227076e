"""A local server with the part of the hub's API that huggingface_hub uses: accounts, repositories, LFS, commits."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_aTokenThatMustNeverBeSeenAnywhere"
LFS = (".safetensors", ".gguf", ".parquet", ".bin")


@dataclass
class Repo:
    """One repository; its branches are dictionaries of path -> content."""

    private: bool
    branches: dict[str, dict[str, bytes]]
    commits: list[tuple[str, str, list[str]]] = field(default_factory=list)
    """(branch, summary, paths of the commit)."""

    def sha(self, branch: str) -> str:
        content = {path: hashlib.sha256(data).hexdigest() for path, data in self.branches[branch].items()}
        return hashlib.sha1(json.dumps([content, len(self.commits)], sort_keys=True).encode()).hexdigest()


@dataclass
class Fault:
    """A fault at requests whose "METHOD path" matches."""

    where: str
    status: int = 0
    """Status of the response; 0 drops the connection inside the body."""
    times: int = 1
    message: str = ""
    hold: threading.Event | None = None
    """Wait for this event before the response."""


class FakeHub(ThreadingHTTPServer):
    """The server with its repositories."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.role = "write"
        self.owners = ("me", "my-org")
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        """METHOD path of every request."""
        self.leaked: list[str] = []
        """Requests to the storage that carried the token."""

    def add(self, name: str, kind: str = "model", private: bool = True, **files: bytes) -> Repo:
        repo = Repo(private, {"main": {".gitattributes": b"", **{k.replace("__", "."): v for k, v in files.items()}}})
        self.repos[kind, name] = repo
        return repo

    def files(self, name: str, kind: str = "model", branch: str = "main") -> dict[str, bytes]:
        found = self.repos[kind, name].branches[branch]
        return {path: data for path, data in found.items() if path != ".gitattributes"}

    def count(self, what: str) -> int:
        return sum(bool(re.match(what, line)) for line in self.requests)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors of dropped connections."""


@contextmanager
def running() -> Iterator[FakeHub]:
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def connected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """Start a hub, direct this process to it, and give it an empty cache. For fixtures."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    with running() as made:
        monkeypatch.setattr(constants, "ENDPOINT", made.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", made.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)  # between its attempts
        yield made
        _http.close_session()


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def _run(self) -> None:
        path = unquote(urlsplit(self.path).path)
        line = f"{self.command} {path}"
        self.server.requests.append(line)
        fault = next((f for f in self.server.faults if f.times > 0 and re.search(f.where, line)), None)
        if fault:
            fault.times -= 1
            if fault.hold:
                fault.hold.wait(30)
            if not fault.status and not fault.hold:
                self.rfile.read(min(200, int(self.headers.get("Content-Length") or 0)))
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length else self._chunks()
        if fault and fault.status:
            self._answer(
                fault.status, {"error": fault.message}, **({"X-Error-Message": fault.message} if fault.message else {})
            )
            return
        if path.startswith("/storage/"):
            self._store(path.rpartition("/")[2], body, line)
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid credentials"}, **{"X-Error-Message": "Invalid credentials"})
        else:
            self._route(path, body)

    do_GET = do_POST = do_PUT = do_HEAD = _run

    def _chunks(self) -> bytes:
        found = b""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return found
        while size := int(self.rfile.readline().split(b";")[0], 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _answer(self, status: int, value: Any = None, **headers: str) -> None:
        data = json.dumps(value).encode() if value is not None else b""
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _store(self, oid: str, body: bytes, line: str) -> None:
        if self.headers.get("Authorization"):
            self.server.leaked.append(line)
        if hashlib.sha256(body).hexdigest() != oid:
            return self._answer(400, {"error": "another content than was announced"})
        self.server.blobs[oid] = body
        return self._answer(200)

    def _route(self, path: str, body: bytes) -> None:
        hub = self.server
        if path == "/api/whoami-v2":
            return self._answer(200, {"name": "me", "orgs": [], "auth": {"accessToken": {"role": hub.role}}})
        if path == "/api/validate-yaml":
            card = json.loads(body)
            assert card["content"].startswith("---\n") and card["repoType"] in ("model", "dataset")
            return self._answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch(json.loads(body))
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(hub.repos["model", found[1]], found[2], found[3])
        found = re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(\w+)/(.+))?", path)
        repo = hub.repos.get((found[1], found[2])) if found else None
        if not found or repo is None:
            return self._answer(404, {"error": "Repository not found"}, **{"X-Error-Code": "RepoNotFound"})
        what, branch = found[3], found[4] or "main"
        branch = next((name for name in repo.branches if repo.sha(name) == branch), branch)
        if what == "branch":
            repo.branches.setdefault(branch, dict(repo.branches["main"]))
            return self._answer(200, {})
        if branch not in repo.branches:
            return self._answer(404, {"error": "Invalid rev id"}, **{"X-Error-Code": "RevisionNotFound"})
        if what in (None, "revision"):
            return self._info(found[2], repo, branch)
        if what == "tree":
            entries = [(path, data) for path, data in repo.branches[branch].items()]
            return self._answer(
                200,
                [{"type": "file", "path": path, "size": len(data), "oid": _git_hash(data)} for path, data in entries],
            )
        if what == "preupload":
            return self._preupload(repo.branches[branch], json.loads(body))
        assert what == "commit"
        return self._commit(repo, branch, [json.loads(line) for line in body.splitlines()])

    def _create(self, request: dict[str, Any]) -> None:
        name = f"{request['organization']}/{request['name']}"
        if request["organization"] not in self.server.owners:
            message = "You don't have the rights to create a model under the namespace"
            return self._answer(403, {"error": message}, **{"X-Error-Message": message})
        if (request["type"], name) in self.server.repos:
            return self._answer(409, {"error": "You already created this model repo", "url": "http://x/y"})
        private = request.get("visibility") == "private" or bool(request.get("private"))
        self.server.add(name, request["type"], private)
        return self._answer(200, {"url": f"{self.server.url}/{name}"})

    def _info(self, name: str, repo: Repo, branch: str) -> None:
        files = repo.branches[branch]
        card = files.get("README.md", b"").decode("utf-8", "replace")
        tags = re.search(r"^tags: \[(.*)\]$", card, re.M)
        self._answer(200, {
            "id": name, "sha": repo.sha(branch), "private": repo.private, "tags": tags[1].split(", ") if tags else [],
            "siblings": [{"rfilename": path} for path in files],
        })  # fmt: skip

    def _file(self, repo: Repo, commit: str, path: str) -> None:
        branch = next(name for name in repo.branches if repo.sha(name) == commit)
        data = repo.branches[branch][path]
        self.send_response(200)
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        for name, text in (("Content-Length", str(len(data))), ("ETag", etag), ("X-Repo-Commit", commit)):
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _preupload(self, files: dict[str, bytes], request: dict[str, Any]) -> None:
        results = []
        for file in request["files"]:
            lfs, old = file["path"].endswith(LFS), files.get(file["path"])
            oid = None if old is None else hashlib.sha256(old).hexdigest() if lfs else _git_hash(old)
            results.append({"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False,
                         "oid": oid})  # fmt: skip
        self._answer(200, {"files": results})

    def _batch(self, request: dict[str, Any]) -> None:
        results = []
        for item in request["objects"]:
            action = {"upload": {"href": f"{self.server.url}/storage/{item['oid']}?X-Amz-Signature=s3cretsignature"}}
            results.append({**item, **({} if item["oid"] in self.server.blobs else {"actions": action})})
        self._answer(200, {"transfer": "basic", "objects": results})

    def _commit(self, repo: Repo, branch: str, lines: list[dict[str, Any]]) -> None:
        head = lines[0]["value"]
        if head.get("parentCommit") not in (None, repo.sha(branch)):
            return self._answer(412, {"error": "A commit has happened since. Please refresh and try again."})
        files = {}
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile", line
                files[value["path"]] = self.server.blobs[value["oid"]]
        repo.branches[branch].update(files)
        repo.commits.append((branch, head["summary"], sorted(files)))
        oid = repo.sha(branch)
        return self._answer(200, {"commitUrl": f"{self.server.url}/c/{oid}", "commitOid": oid})
