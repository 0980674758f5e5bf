"""Between a client and a store: calls that fail in each way that calls fail, and calls that take their time.

One call in twenty, by a seed: 500, 503, a connection that is reset before the store has heard of the call or after it
has done it (the acknowledgement is lost), a body that is cut, an answer that is slow, credentials that have expired.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

FAULTS = ("500", "503", "reset", "lost", "cut", "slow", "expired")
_SLOW_SECONDS = 0.3
_REFUSALS = {"500": (500, "InternalError"), "503": (503, "SlowDown"), "expired": (400, "ExpiredToken")}
_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "server", "date"}
_NOT_SENT = _HOP_BY_HOP | {"expect"}


class FaultProxy(ThreadingHTTPServer):
    """A proxy to `endpoint` on a port of its own. share: of the calls that fail; latency: seconds of each call."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, endpoint: str, *, share: float = 0.0, latency: float = 0.0, seed: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(endpoint)
        self.share, self.latency = share, latency
        self.calls: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._turn = threading.Lock()

    @property
    def endpoint(self) -> str:
        """Of the proxy."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def draw(self, method: str) -> str | None:
        """The fault of the next call."""
        with self._turn:
            self.calls[method] += 1
            fault = self._random.choice(FAULTS) if self._random.random() < self.share else None
            if fault:
                self.faults[fault] += 1
            return fault

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is none."""


@contextmanager
def fault_proxy(endpoint: str, **how: Any) -> Iterator[FaultProxy]:
    """A proxy that lives as long as the block."""
    proxy = FaultProxy(endpoint, **how)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        body = self._body()
        fault = self.server.draw(self.command)
        if self.server.latency:
            time.sleep(self.server.latency)
        if fault == "reset":
            self._reset()
        elif fault in ("500", "503", "expired"):
            self._refuse(fault)
        else:
            self._pass_on(body, fault)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return data

    def _pass_on(self, body: bytes, fault: str | None) -> None:
        place = self.server.upstream
        upstream = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _NOT_SENT}
            headers["Content-Length"] = str(len(body))
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            data = answer.read()
        finally:
            upstream.close()
        if fault == "lost":
            self._reset()
            return
        if fault == "slow":
            time.sleep(_SLOW_SECONDS)
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP | {"content-length"}:
                self.send_header(name, value)
        whole = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", whole or str(len(data)))
        self.end_headers()
        if fault == "cut" and len(data) > 1:
            self.wfile.write(data[: len(data) // 2])
            self._reset()
        elif self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, fault: str) -> None:
        status, code = _REFUSALS[fault]
        data = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>by the proxy</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _reset(self) -> None:
        """Close so that the other side hears of a reset, not of an end."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def finish(self) -> None:
        """The connection may be gone."""
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


for _method in ("GET", "PUT", "POST", "DELETE", "HEAD"):
    setattr(_Handler, f"do_{_method}", _Handler._serve)
