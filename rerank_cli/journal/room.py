"""What is left on a file system, in the words of a message about one that is full."""

from __future__ import annotations

import errno
import os
from itertools import takewhile
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the operating system says of a file system, or of a user's share of it, that is full."""

_UNITS = ("bytes", "KB", "MB", "GB", "TB")


def room_left(path: Path) -> str | None:
    """`0 bytes are left on the file system at /data`, which is that of `path`; None where it cannot be said.

    A file system that has no more room for names says so: it may have gigabytes left.
    """
    folder = path.absolute()
    if folder.exists() and not (folder.is_file() or folder.is_dir()):
        return None  # a device has no room of its file system's
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
        return f"the file system at {folder} has its {found.f_files:,} files, and takes no more"
    left = found.f_bavail * found.f_frsize
    return f"{_amount(left)} are left on the file system at {folder}{', too little' if left else ''}"


def _amount(size: float) -> str:
    powers = takewhile(lambda power: power == 0 or size >= 1000**power, range(len(_UNITS)))
    power = max(powers)
    number = size / 1000**power
    return f"{number:.1f} {_UNITS[power]}" if power and number < 10 else f"{number:.0f} {_UNITS[power]}"
