"""The grid of tiles in which an image is cut, from its size alone.

A vision tower reads squares of one size. The whole image is resized, without keeping its aspect, to a grid of `cols` x
`rows` squares and cut into them. If there is more than one, the whole image follows once more, shrunk to a single
square (the thumbnail).

Of all grids with at most `max_tiles` squares the one with the best score is taken: the share of the image's pixels that
it has room for (more than 0.6 counts as 0.6), times how near its aspect is to the image's. Of equal scores the first
wins, in the order of area, then columns, then rows.

All of this is computed in Python's float64: in float32 one size in thirty gets another grid. Source: the tiling of
NVIDIA's processors for the Llama-Nemotron VL models; a test compares the grids of 3,369 sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

DEFAULT_MAX_TILES = 6
"""The default of the published processors, without the thumbnail."""

_ENOUGH = 0.6  # the share of the image's pixels above which a larger grid is no better


@dataclass(frozen=True, slots=True)
class TileGrid:
    """How an image is cut. thumbnail: the whole image follows its parts, if there are several."""

    cols: int
    rows: int
    thumbnail: bool = True

    @property
    def tiles(self) -> int:
        """How many squares the vision tower reads, the thumbnail included."""
        parts = self.cols * self.rows
        return parts + (self.thumbnail and parts > 1)


@cache
def _candidates(max_tiles: int) -> tuple[tuple[int, int], ...]:
    sides = range(1, max_tiles + 1)
    found = ((cols, rows) for cols in sides for rows in sides if cols * rows <= max_tiles)
    return tuple(sorted(found, key=lambda grid: (grid[0] * grid[1], *grid)))


def closest_grid(width: int, height: int, *, max_tiles: int, tile_size: int, thumbnail: bool = True) -> TileGrid:
    """The grid for an image of `width` x `height` pixels: at most `max_tiles` squares of `tile_size` pixels a side."""
    aspect = width / height
    best, best_score = (1, 1), float("-inf")
    for cols, rows in _candidates(max_tiles):
        own = cols / rows
        room = min(cols * rows * tile_size * tile_size / (width * height), _ENOUGH)
        score = room * min(own / aspect, aspect / own)
        if score > best_score:
            best, best_score = (cols, rows), score
    return TileGrid(*best, thumbnail=thumbnail)
