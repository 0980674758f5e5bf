"""A window in parts: each encoded and scored by itself, so that the pixels of few images are in memory at a time.

A text costs kilobytes, an image of seven tiles 5.5 MB of pixels and as much again of vision vectors, and a list may
hold a thousand of them. So a window is encoded in parts of `_PART_IMAGES` distinct images, each with all pairs of the
window that hold it: every image is read, cut and seen by the tower once a window. A window without images is one part.
When a part is scored its pixels go (`without_pixels`), and the last part brings the window back together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from rerank_cli.encoding.encoder import Encoded, Encoder, EncodingProblem, ReadsImages, encode_pairs
from rerank_cli.encoding.pairs import EncodedWindow
from rerank_cli.job.read_ahead import Ahead
from rerank_cli.records import ImagePassage, ImageSource, Limits, Passage, Window

_PART_IMAGES = 16  # of 7 tiles, 512 pixels wide: 88 MB of pixels, and tower batches and text batches that are full


@dataclass(frozen=True, slots=True)
class EncodedPart:
    """Some of the distinct pairs of a window.

    encoded: one entry each. members: their places among the window's distinct pairs. places: as in `EncodedWindow`,
    with the window's last part and None before.
    """

    window: Window
    encoded: list[Encoded]
    members: list[int]
    places: list[int] | None


@dataclass(frozen=True, slots=True)
class ScoredPart:
    """An `EncodedPart` that is scored."""

    members: list[int]  # places of its pairs among the window's distinct ones
    encoded: list[Encoded]  # without pixels
    logits: npt.NDArray[np.float32]
    counts: Mapping[str, int]  # what it adds to `Counts`, by name


def encode_parts(window: Window, encoder: Encoder | ReadsImages) -> Iterator[EncodedPart]:
    """Token ids of the window's pairs, each distinct pair once; one part, or more where it has many images."""
    pairs = [(item.limits, *pair) for item in window.lists for pair in item.pairs]
    distinct: dict[tuple[Limits, str, Passage], int] = {}
    places = [distinct.setdefault(pair, len(distinct)) for pair in pairs]
    of_image: dict[ImageSource | None, list[int]] = {None: []}
    for (_, _, passage), place in distinct.items():
        of_image.setdefault(passage.image if isinstance(passage, ImagePassage) else None, []).append(place)
    groups = [group for group in of_image.values() if group] or [[]]
    found = list(distinct)
    for start in range(0, len(groups), _PART_IMAGES):
        members = [place for group in groups[start : start + _PART_IMAGES] for place in group]
        last = start + _PART_IMAGES >= len(groups)
        encoded = _encode_by_limits([found[place] for place in members], encoder)
        yield EncodedPart(window, encoded, members, places if last else None)


@contextmanager
def images_ahead(
    encoder: Encoder | ReadsImages, processes: int, on_note: Callable[[str], None] | None
) -> Iterator[Encoder | ReadsImages]:
    """The encoder for one pass over an input, whose images up to so many processes may read ahead."""
    if isinstance(encoder, ReadsImages):
        with closing(encoder.images.ahead(processes, on_note)) as images:
            yield encoder.with_images(images)
    else:
        yield encoder


def expect_images(window: Window, encoder: ReadsImages) -> None:
    """Let the images of the window be read ahead, in the order in which `encode_parts` asks for them."""
    passages = (passage for item in window.lists for passage in item.passages)
    encoder.images.expect(list(dict.fromkeys(one.image for one in passages if isinstance(one, ImagePassage))))


def one_ahead(windows: Ahead[Window], encoder: ReadsImages) -> Iterator[Window]:
    """`windows`, the images of each expected before its turn: with the one before it, if it is there by then."""
    seen: Window | None = None
    fault: Exception | None = None
    while window := seen or next(windows, None):
        if window is not seen:
            expect_images(window, encoder)
        seen = None
        if windows.is_ready:
            try:
                seen = next(windows, None)
            except Exception as error:  # noqa: BLE001 (it is raised after the window before it)
                fault = error
            if seen:
                expect_images(seen, encoder)
        yield window
        if fault:
            raise fault


def image_seconds(encoder: Encoder | ReadsImages) -> float:
    """What reading images has taken, or waiting for those who do it."""
    return encoder.images.seconds if isinstance(encoder, ReadsImages) else 0.0


def _encode_by_limits(pairs: Sequence[tuple[Limits, str, Passage]], encoder: Encoder | ReadsImages) -> list[Encoded]:
    """Token ids of pairs whose requests have limits of their own: those with the same limits at once."""
    by_limits: dict[Limits, list[int]] = {}
    for place, (limits, _, _) in enumerate(pairs):
        by_limits.setdefault(limits, []).append(place)
    encoded: dict[int, Encoded] = {}
    for limits, places in by_limits.items():
        entries = encode_pairs([pairs[place][1:] for place in places], encoder, limits)
        encoded.update(zip(places, entries, strict=True))
    return [encoded[place] for place in range(len(pairs))]


def without_pixels(entry: Encoded) -> Encoded:
    """`entry` without the tiles of its image, which are most of it."""
    if isinstance(entry, EncodingProblem) or not any(pair.block for pair in entry):
        return entry
    return tuple(replace(pair, block=pair.block and replace(pair.block, image=None)) for pair in entry)


def image_counts(encoded: Sequence[Encoded]) -> dict[str, int]:
    """What a vision tower sees of these pairs, by the names of `Counts`."""
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
    """The parts of a window as one: its distinct pairs in order, and their logits."""
    entries = {
        place: (entry, logit)
        for part in parts
        for place, entry, logit in zip(part.members, part.encoded, part.logits, strict=True)
    }
    ordered = [entries[place] for place in range(len(entries))]
    logits = np.array([logit for _, logit in ordered], dtype=np.float32)
    return EncodedWindow(window, [entry for entry, _ in ordered], places), logits
