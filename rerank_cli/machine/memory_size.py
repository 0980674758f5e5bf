"""Sizes of memory as people write them: `24GiB`, `80GB`, `81559MiB`."""

from __future__ import annotations

import re

UNITS = {"B": 1} | {
    f"{prefix}{infix}B": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for infix, base in (("", 1000), ("i", 1024))
}
"""Bytes of a unit."""
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([KMGT]i?B|B)", re.ASCII)


def parse_memory(text: str) -> int | None:
    """The bytes of a number with a unit; None where the text is something else."""
    found = _SIZE.fullmatch(text.strip())
    return round(float(found[1]) * UNITS[found[2]]) if found else None
