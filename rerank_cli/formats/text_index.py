"""Texts by id, from a TSV or JSONL file that is not held in memory: an index of byte offsets, and the file itself.

    q1<TAB>how do I delete a directory                          TSV: id, text; further columns belong to the text
    {"_id": "d1", "title": "os.rmdir", "text": "Remove ..."}    JSONL as in BEIR; `id`, `docid`, ... as well

The text of a passage is what `--text-field` names, several fields joined by a blank. Without the option title and text
are joined and stripped, because a document of BEIR is both; the user is told which of the two was done.

A packed file is unpacked into a temporary one first, because it cannot be read from its middle.

The index is two columns of 64 bits, sorted by the first: digest of the id, and offset of its line. That is 16 bytes an
id, and about three times as much while it is made (10 million passages: 160 MB, and 480 MB for a while). Each run makes
it anew, at 2 to 5 microseconds a line, so it is never out of date. The digest only says where to look: the id in the
file is compared too, so two ids with the same digest do no harm.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rerank_cli.errors import InputError
from rerank_cli.formats.compression import open_input
from rerank_cli.storage import is_url

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_ID_NAMES = ("_id", "query_id", "qid", "passage_id", "doc_id", "docid", "docno", "pid", "id")
_SURROGATE = re.compile("[\ud800-\udfff]")
_HEAD_BYTES = 64  # a file is packed if these differ from those of its content
_LOOKED_AT_LINES = 100  # for titles
TEXT_NAMES = ("text", "query", "passage", "contents", "body")


ReadText = Callable[[dict[str, Any]], str | None]


@dataclass(frozen=True, slots=True)
class Missing:
    """Why an id has no text: a stable code, and a sentence that begins with the id."""

    code: str
    message: str


class TextFile:
    """The texts of one file, which is closed with this object. Two threads must not call `find` at once.

    index: digests, sorted, and the offsets of their lines: uint64 [2, ids]. read: gives the text of a JSON line, by its
    fields; None for `join_title_and_text`. is_json: whether the lines have named fields.
    """

    def __init__(
        self, name: str, stream: BinaryIO, index: npt.NDArray[np.uint64], read: ReadText | None = None
    ) -> None:
        self._name = name
        self._stream = stream
        weakref.finalize(self, stream.close)
        self._digests, self._offsets = index
        self.is_json = _is_json(stream)
        self._read = read or join_title_and_text

    def first_rows(self) -> Iterator[dict[str, Any]]:
        """The fields of the first lines; nothing where the file is not JSON."""
        self._stream.seek(0)
        lines = islice(self._stream, _LOOKED_AT_LINES if self.is_json else 0)
        yield from filter(None, map(_fields, lines))

    def __len__(self) -> int:
        return len(self._digests)

    def find(self, identity: str) -> str | Missing:
        """The text of an id."""
        import numpy as np  # here, since each run imports this module and few have a file of texts

        digest = np.uint64(digest_of_id(identity))
        begin = int(np.searchsorted(self._digests, digest, side="left"))
        end = int(np.searchsorted(self._digests, digest, side="right"))
        found: set[str] = set()
        for offset in self._offsets[begin:end].tolist():
            self._stream.seek(offset)
            entry = _entry(self._stream.readline(), is_json=self.is_json, read=self._read)
            if entry is not None and entry[0] == identity:
                if entry[1] is None:
                    return Missing("no-text", f"`{identity}` has no text in {self._name}")
                found.add(entry[1])
        if any(_SURROGATE.search(text) for text in found):
            return Missing("lone-surrogate", f"`{identity}` has half a character in {self._name}, which is no text")
        if not found:
            return Missing("unknown-id", f"`{identity}` is not in {self._name}")
        if len(found) > 1:
            return Missing("ambiguous-id", f"`{identity}` stands in {self._name} with different texts")
        return found.pop()


def open_texts(path: str, read: ReadText | None = None) -> TextFile:
    """The texts of a TSV or JSONL file; `InputError` where it cannot be read or holds no text.

    read: see `TextFile`.
    """
    stream = _open_seekable(path)
    try:
        texts = TextFile(path, stream, _build(stream), read)
    except OSError as error:
        stream.close()
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not len(texts):
        raise InputError(
            f"{path}: no texts found", hint="TSV (`id`, tab, text) or JSONL with an id (`_id`) and a text (`text`)"
        )
    return texts


def _open_seekable(path: str) -> BinaryIO:
    """The file, or a temporary copy where it cannot be read from its middle: a packed file, a pipe, an object."""
    with open_input(path) as packed:  # raises, with the reason in words
        if not is_url(path) and Path(path).is_file():
            stream = Path(path).open("rb")  # noqa: SIM115 (lives as long as the run)
            if stream.peek(_HEAD_BYTES)[:_HEAD_BYTES] == packed.peek(_HEAD_BYTES)[:_HEAD_BYTES]:
                return stream
            stream.close()
        plain = tempfile.TemporaryFile(prefix="rerank-cli-")  # noqa: SIM115 (lives as long as the run)
        try:
            shutil.copyfileobj(packed, plain)
        except OSError as error:
            plain.close()
            raise InputError(
                f"{path}: cannot be unpacked: {error.strerror or error}", hint="set TMPDIR to a folder with room"
            ) from error
        return plain


def _build(stream: BinaryIO) -> npt.NDArray[np.uint64]:
    """Sorted digests and their offsets: uint64 [2, ids]."""
    digests, offsets = array("Q"), array("Q")
    is_json = _is_json(stream)
    stream.seek(0)
    offset = 0
    for line in stream:
        entry = _entry(line, is_json=is_json)
        if entry is not None:
            digests.append(digest_of_id(entry[0]))
            offsets.append(offset)
        offset += len(line)
    import numpy as np

    keys = np.frombuffer(digests, dtype=np.uint64)
    order = np.argsort(keys, kind="stable")
    index = np.empty((2, len(keys)), dtype=np.uint64)
    np.take(keys, order, out=index[0])
    np.take(np.frombuffer(offsets, dtype=np.uint64), order, out=index[1])
    return index


def _is_json(stream: BinaryIO) -> bool:
    stream.seek(0)
    return stream.read(256).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")


def _fields(line: bytes) -> dict[str, Any] | None:
    """The object in a line of JSON; None where there is none."""
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except (UnicodeDecodeError, ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _entry(line: bytes, *, is_json: bool, read: ReadText | None = None) -> tuple[str, str | None] | None:
    """Id and text of a line; None for one that has no id."""
    if not is_json:
        try:
            identity, tab, rest = line.decode("utf-8-sig").rstrip("\r\n").partition("\t")
        except UnicodeDecodeError:
            return None
        return (identity.strip(), rest) if tab else None
    fields = _fields(line)
    if fields is None:
        return None
    found = next((fields[name] for name in _ID_NAMES if fields.get(name) is not None), None)
    if not isinstance(found, (str, int)):
        return None
    return str(found), (read or join_title_and_text)(fields)


def join_title_and_text(fields: dict[str, Any]) -> str | None:
    """Title and text, joined as in BEIR; None where there is neither."""
    text = next((fields[name] for name in TEXT_NAMES if isinstance(fields.get(name), str)), None)
    title = fields.get("title")
    if isinstance(title, str):
        return f"{title} {text or ''}".strip()
    return text


def digest_of_id(identity: str) -> int:
    """A digest of an id in 64 bits."""
    return int.from_bytes(blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
