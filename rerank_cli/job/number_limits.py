"""Refuses numbers that are too large for any run, by name, before a library fails on them.

Rows, bytes and places in a list may be up to 2^53, which JSON numbers and doubles hold exactly; tokens and pairs of a
batch up to 2^31 - 1, as the kernels count them in 32 bits. A machine gets at most `ENGINES_PER_CPU` engines a CPU, and
16 in any case: each is a process of some hundred MB, and more than one for each core makes nothing faster.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from rerank_cli.errors import DoesNotFitError, UsageError

MOST_ROWS = 2**53
MOST_TOKENS = 2**31 - 1
ENGINES_PER_CPU = 4
_FEW_ENGINES = 16


def refuse_too_large(numbers: Mapping[str, int | None], most: int) -> None:
    """`UsageError` for the first option whose number is above `most`."""
    for flag, number in numbers.items():
        if number is not None and number > most:
            raise UsageError(f"{flag} {number}: at most {most}")


def refuse_too_many_engines(engines: int | None) -> None:
    """`DoesNotFitError` for more engines than a machine has work for."""
    cpus = os.cpu_count() or 1
    most = max(_FEW_ENGINES, ENGINES_PER_CPU * cpus)
    if engines is not None and engines > most:
        raise DoesNotFitError(
            f"--engines {engines}: at most {most} on this machine, which has {cpus} CPUs",
            hint="leave the option out: each engine takes a core of its own",
        )
