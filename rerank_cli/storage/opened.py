"""The store of a URL, opened once per process, and the first stat of each object that is read."""

from __future__ import annotations

from functools import cache

from rerank_cli.storage.hub_store import HubStore
from rerank_cli.storage.object_store import ObjectStore
from rerank_cli.storage.store import Stat, Store
from rerank_cli.storage.url import Url, parse_url


def open_store(url: Url) -> Store:
    """The store of a URL."""
    return _open_remote(url.scheme, url.container)


@cache
def _open_remote(scheme: str, container: str) -> Store:
    url = Url(scheme, container, "")
    return HubStore(url) if scheme == "hf" else ObjectStore(url)


def first_seen(text: str) -> Stat:
    """The first stat of an object in this process.

    A later read gets this version or fails, so a run needs no second stat to know that nothing has changed.
    """
    if text not in _seen:
        url = parse_url(text)
        _seen[text] = open_store(url).stat(url.key)
    return _seen[text]


def remember(text: str, found: Stat) -> None:
    """Take the entry of a list as the first stat of an object."""
    _seen.setdefault(text, found)


def forget() -> None:
    """Forget all stores and stats; the tests start with none."""
    _open_remote.cache_clear()
    _seen.clear()


_seen: dict[str, Stat] = {}
