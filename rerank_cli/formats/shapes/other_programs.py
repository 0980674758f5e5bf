"""The table of known shapes: where other programs put query, passages, text, title, id and first-stage score.

Each entry is only data; `known_shape.py` reads and writes all of them. To add a shape, add an entry here and rows of it
to `tests/unit/formats/shapes/known_rows.py`.

Paths work as in `fields.py`. Where a role has several, the first one with a value counts; two with different texts make
a bad row. Paths of text, title, id and score start at a passage.

Sources: the files that the named programs write, and their documentation, as of November 2026.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Layout = Literal["objects", "columns", "rows"]


@dataclass(frozen=True, slots=True)
class KnownShape:
    """Where the rows of a program hold what is needed."""

    name: str
    of: str
    """Whose files these are, in words."""
    query: tuple[str, ...]
    passages: tuple[str, ...]
    """The list; of the layout `columns` the object whose fields are lists in step (an empty path is the row itself).
    Empty for the layout `rows`."""
    text: tuple[str, ...]
    """In a passage; of the layout `columns` the list of texts. An empty path is the passage itself."""
    layout: Layout = "objects"
    """objects: a list of objects or texts. columns: lists in step, one for each field. rows: one passage a row."""
    query_id: tuple[str, ...] = ()
    title: tuple[str, ...] = ("title",)
    id: tuple[str, ...] = ()
    score: tuple[str, ...] = ()
    together: tuple[str, ...] = ()
    """Of the layout `columns` in the row itself: the lists that are in step. Of `objects`: lists beside the passages
    that are."""
    marks: tuple[str, ...] = ()
    """Fields of a row, or of its passages; without one of them the shape is not recognised by itself."""
    header: tuple[str, ...] = ()
    """The columns of a file of tab-separated values that has no header."""
    ids_only: bool = False
    """Its rows hold ids; the texts are in the files of `--queries` and `--corpus`."""


_TEXTS = (
    "text",
    "contents",
    "content",
    "body",
    "passage",
    "passage_text",
    "segment",
    "page_content",
    "chunk",
    "abstract",
)

_LANGCHAIN_LISTS = ("documents", "context", "source_documents", "docs", "outputs.documents")
_LANGCHAIN_DOCUMENTS = ("", "kwargs.", "0.", "0.kwargs.")
"""Before the fields of a document: as it is, as `dumps` writes it, and both beside a score."""

_LLAMAINDEX_LISTS = ("source_nodes", "nodes", "sourceNodes", "retrieved_nodes")

_PHOENIX_LISTS = (
    "documents",
    "reference",
    "retrieval.documents",
    "attributes.retrieval.documents",
    "reranker.input_documents",
    "attributes.reranker.input_documents",
)

KNOWN: tuple[KnownShape, ...] = (
    KnownShape(
        "rank_llm", "requests of rank_llm",
        query=("query.text",), query_id=("query.qid",), passages=("candidates",),
        text=tuple(f"doc.{name}" for name in _TEXTS), title=("doc.title",), id=("docid",), score=("score",),
        marks=("candidates.doc",),
    ),
    KnownShape(
        "anserini", "requests of Anserini, whose documents may be texts",
        query=("query.text", "query"), query_id=("query.qid", "qid"), passages=("candidates",),
        text=(
            "doc.contents", "doc.segment", "doc.text", *(f"doc.raw.{name}" for name in _TEXTS), "doc.raw", "doc",
        ),
        title=("doc.title", "doc.raw.title"), id=("docid",), score=("score",), marks=("candidates.doc",),
    ),
    KnownShape(
        "rankgpt", "lists of RankGPT and older versions of rank_llm",
        query=("query",), query_id=("qid", "query_id", "hits.0.qid"), passages=("hits",), text=("content",),
        id=("docid",), score=("score",), marks=("hits.content",),
    ),
    KnownShape(
        "dpr", "retrieval results of DPR and Rankify",
        query=("question", "query"), query_id=("id", "_id", "question_id", "q_id", "qid"), passages=("ctxs",),
        text=("text",), id=("id", "docid", "passage_id"), score=("score",), marks=("ctxs",),
    ),
    KnownShape(
        "mteb", "`top_ranked` of MTEB",
        query=("query-id",), query_id=("query-id",), passages=("",), text=("corpus-ids",), layout="columns",
        id=("corpus-ids",), together=("corpus-ids",), marks=("corpus-ids",), ids_only=True,
    ),
    KnownShape(
        "beir", "results of BEIR as rows of ids",
        query=("query-id",), query_id=("query-id",), passages=(), text=("corpus-id",), layout="rows",
        id=("corpus-id",), score=("score",), marks=("corpus-id",), ids_only=True,
    ),
    KnownShape(
        "tirex", "rerank files of TIREx and TIRA",
        query=("query",), query_id=("qid",), passages=(), text=("text",), layout="rows", id=("docno",),
        score=("score",), marks=("docno",),
    ),
    KnownShape(
        "elasticsearch", "responses of Elasticsearch and OpenSearch with their query",
        query=("query", "question", "query_text"), query_id=("query_id", "qid", "id"), passages=("hits.hits", "hits"),
        text=tuple(f"{part}.{name}" for part in ("_source", "fields") for name in _TEXTS),
        title=("_source.title", "fields.title"), id=("_id",), score=("_score",),
        marks=("hits.hits", "hits._source", "hits._score"),
    ),
    KnownShape(
        "vespa", "responses of Vespa with their query",
        query=("query", "question", "query_text"), query_id=("query_id", "qid", "id"),
        passages=("root.children", "hits"),
        text=tuple(f"fields.{name}" for name in _TEXTS), title=("fields.title",),
        id=("fields.documentid", "fields.id", "id"), score=("relevance",), marks=("root.children", "hits.relevance"),
    ),
    KnownShape(
        "qdrant", "responses of Qdrant with their query",
        query=("query", "question", "query_text"), query_id=("query_id", "qid"),
        passages=("result.points", "result", "points", "hits"),
        text=tuple(f"payload.{name}" for name in (*_TEXTS, "document", "_node_content.text")),
        title=("payload.title", "payload.metadata.title"), id=("id",), score=("score",),
        marks=("result.points.payload", "result.payload", "points.payload", "hits.payload"),
    ),
    KnownShape(
        "haystack", "documents of Haystack with their query",
        query=("query", "question"), query_id=("query_id", "qid"),
        passages=("documents", "retriever.documents"), text=("content",), title=("meta.title", "meta.name"),
        id=("id",), score=("score",), marks=("documents.content", "retriever.documents.content"),
    ),
    KnownShape(
        "langchain", "documents of LangChain with their query",
        query=("query", "question", "input", "inputs.query", "inputs.question", "inputs.input"),
        query_id=("query_id", "qid"), passages=_LANGCHAIN_LISTS,
        text=tuple(f"{at}{name}" for at in _LANGCHAIN_DOCUMENTS for name in ("page_content", "pageContent")),
        title=tuple(f"{at}metadata.title" for at in _LANGCHAIN_DOCUMENTS),
        id=(
            "id", "kwargs.id", "0.id", "0.kwargs.id",
            *(f"{at}metadata.{name}" for at in _LANGCHAIN_DOCUMENTS for name in ("doc_id", "id")),
        ),
        score=("1", "metadata.score", "metadata.relevance_score"),
        marks=tuple(
            f"{at}.{inner}{name}" for at in _LANGCHAIN_LISTS for inner in _LANGCHAIN_DOCUMENTS
            for name in ("page_content", "pageContent")
        ),
    ),
    KnownShape(
        "llamaindex", "nodes of LlamaIndex with their query",
        query=("query", "query_str", "question"), query_id=("query_id", "qid"), passages=_LLAMAINDEX_LISTS,
        text=tuple(f"{at}{name}" for at in ("node.", "node.__data__.", "") for name in ("text", "text_resource.text")),
        title=("node.metadata.title", "node.__data__.metadata.title", "metadata.title"),
        id=tuple(
            f"{at}{name}" for at in ("node.", "node.__data__.", "") for name in ("id_", "node_id", "doc_id")
        ),
        score=("score",),
        marks=tuple(f"{at}.{name}" for at in _LLAMAINDEX_LISTS for name in ("node", "class_name")),
    ),
    KnownShape(
        "ragas", "samples of Ragas",
        query=("user_input", "question"), query_id=("query_id", "qid", "id"), passages=("",),
        text=("retrieved_contexts", "contexts"), layout="columns",
        id=("retrieved_context_ids",), together=("retrieved_contexts", "contexts", "retrieved_context_ids"),
        marks=("retrieved_contexts", "contexts"),
    ),
    KnownShape(
        "phoenix", "spans and retrievals of Arize Phoenix",
        query=(
            "query", "input", "reranker.query", "attributes.reranker.query",
            *(f"{at}.{name}" for at in ("input.value", "attributes.input.value")
              for name in ("query", "question", "input", "text")),
            "input.value", "attributes.input.value",
        ),
        query_id=("query_id", "qid", "context.span_id", "span_id"), passages=_PHOENIX_LISTS,
        text=("document.content",), title=("document.metadata.title",), id=("document.id",),
        score=("document.score",),
        marks=(*(f"{at}.document.content" for at in _PHOENIX_LISTS), *_PHOENIX_LISTS[2:]),
    ),
    KnownShape(
        "msmarco", "ms_marco of Hugging Face: lists in step in one object",
        query=("query",), query_id=("query_id",), passages=("passages",), text=("passage_text",), layout="columns",
        marks=("passages.passage_text",), title=("title",), id=("id", "pid"),
    ),
    KnownShape(
        "top1000", "top1000 files of MS MARCO: tab-separated, without a header",
        query=("query",), query_id=("qid",), passages=(), text=("passage",), layout="rows", id=("pid",),
        header=("qid", "pid", "query", "passage"), marks=("pid",),
    ),
)  # fmt: skip
"""All known shapes, in the order in which they are tried."""

SAME_AS = {
    "opensearch": "elasticsearch", "rankify": "dpr", "ms_marco": "msmarco", "llama_index": "llamaindex",
    "rank-llm": "rank_llm", "rankllm": "rank_llm",
}  # fmt: skip
"""Other names of known shapes."""
