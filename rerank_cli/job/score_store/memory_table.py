"""Scores in memory: what a run without a store knows about the pairs that it has computed.

A table of `KNOWN_PAIRS` places of 36 bytes. The key of a pair decides its place, and a later pair overwrites an earlier
one. So memory is bounded (19 MB; pages that were never written take none), a look-up is a few operations of numpy for a
whole window, and what is found depends on the earlier pairs alone. A pair in several chunks is not kept.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from rerank_cli.job.score_store.database import KEY_BYTES, Rate
from rerank_cli.planning.memory import KNOWN_PAIRS

LOGIT: Final = struct.Struct("<f")
LENGTHS: Final = struct.Struct("<IIIHBB")
"""Tokens, kept tokens, unknown, template, tiles, full tiles: of each chunk of a pair."""
VALUE_BYTES: Final = LOGIT.size + LENGTHS.size
"""Of a pair that is not cut into chunks."""


class MemoryTable:
    """Entries that this process has added; has the calls of `ScoreStore`."""

    def __init__(self, places: int = KNOWN_PAIRS) -> None:
        self._keys = np.zeros((places, KEY_BYTES // 8), dtype=np.uint64)
        self._values = np.zeros((places, VALUE_BYTES), dtype=np.uint8)
        self._is_empty = True

    def find(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values of those of `keys` that are there."""
        if self._is_empty or not keys:
            return {}
        asked = np.frombuffer(b"".join(keys), dtype=np.uint64).reshape(len(keys), -1)
        places = asked[:, 1] % np.uint64(len(self._keys))
        hits = np.flatnonzero((self._keys[places] == asked).all(axis=1)).tolist()
        return {keys[hit]: self._values[places[hit]].tobytes() for hit in hits}

    def add(
        self,
        entries: Mapping[bytes, bytes],
        basis: bytes = b"",
        rate: Rate | None = None,
        lists: Mapping[bytes, bytes] | None = None,
    ) -> None:
        """Keep the `entries` of pairs in one chunk. Costs and lists are ignored."""
        del basis, rate, lists
        kept = {key: value for key, value in entries.items() if len(value) == VALUE_BYTES}
        if not kept:
            return
        keys = np.frombuffer(b"".join(kept), dtype=np.uint64).reshape(len(kept), -1)
        values = np.frombuffer(b"".join(kept.values()), dtype=np.uint8).reshape(len(kept), -1)
        places = keys[:, 1] % np.uint64(len(self._keys))
        self._keys[places], self._values[places] = keys, values
        self._is_empty = False

    def rate(self, basis: bytes) -> Rate:
        """Nothing: costs are not kept."""
        del basis
        return Rate()
