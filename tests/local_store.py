"""A folder as a store, with the promises of `rerank_cli/storage`: what the other stores are compared with."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from rerank_cli.storage.store import ChangedError, Stat

_PART, _FACTS = ".part-", ".facts-"


class LocalStore:
    """The files below `folder`; implements `Store`. The metadata of a file lies in a hidden file beside it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def stat(self, key: str) -> Stat:
        """See `Store`."""
        path = self._folder / key
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, "no such object")
        found = path.stat()
        etag = hashlib.sha256(f"{found.st_ino} {found.st_size} {found.st_mtime_ns}".encode()).hexdigest()
        facts = path.with_name(_FACTS + path.name)
        try:
            metadata = json.loads(facts.read_bytes())
        except FileNotFoundError:
            metadata = {}
        return Stat(found.st_size, etag, datetime.fromtimestamp(found.st_mtime, UTC), metadata)

    def read(self, key: str, begin: int, end: int, etag: str | None = None) -> bytes:
        """See `Store`."""
        if etag is not None and self.stat(key).etag != etag:
            raise ChangedError("it was changed while it was read")
        try:
            with (self._folder / key).open("rb") as stream:
                stream.seek(begin)
                data = stream.read(max(0, end - begin))
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "no such object") from error
        if len(data) != max(0, end - begin):
            raise OSError(f"{key}: ends before byte {end}")
        return data

    def list(self, prefix: str) -> Iterator[tuple[str, Stat]]:
        """See `Store`."""
        for path in self._folder.rglob("*"):
            key = path.relative_to(self._folder).as_posix()
            if key.startswith(prefix) and path.is_file() and not path.name.startswith((_PART, _FACTS)):
                yield key, self.stat(key)

    def put(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> None:
        """See `Store`."""
        self._place(key, self._write_part(key, data), metadata or {}, replace=True)

    def put_new(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> None:
        """See `Store`."""
        try:
            self._place(key, self._write_part(key, data), metadata or {}, replace=False)
        except FileExistsError:
            if (self._folder / key).read_bytes() != data:
                raise

    def put_file(
        self,
        key: str,
        path: Path,
        metadata: Mapping[str, str],
        *,
        replace: bool,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """See `Store`."""
        check()
        part = self._part_path(key)
        shutil.copyfile(path, part)
        self._place(key, part, metadata, replace=replace)

    def delete(self, key: str) -> None:
        """See `Store`."""
        path = self._folder / key
        path.with_name(_FACTS + path.name).unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    def get_ready(self) -> None:
        """See `Store`: nothing."""

    def drop_uploads(self, key: str) -> int:
        """See `Store`."""
        begun = [
            path
            for path in self._folder.rglob(f"{_PART}*")
            if path.with_name(path.name[len(_PART) + 9 :]).relative_to(self._folder).as_posix() == key
        ]
        for path in begun:
            path.unlink(missing_ok=True)
        return len(begun)

    def _part_path(self, key: str) -> Path:
        path = self._folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_name(f"{_PART}{secrets.token_hex(4)}-{path.name}")

    def _write_part(self, key: str, data: bytes) -> Path:
        part = self._part_path(key)
        part.write_bytes(data)
        return part

    def _place(self, key: str, part: Path, metadata: Mapping[str, str], *, replace: bool) -> None:
        path = self._folder / key
        try:
            if replace:
                part.replace(path)
            else:
                try:
                    os.link(part, path)
                except FileExistsError as error:
                    raise FileExistsError(errno.EEXIST, "another object has its name") from error
        finally:
            part.unlink(missing_ok=True)
        facts = path.with_name(_FACTS + path.name)
        if metadata:
            self._write_part(key, json.dumps(dict(metadata)).encode()).replace(facts)  # a listing may read it just now
        else:
            facts.unlink(missing_ok=True)
