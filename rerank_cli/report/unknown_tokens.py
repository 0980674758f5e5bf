"""How much of the texts a model cannot read: the tokens that stand for what its vocabulary lacks.

A pair with more than 5 % of them is in a language or a script that the model was not made for. Its logit looks like any
other, so only this count shows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rerank_cli.records import EncodedPair

_UNREAD_SHARE = 0.05


class UnknownTokens:
    """Counts over the pairs of a run; a chunk counts as a pair. A resumed run begins with the `state` before."""

    def __init__(self, state: Sequence[int] = ()) -> None:
        self._read, self._unknown, self._unread_pairs = state or (0, 0, 0)

    @property
    def state(self) -> list[int]:
        """What `UnknownTokens(state)` goes on from, fit for JSON."""
        return [self._read, self._unknown, self._unread_pairs]

    def add(self, pairs: Iterable[EncodedPair]) -> None:
        """Count the texts of distinct pairs, without template and image."""
        for pair in pairs:
            self._read += pair.text_tokens
            if pair.unknown:
                self._unknown += pair.unknown
                self._unread_pairs += pair.unknown > _UNREAD_SHARE * pair.text_tokens

    def document(self) -> dict[str, Any] | None:
        """The part of a report; None if every token is known."""
        if not self._unknown:
            return None
        return {
            "tokens": self._unknown,
            "share": round(self._unknown / self._read, 6),
            "pairs_over_5_percent": self._unread_pairs,
        }
