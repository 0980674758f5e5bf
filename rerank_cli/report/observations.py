"""What a run saw beyond its counts: lengths, unknown tokens, scores, moves, speed over time, reasons of bad rows.

Memory is constant, whatever a run reads (`histograms`). `state` is a few kilobytes: it goes into the journal with every
commit, and a resumed run adds to it, so its report covers the whole job. No text is stored, except ids and messages of
some bad rows. These are not escaped here; whoever shows them must do that.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from rerank_cli.encoding.encoder import EncodingProblem
from rerank_cli.encoding.pairs import EncodedWindow
from rerank_cli.evaluation.chart_data import NO_MOVES, count_moves, moves_document
from rerank_cli.records import EncodedPair, RankedList, RowError
from rerank_cli.report.histograms import LengthHistogram, SpreadHistograms, Timeline, bound_of

_LAST_RANKS = (1, 2, 3, 5, 10, 20, 50, 100)  # of each group; one more group holds all later ranks
_SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
_EXAMPLES = 3  # of each code
_CODES = 32  # counted apart; there are fewer
_LONGEST_TEXT = 200  # characters of an id or a message
_LARGEST_ID = 2**63
_CONTINUED_TIMES = 32  # only the last so many are kept
_UNREAD_SHARE = 0.05


@dataclass(slots=True)
class UnknownTokens:
    """How much of the texts a model cannot read: the tokens that stand for what its vocabulary lacks.

    A pair with more than 5 % of them is in a language or a script that the model was not made for. Its logit looks like
    any other, so only this count shows it.
    """

    read: int = 0
    """Tokens of the texts of all pairs; a chunk counts as a pair."""
    unknown: int = 0
    unread_pairs: int = 0
    """Pairs with more than 5 % of unknown tokens."""

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


class Observations:
    """Collects what a run sees; a process that resumes it begins with the `state` of the one before.

    squares: sum of the squared lengths that the model read, to count the operations of attention.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        state = state or {}
        self._whole = LengthHistogram(state.get("whole"))
        self._cut = LengthHistogram(state.get("cut"))
        self._tokens, self._cut_tokens, self.squares = state.get("tokens", (0, 0, 0))
        self._unknown = UnknownTokens(*state.get("unknown", ()))
        self._scores = SpreadHistograms(len(_LAST_RANKS) + 1, state.get("scores"))
        self._by_relevance = SpreadHistograms(2, state.get("by_relevance"))
        self._moves = np.array(state.get("moves", NO_MOVES), dtype=np.int64)
        self._has_lists = state.get("has_lists", False)
        self.timeline = Timeline(2, state.get("timeline"))
        """Pairs and tokens of each batch. Its `state` has no `at`: that is for the next process to say."""
        self._continued_at: list[float] = list(state.get("continued_at", ()))
        self._codes: dict[str, dict[str, Any]] = {
            code: {**found, "examples": list(found["examples"])} for code, found in state.get("codes", {}).items()
        }

    @property
    def state(self) -> dict[str, Any]:
        """What `Observations(state)` goes on from, fit for JSON."""
        return {
            "whole": self._whole.state,
            "cut": self._cut.state,
            "tokens": [self._tokens, self._cut_tokens, self.squares],
            "unknown": astuple(self._unknown),
            "scores": self._scores.state,
            "by_relevance": self._by_relevance.state,
            "moves": self._moves.tolist(),
            "has_lists": self._has_lists,
            "timeline": self.timeline.state,
            "continued_at": list(self._continued_at),
            "codes": {code: {**found, "examples": list(found["examples"])} for code, found in self._codes.items()},
        }

    def add_continued(self, seconds: float) -> None:
        """Note that this process resumes a run, after this many seconds of work."""
        self.timeline.at = seconds
        self._continued_at = [*self._continued_at, round(seconds, 3)][-_CONTINUED_TIMES:]

    def add(self, window: EncodedWindow, ranked: Sequence[RankedList], known: Set[int] = frozenset()) -> None:
        """Add a window.

        Args:
            window: Its distinct pairs; a chunk counts as a pair.
            ranked: Its complete rankings; of a cascade, only the second scorer's scores are added.
            known: The places of the pairs that no model read.
        """
        pairs = [pair for entry in window.encoded if not isinstance(entry, EncodingProblem) for pair in entry]
        tokens = np.fromiter((pair.tokens for pair in pairs), np.int64)
        kept = np.fromiter((len(pair.input_ids) for pair in pairs), np.int64)
        self._unknown.add(pairs)
        scored = [
            (entry.rank, entry.logit)
            for item in ranked
            for entry in item.ranking
            if entry.scored_by != "first" and entry.is_scored
        ]
        self._whole.add(tokens[tokens <= kept])
        self._cut.add(tokens[tokens > kept])
        self._tokens += int(tokens.sum())
        self._cut_tokens += int((tokens - kept).clip(0).sum())
        self.squares += int((kept**2).sum())
        if known:
            unread = [window.encoded[place] for place in known]
            self.squares -= sum(
                len(pair.input_ids) ** 2 for entry in unread if not isinstance(entry, EncodingProblem) for pair in entry
            )
        if scored:
            ranks, logits = np.array(scored, dtype=np.float64).T
            self._scores.add(np.searchsorted(_LAST_RANKS, ranks), logits)
        moves = [np.zeros(0, dtype=np.int64)]
        for item in ranked:
            given = np.argsort(np.argsort([entry.index for entry in item.ranking]))
            moves.append(given - np.arange(len(given)))
            self._has_lists |= len(given) > 1
        count_moves(self._moves, np.concatenate(moves))

    def add_relevance(self, relevant: Sequence[float], others: Sequence[float]) -> None:
        """Add scores of passages of judged queries."""
        for group, scores in enumerate((relevant, others)):
            if scores:
                self._by_relevance.add(np.full(len(scores), group), np.array(scores, dtype=np.float64))

    def add_error(self, error: RowError) -> None:
        """Add a bad row."""
        code = error.code if error.code in self._codes or len(self._codes) < _CODES else "other"
        found = self._codes.setdefault(code, {"rows": 0, "examples": []})
        found["rows"] += 1
        if len(found["examples"]) < _EXAMPLES:
            shown: Any = error.id
            is_number = isinstance(shown, (int, float)) and math.isfinite(shown) and abs(shown) < _LARGEST_ID
            if shown is not None and not is_number:
                shown = _shorten(
                    shown if isinstance(shown, str) else json.dumps(shown, default=str, ensure_ascii=False)
                )
            found["examples"].append(
                {"file": error.file, "row": error.row, "id": shown, "message": _shorten(error.message)}
            )

    def document(self, score: str) -> dict[str, Any]:
        """The parts of a report made here, without those that have no data. score: `logit` or `cosine`."""
        codes = sorted(self._codes.items(), key=lambda entry: (-entry[1]["rows"], entry[0]))
        timeline = self.timeline.state
        pairs, tokens = ([round(amount, 1) for amount in series] for series in timeline["series"])
        speed = {"step_seconds": timeline["step"], "pairs": pairs, "tokens": tokens, "continued_at": self._continued_at}
        parts = {
            "lengths": self._lengths(),
            "unknown_tokens": self._unknown.document(),
            "scores": self._scores_by_rank(score),
            "scores_by_relevance": self._scores_by_relevance(score),
            "moves": moves_document(self._moves.tolist()) if self._has_lists else None,
            "timeline": speed if pairs else None,
            "errors": [{"code": code, **found} for code, found in codes],
        }
        return {name: part for name, part in parts.items() if part}

    def _lengths(self) -> dict[str, Any] | None:
        whole, cut = self._whole.bins(), self._cut.bins()
        bins = {span: whole.get(span, 0) + cut.get(span, 0) for span in sorted(whole.keys() | cut.keys())}
        if not bins:
            return None
        pairs, longest = sum(bins.values()), max(self._whole.longest, self._cut.longest)
        return {
            "pairs": pairs,
            "mean": round(self._tokens / pairs, 1),
            **{f"p{100 * share:g}": min(longest, bound_of(bins, share)) for share in (0.5, 0.9, 0.99)},
            "longest": longest,
            "cut_pairs": sum(cut.values()),
            "cut_tokens": self._cut_tokens,
            "histogram": [
                {"from": span[0], "to": span[1], "pairs": count, "cut": cut.get(span, 0)}
                for span, count in bins.items()
            ],
        }

    def _scores_by_rank(self, score: str) -> dict[str, Any] | None:
        by_rank = []
        for group, begin in enumerate([1, *(last + 1 for last in _LAST_RANKS)]):
            if summary := self._scores.summary(group, _SHARES):
                end = _LAST_RANKS[group] if group < len(_LAST_RANKS) else None
                by_rank.append({"from": begin, "to": end, **summary})
        if not by_rank:
            return None
        found = self._scores.by_group()
        counts = [sum(of_groups) for of_groups in zip(*found["counts"], strict=True)]
        return {"score": score, "by_rank": by_rank, "histogram": {**found, "counts": counts}}

    def _scores_by_relevance(self, score: str) -> dict[str, Any] | None:
        found = self._by_relevance.by_group()
        relevant, others = found["counts"]
        if not any(relevant) or not any(others):
            return None
        return {
            "score": score, "begin": found["begin"], "width": found["width"], "relevant": relevant, "others": others,
        }  # fmt: skip


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 1]}\N{HORIZONTAL ELLIPSIS}"
