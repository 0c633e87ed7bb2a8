"""A model hub on the loopback: what `huggingface_hub` asks of the real one, and the faults that it must survive."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LARGE = (".safetensors", ".parquet")  # served from another host, as the hub does

Files = Mapping[str, bytes]


@dataclass
class Repo:
    """A model or a data set: commits with their files, and the branches and tags that name them.

    Attributes:
        private: the token that may read it; None for a public one.
        gated: the tokens that have accepted its licence; None for one without.
        fault: what goes wrong with every request: a status, such as 429 or 503, or "silent".
        files_fault: what goes wrong with downloads of large files: "cut", "cut once", "half" (cut each time, without
            going on in the middle), "stall", or a status.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    private: str | None = None
    gated: tuple[str, ...] | None = None
    fault: int | str | None = None
    files_fault: int | str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def commit(self, files: Files, branch: str = "main", commit: str | None = None) -> str:
        """Add a commit with these files to a branch, and return its hash."""
        name = commit or hashlib.sha1(repr((sorted(files.items()), len(self.commits))).encode()).hexdigest()
        self.commits[name] = dict(files)
        self.branches[branch] = name
        return name

    def at(self, revision: str) -> str | None:
        """The commit of a revision; None if there is none."""
        return {**self.branches, **self.tags, **{c: c for c in self.commits}}.get(revision)


def folder(path: Path) -> dict[str, bytes]:
    """The files of a directory, by their paths in it."""
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@dataclass
class Hub:
    """A hub, its repositories by (kind, name) with kind "models" or "datasets", and what it was asked.

    Attributes:
        delay: seconds before every answer.
        asked: method and path of every request.
        tokens: the tokens that requests have shown.
    """

    url: str = ""
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    delay: float = 0.0
    asked: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    accounts: tuple[str, ...] = ("hf_reader", "hf_member")
    closing: threading.Event = field(default_factory=threading.Event)

    def model(self, name: str, files: Files | None = None, **facts: Any) -> Repo:
        return self._add("models", name, files, facts)

    def dataset(self, name: str, files: Files | None = None, **facts: Any) -> Repo:
        return self._add("datasets", name, files, facts)

    def _add(self, kind: str, name: str, files: Files | None, facts: dict[str, Any]) -> Repo:
        repo = self.repos[kind, name] = Repo(**facts)
        if files is not None:
            repo.commit(files)
        return repo


@contextmanager
def serve(hub: Hub | None = None, port: int = 0) -> Iterator[Hub]:
    """Serve a hub on a free port of the loopback, or on a given one, until the block ends."""
    hub = hub or Hub()
    hub.closing.clear()
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    server.block_on_close = False
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        server.server_close()


