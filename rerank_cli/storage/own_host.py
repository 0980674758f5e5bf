"""No redirect to another host is followed: what a user has named is asked, and nobody else.

object_store follows redirects of reads, and has no switch for it. So its client for S3 is given a proxy that nobody is,
for all hosts but the one that is meant. Where the user has a proxy, that proxy is used, and decides.
"""

from __future__ import annotations

import http.client
import os
from typing import Any
from urllib.parse import quote, urlsplit

from rerank_cli.errors import UsageError

_NOBODY = "http://127.0.0.1:1"
_AMAZON = "amazonaws.com,amazonaws.com.cn"
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_ANSWER_SECONDS = 5.0


def only_host_of(endpoint: str | None) -> dict[str, Any]:
    """Options of a client that reaches the host of `endpoint` alone; without one, Amazon's."""
    if any(os.environ.get(name) or os.environ.get(name.upper()) for name in _PROXIES):
        return {}
    if endpoint is None:
        return {"proxy_url": _NOBODY, "proxy_excludes": _AMAZON}
    host = urlsplit(endpoint).hostname
    if host is None or urlsplit(endpoint).scheme not in ("http", "https"):
        raise UsageError(f"AWS_ENDPOINT_URL {endpoint}: is no address", hint="for example https://storage.example.org")
    return {"proxy_url": _NOBODY, "proxy_excludes": host}


def sends_elsewhere(endpoint: str, container: str, key: str) -> bool:
    """Whether the server at `endpoint` answers with a redirect; it is asked without credentials."""
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
