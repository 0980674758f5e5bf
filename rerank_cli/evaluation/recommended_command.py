"""The command that uses a recommended setting: the one that made the file, with the setting and another output."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rerank_cli.storage import is_url, path_of

_DROPPED = {"--overwrite": 0, "--restart": 0, "--report": 1, "--errors": 1, "--per-query": 1, "--embeddings": 1}
"""Options that would touch the files of the first run, and how many words follow each."""
_OUTPUTS = ("-o", "--output")


def recommended_command(file: str, options: str, suffix: str = "blended") -> str:
    """The whole command, if the report beside `file` tells how it was made; else one with IN in place of the input."""
    folder, slash, name = file.rpartition("/")
    stem, dot, rest = name.partition(".")
    # scored.jsonl.gz becomes scored.blended.jsonl.gz
    output = f"{folder}{slash}{stem}.{suffix}{dot}{rest}" if stem else f"{file}.{suffix}"
    try:
        report: Any = json.loads(path_of(f"{file}.report.json").read_bytes())
        words = shlex.split(report["command"]["line"])
        made_in = report["command"]["folder"]
        is_known = report["output"]["bytes"] == path_of(file).stat().st_size and isinstance(made_in, str)
    except (OSError, ValueError, KeyError, TypeError):
        is_known, words = False, []
    has_output = any(word.partition("=")[0] in _OUTPUTS for word in words)
    if not is_known or "rerank-file" not in words or not has_output:
        return f"rerank-cli rerank-file IN -o {shlex.quote(output)} {options}"
    here = Path(made_in) == Path.cwd()
    kept = list(_keep_words(words, output if here or is_url(output) else str(Path(output).absolute())))
    at = kept.index("--") if "--" in kept else len(kept)
    line = " ".join([*_quote_words(kept[:at]), options, *_quote_words(kept[at:])])
    return line if here else f"cd {shlex.quote(made_in)} && {line}"


def _keep_words(words: Sequence[str], output: str) -> Iterator[str]:
    given = iter(words)
    for word in given:
        name, equals, _ = word.partition("=")
        if name in _OUTPUTS:
            if not equals:
                next(given, None)
            yield from ("-o", output)
        elif name in _DROPPED:
            if not equals and _DROPPED[name]:
                next(given, None)
        else:
            yield word


def _quote_words(words: Sequence[str]) -> Iterator[str]:
    """Quote words for a shell; of `NAME=value` before the program, only the value, so that it stays a variable."""
    is_variable = True
    for word in words:
        name, equals, value = word.partition("=")
        is_variable = is_variable and bool(equals) and name.isidentifier()
        yield f"{name}={shlex.quote(value)}" if is_variable else shlex.quote(word)
