"""The objects below a URL, and those that a pattern matches."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rerank_cli.storage.opened import first_seen, open_store, remember
from rerank_cli.storage.url import Url, parse_url


def is_object(text: str) -> bool:
    """Whether a URL names an object; true also if the store fails, because reading it then says why."""
    try:
        first_seen(text)
    except FileNotFoundError:
        return False
    except OSError:
        return True
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
    wanted = _compiled(url.key)
    found = set()
    for one in _list_urls(str(Url(url.scheme, url.container, fixed))):
        pieces = one.key.split("/")
        for count in range(1, len(pieces) + 1):
            if wanted.fullmatch("/".join(pieces[:count])):
                is_whole = count == len(pieces)
                found.add(str(Url(url.scheme, url.container, "/".join(pieces[:count]) + ("" if is_whole else "/"))))
                break
    return found


def _list_urls(text: str) -> Iterator[Url]:
    url = parse_url(text)
    for key, stat in open_store(url).list(url.key):
        one = Url(url.scheme, url.container, key)
        if not key.endswith("/"):  # some tools put an empty object with such a key to stand for a folder
            remember(str(one), stat)
            yield one


def _compiled(pattern: str) -> re.Pattern[str]:
    text, at = "", 0
    while at < len(pattern):
        char = pattern[at]
        if pattern.startswith("**/", at):
            text, at = text + "(?:[^/]+/)*", at + 3
        elif pattern.startswith("**", at):
            text, at = text + ".*", at + 2
        elif char == "[" and (end := pattern.find("]", at + 2)) > 0:
            inside = pattern[at + 1 : end].replace("\\", r"\\")
            negated = inside.startswith("!")
            text += f"[{'^/' if negated else ''}{inside[negated:]}]"
            at = end + 1
        else:
            text += {"*": "[^/]*", "?": "[^/]"}.get(char) or re.escape(char)
            at += 1
    return re.compile(text)
