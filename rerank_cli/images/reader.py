"""Images of passages within one set of limits."""

from __future__ import annotations

from rerank_cli.images.cut import cut_tiles
from rerank_cli.images.decode import MAX_IMAGE_PIXELS, OpenImage, make_warnings_of_pillow_errors, open_image
from rerank_cli.images.source import ImageProblem, read_source
from rerank_cli.images.tiling import Grid, closest_grid
from rerank_cli.records import ImageSource, Tiles

_BYTES_OF_A_PIXEL = 4  # a file that is larger than its pixels, uncompressed and with alpha, holds something else
_HEADERS = 2**20


class ImageReader:
    """Opens and cuts images for a vision tower.

    tile_size: of the tower's squares, in pixels. max_tiles: parts that an image is cut in at most. thumbnail: of images
    in several parts. max_pixels: the largest image. rgb_first: see `cut_tiles`.
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
        make_warnings_of_pillow_errors()
        self._tile_size = tile_size
        self.max_tiles = max_tiles
        self._thumbnail = thumbnail
        self._max_pixels = max_pixels
        self._rgb_first = rgb_first

    def open(self, source: ImageSource) -> OpenImage:
        """The image, its header read; raises `ImageProblem`."""
        data = read_source(source, max_bytes=_BYTES_OF_A_PIXEL * self._max_pixels + _HEADERS)
        return open_image(data, max_pixels=self._max_pixels)

    def grid(self, image: OpenImage, *, max_tiles: int | None = None) -> Grid:
        """How the image is cut; max_tiles: in place of the reader's own."""
        return closest_grid(
            image.width,
            image.height,
            max_tiles=max_tiles or self.max_tiles,
            tile_size=self._tile_size,
            thumbnail=self._thumbnail,
        )

    def cut(self, image: OpenImage, grid: Grid) -> Tiles:
        """The tiles of the image; raises `ImageProblem`."""
        pixels = image.decode()
        if pixels.size != (image.width, image.height):
            raise ImageProblem("bad-image", f"the image's pixels are {pixels.size}, not what its header says")
        return cut_tiles(pixels, grid, tile_size=self._tile_size, rgb_first=self._rgb_first)
