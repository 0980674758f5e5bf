"""The one interface to a store. What each call promises stands in the package's text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from rerank_cli.errors import InputError


@dataclass(frozen=True, slots=True)
class Stat:
    """What a store says of an object. etag: of this version of its content; modified: by the store's clock."""

    size: int
    etag: str
    modified: datetime
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What was put with it, in lower case; `list` leaves it out."""


class Store(Protocol):
    """A bucket, a container, a data set or a folder.

    A missing object is a `FileNotFoundError`, a name that is taken a `FileExistsError`, and any other failure that
    stays after some attempts a `StoreError`.
    """

    def stat(self, key: str) -> Stat:
        """What is known of an object."""

    def read(self, key: str, begin: int, end: int, etag: str | None = None) -> bytes:
        """The bytes from `begin` to `end`, all of them.

        etag: of the version that is meant; `ChangedError` where the object is another by now.
        """

    def list(self, prefix: str) -> Iterator[tuple[str, Stat]]:
        """All objects whose key begins with `prefix`, in no order."""

    def put(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> None:
        """Put an object, in place of what has its name."""

    def put_new(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> None:
        """Put an object; `FileExistsError` where another one has its name. The same bytes are the same object."""

    def put_file(
        self,
        key: str,
        path: Path,
        metadata: Mapping[str, str],
        *,
        replace: bool,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Put the content of a local file, in parts if it is large. replace: what has the name may go.

        check: called before each part.
        """

    def delete(self, key: str) -> None:
        """Delete an object, if it is there."""

    def drop_uploads(self, key: str) -> int:
        """Take away the parts of uploads to `key` that nobody has completed; returns of how many."""

    def get_ready(self) -> None:
        """Make what the last calls of a run need, in a thread of its own, while the run computes."""


class StoreError(InputError, OSError):
    """A call that failed for good. It names its object: it can be shown where nobody has caught it as an `OSError`."""


class ChangedError(OSError):
    """An object that is another than when it was first looked at."""
