"""The objects below a URL, and those that a pattern matches."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from rerank_cli.storage.opened import first_seen, open_store, remember
from rerank_cli.storage.url import Url, parse_url


def is_object(text: str) -> bool:
    """Whether a URL names an object. A store that fails is told here: each further call would wait for it again."""
    try:
        first_seen(text)
    except FileNotFoundError:
        return False
    return True


def objects_below(text: str) -> list[str]:
    """The URLs of all objects whose URL begins with `text`."""
    return [str(url) for url in _list_urls(text)]


def matching_objects(pattern: str) -> set[str]:
    """The URLs that a pattern matches: objects, and folders (with a slash at the end).

    As in a shell, `*`, `?` and `[...]` match within one piece of a key, and `**` matches any number of pieces.
    """
    url = parse_url(pattern)
    fixed = re.split(r"[*?\[]", url.key, maxsplit=1)[0]
    wanted, only_folders = url.key.rstrip("/").split("/"), url.key.endswith("/")
    found = set()
    for one in _list_urls(str(Url(url.scheme, url.container, fixed))):
        pieces = one.key.split("/")
        for count in range(1, len(pieces) + 1):
            is_whole = count == len(pieces)
            if _matches(pieces[:count], wanted) and not (is_whole and only_folders):
                found.add(str(Url(url.scheme, url.container, "/".join(pieces[:count]) + ("" if is_whole else "/"))))
                break
    return found


def _list_urls(text: str) -> Iterator[Url]:
    url = parse_url(text)
    for key, stat in open_store(url).list(url.key):
        one = Url(url.scheme, url.container, key)
        remember(str(one), stat)
        yield one


def _matches(pieces: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether the pieces of a key match those of a pattern."""
    if not wanted:
        return not pieces
    if wanted[0] == "**":
        return any(_matches(pieces[count:], wanted[1:]) for count in range(len(pieces) + 1))
    return bool(pieces) and fnmatchcase(pieces[0], wanted[0]) and _matches(pieces[1:], wanted[1:])
