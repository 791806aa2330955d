"""A hub on loopback that speaks as much of the Hugging Face hub's API as huggingface_hub asks of it for models.

    GET  /api/models/ORG/NAME[/revision/REV]      {"id", "sha", "siblings"}
    GET  /api/models/ORG/NAME/tree/REV            [{"type", "path", "size", "oid"}]
    HEAD, GET /ORG/NAME/resolve/REV/FILE          ETag, X-Repo-Commit, Range

What is missing or closed is told as there: 401, 403 and 404 with X-Error-Code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

PIECE = 1 << 20
ROUTE = re.compile(
    r"/api/models/(?P<api>[^/]+/[^/]+)(/revision/(?P<of>[^/]+)|/tree/(?P<tree>[^/]+))?"
    r"|/(?P<repo>[^/]+/[^/]+)/resolve/(?P<at>[^/]+)/(?P<file>.+)"
)


def commit_of(text: str) -> str:
    """Forty hex digits, as a commit's."""
    return hashlib.sha1(text.encode()).hexdigest()


@dataclasses.dataclass
class Repository:
    """What one repository serves.

    Attributes:
        commits: commit -> file's name -> its bytes, or where they lie.
        branches: name -> commit.
        token: who may read it at all; others are told that there is none.
        gated: its files are refused to everybody but who has this token.
    """

    commits: dict[str, Mapping[str, bytes | Path]]
    branches: dict[str, str]
    token: str | None = None
    gated: str | None = None

    @classmethod
    def of(cls, folder: Path, name: str = "first", **options: str) -> Repository:
        commit = commit_of(name)
        return cls({commit: files_of(folder)}, {"main": commit}, **options)


def files_of(folder: Path) -> dict[str, bytes | Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


@dataclasses.dataclass(frozen=True)
class Sent:
    """One answer: of a file also where it began, and how many bytes of it went out."""

    method: str
    path: str
    status: int
    file: str | None = None
    start: int = 0
    count: int = 0


class Hub(ThreadingHTTPServer):
    """Serves `repositories` by their names; `sent` is what it has answered.

    Attributes:
        cuts: file -> how many bytes of it go out before the connection is cut, one for each of the next answers.
        down: every answer is this status.
        lists: whether it lists trees.
        stalled: file -> what its answer waits for halfway.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.sent: list[Sent] = []
        self.cuts: dict[str, list[int]] = {}
        self.down: int | None = None
        self.lists = True
        self.stalled: dict[str, threading.Event] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def bodies(self) -> list[Sent]:
        """The answers that carried a file's bytes."""
        return [one for one in self.sent if one.method == "GET" and one.file is not None and one.status in (200, 206)]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        asked = ROUTE.fullmatch(path)
        if self.server.down is not None:
            return self._send(self.server.down, {})
        if asked is None or (asked["tree"] and not self.server.lists):
            return self._send(404, {})
        name, given = asked["api"] or asked["repo"], self.headers.get("Authorization", "").removeprefix("Bearer ")
        repository = self.server.repositories.get(name)
        if repository is None or repository.token not in (None, given):
            return self._send(401 if not given else 404, {"X-Error-Code": "RepoNotFound"})
        revision = urllib.parse.unquote(asked["of"] or asked["tree"] or asked["at"] or "main")
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            return self._send(404, {"X-Error-Code": "RevisionNotFound"})
        files = repository.commits[commit]
        if asked["api"]:
            return self._send_json(name, commit, files, tree=asked["tree"] is not None)
        if repository.gated not in (None, given):
            return self._send(403 if given else 401, {"X-Error-Code": "GatedRepo"})
        file = urllib.parse.unquote(asked["file"])
        if file not in files:
            return self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        return self._send_file(file, files[file], commit)

    def _send(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        self.server.sent.append(Sent(self.command, self.path, status))
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _send_json(self, name: str, commit: str, files: Mapping[str, bytes | Path], *, tree: bool) -> None:
        if tree:
            value: object = [
                {"type": "file", "path": file, "size": _size(content), "oid": _etag(content)}
                for file, content in files.items()
            ]
        else:
            value = {"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]}
        self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _send_file(self, file: str, content: bytes | Path, commit: str) -> None:
        size, start, end = _size(content), 0, _size(content)
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(span[1]), min(int(span[2] or size) + 1, size)
        self.send_response(206 if span else 200)
        self.send_header("ETag", f'"{_etag(content)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        if span:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.end_headers()
        if self.command == "HEAD":
            self.server.sent.append(Sent("HEAD", self.path, 200, file))
            return
        cuts, sent = self.server.cuts.get(file, []), 0
        stop = min(end - start, cuts.pop(0)) if cuts else end - start
        stalled, last = self.server.stalled.get(file), start + stop
        edges = [start, last] if stalled is None else [start, start + stop // 2, last]
        try:
            for first, behind in pairwise(edges):
                if first > start and stalled is not None:
                    stalled.wait()
                for piece in _pieces(content, first, behind):
                    self.wfile.write(piece)
                    sent += len(piece)
        finally:
            self.server.sent.append(Sent("GET", self.path, 206 if span else 200, file, start, sent))
        if stop < end - start:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(2)


def _size(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _etag(content: bytes | Path) -> str:
    """As of a file in Git LFS: of its content, which for one on the disk is told by its name."""
    return hashlib.sha256(content if isinstance(content, bytes) else str(content).encode()).hexdigest()


def _pieces(content: bytes | Path, start: int, end: int) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content[start:end]
        return
    with content.open("rb") as file:
        file.seek(start)
        while start < end:
            piece = file.read(min(PIECE, end - start))
            start += len(piece)
            yield piece


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """A hub, until the context ends."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
