"""Turns the texts of options into values: durations, sizes, shares, shapes; a text that is none is refused.

A function that parses raises `ValueError` with the error and, as a second argument, a hint (`declare.py`); a file that
cannot be read is an `InputError`. The functions without an argument list the values that a shell offers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from rerank_cli.errors import InputError
from rerank_cli.job.error_limit import ErrorLimit
from rerank_cli.job.options import LEAST_STORE, TemplateText
from rerank_cli.machine.memory_size import UNITS
from rerank_cli.storage import refuse_url

_TEMPLATE_BYTES = 2**20

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([kmgt]i?b|[kmgt]|b?)")
_COUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?(?:e[0-9]{1,2})?)([kmb]?)")
_TIMES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_MOST = 10**15
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|)")
_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
_MOST_SECONDS = 10**9  # the system's timers do not take any number


def parse_duration(text: str) -> float:
    """The seconds in `90`, `90s`, `500ms`, `1.5m` or `6h`."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError("not a time", "for example 90, 5s, 500ms, 10m or 6h")
    seconds = float(found[1]) * _SECONDS[found[2]]
    if seconds > _MOST_SECONDS:
        raise ValueError("out of range", f"{_MOST_SECONDS}s, some 30 years, are the most")
    return seconds


def parse_size(text: str) -> int:
    """The bytes in `500MB`, `10GB` or `8GiB`."""
    found = _SIZE.fullmatch(text.strip().lower())
    if found is None:
        raise ValueError("not a size", "for example 500MB, 10GB or 8GiB")
    unit = found[2].removesuffix("b").upper().replace("I", "i") + "B"  # B, KB and KiB of `b`, `k` and `kib`
    size = float(found[1]) * UNITS[unit]  # may be infinite
    if not LEAST_STORE <= size <= 2**60:
        raise ValueError("out of range", "1MB is the least")
    return int(size)


def parse_count(text: str) -> int:
    """The number in `10000000`, `10,000,000`, `10M`, `1.5k` or `1e7`."""
    found = _COUNT.fullmatch(text.strip().lower().replace(",", "").replace("_", ""))
    number = float(found[1]) * _TIMES[found[2]] if found else 0.0
    if not 1 <= number <= _MOST or number != int(number):
        raise ValueError("not a whole number above 0", "for example 5000, 500k, 10M or 1e7")
    return int(number)


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) from `i/n`."""
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError("not a part", "parts count from 1: 1/4 is the first of four, 4/4 the last")
    return int(found[1]), int(found[2])


def parse_error_limit(text: str) -> ErrorLimit:
    """The limit that `100` or `0.5%` names."""
    if re.fullmatch(r"[0-9]+", text):
        return ErrorLimit(rows=int(text))
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?%", text) and float(text[:-1]) <= 100:
        return ErrorLimit(share=float(text[:-1]) / 100)
    raise ValueError("neither a number of rows nor a percentage", "for example 100 or 0.5%")


def parse_share(text: str) -> float:
    """The share that `5%` names."""
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?%", text) and float(text[:-1]) <= 100:
        return float(text[:-1]) / 100
    raise ValueError("not a percentage", "for example 5%")


def families() -> list[str]:
    """The values of `--as`."""
    from rerank_cli.checkpoint.recipes import RECIPES

    return list(RECIPES)


def read_template(name: str) -> str:
    """The text of a template's file; `none` as it is."""
    if name == "none":
        return name
    refuse_url("--template", name)
    try:
        with Path(name).open("rb") as stream:  # bounded: /dev/zero has no end
            data = stream.read(_TEMPLATE_BYTES + 1)
        if len(data) > _TEMPLATE_BYTES:
            raise InputError(f"--template {name}: more than {_TEMPLATE_BYTES:,} bytes, which no prompt has")
        return TemplateText(data.decode("utf-8-sig").removesuffix("\n"), name)
    except OSError as error:
        raise InputError(f"--template {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--template {name}: not UTF-8") from error


def parse_out_format(text: str) -> str:
    """A file format or a shape of rows, for `--out-format`."""
    return _one_of(text, out_formats())


def parse_blend_of(text: str) -> Any:
    """The blend that `rrf:0.5` or `z:0.3` names."""
    from rerank_cli.evaluation.blend import parse_blend  # loads numpy, which a start without the option does not need

    return parse_blend(text)


def parse_first_keep_of(text: str) -> str:
    """A value of `--first-keep`."""
    from rerank_cli.job.first_scorer import parse_first_keep  # loads the plans, which a start does not need

    return parse_first_keep(text)


def parse_shape(text: str) -> str:
    """A shape of rows."""
    return _one_of(text, shapes())


def in_formats() -> list[str]:
    """The values of `--in-format`."""
    from rerank_cli.formats.inputs import Format as Known

    return ["auto", *(name for name in get_args(Known) if name != "text")]


def out_formats() -> list[str]:
    """The values of `--out-format`."""
    from rerank_cli.formats.choices import TEACHER_FORMATS
    from rerank_cli.formats.shapes import SHAPES

    return ["auto", "jsonl", "parquet", "csv", "tsv", *SHAPES, *TEACHER_FORMATS]


def shapes() -> list[str]:
    """The values of `--shape`."""
    from rerank_cli.formats.shapes import READABLE

    return ["auto", *READABLE]


def devices() -> list[str]:
    """The devices that a shell offers."""
    return ["auto", "cpu", "cuda", "cuda:0"]


def _one_of(text: str, known: Iterable[str]) -> str:
    if text not in known:
        raise ValueError("not known", "known are " + ", ".join(known))
    return text
