"""How a forward is cut in pieces: what the models compute by, and what the memory of a forward is counted by."""

from __future__ import annotations

CHUNK = 2048
"""Rows that norms, rotation, an MLP (see `mlp_rows`), and rounding to FP8 take at a time.

They fill a matrix product, and are few enough that the peak of memory lies in attention, for a pair of 8,192 tokens as
for a batch of many pairs.
"""

BATCH_TILES = 8
"""Tiles that a vision tower sees at a time.

8,192 patches of the published tower: full matrix products, and 0.25 GB beside the weights in fp32.
"""

PART_IMAGES = 16
"""Distinct images of a part of a window, whose vectors are kept at a time.

88 MB of pixels with 7 tiles of 512 pixels each; enough to fill batches of tiles and of texts.
"""

AHEAD = 8
"""Batches that the host may be ahead of a GPU.

Half a second to two of a large model, a whole window of a small one, so that the GPU has work while the host ranks,
writes and commits.
"""

WINDOW_BLOCK = 64
"""Queries of a block of windowed attention; measured beside 32, 128 and 256 with a window of 64."""

PRODUCT_LONGEST = 512
"""Tokens of the longest pairs whose attention is computed by matrix products: their memory grows with its square."""

PRODUCT_STEP = 16
"""Lengths of blocks of pairs in attention by matrix products are multiples of it."""

PRODUCT_BLOCK = 256
"""Tokens of a block of short pairs in attention by matrix products; longer pairs are blocks of their own."""

FP8_MULTIPLE = 16
"""Rows and columns of a weight that cuBLAS multiplies in FP8 are multiples of it."""


def rounded_rows(count: int) -> int:
    """`count` rounded up to a multiple of 16, 32, ... 256: four sizes between two powers of two, up to 1,024 rows."""
    step = min(256, max(16, 1 << max(0, count.bit_length() - 3)))
    return -(-count // step) * step


def mlp_rows(gpu: bool, element: int) -> int:
    """Rows that the MLP of a Llama or of a tower takes at a time; element: bytes of an activation.

    2,048 fill a CPU's product, and a GPU's in float32. In 16 bits a GPU wants more: with 2,048 of 2,048 channels a
    product has 128 tiles, not one for each of an H100's 132 processors, and a tower's product of 1,152 has fewer.
    """
    return 8192 if gpu and element < 4 else CHUNK
