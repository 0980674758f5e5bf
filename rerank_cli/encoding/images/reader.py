"""Read, measure and cut images of passages within one set of limits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from rerank_cli.encoding.choices import MAX_IMAGE_PIXELS
from rerank_cli.encoding.images.cut_tiles import cut_tiles
from rerank_cli.encoding.images.decode import OpenImage, open_image
from rerank_cli.encoding.images.source import ImageProblem, read_source
from rerank_cli.encoding.images.tile_grid import TileGrid, closest_grid
from rerank_cli.records import ImageSource, Tiles

_BYTES_OF_A_PIXEL = 4  # a file that is larger than its pixels, uncompressed and with alpha, holds something else
_HEADERS = 2**20


class Sized(Protocol):
    """Anything with the size of an image."""

    @property
    def width(self) -> int:
        """In pixels."""

    @property
    def height(self) -> int:
        """In pixels."""


class ImageReader:
    """Opens and cuts images for a vision tower.

    tile_size: the side of the tower's squares, in pixels. max_tiles: the most parts of an image. thumbnail: images in
    several parts get one. max_pixels: the largest image. rgb_first: see `cut_tiles`.
    """

    def __init__(
        self,
        *,
        tile_size: int,
        max_tiles: int,
        thumbnail: bool = True,
        max_pixels: int = MAX_IMAGE_PIXELS,
        rgb_first: bool = False,
    ) -> None:
        warnings.filterwarnings("error", module=r"PIL\.")  # from now on, in every thread of this process
        self.settings: Mapping[str, Any] = {
            "tile_size": tile_size,
            "max_tiles": max_tiles,
            "thumbnail": thumbnail,
            "max_pixels": max_pixels,
            "rgb_first": rgb_first,
        }
        """The arguments with which another process makes the same reader."""
        self._tile_size = tile_size
        self.max_tiles = max_tiles
        self._thumbnail = thumbnail
        self.max_pixels = max_pixels
        self._rgb_first = rgb_first

    def open(self, source: ImageSource) -> OpenImage:
        """The image, after reading its header; raises `ImageProblem`."""
        data = read_source(source, max_bytes=_BYTES_OF_A_PIXEL * self.max_pixels + _HEADERS)
        return open_image(data, max_pixels=self.max_pixels)

    def grid(self, image: Sized, *, max_tiles: int | None = None) -> TileGrid:
        """The grid of the image. max_tiles: replaces the reader's own."""
        return closest_grid(
            image.width,
            image.height,
            max_tiles=max_tiles or self.max_tiles,
            tile_size=self._tile_size,
            thumbnail=self._thumbnail,
        )

    def smaller_grids(self, image: Sized) -> Iterator[TileGrid]:
        """Grids for the image with fewer tiles than its own, and fewer with each."""
        grid = self.grid(image)
        for tiles in range(self.max_tiles - 1, 0, -1):
            smaller = self.grid(image, max_tiles=tiles)
            if smaller.tiles < grid.tiles:
                grid = smaller
                yield grid

    def grid_within(self, image: Sized, squares: int | None) -> TileGrid:
        """The first grid of the image with at most `squares` squares, thumbnail included; else the smallest one.

        squares: None for no limit.
        """
        grid = self.grid(image)
        if squares is not None and grid.tiles > squares:
            for grid in self.smaller_grids(image):
                if grid.tiles <= squares:
                    break
        return grid

    def cut(self, image: OpenImage, grid: TileGrid) -> Tiles:
        """The tiles of the image; raises `ImageProblem`."""
        pixels = image.decode()
        if pixels.size != (image.width, image.height):
            raise ImageProblem("bad-image", f"the image's pixels are {pixels.size}, not what its header says")
        return cut_tiles(pixels, grid, tile_size=self._tile_size, rgb_first=self._rgb_first)
