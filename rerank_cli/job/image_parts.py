"""Divides a window into parts that are encoded and scored one by one, so that memory holds the pixels of few images.

A text takes kilobytes; an image of seven tiles takes 5.5 MB of pixels and as much again of vision vectors, and a list
may hold a thousand images. So a part has `PART_IMAGES` distinct images, with all pairs of the window that hold them:
every image is read, cut and given to the vision tower once a window. A window without images is one part. The pixels
of a part are dropped when it is scored, and the last part joins the window again (`ranking.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rerank_cli.encoding.encoder import Encoded, Encoder, EncodingProblem, ReadsImages, encode_pairs
from rerank_cli.job.score_store.known_scores import Asked, FoundPairs, KnownScores, distinct_pairs
from rerank_cli.planning.memory.pieces import PART_IMAGES
from rerank_cli.records import EncodedPair, ImagePassage, ImageSource, Limits, Window


@dataclass(frozen=True, slots=True)
class EncodedPart:
    """Some of the distinct pairs of a window.

    Args:
        window: The whole window.
        encoded: One entry for each pair.
        members: Their places among the window's distinct pairs.
        pairs: What the model gets of them (`pairs_of`).
        places: As in `EncodedWindow`, in the window's last part; None before.
        found: Pairs of the window whose scores are known already; they are not among `members`.
    """

    window: Window
    encoded: list[Encoded]
    members: list[int]
    pairs: list[EncodedPair]
    places: list[int] | None
    found: FoundPairs | None = None


def encode_parts(
    window: Window, encoder: Encoder | ReadsImages, known: KnownScores | None = None
) -> Iterator[EncodedPart]:
    """Encode the distinct pairs of a window, in one part, or in several if it has many images.

    known: has looked the window up; pairs that it found are not encoded, unless `encodes_all` is set.
    """
    found = known.take(window) if known else None
    pairs, places = (found.pairs, found.places) if found else distinct_pairs(window)
    to_compute = found.to_compute() if found else range(len(pairs))
    if known and found and known.encodes_all:
        others = [*(place for place, entry in enumerate(found.entries) if entry is not None), *found.awaited]
        for place, entry in zip(others, _encode_by_limits([pairs[place] for place in others], encoder), strict=True):
            found.entries[place] = entry
    of_image: dict[ImageSource | None, list[int]] = {None: []}
    for place in to_compute:
        passage = pairs[place][2]
        image = passage.image if isinstance(passage, ImagePassage) else None
        of_image.setdefault(image, []).append(place)
    groups = [group for group in of_image.values() if group] or [[]]
    for start in range(0, len(groups), PART_IMAGES):
        members = [place for group in groups[start : start + PART_IMAGES] for place in group]
        last = start + PART_IMAGES >= len(groups)
        encoded = _encode_by_limits([pairs[place] for place in members], encoder)
        yield EncodedPart(window, encoded, members, pairs_of(encoded), places if last else None, found)


def _encode_by_limits(pairs: Sequence[Asked], encoder: Encoder | ReadsImages) -> list[Encoded]:
    """Encode pairs whose requests may have their own limits; pairs with the same limits in one call."""
    by_limits: dict[Limits, list[int]] = {}
    for place, (limits, _, _) in enumerate(pairs):
        by_limits.setdefault(limits, []).append(place)
    if len(by_limits) == 1:
        return encode_pairs([pair[1:] for pair in pairs], encoder, pairs[0][0])
    encoded: dict[int, Encoded] = {}
    for limits, places in by_limits.items():
        entries = encode_pairs([pairs[place][1:] for place in places], encoder, limits)
        encoded.update(zip(places, entries, strict=True))
    return [encoded[place] for place in range(len(pairs))]


def pairs_of(encoded: Sequence[Encoded]) -> list[EncodedPair]:
    """What the model gets: each pair, or each chunk of a pair, in order."""
    return [pair for entry in encoded if not isinstance(entry, EncodingProblem) for pair in entry]
