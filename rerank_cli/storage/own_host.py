"""Refuse redirects to another host: only the server that the user named is asked.

object_store follows redirects of reads and cannot be told not to. So its client gets a proxy at which nothing listens,
for all hosts but these: the one that the user named, else those of the cloud, and those that give out the cloud's
credentials. If the user has set a proxy, that proxy is used, and decides.
"""

from __future__ import annotations

import http.client
import os
from typing import Any
from urllib.parse import quote, urlsplit

from rerank_cli.errors import UsageError

_NOBODY = "http://127.0.0.1:1"
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_ANSWER_SECONDS = 5.0
_MACHINE = "169.254.169.254"  # the metadata service, which tells a cloud's machine its credentials

_ADDRESSES = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
}
"""The variables that name the server, by kind of store."""

_EMULATOR, _EMULATED = "AZURE_STORAGE_USE_EMULATOR", "AZURITE_BLOB_STORAGE_URL"
_TRUE = ("1", "true", "on", "yes", "y")  # as object_store has it

_CLOUDS = {
    "s3": ("amazonaws.com", "amazonaws.com.cn"),
    "az": ("core.windows.net", "fabric.microsoft.com"),
    "gs": ("googleapis.com",),
}
_CREDENTIALS: dict[str, tuple[str, ...]] = {
    "s3": (),  # botocore asks for them, not object_store
    "az": ("microsoftonline.com", _MACHINE),
    "gs": ("googleapis.com", "metadata.google.internal", _MACHINE),
}
_OWN_CREDENTIALS = {
    "az": (
        "AZURE_AUTHORITY_HOST", "AZURE_STORAGE_AUTHORITY_HOST", "IDENTITY_ENDPOINT", "MSI_ENDPOINT",
        "AZURE_IDENTITY_ENDPOINT", "AZURE_MSI_ENDPOINT", "AZURE_FABRIC_TOKEN_SERVICE_URL",
    )
}  # fmt: skip
"""The variables that name further sources of credentials."""


def endpoint_of(store: str) -> str | None:
    """The address of the server that the user named, if any. store: `s3`, `az` or `gs`."""
    names = _ADDRESSES[store]
    if store == "az" and os.environ.get(_EMULATOR, "").lower() in _TRUE:
        if not os.environ.get(_EMULATED):
            return "http://127.0.0.1:10000"
        names = (_EMULATED,)
    for name in names:
        if address := os.environ.get(name):
            if urlsplit(address).scheme not in ("http", "https") or urlsplit(address).hostname is None:
                raise UsageError(f"{name} {address}: is not a URL", hint="for example https://storage.example.org")
            return address
    return None


def only_own_hosts(store: str) -> dict[str, Any]:
    """Options of a client that can reach the right hosts alone."""
    if any(os.environ.get(name) or os.environ.get(name.upper()) for name in _PROXIES):
        return {}
    endpoint = endpoint_of(store)
    named = [os.environ.get(name) for name in _OWN_CREDENTIALS.get(store, ())]
    hosts = [urlsplit(address).hostname for address in [endpoint, *named] if address]
    hosts += [*(() if endpoint else _CLOUDS[store]), *_CREDENTIALS[store]]
    return {"proxy_url": _NOBODY, "proxy_excludes": ",".join(filter(None, hosts))}


def sends_elsewhere(endpoint: str, container: str, key: str) -> bool:
    """Whether the server at `endpoint` answers with a redirect. No credentials are sent."""
    place = urlsplit(endpoint)
    kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
    connection = kind(place.hostname or "", place.port, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", f"/{container}/{quote(key)}")
        return 300 <= connection.getresponse().status < 400
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
