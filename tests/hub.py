"""A small Hub on loopback: one data set at one commit, with the calls that huggingface_hub's file system makes."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """The data set `repo` with these files, by path."""

    daemon_threads = True

    def __init__(self, repo: str, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repo, self.files = repo, files
        self.asked: list[str] = []

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
    return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        repo, files = self.server.repo, self.server.files
        if path in {f"/api/datasets/{repo}", *(f"/api/datasets/{repo}/revision/{name}" for name in ("main", SHA))}:
            self._json({"id": repo, "sha": SHA, "siblings": [{"rfilename": name} for name in files]})
        elif path == f"/api/datasets/{repo}/paths-info/{SHA}":
            form = parse_qs(body.decode())
            wanted = form.get("paths") or json.loads(body).get("paths", [])
            self._json([_entry(name, files[name]) for name in wanted if name in files])
        elif found := re.fullmatch(f"/api/datasets/{repo}/tree/{SHA}/?(.*)", path):
            self._json([_entry(name, data) for name, data in files.items() if name.startswith(found[1])])
        elif (found := re.fullmatch(f"/datasets/{repo}/resolve/{SHA}/(.*)", path)) and found[1] in files:
            self._file(files[found[1]])
        else:
            self._json({"error": "not found"}, 404)

    def _file(self, data: bytes) -> None:
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        piece = data[int(span[1]) : int(span[2]) + 1] if span else data
        self.send_response_only(206 if span else 200)
        self.send_header("Content-Length", str(len(piece)))
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", SHA)
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


for _method in ("GET", "POST", "HEAD"):
    setattr(_Handler, f"do_{_method}", _Handler._serve)
