"""How many bad rows a run may have (`--max-errors`), and from how many rows on a share of them counts."""

from __future__ import annotations

from dataclasses import dataclass

from rerank_cli.errors import TooManyBadRowsError
from rerank_cli.records import Counts

_RATE_IS_MEANINGFUL_FROM = 1000  # rows; with fewer, a single bad line could exceed a percentage


@dataclass(frozen=True, slots=True)
class ErrorLimit:
    """How many bad rows a run may have: `rows`, or a `share` of all rows, or any number (both None).

    all: even a run without a single scored row is no failure. That is for a part of the input, since only the whole can
    tell.

    Bad passages of lists that are ranked without them count too: against `rows`, and against `share` as a share of all
    passages.
    """

    rows: int | None = None
    share: float | None = None
    all: bool = False

    def check(self, counts: Counts, *, last: bool) -> None:
        """Raise `TooManyBadRowsError` if `counts` is over the limit."""
        if self.rows is not None and counts.rows_error + counts.passages_error > self.rows:
            passages = f" and {counts.passages_error} passages" if counts.passages_error else ""
            raise TooManyBadRowsError(f"{counts.rows_error} rows{passages} failed, --max-errors allows {self.rows}")
        if self.share is not None and (last or counts.rows_in >= _RATE_IS_MEANINGFUL_FROM):
            allowed = self.share * counts.rows_in
            if counts.rows_error > allowed:
                share = f"{100 * counts.rows_error / counts.rows_in:.3g} %"
                raise TooManyBadRowsError(
                    f"{counts.rows_error} of {counts.rows_in} rows failed ({share}), "
                    f"--max-errors allows {100 * self.share:g} %"
                )
            whole = counts.pairs + counts.passages_error
            if counts.passages_error > self.share * whole:
                share = f"{100 * counts.passages_error / whole:.3g} %"
                raise TooManyBadRowsError(
                    f"{counts.passages_error} of {whole} passages failed ({share}), "
                    f"--max-errors allows {100 * self.share:g} %"
                )
