"""What two runs must have in common to write the same bytes, and how they differ if they do not.

asked     what the user asked for, as far as it decides bytes, with the versions and the machine that compute it
plan      what was decided for this machine
files     size and SHA-256 of every input and every file of the model, whatever their paths

A finished job is recognised by `asked` and `files` alone, which need no torch. An unfinished one must agree in all
three.

A thread hashes the files while the run works, at 1 to 2 GB/s. It begins with files that are younger than 2 s: their
times prove nothing, because a second change could leave the same times. So only their content can tell a later run that
they are the same, and the first commit waits a moment for their SHA-256. An older file counts as unchanged if its
inode, size and times are; else its content decides. A file that changes while a run reads it gets no SHA-256, so it
never counts as unchanged.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rerank_cli.storage import UrlPath, is_on_hub
from rerank_cli.storage.url_path import SHA256

_READ_BYTES = 4 * 2**20
_SETTLED_NS = 2 * 10**9  # FAT keeps times in steps of 2 s; other file systems need some milliseconds


class Fingerprint:
    """The identity of a run. files: name for messages (`input 1`) -> path."""

    def __init__(self, *, asked: Mapping[str, Any], plan: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        self.asked = asked
        self.plan = plan
        self._files = files
        self._seen = {name: _seen(path) for name, path in files.items()}
        self._hashes: dict[str, str] = {}
        self._given_up = threading.Event()
        self._new_are_hashed = threading.Event()
        self._thread = threading.Thread(target=self._hash_all, name="hash", daemon=True)

    def of(self, asked: Mapping[str, Any]) -> Fingerprint:
        """A fingerprint of the same plan and files, with another `asked`."""
        return Fingerprint(asked=asked, plan=self.plan, files=self._files)

    def start(self) -> None:
        """Begin to hash the files."""
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Wait until all files are hashed, but no longer than `seconds`."""
        self._thread.join(seconds)

    def wait_for_new(self, seconds: float) -> None:
        """Wait until the new files are hashed (see the head), but no longer than `seconds`."""
        if self._thread.is_alive():
            self._new_are_hashed.wait(seconds)

    def stop(self) -> None:
        """Stop hashing."""
        self._given_up.set()

    @property
    def hashes(self) -> dict[str, str]:
        """The SHA-256, in hex, of each file hashed so far."""
        return dict(self._hashes)

    def sha256(self, path: Path) -> str | None:
        """The SHA-256 of one of the files as it was when the run began; None if it is not known yet."""
        return next((self._hashes.get(name) for name, known in self._files.items() if known == path), None)

    def document(self) -> dict[str, Any]:
        """Everything known so far, for a journal or a report."""
        files = {
            name: {"path": str(self._files[name]), "sha256": self._hashes.get(name), **seen}
            for name, seen in self._seen.items()
        }
        return {"asked": self.asked, "plan": self.plan, "files": files}

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """The differences to the `document` of another run, in words. May read files to find them."""
        found = [*_differences(other["asked"], self.asked), *_differences(other["plan"], self.plan)]
        return found or list(self._changed_files(other["files"]))

    def differs_in_request(self, other: Mapping[str, Any]) -> bool:
        """Whether the `document` of another run differs in `asked` or in files, whatever its plan."""
        return bool(_differences(other["asked"], self.asked)) or any(self._changed_files(other["files"]))

    def _changed_files(self, others: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        for name in {**others, **self._files}:
            if name not in others or name not in self._files:
                yield f"{name} {'is gone' if name in others else 'is new'}"
            elif reason := self._change(name, others[name]):
                yield f"{name} ({self._files[name]}): {reason}"

    def _change(self, name: str, other: Mapping[str, Any]) -> str | None:
        seen = self._seen[name]
        if other["bytes"] != seen["bytes"]:
            return f"its size was {other['bytes']} bytes, is {seen['bytes']}"
        if other["settled"] and other["stat"] == seen["stat"]:
            return None
        if other["sha256"] is None:
            return "its content may have changed: the run before had no time to hash it"
        return None if other["sha256"] == sha256_of(self._files[name]) else "its content has changed"

    def _hash_all(self) -> None:
        for name in sorted(self._files, key=lambda name: self._seen[name]["settled"]):
            if self._seen[name]["settled"]:
                self._new_are_hashed.set()
            if isinstance(self._files[name], UrlPath):
                continue  # its stat has its etag, and hashing it would fetch it twice
            try:
                digest = _digest(self._files[name], self._given_up)
                if digest and _seen(self._files[name])["stat"] == self._seen[name]["stat"]:
                    self._hashes[name] = digest
            except OSError:
                continue  # the reader of its rows or weights will say what is wrong
        self._new_are_hashed.set()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def same_output(path: Path, said: Mapping[str, Any]) -> bool:
    """Whether the file at `path` is the output that a report describes. said: bytes, sha256 and modified_ns."""
    try:
        if isinstance(path, UrlPath):
            there = path.look()
            known = sha256_of(path) if is_on_hub(path) else there.metadata.get(SHA256)  # the Hub stores no metadata
            return bool((there.size, known) == (said["bytes"], said["sha256"]))
        found = path.stat()
    except OSError:
        return False
    if found.st_size != said["bytes"]:
        return False
    return bool(found.st_mtime_ns == said["modified_ns"] or sha256_of(path) == said["sha256"])


def _digest(path: Path, given_up: threading.Event) -> str | None:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        while data := stream.read(_READ_BYTES):
            if given_up.is_set():
                return None
            digest.update(data)
    return digest.hexdigest()


def _seen(path: Path) -> dict[str, Any]:
    found = path.stat()
    settled = time.time_ns() - max(found.st_ctime_ns, found.st_mtime_ns) > _SETTLED_NS
    identity = [found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]
    return {"bytes": found.st_size, "stat": identity, "settled": settled}


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    """The leaves in which two documents differ, each with both values, in words."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            found
            for key in {**old, **new}
            for found in _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if old == new else [f"`{name}` was {_shorten(old)}, is {_shorten(new)}"]


def _shorten(value: Any, limit: int = 60) -> str:
    text = "not given" if value is None else repr(value)
    return text if len(text) <= limit else text[:limit] + "..."
