"""Rebuild the samples of other programs' shapes from `python-docs.jsonl`.

Needed neither at run time nor by tests; run `python samples/build_shapes.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RUN_QUERIES = 5


def main() -> None:
    """Write the files beside this one."""
    lists = [json.loads(line) for line in (HERE / "python-docs.jsonl").read_text(encoding="utf-8").splitlines()]
    _write(
        "nim.jsonl",
        (nim_request(row, truncate) for row, truncate in zip(lists[:3], ("END", "NONE", "END"), strict=True)),
    )
    _write("cohere.jsonl", cohere_bodies(lists[3:6]))
    _write("openai-batch.jsonl", batch_requests(lists[6:8], lists[8:10]))
    write_run(lists[:RUN_QUERIES])


def nim_request(row: dict[str, Any], truncate: str) -> dict[str, Any]:
    """A ranking request of NVIDIA's Reranking NIM; `query_id` is ours, and comes back."""
    return {
        "query_id": row["query_id"],
        "model": "nvidia/llama-nemotron-rerank-1b-v2",
        "query": {"text": row["query"]},
        "passages": [{"text": passage["text"]} for passage in row["passages"][:5]],
        "truncate": truncate,
    }


def cohere_bodies(rows: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """Bodies of `/rerank` with texts, with objects, and with documents in the answer."""
    first, second, third = rows
    texts = [passage["text"] for passage in first["passages"][:5]]
    yield {"model": "rerank-v3.5", "query": first["query"], "documents": texts, "top_n": 3}
    objects = [{"id": passage["id"], "text": passage["text"]} for passage in second["passages"][:5]]
    yield {"query": second["query"], "documents": objects, "top_n": 2, "return_documents": True}
    texts = [passage["text"] for passage in third["passages"][:5]]
    yield {"query": third["query"], "documents": texts, "max_tokens_per_doc": 64}


def batch_requests(reranks: list[dict[str, Any]], scores: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """Lines of an OpenAI batch file."""
    for row in reranks:
        body = {"query": row["query"], "documents": [passage["text"] for passage in row["passages"][:5]]}
        yield {"custom_id": row["query_id"], "method": "POST", "url": "/v1/rerank", "body": body}
    for row in scores:
        body = {"text_1": row["query"], "text_2": [passage["text"] for passage in row["passages"][:3]]}
        yield {"custom_id": row["query_id"], "method": "POST", "url": "/v1/score", "body": body}


def write_run(rows: list[dict[str, Any]]) -> None:
    """The BM25 order as a TREC run, with its queries as TSV and its passages as BEIR has them."""
    run, corpus = [], {}
    for row in rows:
        for rank, passage in enumerate(row["passages"], 1):
            run.append(f"{row['query_id']} Q0 {passage['id']} {rank} {passage['bm25']} bm25\n")
            title, _, text = passage["text"].partition(": ")
            corpus[passage["id"]] = {"_id": passage["id"], "title": f"{title}:", "text": text}
    (HERE / "bm25.trec").write_text("".join(run), encoding="utf-8")
    queries = (f"{row['query_id']}\t{row['query']}\n" for row in rows)
    (HERE / "queries.tsv").write_text("".join(queries), encoding="utf-8")
    _write("corpus.jsonl", corpus.values())


def _write(name: str, rows: Iterable[dict[str, Any]]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (HERE / name).write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
