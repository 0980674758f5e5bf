"""The lines of a job's journal: each record is either whole or ignored.

A line is a JSON array of a checksum and a record. The checksum is the first half of a SHA-256 over the previous
checksum and the record's text, so the journal ends at a line that was torn, changed, moved or left out.

Anybody can compute such a checksum, so a record with a valid one need not be ours: the journal also ends at a record
without the fields of its kind.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHECK_CHARACTERS = 32
_OPEN, _MIDDLE, _CLOSE = b'["', b'", ', b"]"


@dataclass(frozen=True, slots=True)
class Entry:
    """A record of a journal on disk."""

    record: dict[str, Any]
    check: str
    """The checksum of the record."""
    end: int
    """Where its line ends, in bytes."""


def encode(records: Iterable[Mapping[str, Any]], *, after: str) -> tuple[bytes, str]:
    """The lines of `records`, and the checksum of the last one. after: the checksum before them; empty at the start."""
    lines: list[bytes] = []
    for record in records:
        text = json.dumps(record, allow_nan=False, separators=(",", ":")).encode()
        after = _check(after, text)
        lines.append(_OPEN + after.encode() + _MIDDLE + text + _CLOSE + b"\n")
    return b"".join(lines), after


def read_journal(path: Path) -> list[Entry]:
    """The records of a journal up to the first that is not whole; none if there is no file."""
    if not path.is_file():  # opening a pipe would wait for its writer
        return []
    data = path.read_bytes()
    entries: list[Entry] = []
    check, begin = "", 0
    while (end := data.find(b"\n", begin)) >= 0:
        found = _decode(data[begin:end], after=check)
        if found is None:
            break
        check, record = found
        begin = end + 1
        entries.append(Entry(record, check, begin))
    return entries


def _decode(line: bytes, *, after: str) -> tuple[str, dict[str, Any]] | None:
    head = len(_OPEN) + _CHECK_CHARACTERS + len(_MIDDLE)
    text = line[head : -len(_CLOSE)]
    check = _check(after, text)
    if line != _OPEN + check.encode() + _MIDDLE + text + _CLOSE:
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return (check, record) if _is_record(record) else None


def _is_record(record: Any) -> bool:
    """Whether a record has the fields of its kind. The header of another version may hold anything."""
    match record:
        case {"kind": "job", "format": int()} | {"kind": "bad input"}:
            return True
        case {
            "kind": "commit",
            "windows": [int(), int()],
            "members": dict(members),
            "state": dict(),
            "notes": list(notes),
        }:
            spans = all(_is_span(span) for span in members.values())
            return spans and all(isinstance(note, list) and len(note) == 2 for note in notes) and _has_hashes(record)
        case {"kind": "complete", "run": dict()}:
            files = record.get("files", {})
            return _has_hashes(record) and isinstance(files, dict) and all(map(_is_seal, files.values()))
    return False


def _is_span(span: Any) -> bool:
    match span:
        case [int(begin), int(end), str()]:
            return 0 <= begin <= end
    return False


def _is_seal(seal: Any) -> bool:
    match seal:
        case [int(), str()]:
            return True
    return False


def _has_hashes(record: dict[str, Any]) -> bool:
    hashes = record.get("hashes", {})
    return isinstance(hashes, dict) and all(isinstance(value, str) for value in hashes.values())


def _check(after: str, text: bytes) -> str:
    return hashlib.sha256(after.encode() + text).hexdigest()[:_CHECK_CHARACTERS]
