"""Images of passages: from the place that a row names to tiles of pixels, without torch.

    source     a path below the image root, a `data:` URI or bytes   ->  the bytes of a file, safely
    decode     the bytes of a file                                   ->  an image whose format and size are allowed
    tile_grid  a size                                                ->  a grid
    cut_tiles  an image and a grid                                   ->  tiles, uint8

`ImageReader` does all four with one set of limits. A bad image is an `ImageProblem`, which makes its row a bad one and
does nothing else. Encoders ask `ahead.ImagesAhead`, which reads images in this process or in others (`reader_pool`,
`reader_worker`); this package does not import these modules, so that those processes load little.
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
