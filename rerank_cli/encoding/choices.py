"""What a user can choose of encoding, with the defaults: plain values that the command line reads without numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Truncation = Literal["end", "error", "chunk", "reference"]
SpecialTokens = Literal["neutral", "allow"]
Pool = Literal["max", "mean", "first"]

CHUNK_OVERLAP = 64
"""Tokens that neighbouring chunks of a passage share."""

MAX_TEXT_CHARACTERS = 2**20
"""The longest query and the longest passage: while it is tokenised a character takes up to 475 bytes (CJK and
punctuation, which are a token each), so the longest takes 500 MB, and most take 130 MB. It is twice a long novel."""

MAX_IMAGE_PIXELS = 40_000_000
"""The largest image where nothing else is said: an A3 page at 400 dpi has 31 million, and decoded it takes 160 MB."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What the user allows of images. max_tiles: parts of an image, None for what the checkpoint says."""

    max_tiles: int | None = None
    max_pixels: int = MAX_IMAGE_PIXELS
