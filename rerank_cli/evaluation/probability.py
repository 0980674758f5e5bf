"""What the scores of a system say of relevance: how probable it is, and from which score on they can be trusted.

An unjudged passage counts as not relevant, as it does in the measures. A threshold is chosen on all queries and judged
on queries that it was chosen without (`calibration`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank_cli.evaluation.calibration import (
    FOLDS,
    KINDS,
    Curve,
    Floats,
    Kind,
    Marks,
    better_kind,
    errors_of,
    fit,
    held_out,
    pooled_lists,
    reason_against,
    reliability,
    sigmoid_of,
    threshold_for,
)
from rerank_cli.evaluation.student import quantile
from rerank_cli.evaluation.systems import UNJUDGED, System

RELEVANT_FROM = 1

_MOST_QUERIES = 20_000  # that curves are checked on; more would change no digit that is shown
_SEED = 0


@dataclass(frozen=True, slots=True)
class Pool:
    """The judged passages of a system. fold: of the query of each passage; starts: where the queries begin."""

    scores: Floats
    relevant: Marks
    fold: npt.NDArray[np.intp]
    starts: npt.NDArray[np.intp]
    judged: float
    """The share that the judgements name."""

    @property
    def queries(self) -> int:
        """How many there are."""
        return len(self.starts)


def pool_of(system: System, relevant_from: int = RELEVANT_FROM, most: int | None = _MOST_QUERIES) -> Pool | None:
    """The passages of queries that have scores, at most those of `most` queries; None where there is none."""
    lists = [one for one in system.lists.values() if one.scores is not None and len(one.scores)]
    if not system.has_scores or not lists:
        return None
    if most is not None and len(lists) > most:
        drawn = np.random.Generator(np.random.PCG64(_SEED)).permutation(len(lists))[:most]
        lists = [lists[place] for place in sorted(drawn.tolist())]
    marked = [(one.scores, one.grades >= relevant_from) for one in lists if one.scores is not None]
    scores, relevant, fold = pooled_lists(marked)
    starts = np.cumsum([0, *(len(one) for one, _ in marked)])[:-1]
    judged = float(np.mean(np.concatenate([one.grades for one in lists]) != UNJUDGED))
    return Pool(scores, relevant, fold, starts, judged)


def check_curves(pool: Pool, *, plain: bool) -> tuple[Kind, dict[str, Any]]:
    """The better kind, and what both are worth on queries that they have not seen; as the page shows it.

    plain: the score is a logit, whose own sigmoid can be held against them.
    """
    values = {kind: held_out(kind, pool.scores, pool.relevant, pool.fold) for kind in KINDS}
    checked = {kind: errors_of(found, pool.relevant) for kind, found in values.items()}
    kind = better_kind(checked)
    document: dict[str, Any] = {
        "kind": kind,
        "queries": pool.queries,
        "passages": len(pool.scores),
        "relevant": int(pool.relevant.sum()),
        "judged": pool.judged,
        "checked": dict(checked),
        "reliability": reliability(values[kind], pool.relevant),
    }
    if plain:
        own = sigmoid_of(pool.scores)
        document["checked"]["sigmoid"] = errors_of(own, pool.relevant)
        document["reliability_of_sigmoid"] = reliability(own, pool.relevant)
    return kind, document


def probabilities_of(system: System, pool: Pool | None) -> dict[str, Any]:
    """How well scores tell relevance; a `reason` where that cannot be said."""
    if pool is None:
        return {"reason": "the file has no scores of its new order"}
    if reason := reason_against(pool.scores, pool.relevant, pool.queries):
        return {"reason": reason}
    return check_curves(pool, plain=system.score == "logit")[1]


def fit_system(system: System, kind: Kind | None, relevant_from: int = RELEVANT_FROM) -> tuple[Curve, dict[str, Any]]:
    """The curve of all queries, of the better kind if none is asked for, and what it is worth; raises `ValueError`."""
    whole = pool_of(system, relevant_from, most=None)
    if whole is None:
        raise ValueError("the file has no scores of its new order")
    if reason := reason_against(whole.scores, whole.relevant, whole.queries):
        raise ValueError(reason)
    checked = pool_of(system, relevant_from)
    assert checked is not None, "the whole is there"
    better, document = check_curves(checked, plain=system.score == "logit")
    chosen = kind or better
    facts = {name: document[name] for name in ("queries", "passages", "relevant", "judged", "checked")}
    return fit(chosen, whole.scores, whole.relevant), facts


def keep_precision(pool: Pool | None, precision: float) -> dict[str, Any]:
    """The lowest score from on which that share of passages is relevant, and what is kept above it; or a `reason`.

    `precision` and `recall` are of queries that the threshold was chosen without, with the ends of a 95 % interval.
    """
    asked: dict[str, Any] = {"asked": precision}
    if pool is None:
        return {**asked, "reason": "the file has no scores of its new order"}
    threshold = threshold_for(precision, pool.scores, pool.relevant)
    if threshold is None:
        return {**asked, "reason": f"from no score on are {precision:.0%} of the passages relevant"}
    kept = np.zeros(len(pool.scores), dtype=bool)
    for one in range(FOLDS):
        out = pool.fold == one
        found = threshold_for(precision, pool.scores[~out], pool.relevant[~out])
        if found is not None:
            kept[out] = pool.scores[out] >= found
    sums = [np.add.reduceat(values.astype(np.float64), pool.starts) for values in (kept & pool.relevant, kept)]
    low, high = _ratio_interval(*sums)
    now = pool.scores >= threshold
    return {
        **asked,
        "threshold": threshold,
        "precision": float(sums[0].sum() / sums[1].sum()) if sums[1].sum() else None,
        "low": low,
        "high": high,
        "recall": float(sums[0].sum() / max(1, pool.relevant.sum())),
        "kept": float(now.mean()),
        "queries_with_nothing": int((np.add.reduceat(now.astype(np.intp), pool.starts) == 0).sum()),
        "queries": pool.queries,
        "passages": len(pool.scores),
    }


def _ratio_interval(hits: Floats, kept: Floats) -> tuple[float | None, float | None]:
    """95 % interval of the ratio of two sums over queries, whose passages are not independent (linearised)."""
    count, whole = len(kept), kept.sum()
    if count < 2 or not whole:
        return None, None
    ratio = hits.sum() / whole
    error = math.sqrt(count / (count - 1) * float(((hits - ratio * kept) ** 2).sum())) / whole
    reach = quantile(0.95, count - 1) * error
    return max(0.0, float(ratio - reach)), min(1.0, float(ratio + reach))
