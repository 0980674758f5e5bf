"""Normalisers that make a text longer and longer, refused before they see one.

Twenty replacements of one character by two, each of what the one before it has made, turn a word into a million; forty
end no run and leave no memory, and the library cannot be interrupted. So the replacements of a tokenizer.json are
tried, one after another, on a text that has every printable ASCII character and every pattern in it. Published
normalisers make it longer by some per cent.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.errors import ModelError

_MOST_TIMES = 16  # longer than what was tried: a passage of 5 MB stays below 100
_SEED_CHARACTERS = 2**16
_PATTERN_CHARACTERS = 64
_KEY = re.compile(r'"normalizer"\s*:\s*\{')
_DECODER = json.JSONDecoder()
_NOTHING = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}


def normalizers_in(data: bytes) -> list[Mapping[str, Any]]:
    """What a tokenizer.json has as its normaliser, before the library has opened it.

    Only that value is parsed: a vocabulary of 17 MB would take a third of a second. A word `normalizer` of the
    vocabulary is not followed by an object.
    """
    text = data.decode(errors="replace")
    found = [_DECODER.raw_decode(text, match.end() - 1)[0] for match in _KEY.finditer(text)]
    return [state for state in map(_as_library_has_it, found) if state is not None]


def _as_library_has_it(state: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The value as the library reads it; None where it cannot, which opening the file says."""
    try:
        opened = Tokenizer.from_str(json.dumps(_NOTHING | {"normalizer": state}))
    except Exception:  # noqa: BLE001 (the library has no other kind)
        return None
    return json.loads(opened.normalizer.__getstate__())  # type: ignore[no-any-return]


def refuse_exploding(states: Iterable[Mapping[str, Any]], checkpoint: Checkpoint) -> None:
    """`ModelError` for a normaliser that makes texts many times longer. states: of tokenizer.json."""
    for state in states:
        _refuse_exploding(list(_replacements(state)), checkpoint)


def _refuse_exploding(parts: Sequence[Mapping[str, Any]], checkpoint: Checkpoint) -> None:
    patterns = (pattern for part in parts for pattern in _replacement_texts(part))
    seed = text = "\n".join([string.printable, *(one[:_PATTERN_CHARACTERS] for one in patterns)])[:_SEED_CHARACTERS]
    for part in parts:
        text = _build_replace(part).normalize_str(text)
        if len(text) > _MOST_TIMES * len(seed):
            raise ModelError(
                f"{checkpoint.tokenizer_file}: its normaliser makes a text {len(text) / len(seed):.0f} times longer "
                f"after `{json.dumps(part['pattern'], ensure_ascii=False)[:_PATTERN_CHARACTERS]}`: "
                f"at most {_MOST_TIMES} times is allowed"
            )


def _replacements(state: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if state["type"] == "Sequence":
        for part in state["normalizers"]:
            yield from _replacements(part)
    elif state["type"] == "Replace":
        yield state


def _replacement_texts(part: Mapping[str, Any]) -> Iterator[str]:
    if "String" in part["pattern"]:
        yield part["pattern"]["String"]
    yield part["content"]


def _build_replace(part: Mapping[str, Any]) -> normalizers.Replace:
    pattern = part["pattern"]
    return normalizers.Replace(pattern["String"] if "String" in pattern else Regex(pattern["Regex"]), part["content"])
