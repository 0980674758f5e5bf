"""From logits to ranks, once a window is scored: chunks pooled (`--pool`), lists in order, bad pairs taken out.

score_part      give each entry of a part its logit, and drop the pixels of its images
join_parts      join the parts of a window again
finish_window   join them with what was known, and keep what is new
rank_window     put its lists in rank order, and its rows without a score aside; rank_list: one list
select          keep what the user wants of a ranking
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rerank_cli.encoding.choices import Pool
from rerank_cli.encoding.encoder import Encoded, EncodingProblem
from rerank_cli.encoding.pairs import EncodedWindow
from rerank_cli.evaluation.blend import Blend, order_by_score
from rerank_cli.formats.shapes import Selection, row_error
from rerank_cli.job.image_parts import EncodedPart
from rerank_cli.job.score_store.known_scores import FoundPairs, KnownScores, kept_tokens
from rerank_cli.records import CandidateList, RankedList, RankedPassage, RowError, Window

if TYPE_CHECKING:
    from rerank_cli.engine.protocols import Trouble

_POOLS: dict[Pool, Callable[[npt.NDArray[np.float32]], np.float32]] = {
    "max": np.max,
    "mean": np.mean,
    "first": lambda chunks: chunks[0],
}


@dataclass(frozen=True, slots=True)
class ScoredPart:
    """A scored `EncodedPart`."""

    members: list[int]  # places of its pairs among the window's distinct ones
    encoded: list[Encoded]  # without pixels
    logits: npt.NDArray[np.float32]
    counts: Mapping[str, int]  # what it adds to `Counts`, by name


def score_part(part: EncodedPart, logits: npt.NDArray[np.float32], trouble: Trouble, pool: Pool) -> ScoredPart:
    """The part with the logit of each of its entries, and its counts.

    Args:
        part: What the engine was given.
        logits: Of `part.pairs`.
        trouble: What went wrong in the engine.
        pool: Joins the logits of a pair's chunks.
    """
    counts = {
        **image_counts(part.encoded),
        "out_of_memory_splits": trouble.splits,
        "fp32_reruns": trouble.reruns,
        "engine_deaths": trouble.deaths,
        "computed_tokens": trouble.computed,
        "tokens": sum(len(pair.input_ids) for pair in part.pairs),
    }
    entries = [without_pixels(entry) for entry in with_problems(part.encoded, trouble.failed)]
    return ScoredPart(part.members, entries, pooled(part.encoded, logits, pool), counts)


def known_part(found: FoundPairs | None) -> list[ScoredPart]:
    """The pairs of a window that were not computed, as a part; empty if there are none.

    Pairs from a store are counted apart. Pairs that an earlier window of this process had count as computed, so that
    the totals do not depend on where a run was stopped and resumed.
    """
    if not found:
        return []
    for place, pair in found.awaited.items():
        assert pair.entry is not None, "an earlier window is scored first"
        found.entries[place] = found.entries[place] or pair.entry
        found.logits[place] = pair.logit
    known = {place: without_pixels(entry) for place, entry in enumerate(found.entries) if entry is not None}
    if not known:
        return []
    places, entries = list(known), list(known.values())
    tokens = sum(map(kept_tokens, entries))
    counts = {"pairs_found": len(places), "tokens_found": tokens}
    if found.repeats:
        counts = {"pairs_repeated": len(places), "tokens_repeated": tokens, "tokens": tokens}
    return [ScoredPart(places, entries, found.logits[places], counts)]


def pooled(encoded: Sequence[Encoded], logits: npt.NDArray[np.float32], pool: Pool) -> npt.NDArray[np.float32]:
    """The logit of each of `encoded`, from the logits of `pairs_of(encoded)`; NaN for an entry with a problem.

    The logits of a pair's chunks are pooled: the best one, the mean, or that of the first chunk.
    """
    combine = _POOLS[pool]
    found = np.full(len(encoded), np.nan, dtype=np.float32)
    chunks = np.array([0 if isinstance(entry, EncodingProblem) else len(entry) for entry in encoded], dtype=np.int64)
    ends = np.cumsum(chunks)
    whole = chunks == 1
    found[whole] = logits[ends[whole] - 1]
    for place in np.flatnonzero(chunks > 1).tolist():
        found[place] = combine(logits[ends[place] - chunks[place] : ends[place]])
    return found


def with_problems(encoded: list[Encoded], failed: Mapping[int, EncodingProblem]) -> list[Encoded]:
    """`encoded` with a problem in place of each entry with a failed pair. failed: by place among all pairs."""
    if not failed:
        return encoded
    out: list[Encoded] = []
    begin = 0
    for entry in encoded:
        end = begin + (0 if isinstance(entry, EncodingProblem) else len(entry))
        out.append(next((failed[place] for place in range(begin, end) if place in failed), entry))
        begin = end
    return out


def without_pixels(entry: Encoded) -> Encoded:
    """`entry` without the tiles of its image, which take most of its memory."""
    if isinstance(entry, EncodingProblem) or not any(pair.block for pair in entry):
        return entry
    return tuple(replace(pair, block=pair.block and replace(pair.block, image=None)) for pair in entry)


def image_counts(encoded: Sequence[Encoded]) -> dict[str, int]:
    """What the vision tower reads for these pairs, by the names of `Counts`."""
    blocks = [pair.block for entry in encoded if not isinstance(entry, EncodingProblem) for pair in entry if pair.block]
    distinct = {block.image: block.tiles for block in blocks}
    return {
        "images": len(distinct),
        "tiles": sum(distinct.values()),
        "image_tokens": sum(block.length for block in blocks),
    }


def join_parts(
    window: Window, parts: Sequence[ScoredPart], places: list[int]
) -> tuple[EncodedWindow, npt.NDArray[np.float32]]:
    """Join the parts of a window: its distinct pairs in order, and their logits."""
    entries = {
        place: (entry, logit)
        for part in parts
        for place, entry, logit in zip(part.members, part.encoded, part.logits, strict=True)
    }
    ordered = [entries[place] for place in range(len(entries))]
    logits = np.array([logit for _, logit in ordered], dtype=np.float32)
    return EncodedWindow(window, [entry for entry, _ in ordered], places), logits


def finish_window(
    last: EncodedPart, parts: Sequence[ScoredPart], known: KnownScores | None
) -> tuple[EncodedWindow, npt.NDArray[np.float32], Counter[str], frozenset[int]]:
    """Join what was computed of a window with what was known of it, and keep what is new.

    Args:
        last: The last part of the window.
        parts: All its parts.
        known: Gets the new scores.

    Returns:
        Its distinct pairs and their logits, what it adds to `Counts`, and which of its pairs were not computed.
    """
    assert last.places is not None, "the last part has the places"
    not_computed = known_part(last.found)
    joined = [*parts, *not_computed]
    encoded, logits = join_parts(last.window, joined, last.places)
    if known and last.found:
        for part in parts:
            known.settle(last.found, part.members, part.encoded, part.logits)
        known.keep(last.found)
    counts: Counter[str] = Counter()
    for part in joined:
        counts.update(part.counts)
    return encoded, logits, counts, frozenset(place for part in not_computed for place in part.members)


def rank_window(
    encoded: EncodedWindow, logits: npt.NDArray[np.float32], blend: Blend | None = None
) -> tuple[list[RankedList], list[RowError]]:
    """The window's complete lists in rank order, and the rows without a score."""
    ranked: list[RankedList] = []
    errors: list[RowError] = []
    begin = 0
    for item in encoded.window.lists:
        places = encoded.places[begin : begin + len(item.passages)]
        begin += len(item.passages)
        entries = [encoded.encoded[place] for place in places]
        found, bad = rank_list(item, entries, [shortest(logits[place]) for place in places], blend)
        ranked += [found] if found else []
        errors += bad
    return ranked, errors


