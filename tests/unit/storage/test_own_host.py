"""A server that sends to another host is not followed, and that is said at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rerank_cli.errors import UsageError
from rerank_cli.storage.object_store import ObjectStore
from rerank_cli.storage.own_host import only_host_of
from rerank_cli.storage.store import StoreError
from rerank_cli.storage.url import parse_url
from tests.stores import Bucket


class _Elsewhere(BaseHTTPRequestHandler):
    def _serve(self) -> None:
        port = self.server.target.rpartition(":")[2]  # type: ignore[attr-defined]
        self.send_response_only(307)
        self.send_header("Location", f"http://localhost:{port}{self.path}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


for _method in ("GET", "HEAD", "PUT"):
    setattr(_Elsewhere, f"do_{_method}", _Elsewhere._serve)


@pytest.fixture
def elsewhere(bucket: Bucket) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Elsewhere)
    server.target = bucket.endpoint  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_no_other_host_is_asked(bucket: Bucket, elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put("a", b"data")
    monkeypatch.setenv("AWS_ENDPOINT_URL", elsewhere)
    store = ObjectStore(parse_url(bucket.url("")))
    for call in (lambda: store.read("a", 0, 4), lambda: store.stat("a"), lambda: store.put_new("b", b"data")):
        with pytest.raises(StoreError, match="the store sends to another address, which is not followed"):
            call()
    assert bucket.names() == ["a"]


def test_an_endpoint_that_is_no_address_is_named() -> None:
    with pytest.raises(UsageError, match="AWS_ENDPOINT_URL not a url: is no address"):
        only_host_of("not a url")


def test_the_proxy_of_the_user_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example.org:3128")
    assert only_host_of(None) == {}
