"""Cut an image in tiles, pixel for pixel like the processors of the Llama-Nemotron VL models.

The whole image is resized to the grid by Pillow's bicubic filter, without keeping its aspect, and cut row by row; the
thumbnail is the whole image, resized again. For the rerankers the image is resized and cut in the mode of the file, and
each tile becomes RGB afterwards; for the embedder the image becomes RGB first (`rgb_first`). That makes a difference:
Pillow resizes palette and 1-bit images by the nearest pixel, as their numbers are not colours. Colours with alpha it
resizes premultiplied, so that transparent pixels do not bleed, and alpha is dropped afterwards, without a background.
With RGB first, alpha is dropped and the colours of palettes are mixed. Grey and CMYK images are the same either way.

Images smaller than the grid are enlarged: a page of 640 x 420 pixels becomes six tiles and a thumbnail.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from rerank_cli.encoding.images.tile_grid import TileGrid
from rerank_cli.records import Tiles

RESAMPLING = Image.Resampling.BICUBIC


def cut_tiles(image: Image.Image, grid: TileGrid, *, tile_size: int, rgb_first: bool = False) -> Tiles:
    """The tiles of `image`, row by row, the thumbnail last."""
    # It matters only for conversions that add alpha, and Pillow warns about it.
    image.info.pop("transparency", None)
    image = image.convert("RGB") if rgb_first else image
    whole = image.resize((tile_size * grid.cols, tile_size * grid.rows), RESAMPLING)
    parts = [
        whole.crop((left, top, left + tile_size, top + tile_size))
        for top in range(0, whole.height, tile_size)
        for left in range(0, whole.width, tile_size)
    ]
    if grid.tiles > len(parts):
        parts.append(image.resize((tile_size, tile_size), RESAMPLING))
    pixels = np.empty((len(parts), tile_size, tile_size, 3), dtype=np.uint8)
    for place, part in enumerate(parts):
        pixels[place] = np.asarray(part.convert("RGB"))
    return Tiles(pixels)
