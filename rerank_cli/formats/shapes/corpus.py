"""Open the file of `--corpus`: which of its fields are scored is what `--text-field` says, as in `fields.py`."""

from __future__ import annotations

from typing import Any

from rerank_cli.errors import UsageError
from rerank_cli.formats.shapes.fields import RowProblem, field_paths, joined_text
from rerank_cli.formats.text_index import TEXT_NAMES, TextFile, open_texts


def open_corpus(path: str, asked: str | None) -> tuple[TextFile, tuple[str, ...]]:
    """The texts, and the notes for the user about their titles. asked: what `--text-field` names."""

    def read(fields: dict[str, Any]) -> str | None:
        try:
            return joined_text(fields, asked or "")
        except RowProblem:
            return None

    corpus = open_texts(path, read if asked else None)
    if asked and not corpus.is_json:
        raise UsageError(f"--text-field {asked}: {path} is TSV, whose columns have no names")
    entry = next((one for one in corpus.first_rows() if isinstance(one.get("title"), str) and one["title"]), None)
    if entry is None or "title" in field_paths(asked or ""):
        return corpus, ()
    if asked:
        return corpus, (f"{path}: passages have a `title`, which is not read: `--text-field title,{asked}` reads it",)
    text = next((name for name in TEXT_NAMES if isinstance(entry.get(name), str)), "text")
    alone = f"`--text-field {text}` reads it alone"
    return corpus, (f"{path}: `title` and `{text}` are read together, as BEIR has it: {alone}",)
