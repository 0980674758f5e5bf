"""The bytes of an image, from the place that its row names, which must lie in the image root.

Rows come from anywhere, so they are not trusted. A path must lead to a regular file in or below the image root, after
all symbolic links are followed. Then the folders are opened one by one from the root without following links, so that a
link that is put there meanwhile leads nowhere. Devices, pipes and folders are refused without waiting for them. A URL
is never fetched. Reading stops at a limit.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from pathlib import Path

from rerank_cli.records import ImageSource
from rerank_cli.storage import is_url

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_DATA_URI = re.compile(r"data:[^,;]*(;[^,;]*)*,", re.IGNORECASE)
_SHOWN = 80  # characters of a path or URI in a message


class ImageProblem(Exception):  # noqa: N818 (it becomes a row of the errors file, not a failure of the program)
    """Why an image cannot be scored: a stable code and a sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def read_source(source: ImageSource, *, max_bytes: int) -> bytes:
    """The bytes of the file; raises `ImageProblem`."""
    value = source.value
    if isinstance(value, bytes):
        data = value
    elif value[:5].lower() == "data:":
        data = _from_data_uri(value, max_bytes)
    elif _URL.match(value):
        raise ImageProblem("image-url", f"image `{shown(value)}`: a URL; nothing is fetched from a network")
    else:
        data = _from_path(value, source.root, max_bytes)
    if len(data) > max_bytes:
        raise ImageProblem("image-too-large", f"the image's file has more than {max_bytes:,} bytes")
    if not data:
        raise ImageProblem("not-an-image", "the image's file is empty")
    return data


def _from_data_uri(value: str, max_bytes: int) -> bytes:
    head = _DATA_URI.match(value[:200])
    if head is None or not head.group().lower().endswith(";base64,"):
        raise ImageProblem("bad-data-uri", f"image `{shown(value)}`: not of the form `data:image/png;base64,...`")
    if (len(value) - head.end()) * 3 // 4 > max_bytes + 3:
        raise ImageProblem("image-too-large", f"the image's data URI holds more than {max_bytes:,} bytes")
    try:
        return base64.b64decode(value[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageProblem("bad-data-uri", f"image `{shown(value)}`: not base64: {error}") from error


def _from_path(value: str, root: str, max_bytes: int) -> bytes:
    if is_url(root):
        raise ImageProblem(
            "image-unreadable",
            f"image `{shown(value)}`: images beside an object are not read; `--image-root` names a folder",
        )
    try:
        top = Path(root).resolve(strict=True)
        path = (top / value).resolve(strict=True)
        if not path.is_relative_to(top):
            raise ImageProblem("image-outside-root", f"image `{shown(value)}`: not below the image root {top}")
        descriptor = _open_below(top, path.relative_to(top).parts)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ImageProblem("image-not-a-file", f"image `{shown(value)}`: not a regular file")
            with open(descriptor, "rb", closefd=False) as stream:
                return stream.read(max_bytes + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise ImageProblem("image-missing", f"image `{shown(value)}`: no such file below {root or '.'}") from error
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a NUL; RuntimeError: links in a circle
        reason = getattr(error, "strerror", None) or error
        raise ImageProblem("image-unreadable", f"image `{shown(value)}`: {reason}") from error


def _open_below(top: Path, parts: tuple[str, ...]) -> int:
    """The descriptor of a file, opened from `top` by the names in `parts`; none of them may be a symbolic link now."""
    folder = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in parts[:-1]:
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = below
        # Without O_NONBLOCK opening a FIFO would wait for a writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(parts[-1] if parts else ".", flags, dir_fd=folder)
    finally:
        os.close(folder)


def shown(value: str) -> str:
    """The start of a path or URI, as much as a message has room for."""
    return value if len(value) <= _SHOWN else f"{value[:_SHOWN]}..."
