"""The vectors of a run as a file of their own: `score --embeddings`.

Each distinct query and each distinct passage is a row, in the order in which the input first names it. Passages are the
same if text and image are named alike.
"""

from __future__ import annotations

import base64
import hashlib
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from rerank_cli.engine import EmbeddingEngine
from rerank_cli.engine.embedding import Vectors
from rerank_cli.formats.embeddings import EmbeddingsFile
from rerank_cli.formats.output import output_error
from rerank_cli.parts import EncodedWindow
from rerank_cli.records import ImagePassage, ImageSource, Passage

_KINDS = ("query", "passage")


class EmbeddingsOutput:
    """Writes the vectors of scored windows to `path`. A context manager: closes what it opened.

    name: what messages call it.
    """

    def __init__(self, path: Path, name: str, engine: EmbeddingEngine) -> None:
        self._name = name
        self._engine = engine
        self._file = EmbeddingsFile(path, engine.dimensions)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # of a run that failed, or of a file that is closed
            self._file.close()

    def close(self) -> None:
        """Finish the file."""
        try:
            self._file.close()
        except OSError as error:
            raise output_error(Path(self._name), error) from error

    def add(self, window: EncodedWindow) -> None:
        """Write what a window names for the first time in the run; a pair that has no score has no vectors."""
        pairs = ((item.query, passage) for item in window.window.lists for passage in item.passages)
        try:
            for pair, place in zip(pairs, window.places, strict=True):
                entry = window.encoded[place]
                if not isinstance(entry, tuple):
                    continue
                new = [self._engine.is_new(kind, side) for kind, side in zip(_KINDS, pair, strict=True)]
                if any(new):
                    vectors = self._engine.vectors(entry[0])
                    for place_of_side, kind in enumerate(_KINDS):
                        if new[place_of_side]:
                            self._write(kind, pair[place_of_side], vectors[place_of_side])
        except OSError as error:
            raise output_error(Path(self._name), error) from error

    def _write(self, kind: str, side: Passage, vector: Vectors) -> None:
        if isinstance(side, ImagePassage):
            self._file.write(kind, side.text, vector, image=_name_of(side.image))
        else:
            self._file.write(kind, side, vector)


def _name_of(image: ImageSource) -> str:
    """A path as its row gives it; the digest of a file that lies in the row."""
    value = image.value
    if isinstance(value, str):
        if value[:5].lower() != "data:":
            return value
        value = base64.b64decode(value.partition(",")[2])  # it has been read as an image
    return f"sha256:{hashlib.sha256(value).hexdigest()}"
