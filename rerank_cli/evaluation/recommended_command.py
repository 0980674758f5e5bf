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
    made = _made_by(file)
    if made is None:
        return f"rerank-cli rerank-file IN -o {shlex.quote(output)} {options}"
    words, folder = made
    here = Path(folder) == Path.cwd() or is_url(output)
    kept = list(_keep_words(words, output if here else str(Path(output).absolute())))
    at = kept.index("--") if "--" in kept else len(kept)
    line = " ".join([*_quote_words(kept[:at]), options, *_quote_words(kept[at:])])
    return line if Path(folder) == Path.cwd() else f"cd {shlex.quote(folder)} && {line}"


def _made_by(file: str) -> tuple[list[str], str] | None:
    """The words of the command that made `file`, and the folder it ran in."""
    try:
        report: Any = json.loads(path_of(f"{file}.report.json").read_bytes())
        words = shlex.split(report["command"]["line"])
        folder = report["command"]["folder"]
        same = report["output"]["bytes"] == path_of(file).stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return None
    has_output = any(word.partition("=")[0] in _OUTPUTS for word in words)
    return (words, folder) if same and "rerank-file" in words and has_output and isinstance(folder, str) else None


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
