"""The journal of a job: records that are whole or not there.

A line is a JSON array of a checksum and a record. The checksum is the first half of a SHA-256 over the checksum before
and the record's text, so a line that was torn, changed, moved or left out ends the journal.
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
    """A record as it stands in a journal. check: its checksum; end: where its line ends, in bytes."""

    record: dict[str, Any]
    check: str
    end: int


def encode(records: Iterable[Mapping[str, Any]], *, after: str) -> tuple[bytes, str]:
    """The lines of `records` and the last checksum. after: the checksum before them, or the empty text."""
    lines: list[bytes] = []
    for record in records:
        text = json.dumps(record, allow_nan=False, separators=(",", ":")).encode()
        after = _check(after, text)
        lines.append(_OPEN + after.encode() + _MIDDLE + text + _CLOSE + b"\n")
    return b"".join(lines), after


def read_journal(path: Path) -> list[Entry]:
    """The records of a journal up to the first that is not whole; none where there is no file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
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
    record: dict[str, Any] = json.loads(text)
    return check, record


def _check(after: str, text: bytes) -> str:
    return hashlib.sha256(after.encode() + text).hexdigest()[:_CHECK_CHARACTERS]