def rank_list(
    item: CandidateList,
    entries: Sequence[Encoded],
    scores: Sequence[float],
    blend: Blend | None = None,
    *,
    second: Set[int] | None = None,
) -> tuple[RankedList | None, list[RowError]]:
    """A list in rank order, or None if it cannot be ranked; and its rows and passages without a score.

    Args:
        item: The list.
        entries: The encoded passages.
        scores: Of the passages.
        blend: Joins the order by score with the given order.
        second: The passages that the second of two scorers has read, which come first; None with one scorer.
    """
    errors: list[RowError] = []
    bad: dict[int, EncodingProblem] = {}
    for index, (entry, score) in enumerate(zip(entries, scores, strict=True)):
        if isinstance(entry, EncodingProblem):
            bad[index] = entry
        elif not math.isfinite(score):
            bad[index] = EncodingProblem("not-finite", f"the model gave {score} as its score")
    if bad and len(item.rows) == 1:
        if item.passage_error is None or len(bad) == len(item.passages):
            index, problem = next(iter(bad.items()))
            where = f"passages[{item.place_of(index)}]: " if len(item.passages) > 1 else ""
            return None, [row_error(item.rows[0], problem.code, f"{where}{problem.message}", item.id)]
        errors += [item.passage_error(item.place_of(i), one.code, one.message) for i, one in bad.items()]
    else:
        rows = {i: item.row_of(item.place_of(i)) for i in bad}
        errors += [row_error(rows[i], problem.code, problem.message, item.id) for i, problem in bad.items()]
    good = [index for index in range(len(entries)) if index not in bad] if bad else list(range(len(entries)))
    if good or not item.passages or item.whole:
        return _rank(item, good, entries, scores, blend, second), errors
    return None, errors


