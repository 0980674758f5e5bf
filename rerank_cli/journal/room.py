"""The space left on a file system, in words, for messages about a full one."""

from __future__ import annotations

import errno
import os
from itertools import takewhile
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
"""The errors of a full file system, and of a used-up quota."""

_UNITS = ("bytes", "KB", "MB", "GB", "TB")


def room_left(path: Path) -> str | None:
    """Such as `0 bytes are left on the file system at /data`, for that of `path`; None if it is not known.

    A file system may also run out of inodes while it has gigabytes left; then the text says that.
    """
    folder = path.absolute()
    if folder.exists() and not (folder.is_file() or folder.is_dir()):
        return None  # what is written to a device does not fill the file system of its name
    try:
        while not folder.exists():
            folder = folder.parent
        folder = folder.resolve()
        while not os.path.ismount(folder):
            folder = folder.parent
        found = os.statvfs(folder)
    except OSError:
        return None
    if found.f_files and not found.f_favail:
        return f"the file system at {folder} has no inode left: it holds the most files it can, {found.f_files:,}"
    left = found.f_bavail * found.f_frsize
    return f"{_amount(left)} are left on the file system at {folder}{', too little' if left else ''}"


def _amount(size: float) -> str:
    powers = takewhile(lambda power: power == 0 or size >= 1000**power, range(len(_UNITS)))
    power = max(powers)
    number = size / 1000**power
    return f"{number:.1f} {_UNITS[power]}" if power and number < 10 else f"{number:.0f} {_UNITS[power]}"
