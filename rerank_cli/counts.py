"""What a run has done so far, how long its stages took, and how many bad rows it bears."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rerank_cli.errors import TooManyBadRowsError

_RATE_IS_MEANINGFUL_FROM = 1000  # rows; a percentage of fewer rows stops a run for a bad first line


@dataclass(frozen=True, slots=True)
class ErrorLimit:
    """How many bad rows a run bears: `rows`, or `share` of all rows, or any number (both None)."""

    rows: int | None = None
    share: float | None = None

    def check(self, counts: Counts, *, last: bool) -> None:
        """Raise `TooManyBadRowsError` if `counts` is over the limit."""
        if self.rows is not None and counts.rows_error > self.rows:
            raise TooManyBadRowsError(f"{counts.rows_error} rows failed, --max-errors allows {self.rows}")
        if self.share is not None and (last or counts.rows_in >= _RATE_IS_MEANINGFUL_FROM):
            allowed = self.share * counts.rows_in
            if counts.rows_error > allowed:
                share = f"{100 * counts.rows_error / counts.rows_in:.3g} %"
                raise TooManyBadRowsError(
                    f"{counts.rows_error} of {counts.rows_in} rows failed ({share}), "
                    f"--max-errors allows {100 * self.share:g} %"
                )


@dataclass(slots=True)
class Counts:
    """What a run has done so far.

    rows_in: rows read, bad ones included, blank lines not. rows_out: of these, the ones that were scored. output_rows:
    rows written. pairs_scored: distinct pairs that a model saw. tokens: what it read of these, after truncation; an
    embedder reads what several pairs share once. dropped: passages that the user's selection left out. ties: neighbours
    in rank order with equal logits. images, tiles: what a vision tower saw; image_tokens: of the tokens, those that
    stand for images; retiled: passages whose image was cut in fewer tiles to fit. out_of_memory_splits: batches that
    did not fit and were cut. fp32_reruns: pairs (of an embedding model texts) whose result was no number and that were
    computed again in fp32. computed_tokens: `tokens`, and those that only fill batches up; 0 where nobody counts them.
    engine_deaths: processes that scored pairs, ended by themselves and were started again.
    """

    rows_in: int = 0
    rows_out: int = 0
    rows_error: int = 0
    blank: int = 0
    output_rows: int = 0
    lists: int = 0
    pairs: int = 0
    pairs_scored: int = 0
    tokens: int = 0
    truncated: int = 0
    chunked: int = 0
    dropped: int = 0
    ties: int = 0
    empty_queries: int = 0
    empty_passages: int = 0
    images: int = 0
    tiles: int = 0
    image_tokens: int = 0
    retiled: int = 0
    out_of_memory_splits: int = 0
    fp32_reruns: int = 0
    engine_deaths: int = 0
    computed_tokens: int = 0

    def add(self, more: Mapping[str, int]) -> None:
        """Count `more`, by name."""
        for name, number in more.items():
            setattr(self, name, getattr(self, name) + number)

    def put(self, whole: Mapping[str, int]) -> None:
        """Have these numbers, by name, in place of those that were counted."""
        for name, number in whole.items():
            setattr(self, name, number)


@dataclass(slots=True)
class Timing:
    """Seconds that each stage worked; reading and tokenising run beside the others.

    load: of the weights. wait: of the computing thread for a window that is read and tokenised. images: of the
    tokenising thread, reading images or waiting for those who do; not in `tokenise`. write: committing too.
    """

    load: float = 0.0
    wait: float = 0.0

    read: float = 0.0
    images: float = 0.0
    tokenise: float = 0.0
    compute: float = 0.0
    write: float = 0.0
