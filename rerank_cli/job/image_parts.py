"""A window in parts: each encoded and scored by itself, so that the pixels of few images are in memory at a time.

A text costs kilobytes, an image of seven tiles 5.5 MB of pixels and as much again of vision vectors, and a list may
hold a thousand of them. So a window is encoded in parts of `_PART_IMAGES` distinct images, each with all pairs of the
window that hold it: every image is read, cut and seen by the tower once a window. A window without images is one part.
When a part is scored its pixels go, and the last part brings the window back together (`ranking.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rerank_cli.encoding.encoder import Encoded, Encoder, EncodingProblem, ReadsImages, encode_pairs
from rerank_cli.job.score_store.known_scores import Asked, FoundPairs, KnownScores, distinct_pairs
from rerank_cli.records import EncodedPair, ImagePassage, ImageSource, Limits, Window

_PART_IMAGES = 16  # of 7 tiles, 512 pixels wide: 88 MB of pixels, and tower batches and text batches that are full


@dataclass(frozen=True, slots=True)
class EncodedPart:
    """Some of the distinct pairs of a window.

    Args:
        window: Which one.
        encoded: One entry each.
        members: Their places among the window's distinct pairs.
        pairs: What a model is given of them (`pairs_of`).
        places: As in `EncodedWindow`, with the window's last part; None before.
        found: What is known of the window without its being computed. Members are the other pairs.
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
    """Token ids of the window's pairs, each distinct pair once; one part, or more where it has many images.

    known: has looked the window up; what it has found is not encoded, unless somebody will ask for token ids.
    """
    found = known.take(window) if known else None
    pairs, places = (found.pairs, found.places) if found else distinct_pairs(window)
    if known and found and known.encodes_all:
        for place, entry in zip(
            found.known, _encode_by_limits([pairs[one] for one in found.known], encoder), strict=True
        ):
            found.entries[place] = entry
    of_image: dict[ImageSource | None, list[int]] = {None: []}
    for place, (_, _, passage) in enumerate(pairs):
        if found is None or place not in found.known:
            image = passage.image if isinstance(passage, ImagePassage) else None
            of_image.setdefault(image, []).append(place)
    groups = [group for group in of_image.values() if group] or [[]]
    for start in range(0, len(groups), _PART_IMAGES):
        members = [place for group in groups[start : start + _PART_IMAGES] for place in group]
        last = start + _PART_IMAGES >= len(groups)
        encoded = _encode_by_limits([pairs[place] for place in members], encoder)
        yield EncodedPart(window, encoded, members, pairs_of(encoded), places if last else None, found)


def _encode_by_limits(pairs: Sequence[Asked], encoder: Encoder | ReadsImages) -> list[Encoded]:
    """Token ids of pairs whose requests have limits of their own: those with the same limits at once."""
    by_limits: dict[Limits, list[int]] = {}
    for place, (limits, _, _) in enumerate(pairs):
        by_limits.setdefault(limits, []).append(place)
    encoded: dict[int, Encoded] = {}
    for limits, places in by_limits.items():
        entries = encode_pairs([pairs[place][1:] for place in places], encoder, limits)
        encoded.update(zip(places, entries, strict=True))
    return [encoded[place] for place in range(len(pairs))]


def pairs_of(encoded: Sequence[Encoded]) -> list[EncodedPair]:
    """What a model is given of these: each pair, or each chunk of one, in order."""
    return [pair for entry in encoded if not isinstance(entry, EncodingProblem) for pair in entry]
