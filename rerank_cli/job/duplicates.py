"""Passages of a list that say the same: equal but for case, white space and punctuation of ASCII.

They are counted in every run, by a digest of what is left of a text. `--drop-duplicates` leaves out all but the first
of them before anything is scored. A passage with an image is the same as another with the same text and image.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator
from dataclasses import replace

from rerank_cli.formats.shapes import Grouped
from rerank_cli.records import CandidateList, ImagePassage, Passage

_LEFT_OUT = dict.fromkeys(map(ord, string.punctuation + string.whitespace))


def folded(passage: Passage) -> int:
    """What is equal for passages that say the same: a hash, as only those of one list are compared."""
    if isinstance(passage, ImagePassage):
        return hash((passage.text.casefold().translate(_LEFT_OUT), passage.image))
    return hash(passage.casefold().translate(_LEFT_OUT))


def count_duplicates(item: CandidateList) -> int:
    """Passages of a list that say what one before them says."""
    if item.queries:  # each passage has a query of its own
        return 0
    return len(item.passages) - len({folded(passage) for passage in item.passages})


def without_duplicates(items: Iterable[Grouped]) -> Iterator[Grouped]:
    """`items` without the passages that say what one before them in their list says."""
    for item in items:
        if not isinstance(item, CandidateList) or not (duplicates := count_duplicates(item)):
            yield item
            continue
        first = {folded(passage): place for place, passage in reversed(list(enumerate(item.passages)))}
        kept = sorted(first.values())
        yield replace(
            item,
            passages=tuple(item.passages[place] for place in kept),
            places=tuple(item.place_of(place) for place in kept),
            duplicates=duplicates,
        )
