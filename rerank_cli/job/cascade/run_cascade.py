"""Runs windows through two scorers.

    first     scores every pair of a window, like a run with one model (`scoring_loop.py`)
    second    scores the pairs that the choice wants, in one round, or in two with a bound (`choice.py`)

Both read the whole first window of the input: it makes the rule, and its lists are the first of the agreement that the
report states. Both also read the whole first list of every 32nd window, for the agreement only: the output for a list
does not depend on whether it was sampled. Of a sampled list, the best 2,000 passages by the first scorer count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np

from rerank_cli.encoding.encoder import Encoded, EncodingProblem
from rerank_cli.encoding.pairs import EncodedWindow
from rerank_cli.engine.protocols import NeedsCalibration
from rerank_cli.job.agreement import Agreement
from rerank_cli.job.cascade.choice import (
    LEAST_AGREEMENT,
    Floats,
    Kept,
    ListChoice,
    Rule,
    add_list,
    agreement_document,
    cheap_order,
    make_rule,
)
from rerank_cli.job.cascade.scorer import Scorer, Work
from rerank_cli.job.cascade.shares import WindowShares
from rerank_cli.job.first_scorer import Asked
from rerank_cli.job.progress import Progress
from rerank_cli.job.ranking import rank_list, shortest
from rerank_cli.job.score_store.known_scores import Asked as Pair
from rerank_cli.job.scoring_loop import ScoredWindow, in_order, score_windows
from rerank_cli.job.windows import Windows
from rerank_cli.records import CandidateList, Counts, RankedList, RowError, Timing, Window

SAMPLED_PASSAGES = 2000
"""The most passages of a sampled list that count."""

_EVERY = 32  # windows, of which one list is sampled
_FEW_PAIRS = 100  # to measure a bound on


class Cascade:
    """Scores windows with two models.

    Args:
        asked: What the options ask for.
        first: The cheap scorer.
        second: The expensive one.
        state: The `state` of an earlier process.
        on_note: Gets messages for the user.
        progress: Of the run.
    """

    def __init__(
        self,
        asked: Asked,
        first: Scorer,
        second: Scorer,
        *,
        state: Mapping[str, Any] | None,
        on_note: Callable[[str], None],
        progress: Progress,
    ) -> None:
        self._asked, self.first, self.second, self._on_note = asked, first, second, on_note
        self._rule: Rule | None = None
        self._agreement, self._kept = Agreement(asked.top), Kept()
        self._sample: Window | None = None
        if state:
            self._rule = Rule.of_state(state["rule"]) if state["rule"] else None
            self._agreement, self._kept = Agreement(**state["agreement"]), Kept(**state["kept"])
            first.work, second.work = Work(**state["first"]), Work(**state["second"])
        self.engine = first.engine
        """It reads every pair."""
        self._shares = WindowShares(progress, first.work, second.work, self._kept)
        second.on_submit = progress.submit

    @property
    def state(self) -> dict[str, Any]:
        """What a resumed run must know, for a JSON file."""
        return {
            "rule": asdict(self._rule) if self._rule else None,
            "agreement": asdict(self._agreement), "kept": asdict(self._kept),
            "first": asdict(self.first.work), "second": asdict(self.second.work),
            "calibration": {
                name: one.engine.calibration if isinstance(one.engine, NeedsCalibration) else None
                for name, one in (("first", self.first), ("second", self.second))
            },
            "plan": {name: getattr(self.first.plan, name) for name in KEPT_OF_PLAN},
        }  # fmt: skip

    def score(self, windows: Windows, timing: Timing, **settings: Any) -> Generator[ScoredWindow]:
        """Score `windows` in their order; the caller closes the generator, which ends its threads.

        Args:
            windows: To score.
            timing: Each stage adds its time.
            settings: Further arguments of `score_windows`, for the first scorer.
        """
        windows.on_first = self._see_first
        self._shares.begin(windows.passed)
        settings["on_submit"] = self._shares.submit_first
        scored_by_first = score_windows(
            windows, self.first.prepared.encoder, self.first.engine, timing=self.first.timing,
            known=self.first.store.known(self.first.timing), pool=self.first.pool, stop=self.first.stop,
            on_batch=self.first.on_batch, **settings,
        )  # fmt: skip
        before = {id(one): replace(one.timing) for one in (self.first, self.second)}
        with closing(scored_by_first):
            for scored in scored_by_first:
                self.first.work.add(scored.counts, len(scored.encoded.encoded) - len(scored.known))
                self._shares.end_first(scored.encoded.window.share)
                window = self._rank(scored)
                self._shares.end_window()
                for one in (self.first, self.second):
                    was, now = before[id(one)], replace(one.timing)
                    one.work.seconds += now.compute - was.compute
                    for stage in fields(Timing):
                        grown = getattr(now, stage.name) - getattr(was, stage.name)
                        setattr(timing, stage.name, getattr(timing, stage.name) + grown)
                    before[id(one)] = now
                yield window

    def _see_first(self, window: Window) -> None:
        self._sample = window

    def _rank(self, scored: ScoredWindow) -> ScoredWindow:
        """Let the second scorer read what matters of a window that the first has scored, and rank it."""
        window = scored.encoded.window
        if not window.lists:  # bad rows only
            return scored
        counts: Counter[str] = Counter(scored.counts)
        have = _Read(self.second, window.number, counts)
        entries, scores = _by_list(scored.encoded, scored.logits)
        if self._rule is None:
            self._rule = self._measure(scored, have, counts)
        elif window.number % _EVERY == 0 and window.number:
            have.share = self._shares.round(1 / len(window.lists))
            add_list(self._agreement, *self._both(window.lists[0], scores[0], have), self._rule)
        choices = [ListChoice(one, self._rule) for one in scores]
        while wanted := [(place, some) for place, one in enumerate(choices) if (some := one.wanted())]:
            have.share = self._shares.round(1.0 if self._rule.over is None else 0.5)
            have([(window.lists[place], some) for place, some in wanted])
            for place, some in wanted:
                choices[place].put(some, have.scores(window.lists[place], some))
        ranked: list[RankedList] = []
        errors: list[RowError] = []
        for item, of_first, cheap, choice in zip(window.lists, entries, scores, choices, strict=True):
            self._kept.add(choice, self._rule)
            pairs = [(item.limits, *pair) for pair in item.pairs]
            both = [have.pairs[pairs[i]][0] if i in choice.read else entry for i, entry in enumerate(of_first)]
            joined = np.where(np.isin(np.arange(len(cheap)), sorted(choice.read)), choice.second, cheap).tolist()
            found, bad = rank_list(item, both, [shortest(np.float32(one)) for one in joined], second=choice.read)
            ranked += [found] if found else []
            errors += bad
        return replace(scored, ranked=ranked, errors=in_order([*window.errors, *errors]), counts=counts)

    def _measure(self, scored: ScoredWindow, have: _Read, counts: Counter[str]) -> Rule:
        """Make the rule from the first window of the whole input, which both scorers read in full."""
        sample = self._sample or scored.encoded.window
        encoded, logits = scored.encoded, scored.logits
        if sample.number != scored.encoded.window.number:  # the first window belongs to another shard
            encoded, logits, more = self.first.read(sample)
            counts.update(more)
            have = _Read(self.second, sample.number, counts)
        self.second.calibrate(sample)
        _, scores = _by_list(encoded, logits)
        both = []
        for place, (item, one) in enumerate(zip(sample.lists, scores, strict=True)):
            have.share = self._shares.round(1 / (len(scores) - place))
            both.append(self._both(item, one, have))
        rule = make_rule(self._asked, both)
        for first, second in both:
            add_list(self._agreement, first, second, rule)
        if rule.bound and rule.bound.pairs < _FEW_PAIRS:
            self._on_note(
                f"warning: the bound of --first is measured on the first {rule.bound.pairs} pairs alone; with fewer "
                f"than {_FEW_PAIRS} it may be too small"
            )
        return rule

    def _both(self, item: CandidateList, first: Floats, have: _Read) -> tuple[Floats, Floats]:
        """The scores of both scorers for a list, of its best passages by the first scorer."""
        places = sorted(cheap_order(first)[:SAMPLED_PASSAGES])
        have([(item, places)])
        return first[places], np.array(have.scores(item, places), dtype=np.float64)

    def document(self, counts: Counts) -> dict[str, Any]:
        """For the report; also warns if the first passages are not those of a full run."""
        rule, kept, agreement = self._rule, self._kept, agreement_document(self._agreement)
        if agreement["lists"] and agreement["overlap"] < LEAST_AGREEMENT:
            low, high = agreement["interval"]
            self._on_note(
                f"warning: of {agreement['lists']} sampled lists the first {agreement['top_n']} agree with a full run "
                f"by {agreement['overlap']:.3f} (95 %: {low:.3f} to {high:.3f}); a larger `--first-keep` brings them "
                "closer"
            )
        found: dict[str, Any] = {
            "first": self.first.document(), "second": self.second.document(), "keep": self._asked.keep,
            "top_n": self._asked.top, "passages": kept.passages, "read_by_second": kept.read,
            "share_read": round(kept.read / kept.passages, 6) if kept.passages else None,
            "kept_of_a_list": rule.keep if rule else None, "deepest": rule.deepest if rule else None, "bound": None,
            "agreement": agreement,
        }  # fmt: skip
        if rule and rule.bound:
            found["bound"] = asdict(rule.bound) | {"exceeded": kept.exceeded, "furthest": kept.furthest}
        return {"cascade": found} | self._stores_document(counts)

    def _stores_document(self, counts: Counts) -> dict[str, Any]:
        both = [one.store.document(one.work.of_counts(counts)) for one in (self.first, self.second)]
        if not all(both):
            return {}
        a, b = (one["store"] for one in both)
        saved = [one["seconds_saved"] for one in (a, b) if one["seconds_saved"] is not None]
        sums = {name: a[name] + b[name] for name in ("asked", "found", "computed", "added", "damaged")}
        notes = list(dict.fromkeys([*a["notes"], *b["notes"]]))
        return {"store": a | b | sums | {"seconds_saved": round(sum(saved), 3) if saved else None, "notes": notes}}


KEPT_OF_PLAN = ("threads", "lanes", "token_budget")
"""What the first scorer of a resumed run keeps from its beginning."""


class _Read:
    """The second scorer's entries and scores of the pairs of a window; each pair is read once.

    Args:
        scorer: Reads the pairs.
        number: Of the window.
        counts: What is read is added here.
    """

    def __init__(self, scorer: Scorer, number: int, counts: Counter[str]) -> None:
        self._scorer, self._number, self._counts = scorer, number, counts
        self.pairs: dict[Pair, tuple[Encoded, float]] = {}
        """What was read: the entry and the score of each pair."""
        self.share: float | None = None
        """The share of the input that is done after the next read."""

    def __call__(self, wanted: Iterable[tuple[CandidateList, Sequence[int]]]) -> None:
        """Read passages of lists that are not read yet."""
        lists = []
        for item, places in wanted:
            pairs = item.pairs
            new = [place for place in places if (item.limits, *pairs[place]) not in self.pairs]
            if new:
                lists.append(
                    replace(
                        item,
                        passages=tuple(item.passages[place] for place in new),
                        queries=tuple(item.queries[place] for place in new) if item.queries else (),
                        places=(),
                        whole=None,
                    )
                )
        if not lists:
            return
        encoded, logits, counts = self._scorer.read(Window(self._number, tuple(lists), (), 0, 0, self.share))
        self._counts.update(counts)
        asked = [(item.limits, *pair) for item in lists for pair in item.pairs]
        for pair, place in zip(asked, encoded.places, strict=True):
            self.pairs[pair] = encoded.encoded[place], float(logits[place])

    def scores(self, item: CandidateList, places: Sequence[int]) -> list[float]:
        """The scores of passages that were read; NaN where there is none."""
        pairs = item.pairs
        return [_score(*self.pairs[item.limits, *pairs[place]]) for place in places]


def _score(entry: Encoded, logit: float) -> float:
    return np.nan if isinstance(entry, EncodingProblem) or not np.isfinite(logit) else logit


def _by_list(encoded: EncodedWindow, logits: Any) -> tuple[list[list[Encoded]], list[Floats]]:
    """The entries and scores of each list's passages; NaN where there is no score."""
    entries, scores = [], []
    begin = 0
    for item in encoded.window.lists:
        places = encoded.places[begin : begin + len(item.passages)]
        begin += len(item.passages)
        entries.append([encoded.encoded[place] for place in places])
        scores.append(
            np.array([_score(encoded.encoded[place], float(logits[place])) for place in places], dtype=np.float64)
        )
    return entries, scores
