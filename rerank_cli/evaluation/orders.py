"""The given and the new order of a list, as an evaluation compares them: ids, and texts to show."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from rerank_cli.errors import InputError
from rerank_cli.formats.shapes import Shape
from rerank_cli.formats.shapes.fields import id_text
from rerank_cli.records import RankedList

_ID_HINT = "name its field with `--id-field` (a list a row) or `--group-by` (a pair a row)"
_PASSAGE_HINT = "`--id-field NAME` names the field of a passage that has the id of the qrels, such as `url`"


@dataclass(frozen=True, slots=True)
class Orders:
    """The passage ids of one query in both orders, best first; `given` is None where it is not known.

    repeated: how many repeated ids were left out. scores: of `reranked`; NaN for a passage without one. text: of the
    query. texts: of the passages, by id.
    """

    query: str
    given: Sequence[str] | None
    reranked: Sequence[str]
    repeated: int = 0
    scores: Sequence[float] = ()
    text: str = ""
    texts: Callable[[], Mapping[str | None, str | None]] | None = None


def orders_of(ranked: Iterable[RankedList], shape: Shape, is_judged: Callable[[str], bool]) -> Iterable[Orders]:
    """Both orders of ranked lists, which must be complete (selection comes after evaluation)."""
    for item in ranked:
        if item.source.id is None:
            row = item.source.rows[0]
            raise InputError(f"{row.file}:{row.number}: no query id, which --qrels needs", hint=_ID_HINT)
        query = id_text(item.source.id)
        if not is_judged(query):
            yield Orders(query, (), ())
            continue
        names = {}
        for entry in item.ranking:
            passage = shape.passage_id(item.source, entry.index)
            if passage is None:
                row = item.source.row_of(entry.index)
                where = f"{row.file}:{row.number}: passage {entry.index}"
                raise InputError(f"{where} has no id, which --qrels needs", hint=_PASSAGE_HINT)
            names[entry.index] = id_text(passage)
        yield Orders(
            query, [names[index] for index in sorted(names)], [names[one.index] for one in item.ranking],
            # Two scorers have no common scale, so the scores of the first are left out.
            scores=[math.nan if one.scored_by == "first" else one.logit for one in item.ranking],
            text=item.source.query, texts=partial(_texts_of, item, names),
        )  # fmt: skip


def _texts_of(item: RankedList, names: Mapping[int, str]) -> Mapping[str | None, str | None]:
    """The texts of a list by passage id; of a repeated id, the first."""
    source = item.source
    by_place = {source.place_of(index): passage for index, passage in enumerate(source.passages)}
    texts: dict[str | None, str | None] = {}
    for index in sorted(names, reverse=True):
        passage = by_place[index]
        texts[names[index]] = passage if isinstance(passage, str) else passage.text
    return texts


def drop_repeats(orders: Orders) -> Orders:
    """The same orders with each passage at its first place only."""
    reranked = list(dict.fromkeys(orders.reranked))
    given = None if orders.given is None else list(dict.fromkeys(orders.given))
    scores = dict(zip(reversed(orders.reranked), reversed(orders.scores), strict=True)) if orders.scores else {}
    return replace(
        orders, given=given, reranked=reranked, repeated=len(orders.reranked) - len(reranked),
        scores=[scores[name] for name in reranked] if scores else (),
    )  # fmt: skip
