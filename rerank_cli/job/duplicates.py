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
_FIRST_CHARACTERS, _FIRST_LETTERS = 120, 60
_LEFT_OUT = dict.fromkeys(map(ord, string.punctuation + _BEFORE + _BEHIND + _SPACES))
_LEFT_OUT_OF_ASCII = bytes(char for char in _LEFT_OUT if char < 128)


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
    """A number for each passage of a list, equal for those that say the same."""
    texts = [(one.text, one.image) if isinstance(one, ImagePassage) else (one, None) for one in passages]
    said: list[int] = [0] * len(texts)
    # The first letters and digits take 1 us, all of them 3, words 20: each is asked only of passages whose last is the
    # same as another's.
    left = list(range(len(texts)))
    for read in (_first_letters, _letters, _words):
        for place in left:
            text, image = texts[place]
            said[place] = hash((read(text), image))
        times = Counter(said[place] for place in left)
        left = [place for place in left if times[said[place]] > 1]
    return said


def _first_letters(text: str) -> bytes:
    """The first letters and digits, the same for texts that say the same, whatever stands between them."""
    letters = _letters(text[:_FIRST_CHARACTERS])
    return (letters if len(letters) >= _FIRST_LETTERS else _letters(text))[:_FIRST_LETTERS]


def _letters(text: str) -> bytes:
    folded = text.casefold()
    if folded.isascii():
        return folded.encode().translate(None, _LEFT_OUT_OF_ASCII)
    return folded.translate(_LEFT_OUT).encode("utf-8", "surrogatepass")


def _words(text: str) -> str:
    words = (word.lstrip(_BEFORE).rstrip(_BEHIND) for word in text.casefold().split())
    return " ".join(filter(None, words))
