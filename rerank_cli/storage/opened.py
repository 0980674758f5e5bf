"""The store of a URL, opened once a process, and what was first seen of each object that is read."""

from __future__ import annotations

from functools import cache

from rerank_cli.storage.hub_store import HubStore
from rerank_cli.storage.object_store import ObjectStore
from rerank_cli.storage.store import Stat, Store
from rerank_cli.storage.url import Url, parse_url


def open_store(url: Url) -> Store:
    """The store that a URL lies in."""
    return _open_remote(url.scheme, url.container)


@cache
def _open_remote(scheme: str, container: str) -> Store:
    url = Url(scheme, container, "")
    return HubStore(url) if scheme == "hf" else ObjectStore(url)


def first_seen(text: str) -> Stat:
    """What the store said of an object when it was first looked at in this process.

    What is read later is this version of it or a fault, so a run needs no second look to know that nothing changed.
    """
    if text not in _seen:
        url = parse_url(text)
        _seen[text] = open_store(url).stat(url.key)
    return _seen[text]


def remember(text: str, found: Stat) -> None:
    """Take what a list says for the first look at an object."""
    _seen.setdefault(text, found)


def forget() -> None:
    """Open and look at everything anew."""
    _open_remote.cache_clear()
    _seen.clear()


_seen: dict[str, Stat] = {}
