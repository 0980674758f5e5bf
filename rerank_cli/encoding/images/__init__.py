"""Images of passages, from where a row says they are to tiles of pixels; no torch.

    source   a path below the image root, a `data:` URI or bytes   ->  the bytes of a file, safely
    decode   the bytes of a file                                   ->  an image whose size is known and bearable
    tile_grid  a size                                              ->  a grid
    cut_tiles  an image and a grid                                 ->  tiles, uint8

`ImageReader` is all four with one set of limits. What is wrong with an image is an `ImageProblem`, which costs its row
and nothing else. Who encodes pairs asks `ahead.ImagesAhead`, which has the reader here or in processes (`pool`,
`worker`); they are not imported by this package itself, so that those processes load little.
"""

from __future__ import annotations

from rerank_cli.encoding.choices import MAX_IMAGE_PIXELS
from rerank_cli.encoding.images.decode import OpenImage
from rerank_cli.encoding.images.reader import ImageReader
from rerank_cli.encoding.images.source import ImageProblem
from rerank_cli.encoding.images.tile_grid import DEFAULT_MAX_TILES, TileGrid, closest_grid

__all__ = [
    "DEFAULT_MAX_TILES",
    "MAX_IMAGE_PIXELS",
    "ImageProblem",
    "ImageReader",
    "OpenImage",
    "TileGrid",
    "closest_grid",
]