def _rank(
    item: CandidateList,
    good: Sequence[int],
    entries: Sequence[Encoded],
    scores: Sequence[float],
    blend: Blend | None,
    second: Set[int] | None = None,
) -> RankedList:
    """Best score first, blended if asked; equal ones in input order; then passages that are not scored.

    second: see `rank_list`.
    """
    ranking = []
    read = 0
    groups = [good] if second is None else [[i for i in good if i in second], [i for i in good if i not in second]]
    ordered: list[int] = []
    for group in groups:
        values = np.array([scores[index] for index in group], dtype=np.float64)
        ordered += [group[place] for place in order_by_score(values, blend=blend).tolist()]
    places = item.places or range(len(item.passages))
    for rank, index in enumerate(ordered, start=1):
        chunks = entries[index]
        assert isinstance(chunks, tuple), "pairs with problems are not ranked"
        tokens, kept, block = chunks[0].tokens, len(chunks[0].input_ids), chunks[0].block
        read += kept
        if len(chunks) > 1:
            read += sum(len(chunk.input_ids) for chunk in chunks[1:])
            tokens = kept = 0
        tiles, kept_tiles = (block.full_tiles, block.tiles) if block else (0, 0)
        by = "" if second is None else "second" if index in second else "first"
        ranking.append(RankedPassage(rank, places[index], scores[index], tokens, kept, tiles, kept_tiles, by))
    whole = item.whole or item
    for index in range(len(item.passages), len(whole.passages)):
        ranking.append(RankedPassage(len(ranking) + 1, whole.place_of(index), np.nan, 0, 0))
    return RankedList(source=whole, ranking=tuple(ranking), tokens=read)


def select(ranked: RankedList, selection: Selection) -> RankedList:
    """Keep what the user and the request want of a ranking; the ranks do not change."""
    least = selection.threshold
    kept = (entry for entry in ranked.ranking if least is None or entry.logit >= least)
    wanted = [limit for limit in (selection.top_n, ranked.source.top_n) if limit is not None]
    return replace(ranked, ranking=tuple(islice(kept, min(wanted, default=None))))


def shortest(logit: np.float32) -> float:
    """The float with the fewest digits that still identify this float32 (9.267, not 9.26700019836)."""
    return float(str(logit))
