"""A small Hub on loopback: one data set, with the calls that huggingface_hub makes to read it and to commit to it.

Files ending in `.parquet` are stored apart (LFS), as the Hub has it by `.gitattributes`; a commit counts if the branch
stands where its author saw it.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_oFaWriterInTheTests"


class Hub(ThreadingHTTPServer):
    """The data set `repo` with these files, by path; the branch `main` grows by commits.

    commits: all of them, the first by the name `SHA`. faults: what the next commits meet: `503`, `lost` (it is done,
    and nobody hears of it), `moved` (another one comes before it).
    """

    daemon_threads = True

    def __init__(self, repo: str, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repo = repo
        self.commits = {SHA: files}
        self.asked: list[str] = []
        self.faults: list[str] = []
        self.large: dict[str, bytes] = {}
        self.turn = threading.Lock()

    @property
    def head(self) -> str:
        """The last commit."""
        return list(self.commits)[-1]

    @property
    def files(self) -> dict[str, bytes]:
        """What it has."""
        return self.commits[self.head]

    def commit(self, files: dict[str, bytes]) -> str:
        """Add files to what is there."""
        name = hashlib.sha1(f"{self.head} {len(self.commits)}".encode()).hexdigest()
        self.commits[name] = {**self.files, **files}
        return name

    @property
    def endpoint(self) -> str:
        """Of the server."""
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def hub(repo: str, files: dict[str, bytes]) -> Iterator[Hub]:
    """A Hub that lives as long as the block."""
    made = Hub(repo, files)
    thread = threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.shutdown()
        made.server_close()
        thread.join()


def _entry(path: str, data: bytes) -> dict[str, Any]:
    facts: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": _blob_id(data)}
    if path.endswith(".parquet"):
        facts["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return facts


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        repo, api = self.server.repo, f"/api/datasets/{self.server.repo}"
        named = re.fullmatch(f"(?:{api}/(?:revision|paths-info|tree)|/datasets/{repo}/resolve)/([^/]+)(?:/(.*))?", path)
        commit = {"main": self.server.head}.get(named[1], named[1]) if named else self.server.head
        files = self.server.commits.get(commit, {})
        if path in {api, f"{api}/revision/{named[1] if named else ''}"} and files:
            self._json({"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in files]})
        elif "/paths-info/" in path:
            form = parse_qs(body.decode())
            wanted = form.get("paths") or json.loads(body).get("paths", [])
            self._json([_entry(name, files[name]) for name in wanted if name in files])
        elif "/tree/" in path and named:
            self._json([_entry(name, data) for name, data in files.items() if name.startswith(named[2] or "")])
        elif "/resolve/" in path and named and named[2] in files:
            self._file(files[named[2]])
        elif path == f"{api}/refs":
            head = {"name": "main", "ref": "refs/heads/main", "targetCommit": self.server.head}
            self._json({"branches": [head], "tags": [], "converts": []})
        elif self.headers.get("Authorization") == f"Bearer {TOKEN}" or path.startswith("/large/"):
            self._write(path, body)
        else:
            known = path.startswith(api)
            self._json({"error": "not yours" if known else "not found"}, 403 if known else 404)

    def _write(self, path: str, body: bytes) -> None:
        repo, api = self.server.repo, f"/api/datasets/{self.server.repo}"
        if path == f"{api}/auth-check/write":
            self._json({})
        elif path == f"{api}/preupload/main":
            asked = json.loads(body)["files"]
            self._json({"files": [
                {"path": one["path"], "shouldIgnore": one["path"].startswith("ignored/"),
                 "uploadMode": "lfs" if one["path"].endswith(".parquet") else "regular"} for one in asked
            ]})  # fmt: skip
        elif path == f"/datasets/{repo}.git/info/lfs/objects/batch":
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.server.endpoint}/large/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
        elif path.startswith("/large/"):
            self.server.large[path.rpartition("/")[2]] = body
            self._json({})
        elif path == f"{api}/commit/main":
            self._commit([json.loads(line) for line in body.splitlines()])
        else:
            self._json({"error": "not found"}, 404)

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        with self.server.turn:
            fault = self.server.faults.pop(0) if self.server.faults else None
            if fault == "moved":
                self.server.commit({"by-another.txt": b"moved\n"})
            if fault == "503":
                self._json({"error": "busy"}, 503)
                return
            if lines[0]["value"].get("parentCommit") != self.server.head:
                self._json({"error": "the branch has moved"}, 412)
                return
            added = {}
            for line in lines[1:]:
                value = line["value"]
                is_large = line["key"] == "lfsFile"
                added[value["path"]] = self.server.large[value["oid"]] if is_large else b64decode(value["content"])
            name = self.server.commit(added)
        if fault == "lost":
            self.close_connection = True
            self.connection.close()
            return
        self._json(
            {"commitOid": name, "commitUrl": f"{self.server.endpoint}/datasets/{self.server.repo}/commit/{name}"}
        )

    def _file(self, data: bytes) -> None:
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        piece = data[int(span[1]) : int(span[2]) + 1] if span else data
        self.send_response_only(206 if span else 200)
        self.send_header("Content-Length", str(len(piece)))
        self.send_header("ETag", f'"{_blob_id(data)}"')
        self.send_header("X-Repo-Commit", self.server.head)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(piece)

    def _json(self, document: object, status: int = 200) -> None:
        data = json.dumps(document).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


for _method in ("GET", "POST", "PUT", "HEAD"):
    setattr(_Handler, f"do_{_method}", _Handler._serve)
