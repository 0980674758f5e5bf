"""A URL where the program has a `Path`: what a run asks of a path is asked of the store.

`path_of` makes the path of a text that a user typed. A `UrlPath` has a name, a parent, a stat and an open; what a store
has not (a descriptor, a mode, a link) is refused, since `os.fspath` of it is: so no call of the operating system can
take a URL for a local path.

Its stat has the size, and in place of an inode a number of the etag, so that two stats are the same where the content
is. Its times are 0: a store's time says nothing that the etag does not.
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
"""What this program puts with an object: the SHA-256 of its content, and the job that made it."""


def path_of(text: str | Path) -> Path:
    """The path that a user means: local, or a URL."""
    return UrlPath(str(text)) if is_url(text) else Path(text)


def is_on_hub(path: Path) -> TypeGuard[UrlPath]:
    """Whether a path is a file of a data set of the Hub, where files are put in commits."""
    return isinstance(path, UrlPath) and path.url.scheme == "hf"


class UrlPath(PosixPath):
    """The object at a URL, or the folder that its key names."""

    __slots__ = ("_url",)
    _url: Url

    def __new__(cls, text: str) -> UrlPath:
        """The path of a URL; `UsageError` where it cannot be opened."""
        url = parse_url(text)
        made = super().__new__(cls, text)
        made._url = url
        return made

    def __reduce__(self) -> Any:
        return UrlPath, (str(self),)

    @property
    def url(self) -> Url:
        """Its parts."""
        return self._url

    # Names

    def __str__(self) -> str:
        return str(self._url)

    def __repr__(self) -> str:
        return f"UrlPath({str(self)!r})"

    def __fspath__(self) -> str:
        return self._refuse()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UrlPath) and self._url == other._url

    def __hash__(self) -> int:
        return hash(self._url)

    def __lt__(self, other: PurePath) -> bool:
        return str(self) < str(other)

    def __truediv__(self, name: Any) -> UrlPath:
        return self._with_key(f"{self._url.key.rstrip('/')}/{name}".lstrip("/"))

    def joinpath(self, *names: Any) -> UrlPath:
        """Below this one."""
        return self / "/".join(map(str, names))

    @property
    def name(self) -> str:
        """The last piece of the key."""
        return self._url.key.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> UrlPath:
        """The folder of the key."""
        return self._with_key(self._url.key.rstrip("/").rpartition("/")[0])

    @property
    def suffix(self) -> str:
        """Of the name."""
        return Path(self.name).suffix

    @property
    def stem(self) -> str:
        """Of the name."""
        return Path(self.name).stem

    @property
    def suffixes(self) -> list[str]:
        """Of the name."""
        return Path(self.name).suffixes

    def with_name(self, name: str) -> UrlPath:
        """Beside this one."""
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
        """Whether it lies below a folder of the same store, or is it."""
        if not isinstance(other, UrlPath) or other.url.container != self._url.container:
            return False
        folder = other.url.key.rstrip("/")
        return not folder or self._url.key == folder or self._url.key.startswith(f"{folder}/")

    def _with_key(self, key: str) -> UrlPath:
        return UrlPath(str(Url(self._url.scheme, self._url.container, key)))

    # What the store knows

    def look(self) -> Stat:
        """What the store says of the object now."""
        return open_store(self._url).stat(self._url.key)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """The object as this process first saw it."""
        return as_file(self._url, first_seen(str(self)))

    def lstat(self) -> os.stat_result:
        """The object as it is now."""
        return as_file(self._url, self.look())

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there is such an object now."""
        return self.is_file()

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there is such an object now."""
        if not self._url.key or self._url.key.endswith("/"):
            return False
        try:
            self.look()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there are objects below it; a bucket is one."""
        if not self._url.key:
            return True
        return next(open_store(self._url).list(f"{self._url.key.rstrip('/')}/"), None) is not None

    def open(self, mode: str = "r", *_: Any, **__: Any) -> Any:
        """A buffered reader of the object; it is written otherwise (`journal/placing.py`)."""
        if mode != "rb":
            self._refuse()
        from rerank_cli.storage.reading import ObjectReader

        return io.BufferedReader(ObjectReader(str(self)), 2**18)

    def read_bytes(self) -> bytes:
        """The content as it is now."""
        found = self.look()
        return open_store(self._url).read(self._url.key, 0, found.size, found.etag)

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object."""
        open_store(self._url).delete(self._url.key)

    def _refuse(self) -> NoReturn:
        raise UsageError(f"{self}: a URL cannot be used here", hint="name a local path")


def as_file(url: Url, found: Stat) -> os.stat_result:
    """The stat of a file for what a store says of an object."""
    store = _number(f"{url.scheme}://{url.container}")
    times = dict.fromkeys(("st_atime_ns", "st_mtime_ns", "st_ctime_ns"), 0)
    return os.stat_result((stat.S_IFREG | 0o644, _number(found.etag), store, 1, 0, 0, found.size, 0, 0, 0), times)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
