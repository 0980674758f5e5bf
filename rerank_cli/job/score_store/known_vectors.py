"""The vectors of texts that a store has: a text is embedded once in the life of its store.

A text is looked up by its token ids, prefix included, and the bytes and grid of its image: all that the model reads of
it. So the same words have another vector as a query than as a passage, and one vector whatever they were cut from.

Vectors are kept as the engine has them, in float32: a score has the same bits whichever run has computed the vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from rerank_cli.job.score_store.database import KEY_BYTES, Rate, ScoreStore

_NUMBER = np.dtype("<f4")


class StoredVectors:
    """The vectors of one model in a store; satisfies `engine.embedding.KnownVectors`.

    Args:
        store: Where they are.
        basis: A digest of all that decides a vector but the text.
        dimensions: Numbers in a vector.
    """

    def __init__(self, store: ScoreStore, basis: bytes, dimensions: int) -> None:
        self._store, self._basis = store, basis
        self._bytes = dimensions * _NUMBER.itemsize

    def find(self, keys: Sequence[bytes]) -> dict[bytes, npt.NDArray[np.float32]]:
        """See `KnownVectors`."""
        texts = {self._key(key): key for key in keys}
        values = self._store.find(list(texts))
        return {
            texts[key]: np.frombuffer(value, dtype=_NUMBER)
            for key, value in values.items()
            if len(value) == self._bytes
        }

    def add(self, vectors: Mapping[bytes, npt.NDArray[np.float32]], *, tokens: int, seconds: float) -> None:
        """See `KnownVectors`; a vector that is not finite is not kept."""
        entries = {
            self._key(key): vector.astype(_NUMBER).tobytes()
            for key, vector in vectors.items()
            if np.isfinite(vector).all()
        }
        self._store.add(entries, self._basis, Rate(tokens, seconds))

    def seconds_saved(self, tokens: int) -> float | None:
        """The time that texts of so many tokens take where they are embedded; None where that is not known."""
        return self._store.rate(self._basis).seconds_of(tokens)

    def _key(self, key: bytes) -> bytes:
        return hashlib.blake2b(key, digest_size=KEY_BYTES, key=self._basis, person=b"vector").digest()
