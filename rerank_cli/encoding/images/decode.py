"""Open an image after checking its header: format and size limits.

Formats: PNG, JPEG (of several pictures in one file, MPO, the first), WebP and GIF with a single frame. The header is
read first, and its size is checked before a pixel is decoded, as 20 kB of PNG can hold 169 million of them. Pillow's
warnings are errors here, and a file that ends early is not scored.

Modes: 1-bit, grey, palette, RGB, CMYK, and grey, palette or RGB with alpha are scored (`cut_tiles.py` says how).
16-bit, 32-bit and float images are refused: to convert them to 8 bits somebody must choose their range, and Pillow just
clips.

EXIF orientation is not applied, because the models' own processors do not apply it either.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from io import BytesIO

from PIL import Image, UnidentifiedImageError

from rerank_cli.encoding.images.source import ImageProblem

MAX_IMAGE_SIDE = 65_535
"""The longest side, as in a JPEG. Resizing takes 4 weights of 8 bytes for each pixel of a side: for 39,000,000 x 1
pixels this took 1.2 GB beside the image."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK"})

_NAMES = "PNG, JPEG, WebP, GIF"
_FIRST_FRAME_IS_THE_IMAGE = {"MPO"}  # the others are previews and depth maps
# What Pillow raises for files that are not what they claim to be, including its warnings.
_FAULTS = (
    OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, ArithmeticError, AttributeError, RuntimeError,
    struct.error, zlib.error, Warning, Image.DecompressionBombError,
)  # fmt: skip


@dataclass(frozen=True)
class OpenImage:
    """An image whose header was read and is within the limits."""

    data: bytes
    width: int
    height: int

    @cached_property
    def digest(self) -> bytes:
        """Equal for equal files only."""
        return blake2b(self.data, digest_size=16).digest()

    def decode(self) -> Image.Image:
        """All pixels, in the mode of the file; raises `ImageProblem`."""
        try:
            image = Image.open(BytesIO(self.data), formats=FORMATS)
            image.load()
        except _FAULTS as error:
            raise ImageProblem("bad-image", f"the image cannot be decoded: {_reason_of(error)}") from error
        return image


def open_image(data: bytes, *, max_pixels: int) -> OpenImage:
    """Read the header of an image file; raises `ImageProblem` for an image that cannot be scored."""
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
        frames = 1 if image.format in _FIRST_FRAME_IS_THE_IMAGE else int(getattr(image, "n_frames", 1))
    except UnidentifiedImageError as error:
        raise ImageProblem("not-an-image", f"the image is not a file of a known format ({_NAMES})") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageProblem("image-too-large", f"the image has more than {max_pixels:,} pixels: {error}") from error
    except _FAULTS as error:
        raise ImageProblem("bad-image", f"the image's header cannot be read: {_reason_of(error)}") from error
    width, height = image.size
    if width * height > max_pixels:
        raise ImageProblem(
            "image-too-large",
            f"the image has {width} x {height} pixels, the limit is {max_pixels:,} (--max-image-pixels)",
        )
    if max(width, height) > MAX_IMAGE_SIDE:
        raise ImageProblem(
            "image-too-large", f"the image has {width} x {height} pixels, a side may have {MAX_IMAGE_SIDE:,}"
        )
    if width < 1 or height < 1:
        raise ImageProblem("bad-image", f"the image has {width} x {height} pixels")
    if frames > 1:
        raise ImageProblem("animated-image", f"the image has {frames} frames: which of them is meant?")
    if image.mode not in MODES:
        raise ImageProblem(
            "image-mode", f"the image's pixels are of mode `{image.mode}`, which has no one way to become 8-bit RGB"
        )
    return OpenImage(data, width, height)


def _reason_of(error: BaseException) -> str:
    return str(error) or type(error).__name__
