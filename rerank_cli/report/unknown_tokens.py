"""How much of the texts a model cannot read: the tokens that stand for what its vocabulary lacks.

A pair with more than 5 % of them is in a language or a script that the model was not made for. Its logit looks like any
other, so only this count shows it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rerank_cli.records import EncodedPair

_UNREAD_SHARE = 0.05


@dataclass(slots=True)
class UnknownTokens:
    """Counts over the pairs of a run; a chunk counts as a pair. unread_pairs: those with more than 5 %."""

    read: int = 0
    unknown: int = 0
    unread_pairs: int = 0

    def add(self, pairs: Iterable[EncodedPair]) -> None:
        """Count the texts of distinct pairs, without template and image."""
        for pair in pairs:
            read = len(pair.input_ids) - pair.template
            self.read += read
            if pair.unknown:
                self.unknown += pair.unknown
                self.unread_pairs += pair.unknown > _UNREAD_SHARE * read

    def document(self) -> dict[str, Any] | None:
        """The part of a report; None if every token is known."""
        if not self.unknown:
            return None
        return {
            "tokens": self.unknown,
            "share": round(self.unknown / self.read, 6),
            "pairs_over_5_percent": self.unread_pairs,
        }
