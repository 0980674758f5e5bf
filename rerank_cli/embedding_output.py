"""The vectors of a run as a file of their own: `score --embeddings`.

Each distinct query and each distinct passage is a row, in the order in which the input first names it.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from rerank_cli.engine import EmbeddingEngine
from rerank_cli.formats.embeddings import EmbeddingsFile
from rerank_cli.formats.output import output_error
from rerank_cli.parts import EncodedWindow


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
        """Write the texts of a window that were not written before; a pair that has no score has no vectors."""
        texts = ((item.query, passage) for item in window.window.lists for passage in item.passages)
        # An image is an entry with a problem here, for the embedder reads text only.
        try:
            for (query, passage), place in zip(texts, window.places, strict=True):
                entry = window.encoded[place]
                if not isinstance(entry, tuple) or not isinstance(passage, str):
                    continue
                pair = (query, passage)
                new = [self._engine.is_new(kind, text) for kind, text in zip(("query", "passage"), pair, strict=True)]
                if any(new):
                    vectors = self._engine.vectors(entry[0])
                    for side, kind in enumerate(("query", "passage")):
                        if new[side]:
                            self._file.write(kind, pair[side], vectors[side])
        except OSError as error:
            raise output_error(Path(self._name), error) from error
