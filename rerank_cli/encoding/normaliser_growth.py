"""Refuse normalisers that make texts longer and longer, before they see one.

Twenty replacements of one character by two, each applied to the result of the one before, turn one character into a
million. Forty would never end and take all memory, and the library cannot be interrupted. So the replacements of a
tokenizer.json are tried, one after another, on a text with every printable ASCII character and every pattern. Published
normalisers make it a few per cent longer.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.errors import ModelError

_MOST_TIMES = 16  # how much longer the text may become: a passage of 5 MB stays below 100 MB
_SEED_CHARACTERS = 2**16
_PATTERN_CHARACTERS = 64
_KEY = re.compile(r'"normalizer"\s*:\s*\{')
_DECODER = json.JSONDecoder()
_NOTHING = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}


def normalizers_in(data: bytes) -> list[Mapping[str, Any]]:
    """The normaliser of a tokenizer.json, without opening the file with the library.

    Only this value is parsed: a vocabulary of 17 MB would take a third of a second. Where the vocabulary has a word
    `normalizer`, no object follows it.
    """
    text = data.decode(errors="replace")
    found = []
    for match in _KEY.finditer(text):
        state, _ = _DECODER.raw_decode(text, match.end() - 1)
        try:
            opened = Tokenizer.from_str(json.dumps(_NOTHING | {"normalizer": state}))
        except Exception:  # noqa: BLE001 (the library has no other kind)
            continue  # opening the file will say that the library cannot read it
        found.append(json.loads(opened.normalizer.__getstate__()))  # as the library reads it
    return found


def refuse_exploding(states: Iterable[Mapping[str, Any]], checkpoint: Checkpoint) -> None:
    """`ModelError` for a normaliser that makes texts many times longer. states: of tokenizer.json."""
    for state in states:
        parts = list(_replacements(state))
        texts = (text for part in parts for text in (part["pattern"].get("String"), part["content"]))
        patterns = (text for text in texts if text is not None)
        seed = text = "\n".join([string.printable, *(one[:_PATTERN_CHARACTERS] for one in patterns)])[:_SEED_CHARACTERS]
        for part in parts:
            pattern = part["pattern"]
            replaced = pattern["String"] if "String" in pattern else Regex(pattern["Regex"])
            text = normalizers.Replace(replaced, part["content"]).normalize_str(text)
            if len(text) > _MOST_TIMES * len(seed):
                raise ModelError(
                    f"{checkpoint.tokenizer_file}: its normaliser makes a text {len(text) / len(seed):.0f} times "
                    f"longer after `{json.dumps(pattern, ensure_ascii=False)[:_PATTERN_CHARACTERS]}`: "
                    f"at most {_MOST_TIMES} times is allowed"
                )


def _replacements(state: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if state["type"] == "Sequence":
        for part in state["normalizers"]:
            yield from _replacements(part)
    elif state["type"] == "Replace":
        yield state
