"""What a run with an embedding model keeps beside its rows: the vectors it has computed, and whose they are.

    vectors     each vector with its key, in the order of computing. A run that goes on in another process reads them
                back, so that a text is embedded once in a run, not once in a process.
    texts       `--embeddings` only: a JSON line a text, `[kind, text, key]`. Each distinct query and each distinct
                passage is one, in the order in which the input first names it.

Both are members of the job (`commit`): windows append to them. The file that the user asked for is made of them at the
end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from rerank_cli.parts import EncodedWindow

if TYPE_CHECKING:
    from rerank_cli.engine import EmbeddingEngine

_KINDS = ("query", "passage")
_TEXTS_AT_A_TIME = 256


class EmbeddedTexts:
    """The texts of the windows that are scored; satisfies what `Run.on_scored` asks for with `add`.

    members: names of what `take` gives. Vectors are among them where the run can be continued, texts where they are
    asked for.
    """

    def __init__(self, engine: EmbeddingEngine, members: Sequence[str]) -> None:
        self._engine = engine
        self._members = members
        self._lines: list[bytes] = []

    def add(self, window: EncodedWindow) -> None:
        """Take the texts of a window that were not there before; a pair that has no score has no vectors."""
        if "texts" not in self._members:
            return
        texts = ((item.query, passage) for item in window.window.lists for passage in item.passages)
        # An image is an entry with a problem here, for the embedder reads text only.
        for (query, passage), place in zip(texts, window.places, strict=True):
            entry = window.encoded[place]
            if not isinstance(entry, tuple) or not isinstance(passage, str):
                continue
            new = [
                (side, kind, text)
                for side, (kind, text) in enumerate(zip(_KINDS, (query, passage), strict=True))
                if self._engine.is_new(kind, text)
            ]
            keys = self._engine.keys(entry[0]) if new else []
            self._lines += [json.dumps([kind, text, keys[side].hex()]).encode() + b"\n" for side, kind, text in new]

    def take(self) -> dict[str, bytes]:
        """What the windows since the last call add to each member."""
        lines, self._lines = self._lines, []
        found = {"vectors": self._engine.take_fresh(), "texts": b"".join(lines)}
        return {name: found[name] for name in self._members}

    def restore(self, vectors: Path, texts: Path | None, counts: dict[str, int]) -> None:
        """Know again what an earlier process has taken. counts: `EmbeddedTexts.counts` of that time."""
        with vectors.open("rb") as stream:
            self._engine.restore(stream, **counts)
        if texts:
            with texts.open("rb") as stream:
                for kind, text, _ in map(json.loads, stream):
                    self._engine.is_new(kind, text)

    @property
    def counts(self) -> dict[str, int]:
        """How many texts and tokens were embedded in the run."""
        return {"texts": self._engine.texts, "tokens": self._engine.tokens}

    @property
    def dimensions(self) -> int:
        """Numbers in a vector."""
        return self._engine.dimensions

    def write_file(self, texts: Path, stream: BinaryIO) -> None:
        """Write the Parquet file of all texts of the run, which lie in the member `texts`."""
        # Imported here: pyarrow costs 0.2 s that other runs need not pay.
        from rerank_cli.formats.embeddings import EmbeddingsFile

        file = EmbeddingsFile(stream, self._engine.dimensions)
        for found in _some_at_a_time(texts):
            vectors = self._engine.vectors([bytes.fromhex(key) for _, _, key in found])
            for (kind, text, _), vector in zip(found, vectors, strict=True):
                file.write(kind, text, vector)
        file.close()


def _some_at_a_time(texts: Path) -> Iterator[list[list[str]]]:
    if not texts.exists():  # of a run to stdout without windows
        return
    with texts.open("rb") as stream:
        lines = map(json.loads, stream)
        while found := list(islice(lines, _TEXTS_AT_A_TIME)):
            yield found