_API = re.compile(r"/api/(models|datasets)/(.+?)(?:/(revision|tree|refs)(?:/(.+))?)?")
_FILE = re.compile(r"/(?:(datasets)/)?(.+?)/resolve/([^/]+)/(.+)")
_LARGE = re.compile(r"/large/(models|datasets)/(.+?)/-/([0-9a-f]+)/(.+)")


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].replace("%2F", "/")
        self.hub.asked.append(f"{self.command} {path}")
        if token := self._token():
            self.hub.tokens.add(token)
        time.sleep(self.hub.delay)
        if found := re.fullmatch(r"/fail/(models|datasets)/(.+)", path):  # from now on
            self.hub.repos[found[1], found[2]].fault = 503
            self._json({})
        elif found := _LARGE.fullmatch(path):
            kind, name, commit, file = found.groups()
            self._large(self.hub.repos[kind, name], self.hub.repos[kind, name].commits[commit][file])
        elif found := _API.fullmatch(path):
            kind, name, what, rest = found.groups()
            self._api(kind, name, what, rest or "main")
        elif found := _FILE.fullmatch(path):
            kind, name, revision, file = found.groups()
            self._resolve(kind or "models", name, revision, file)
        else:
            self._refuse(404, None, "not found")

    do_HEAD = do_GET

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _open(self, kind: str, name: str) -> Repo | None:
        """The repository, if the request may read it; else the refusal has been sent."""
        repo, token = self.hub.repos.get((kind, name)), self._token()
        if repo is not None and repo.fault == "silent":
            self.hub.closing.wait(60)
            self.close_connection = True
        elif repo is not None and repo.fault == "page":
            self._send(200, b"<html>Please log in to the network</html>", {"Content-Type": "text/html"})
        elif repo is not None and repo.fault is not None:
            self._refuse(int(repo.fault), None, "the hub is busy", repo.headers)
        elif token and token not in self.hub.accounts:
            self._refuse(401, None, "Invalid credentials in Authorization header")
        elif repo is None or (repo.private is not None and token != repo.private):
            missing = 404 if token else 401  # as the hub does: without a token it does not tell
            self._refuse(missing, "RepoNotFound", "Repository not found" if token else "Invalid username or password.")
        else:
            return repo
        return None

    def _api(self, kind: str, name: str, what: str | None, rest: str) -> None:
        repo = self._open(kind, name)
        if repo is None:
            return
        if what == "refs":
            refs = {key: [{"name": n, "ref": n, "targetCommit": c} for n, c in names.items()]
                    for key, names in (("branches", repo.branches), ("tags", repo.tags))}  # fmt: skip
            self._json({**refs, "converts": []})
            return
        commit = repo.at(rest.partition("/")[0])
        if commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {rest}")
            return
        files = repo.commits[commit]
        if what == "tree":
            self._json([{"type": "file", "path": n, "size": len(b), "oid": _etag(b)} for n, b in files.items()])
            return
        facts = {"id": name, "_id": name, "sha": commit, "private": repo.private is not None, "disabled": False}
        self._json({**facts, "gated": repo.gated is not None, "tags": [], "downloads": 0, "likes": 0,
                    "siblings": [{"rfilename": n} for n in files]})  # fmt: skip

    def _resolve(self, kind: str, name: str, revision: str, file: str) -> None:
        repo = self._open(kind, name)
        if repo is None:
            return
        commit = repo.at(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif repo.gated is not None and self._token() not in repo.gated:
            self._refuse(403 if self._token() else 401, "GatedRepo", f"Access to {kind[:-1]} {name} is restricted")
        elif file not in repo.commits[commit]:
            self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        else:
            body = repo.commits[commit][file]
            facts = {"ETag": f'"{_etag(body)}"', "X-Repo-Commit": commit}
            if not file.endswith(LARGE):
                self._send(200, body, facts)
                return
            linked = {"X-Linked-Etag": f'"{_etag(body)}"', "X-Linked-Size": str(len(body))}
            elsewhere = self.hub.url.replace("127.0.0.1", "localhost")
            self._send(302, b"", {**facts, **linked, "Location": f"{elsewhere}/large/{kind}/{name}/-/{commit}/{file}"})

    def _large(self, repo: Repo, body: bytes) -> None:
        fault = repo.files_fault
        if isinstance(fault, int):
            self._refuse(fault, None, "the store is busy", repo.headers)
            return
        begins = "" if fault == "half" else self.headers.get("Range", "")
        begin = int(match[1]) if (match := re.fullmatch(r"bytes=(\d+)-", begins)) else 0
        part = body[begin:]
        self.send_response(206 if begin else 200)
        self.send_header("ETag", f'"{_etag(body)}"')
        self.send_header("Content-Length", str(len(part)))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault is None:
            self.wfile.write(part)
            return
        self.wfile.write(b"" if begin else part[: len(part) // 2])
        self.wfile.flush()
        if fault == "stall":
            self.hub.closing.wait(60)
        if fault == "cut once":
            repo.files_fault = None
        self.close_connection = True

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str | None, message: str, headers: Mapping[str, str] | None = None) -> None:
        facts = {"X-Error-Message": message, "Content-Type": "application/json", **(headers or {})}
        if code is not None:
            facts["X-Error-Code"] = code
        self._send(status, json.dumps({"error": message}).encode(), facts)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _etag(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
