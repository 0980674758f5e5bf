"""Finds passages of a list that say the same: equal except for case, white space, and the marks around words.

Marks are quotes and brackets on either side of a word, and sentence ends behind it. Other punctuation is part of the
word: `C++` is not `C`, `-5` and `.5` are not `5`. Such passages are counted in every run, by a hash of the remaining
text. `--drop-duplicates` leaves out all but the first of them before anything is scored. Passages with images are
duplicates if both text and image are the same.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from rerank_cli.formats.shapes import Grouped
from rerank_cli.records import CandidateList, ImagePassage, Passage

_BEFORE = "\"'([{\u201c\u2018\u00ab"
_BEHIND = "\"')]}\u201d\u2019\u00bb.,;:!?\u2026"
_SPACES = "".join(char for char in map(chr, range(0x3001)) if char.isspace())  # the last of them is U+3000
_LEFT_OUT = dict.fromkeys(map(ord, string.punctuation + _BEFORE + _BEHIND + _SPACES))


def count_duplicates(lists: Iterable[CandidateList]) -> int:
    """How many passages repeat one before them in their list; those that were left out count too."""
    return sum(item.duplicates + len(item.passages) - len(_first_places(item)) for item in lists)


def without_duplicates(items: Iterable[Grouped]) -> Iterator[Grouped]:
    """`items` without the passages that repeat one before them in their list."""
    for item in items:
        if not isinstance(item, CandidateList) or len(kept := _first_places(item)) == len(item.passages):
            yield item
            continue
        yield replace(
            item,
            passages=tuple(item.passages[place] for place in kept),
            places=tuple(item.place_of(place) for place in kept),
            duplicates=len(item.passages) - len(kept),
        )


def _first_places(item: CandidateList) -> list[int]:
    """The places of the passages that repeat none before them, in order."""
    if item.queries:  # each passage has its own query
        return list(range(len(item.passages)))
    first: dict[int, int] = {}
    for place, said in enumerate(what_they_say(item.passages)):
        first.setdefault(said, place)
    return list(first.values())


def what_they_say(passages: Iterable[Passage]) -> list[int]:
    """A hash of each passage of a list, equal for those that say the same."""
    folded = [
        (one.text.casefold(), one.image) if isinstance(one, ImagePassage) else (one.casefold(), None)
        for one in passages
    ]
    # Letters and digits alone take 3 us, words 20 us: only passages with the same letters are compared by words.
    letters = [hash((text.translate(_LEFT_OUT), image)) for text, image in folded]
    times = Counter(letters)
    return [
        key if times[key] == 1 else hash((_words(text), image))
        for key, (text, image) in zip(letters, folded, strict=True)
    ]


def _words(text: str) -> str:
    words = (word.lstrip(_BEFORE).rstrip(_BEHIND) for word in text.split())
    return " ".join(filter(None, words))
