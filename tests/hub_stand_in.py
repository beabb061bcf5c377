"""A stand-in for the Hugging Face hub and for other servers of files, on localhost."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_" + "t" * 34


@dataclass
class Repository:
    """Files of one commit."""

    files: dict[str, bytes] = field(default_factory=dict)
    is_private: bool = False
    listed: list[str] = field(default_factory=list)
    """Names that the listing adds to those of the files."""

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()


@dataclass
class StandIn:
    """What the server has, and what it was asked."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    """Files outside of repositories, by path."""
    most_bytes: list[int] = field(default_factory=list)
    """Bytes after which the next answers break off, each used once."""
    status: int | None = None
    """Answer to every request, if set."""
    has_tags: bool = True
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def asked(self, method: str, path: str) -> list[dict[str, str]]:
        """Return the headers of the requests of a path."""
        return [headers for m, p, headers in self.requests if (m, p) == (method, path)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stand_in: ClassVar[StandIn]

    def log_message(self, format: str, *args: Any) -> None:
        return

    def _answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), Content_Type="application/json")

    def _begin(self) -> tuple[str, bytes]:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.stand_in.requests.append((self.command, path, dict(self.headers.items())))
        return path, body

    def _may_see(self, repository: Repository) -> bool:
        return not repository.is_private or self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _find(self, name: str) -> Repository | None:
        """Return a repository; answer as the hub does where there is none for this client."""
        found = self.stand_in.repositories.get(name)
        if found is None or not self._may_see(found):
            self._answer(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository Not Found")
            return None
        return found

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, _ = self._begin()
        if self.stand_in.status is not None:
            self._answer(self.stand_in.status)
        elif path in self.stand_in.files:
            self._file(self.stand_in.files[path])
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(found[1], found[2] or "main")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(found[1], found[2], found[3])
        else:
            self._answer(404)

    def _info(self, name: str, revision: str) -> None:
        repository = self._find(name)
        if repository is None:
            return
        if revision not in ("main", repository.commit):
            self._answer(404, X_Error_Code="RevisionNotFound")
            return
        names = [*repository.files, *repository.listed]
        siblings = [{"rfilename": file} for file in names]
        self._json({"id": name, "sha": repository.commit, "private": repository.is_private, "siblings": siblings})

    def _resolve(self, name: str, revision: str, file: str) -> None:
        repository = self._find(name)
        if repository is None:
            return
        if revision not in ("main", repository.commit):
            self._answer(404, X_Error_Code="RevisionNotFound")
        elif file not in repository.files:
            self._answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=repository.commit)
        else:
            self._file(repository.files[file], X_Repo_Commit=repository.commit)

    def _file(self, content: bytes, **headers: str) -> None:
        """Answer with a file, or the part of it that is asked for, or only its first bytes."""
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        headers |= {"ETag": tag, "Accept_Ranges": "bytes"} if self.stand_in.has_tags else {}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        status, start = 200, 0
        if wanted and self.headers.get("If-Range", tag) == tag:
            start = int(wanted[1])
            if start >= len(content):
                self._answer(416, Content_Range=f"bytes */{len(content)}")
                return
            status, headers["Content_Range"] = 206, f"bytes {start}-{len(content) - 1}/{len(content)}"
        rest = content[start:]
        sent = rest
        if self.command == "GET" and self.stand_in.most_bytes:
            sent = rest[: self.stand_in.most_bytes.pop(0)]
            self.close_connection = True
        self._answer(status, sent, Content_Length=str(len(rest)), **headers)

    def do_POST(self) -> None:
        path, body = self._begin()
        if self.stand_in.status is not None:
            self._answer(self.stand_in.status)
        elif path == "/api/validate-yaml":
            self._validate(json.loads(body)["content"])
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401)
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = [file["path"] for file in json.loads(body)["files"]]
            self._json({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in files]})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self._commit(found[1], body)
        else:
            self._answer(404)

    def _validate(self, card: str) -> None:
        _, front, _ = card.split("---\n", 2)
        metadata = yaml.safe_load(front)
        errors = [] if isinstance(metadata, dict) else [{"message": "the metadata must be a mapping"}]
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.stand_in.repositories:
            self._json({"error": "it exists", "url": f"{self.stand_in.url}/{name}"}, 409)
            return
        is_private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.stand_in.repositories[name] = Repository(is_private=is_private)
        self._json({"url": f"{self.stand_in.url}/{name}"})

    def _commit(self, name: str, body: bytes) -> None:
        repository = self.stand_in.repositories[name]
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                repository.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        address = f"{self.stand_in.url}/{name}/commit/{repository.commit}"
        self._json({"success": True, "commitOid": repository.commit, "commitUrl": address})


@contextmanager
def serving() -> Iterator[StandIn]:
    """Context of a server on a free port."""
    stand_in = StandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"stand_in": stand_in}))
    stand_in.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
