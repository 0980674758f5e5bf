"""A URL where the program expects a `Path`: what a run asks of the path is asked of the store.

`path_of` makes the path of a text that a user typed. A `UrlPath` has a name, a parent, a stat and an open. What a store
does not have is refused (a descriptor, a mode, a link), and so is `os.fspath`: no call of the operating system can take
a URL for a local path.

Its stat has the object's size, and a number made of the etag as inode, so two stats are equal if the content is. The
times are 0: a store's time adds nothing to the etag.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from pathlib import Path, PosixPath, PurePath
from typing import Any, NoReturn, TypeGuard

from rerank_cli.errors import UsageError
from rerank_cli.storage.opened import first_seen, open_store
from rerank_cli.storage.store import Stat
from rerank_cli.storage.url import Url, is_url, parse_url

SHA256, JOB = "rerank_sha256", "rerank_job"
"""The metadata that this program puts with an object: the SHA-256 of its content, and the job that made it."""


def path_of(text: str | Path) -> Path:
    """The path that a user means: local, or a URL."""
    return UrlPath(str(text)) if is_url(text) else Path(text)


def is_on_hub(path: Path) -> TypeGuard[UrlPath]:
    """Whether a path is a file in a data set of the Hub, where files are put in commits."""
    return isinstance(path, UrlPath) and path.url.scheme == "hf"


class UrlPath(PosixPath):
    """The object at a URL, or the folder that its key names."""

    __slots__ = ("url",)
    url: Url
    """The parts of the URL."""

    def __new__(cls, text: str) -> UrlPath:
        """The path of a URL; `UsageError` if it cannot be opened."""
        url = parse_url(text)
        made = super().__new__(cls, text)
        made.url = url
        return made

    def __reduce__(self) -> Any:
        return UrlPath, (str(self),)

    # Names

    def __str__(self) -> str:
        return str(self.url)

    def __repr__(self) -> str:
        return f"UrlPath({str(self)!r})"

    def __fspath__(self) -> str:
        return self._refuse()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UrlPath) and self.url == other.url

    def __hash__(self) -> int:
        return hash(self.url)

    def __lt__(self, other: PurePath) -> bool:
        return str(self) < str(other)

    def __truediv__(self, name: Any) -> UrlPath:
        return self._with_key(f"{self.url.key.rstrip('/')}/{name}".lstrip("/"))

    def joinpath(self, *names: Any) -> UrlPath:
        """The path of `names` below this one."""
        return self / "/".join(map(str, names))

    @property
    def name(self) -> str:
        """The last piece of the key; `suffix`, `suffixes` and `stem` are made of it."""
        return self.url.key.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> UrlPath:
        """The key without its last piece."""
        return self._with_key(self.url.key.rstrip("/").rpartition("/")[0])

    def with_name(self, name: str) -> UrlPath:
        """The path of `name` in the same folder."""
        return self.parent / name

    def is_absolute(self) -> bool:
        """Always."""
        return True

    def absolute(self) -> UrlPath:
        """Itself."""
        return self

    def expanduser(self) -> UrlPath:
        """Itself."""
        return self

    def resolve(self, strict: bool = False) -> UrlPath:
        """Itself: a store has no links."""
        return self

    def is_relative_to(self, other: Any, *more: Any) -> bool:
        """Whether this path is `other` or lies below it, in the same store."""
        if not isinstance(other, UrlPath) or other.url.container != self.url.container:
            return False
        folder = other.url.key.rstrip("/")
        return not folder or self.url.key == folder or self.url.key.startswith(f"{folder}/")

    def _with_key(self, key: str) -> UrlPath:
        return UrlPath(str(Url(self.url.scheme, self.url.container, key)))

    # Calls to the store

    def look(self) -> Stat:
        """What the store says about the object now."""
        return open_store(self.url).stat(self.url.key)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """The object as this process saw it first."""
        return as_file(self.url, first_seen(str(self)))

    def lstat(self) -> os.stat_result:
        """The object as it is now."""
        return as_file(self.url, self.look())

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there is such an object now."""
        return self.is_file()

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there is such an object now."""
        if not self.url.key or self.url.key.endswith("/"):
            return False
        try:
            self.look()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there are objects below it; a bucket is one."""
        if not self.url.key:
            return True
        return next(open_store(self.url).list(f"{self.url.key.rstrip('/')}/"), None) is not None

    def open(self, mode: str = "r", *_: Any, **__: Any) -> Any:
        """A buffered reader of the object. Objects are written by `journal/placing.py`."""
        if mode != "rb":
            self._refuse()
        from rerank_cli.storage.reading import ObjectReader

        return io.BufferedReader(ObjectReader(str(self)), 2**18)

    def read_bytes(self) -> bytes:
        """The content as it is now."""
        found = self.look()
        return open_store(self.url).read(self.url.key, 0, found.size, found.etag)

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object."""
        open_store(self.url).delete(self.url.key)

    def _refuse(self) -> NoReturn:
        raise UsageError(f"{self}: a URL cannot be used here", hint="name a local path")


def as_file(url: Url, found: Stat) -> os.stat_result:
    """What a store says about an object, as the stat of a file."""
    store = _number(f"{url.scheme}://{url.container}")
    times = dict.fromkeys(("st_atime_ns", "st_mtime_ns", "st_ctime_ns"), 0)
    return os.stat_result((stat.S_IFREG | 0o644, _number(found.etag), store, 1, 0, 0, found.size, 0, 0, 0), times)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
