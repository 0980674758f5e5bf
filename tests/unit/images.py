"""Images for tests, drawn here."""

from __future__ import annotations

import base64
import os
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


def picture(width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    """A picture without symmetry, so that every turn and shift is seen."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    channels = [255 * x, 255 * y, 255 * (x * y) ** 0.5]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    """The bytes of an image file."""
    stream = BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def saved(folder: Path, name: str, image: Image.Image | None = None, format: str = "PNG") -> str:
    """The name of an image file in `folder`, which is made if it is not there."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(image or picture(), format))
    return name


def data_uri(data: bytes, kind: str = "image/png") -> str:
    """A data URI of these bytes."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


_HURT = """
import os, sys
if "rerank_cli.encoding.images.reader_worker" in " ".join(sys.orig_argv):
    import time
    {at_start}
    from rerank_cli.encoding.images.reader import ImageReader
    whole = ImageReader.open
    def opened(reader, source):
        name = str(source.value)
        {before}
        return whole(reader, source)
    ImageReader.open = opened
"""


def hurt_readers(folder: Path, before: str = "pass", at_start: str = "pass") -> str:
    """PYTHONPATH with which a process that reads images does `before` for each, whose path is `name`.

    Python reads this before a process's own code: a fault that no image could cause so surely.
    """
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_HURT.format(before=before, at_start=at_start))
    return f"{folder}:{os.environ.get('PYTHONPATH', '')}"


def readers_of(pid: int) -> list[int]:
    """Processes that the process `pid` has started to read images."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            with suppress(OSError):
                if b"images.reader_worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))
    return found
