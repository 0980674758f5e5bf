"""What a user can choose about encoding, with the defaults: plain values that the command line loads without numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Truncation = Literal["end", "error", "chunk", "reference"]
SpecialTokens = Literal["neutral", "allow"]
Pool = Literal["max", "mean", "first"]

CHUNK_OVERLAP = 64
"""Tokens that neighbouring chunks of a passage share."""

MAX_IMAGE_PIXELS = 40_000_000
"""The largest image, unless the user says otherwise. It takes 160 MB decoded; an A3 page at 400 dpi has 31 million."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What the user allows for images. max_tiles: parts of an image; None for what the checkpoint says."""

    max_tiles: int | None = None
    max_pixels: int = MAX_IMAGE_PIXELS
