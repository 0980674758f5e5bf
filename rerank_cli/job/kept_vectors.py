"""The vectors and texts that a run with an embedding model keeps beside its rows.

    vectors     each vector with its key, in the order of computing or, with a store, of finding. A resumed run reads
                them back, so that a text is embedded once in a run, not once in each process.
    texts       `--embeddings` only: a JSON line for each distinct query and passage, `[kind, text, image, key, mark]`,
                in the order in which the input first names them. Passages are the same if text and image are named
                alike.

Both are members of the job (`journal`), to which each window appends. At the end, the file for the user is made of
them.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rerank_cli.encoding.pairs import EncodedWindow
from rerank_cli.records import Passage

if TYPE_CHECKING:
    from rerank_cli.engine import EmbeddingEngine, Engine

_KINDS = ("query", "passage")
_TEXTS_AT_A_TIME = 256


class EmbeddedTexts:
    """The texts of the windows that are scored.

    Args:
        engine: Computes the vectors, and knows which texts are new.
        members: What `take` returns: `vectors` if the run can be resumed, `texts` if the user wants them.
    """

    def __init__(self, engine: EmbeddingEngine, members: Sequence[str]) -> None:
        self._engine = engine
        self._members = members
        self._lines: list[bytes] = []

    def add(self, window: EncodedWindow) -> None:
        """Keep the new texts of a window; a pair without a score has no vectors."""
        if "texts" not in self._members:
            return
        pairs = (pair for item in window.window.lists for pair in item.pairs)
        for pair, place in zip(pairs, window.places, strict=True):
            entry = window.encoded[place]
            if not isinstance(entry, tuple):
                continue
            marks = [_mark(kind, side) for kind, side in zip(_KINDS, pair, strict=True)]
            new = [self._engine.cache.mark(mark) for mark in marks]
            if any(new):
                keys = self._engine.keys(entry[0])
                self._lines += [
                    json.dumps([kind, *_identity_of_side(side), key.hex(), mark.hex()]).encode() + b"\n"
                    for kind, side, key, mark, is_new in zip(_KINDS, pair, keys, marks, new, strict=True)
                    if is_new
                ]

    def take(self) -> dict[str, bytes]:
        """What the windows since the last call append to each member."""
        lines, self._lines = self._lines, []
        found = {"vectors": self._engine.take_fresh(), "texts": b"".join(lines)}
        return {name: found[name] for name in self._members}

    def restore(self, vectors: Path, texts: Path | None, state: Mapping[str, Any]) -> None:
        """Restore the vectors and texts of an earlier process. state: its `EmbeddedTexts.state`."""
        with vectors.open("rb") as stream:
            self._engine.restore(stream, **state)
        if texts:
            with texts.open("rb") as stream:
                for *_, mark in map(json.loads, stream):
                    self._engine.cache.mark(bytes.fromhex(mark))

    @property
    def state(self) -> dict[str, Any]:
        """How many texts the run embedded and found, and what the model read for that (`EmbeddingEngine.work`)."""
        engine = self._engine
        return {
            "texts": engine.texts, "work": dict(engine.work), "found": engine.found,
            "tokens_found": engine.tokens_found,
        }  # fmt: skip

    @property
    def facts(self) -> dict[str, int]:
        """For the report."""
        return {
            "texts": self._engine.texts,
            "tokens": self._engine.work["tokens"],
            "dimensions": self._engine.dimensions,
        }

    def write_file(self, texts: Path, stream: BinaryIO) -> None:
        """Write the Parquet file of all texts of the run. texts: the member of that name."""
        # Imported here: pyarrow costs 0.2 s, which other runs need not pay.
        from rerank_cli.formats.embeddings import EmbeddingsFile

        file = EmbeddingsFile(stream, self._engine.dimensions)
        if texts.exists():  # not of a run to stdout without windows
            with texts.open("rb") as lines:
                while found := [json.loads(line) for line in islice(lines, _TEXTS_AT_A_TIME)]:
                    vectors = self._engine.cache.get([bytes.fromhex(key) for *_, key, _ in found])
                    for (kind, text, image, *_), vector in zip(found, vectors, strict=True):
                        file.write(kind, text, vector, image=image)
        file.close()


def open_kept_texts(
    engine: Engine, members: Sequence[str], path: Callable[[str], Path], state: Mapping[str, Any] | None
) -> EmbeddedTexts | None:
    """The texts that a run keeps, restored from an earlier process; None if the model is no embedder.

    Args:
        engine: Of the run.
        members: See `EmbeddedTexts`.
        path: The path of a member.
        state: The run's state after an earlier process.
    """
    from rerank_cli.engine.embedding import EmbeddingEngine  # torch is loaded by now

    if not isinstance(engine, EmbeddingEngine):
        return None
    texts = EmbeddedTexts(engine, members)
    if state is not None:
        texts.restore(path("vectors"), path("texts") if "texts" in members else None, state["embedded"])
    return texts


def _identity_of_side(side: Passage) -> tuple[str, str | None]:
    """The text of one side of a pair, and its image: the path in the row, or a digest of an image within the row."""
    if isinstance(side, str):
        return side, None
    value = side.image.value
    if isinstance(value, str):
        if value[:5].lower() != "data:":
            return side.text, value
        value = base64.b64decode(value.partition(",")[2])  # known to be valid: it was read as an image
    return side.text, f"sha256:{hashlib.sha256(value).hexdigest()}"


def _mark(kind: str, side: Passage) -> bytes:
    """16 bytes that identify one side of a pair."""
    # `ascii` of a tuple of strings and bytes is different for different tuples.
    form = (kind, side) if isinstance(side, str) else (kind, side.text, side.image.value, side.image.root)
    return hashlib.blake2b(ascii(form).encode(), digest_size=16).digest()
