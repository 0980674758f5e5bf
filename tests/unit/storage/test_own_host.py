"""A redirect to another host is refused, at once and with a reason."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rerank_cli.errors import UsageError
from rerank_cli.storage.object_store import PART_BYTES, ObjectStore
from rerank_cli.storage.own_host import only_own_hosts
from rerank_cli.storage.store import StoreError
from rerank_cli.storage.url import parse_url
from tests.stores import AZURE_ACCOUNT, AZURE_KEY, Bucket


class _Elsewhere(BaseHTTPRequestHandler):
    def _serve(self) -> None:
        port = self.server.target.rpartition(":")[2]
        self.send_response_only(307)
        self.send_header("Location", f"http://localhost:{port}{self.path}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


for _method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
    setattr(_Elsewhere, f"do_{_method}", _Elsewhere._serve)


@pytest.fixture
def elsewhere(bucket: Bucket) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Elsewhere)
    server.target = bucket.endpoint
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_no_other_host_is_asked(
    bucket: Bucket, elsewhere: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bucket.put("a", b"data")
    monkeypatch.setenv("AWS_ENDPOINT_URL", elsewhere)
    store = ObjectStore(parse_url(bucket.url("")))
    large = tmp_path / "large"
    large.write_bytes(bytes(PART_BYTES + 1))
    calls: list[Callable[[], object]] = [
        lambda: store.read("a", 0, 4), lambda: store.stat("a"), lambda: list(store.list("")),
        lambda: store.put_new("b", b"data"), lambda: store.put("b", b"data"), lambda: store.delete("a"),
        lambda: store.put_file("b", large, {}, replace=True), lambda: store.drop_uploads("b"),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(StoreError, match="the store redirects to another address, which is not followed"):
            call()
    assert bucket.names() == ["a"]


OTHERS = {
    "az://container": {
        "AZURITE_BLOB_STORAGE_URL": "", "AZURE_STORAGE_USE_EMULATOR": "true", "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY,
        "AZURE_STORAGE_ACCOUNT_NAME": AZURE_ACCOUNT,
    },
    "gs://bucket": {"GOOGLE_BASE_URL": "", "GOOGLE_SKIP_SIGNATURE": "true"},
}  # fmt: skip


@pytest.mark.parametrize("place", OTHERS)
def test_no_other_host_is_asked_by_other_clouds(
    bucket: Bucket, elsewhere: str, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Where it was, the client would take the answers of the other server, of whatever kind it is."""
    for name, value in OTHERS[place].items():
        monkeypatch.setenv(name, value or elsewhere)
    store = ObjectStore(parse_url(f"{place}/"))
    for call in (lambda: store.read("a", 0, 4), lambda: store.stat("a"), lambda: list(store.list(""))):
        with pytest.raises(StoreError, match="the store redirects to another address, which is not followed"):
            call()


def test_hosts_are_those_of_the_cloud_or_those_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def hosts(kind: str) -> set[str]:
        return set(only_own_hosts(kind)["proxy_excludes"].split(","))

    assert hosts("s3") == {"amazonaws.com", "amazonaws.com.cn"}
    assert {"core.windows.net", "microsoftonline.com", "169.254.169.254"} <= hosts("az")
    assert hosts("gs") == {"googleapis.com", "metadata.google.internal", "169.254.169.254"}
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", "https://blob.example.org:8443/a")
    monkeypatch.setenv("AZURE_AUTHORITY_HOST", "https://login.example.org")
    assert {"blob.example.org", "login.example.org"} <= hosts("az")
    assert "core.windows.net" not in hosts("az")
    monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", "http://emulated.example.org")
    assert "emulated.example.org" not in hosts("az")
    monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
    assert "emulated.example.org" in hosts("az")
    monkeypatch.delenv("AZURITE_BLOB_STORAGE_URL")
    assert "127.0.0.1" in hosts("az")


def test_an_endpoint_that_is_no_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "not a url")
    with pytest.raises(UsageError, match="AWS_ENDPOINT_URL not a url: is not a URL"):
        only_own_hosts("s3")


def test_the_proxy_of_the_user_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example.org:3128")
    assert only_own_hosts("s3") == {}
