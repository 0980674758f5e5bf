"""The one interface to a store. The head of the package says what each call promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from rerank_cli.errors import InputError


@dataclass(frozen=True, slots=True)
class Stat:
    """What a store says about an object."""

    size: int
    etag: str
    """Identifies this version of the content."""
    modified: datetime
    """By the store's clock."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What was put with the object, names in lower case; `list` leaves it out."""


class Store(Protocol):
    """A bucket, a container, a data set or a folder.

    A missing object raises `FileNotFoundError`, a name that is taken `FileExistsError`, and any failure that outlasts
    the retries `StoreError`.
    """

    def stat(self, key: str) -> Stat:
        """Size, version, time and metadata of an object."""

    def read(self, key: str, begin: int, end: int, etag: str | None = None) -> bytes:
        """The bytes from `begin` to `end`, all of them.

        etag: the version to read; `ChangedError` if the object has another one by now.
        """

    def list(self, prefix: str) -> Iterator[tuple[str, Stat]]:
        """All objects whose key begins with `prefix`, in any order."""

    def put(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> None:
        """Put an object; it replaces one of the same name."""

    def put_new(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> None:
        """Put an object; `FileExistsError` if the name is taken by other bytes."""

    def put_file(
        self,
        key: str,
        path: Path,
        metadata: Mapping[str, str],
        *,
        replace: bool,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Put the content of a local file, in parts if it is large.

        Args:
            key: the name of the object.
            path: the local file.
            metadata: stored with the object.
            replace: whether an object of the same name may be replaced.
            check: called before each part.
        """

    def delete(self, key: str) -> None:
        """Delete an object, if it exists."""

    def drop_uploads(self, key: str) -> int:
        """Abort unfinished uploads to `key`; returns how many there were."""

    def get_ready(self) -> None:
        """Prepare the calls that end a run. Called in a thread of its own, while the run computes."""


class StoreError(InputError, OSError):
    """A call that failed for good. The message names the object, so the error can be shown to a user as it is."""


class ChangedError(OSError):
    """The object has another version than the one that was asked for."""
