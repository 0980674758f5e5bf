"""A row of each known shape, in words of our own: what the program writes, as far as it matters here."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Candidate(NamedTuple):
    """One passage of a list."""

    id: str
    title: str
    text: str | None
    score: float


Build = Callable[[str, str, Sequence[Candidate]], dict[str, Any]]


def _rank_llm(query: str, qid: str, found: Sequence[Candidate]) -> dict[str, Any]:
    entries = [{"doc": {"contents": c.text, "title": c.title}, "docid": c.id, "score": c.score} for c in found]
    return {"query": {"text": query, "qid": qid}, "candidates": entries}


def _anserini(query: str, qid: str, found: Sequence[Candidate]) -> dict[str, Any]:
    return {
        "query": {"text": query, "qid": qid},
        "candidates": [{"docid": c.id, "score": c.score, "doc": c.text} for c in found],
    }


def _rankgpt(query: str, qid: str, found: Sequence[Candidate]) -> dict[str, Any]:
    hits = [{"content": c.text, "qid": qid, "docid": c.id, "score": c.score} for c in found]
    return {"query": query, "hits": hits}


def _dpr(query: str, qid: str, found: Sequence[Candidate]) -> dict[str, Any]:
    ctxs = [{"id": c.id, "title": c.title, "text": c.text, "score": str(c.score), "has_answer": True} for c in found]
    return {"id": qid, "question": query, "answers": ["x", "y", "z"], "ctxs": ctxs}


def _elasticsearch(query: str, qid: str, found: Sequence[Candidate]) -> dict[str, Any]:
    hits = [
        {"_index": "x", "_id": c.id, "_score": c.score, "_source": {"title": c.title, "body": c.text}} for c in found
    ]
    total = {"value": len(found), "relation": "eq"}
    return {"query": query, "qid": qid, "took": 3, "hits": {"total": total, "max_score": 9.5, "hits": hits}}


def _elasticsearch_fields(query: str, qid: str, found: Sequence[Candidate]) -> dict[str, Any]:
    hits = [{"_id": c.id, "_score": c.score, "fields": {"body": c.text and [c.text]}} for c in found]
    return {"query": query, "query_id": qid, "hits": {"hits": hits}}


def _vespa(query: str, qid: str, found: Sequence[Candidate]) -> dict[str, Any]:
    children = [
        {
            "id": f"id:x:doc::{c.id}",
            "relevance": c.score,
            "fields": {"documentid": c.id, "title": c.title, "text": c.text},
        }
        for c in found
    ]
    root = {"id": "toplevel", "fields": {"totalCount": 3}, "children": children}
    return {"query": query, "query_id": qid, "root": root}


def _qdrant(query: str, qid: str, found: Sequence[Candidate]) -> dict[str, Any]:
    points = [
        {"id": c.id, "version": 1, "score": c.score, "payload": {"title": c.title, "text": c.text}} for c in found
    ]
    return {"query": query, "query_id": qid, "result": {"points": points}, "status": "ok"}


def _haystack(query: str, qid: str, found: Sequence[Candidate]) -> dict[str, Any]:
    documents = [{"id": c.id, "content": c.text, "meta": {"title": c.title}, "score": c.score} for c in found]
    return {"query": query, "query_id": qid, "documents": documents}


def _langchain(query: str, qid: str, found: Sequence[Candidate]) -> dict[str, Any]:
    documents = [
        {"id": None, "metadata": {"title": c.title, "doc_id": c.id}, "page_content": c.text, "type": "Document"}
        for c in found
    ]
    return {"query": query, "query_id": qid, "documents": documents}


def _llamaindex(query: str, qid: str, found: Sequence[Candidate]) -> dict[str, Any]:
    nodes = [{"node": {"id_": c.id, "metadata": {"title": c.title}, "text": c.text}, "score": c.score} for c in found]
    return {"query": query, "query_id": qid, "source_nodes": nodes}


def _ragas(query: str, qid: str, found: Sequence[Candidate]) -> dict[str, Any]:
    return {
        "id": qid, "user_input": query, "retrieved_contexts": [c.text for c in found],
        "retrieved_context_ids": [c.id for c in found], "reference_contexts": ["r"] * len(found), "response": "x",
    }  # fmt: skip


def _phoenix(query: str, qid: str, found: Sequence[Candidate]) -> dict[str, Any]:
    documents = [{"document.id": c.id, "document.content": c.text, "document.score": c.score} for c in found]
    return {"query": query, "query_id": qid, "documents": json.dumps(documents, ensure_ascii=False)}


def _msmarco(query: str, qid: str, found: Sequence[Candidate]) -> dict[str, Any]:
    columns = {
        "is_selected": [0] * len(found), "passage_text": [c.text for c in found], "id": [c.id for c in found],
        "title": [c.title for c in found],
    }  # fmt: skip
    return {"query_id": qid, "query": query, "answers": ["a"] * len(found), "passages": columns}


ROWS: dict[str, tuple[str, Build]] = {
    "rank_llm": ("rank_llm", _rank_llm),
    "anserini": ("anserini", _anserini),
    "rankgpt": ("rankgpt", _rankgpt),
    "dpr": ("dpr", _dpr),
    "elasticsearch": ("elasticsearch", _elasticsearch),
    "elasticsearch-fields": ("elasticsearch", _elasticsearch_fields),
    "vespa": ("vespa", _vespa),
    "qdrant": ("qdrant", _qdrant),
    "haystack": ("haystack", _haystack),
    "langchain": ("langchain", _langchain),
    "llamaindex": ("llamaindex", _llamaindex),
    "ragas": ("ragas", _ragas),
    "phoenix": ("phoenix", _phoenix),
    "msmarco": ("msmarco", _msmarco),
}
"""By a name of their own: the shape, and what builds a row of it."""

WITH_TITLES = ("rank_llm", "dpr", "elasticsearch", "vespa", "qdrant", "haystack", "langchain", "llamaindex", "msmarco")
