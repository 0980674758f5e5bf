"""Rebuild the sample files of this folder.

The passages are the documentation strings of the standard library of CPython 3.11.7 on Linux. They
change from one Python to the next, so the script stops on any other version. The files are
committed: neither the tool nor its tests run this script.

The modules, questions and judgements are read from `questions.toml`. The candidates of a question
are the best 20 of all passages by BM25; a candidate that the question lists under neither `answers`
nor `related` was judged 0.

Needs `bm25s`, `PyStemmer` and `pyarrow`; run `python samples/build.py`.
"""

import importlib
import inspect
import json
import platform
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import bm25s
import pyarrow as pa
import pyarrow.parquet as pq
import Stemmer

PYTHON_VERSION = "3.11.7"
FOLDER = Path(__file__).parent
CANDIDATE_COUNT = 20
MIN_WORDS, MAX_WORDS = 15, 220
PAIR_QUERY_IDS = ("q05", "q19", "q25", "q36")

Row = dict[str, Any]


def documented_objects(module_name: str) -> Iterator[tuple[str, object]]:
    """Yield the public functions, classes and methods of a module with their dotted names."""
    module = importlib.import_module(module_name)
    prefix = "" if module_name == "builtins" else f"{module_name}."
    for name in sorted(getattr(module, "__all__", vars(module))):
        value = getattr(module, name, None)
        origin = getattr(value, "__module__", None) or ""
        is_public = hasattr(module, "__all__") or origin.lstrip("_") == module_name
        if not is_public or not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        yield f"{prefix}{name}", value
        for member_name, member in sorted(vars(value).items()) if inspect.isclass(value) else ():
            if inspect.isroutine(member) or isinstance(member, property):
                yield f"{prefix}{name}.{member_name}", member


def read_passages(modules: list[str], skipped_prefixes: tuple[str, ...]) -> dict[str, str]:
    """Return the text of each passage by its dotted name; of equal texts, the first name stays."""
    names: dict[str, str] = {}
    for module_name in modules:
        found = sorted(documented_objects(module_name), key=lambda pair: pair[0].count("."))
        for name, value in found:
            words = (inspect.getdoc(value) or "").split()
            if "._" in name or name.startswith(skipped_prefixes) or len(words) + 1 < MIN_WORDS:
                continue
            if len(words) >= MAX_WORDS:
                words = [*words[: MAX_WORDS - 2], "..."]
            names.setdefault(" ".join(words), name)
    return {name: f"{name}: {text}" for text, name in names.items()}


def tokenize(texts: list[str]) -> list[list[str]]:
    """Return the lower-case word stems of each text without English stop words."""
    stems: list[list[str]] = bm25s.tokenize(
        texts,
        token_pattern=r"[^\W_]{2,}",
        stopwords="english_plus",
        stemmer=Stemmer.Stemmer("english"),
        return_ids=False,
        show_progress=False,
    )
    return stems


def rank_candidates(queries: list[str], passages: dict[str, str]) -> Iterator[list[Row]]:
    """Yield the best passages of each query by BM25, best first."""
    passage_ids = list(passages)
    index = bm25s.BM25(k1=1.5, b=0.75, method="lucene", dtype="float64")
    index.index(tokenize(list(passages.values())), show_progress=False)
    for stems in tokenize(queries):
        scores = index.get_scores(stems)
        best = sorted(range(len(scores)), key=lambda i: -scores[i])[:CANDIDATE_COUNT]
        yield [
            {"id": name, "text": passages[name], "bm25": round(float(scores[i]), 4)}
            for i, name in ((i, passage_ids[i]) for i in best)
        ]


def write_jsonl(name: str, rows: Iterable[Row]) -> None:
    """Write one JSON object a line."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (FOLDER / name).write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Write every generated file of the folder."""
    if platform.python_version() != PYTHON_VERSION:
        sys.exit(f"these samples hold the documentation strings of Python {PYTHON_VERSION}")
    source = tomllib.loads((FOLDER / "questions.toml").read_text("utf-8"))
    questions, corpus = source["questions"], source["corpus"]
    passages = read_passages(corpus["modules"], tuple(corpus["skipped_prefixes"]))
    ranked = rank_candidates([question["text"] for question in questions], passages)
    lists: list[Row] = []
    flat: list[Row] = []
    pairs: list[Row] = []
    qrels: list[str] = []
    for question, candidates in zip(questions, ranked, strict=True):
        key = {"query_id": question["id"], "query": question["text"]}
        grades = dict.fromkeys(question["related"], 1) | dict.fromkeys(question["answers"], 2)
        texts = {row["id"]: row["text"] for row in candidates}
        if not grades.keys() <= texts.keys():
            raise ValueError(f"{question['id']}: graded passages are not among the candidates")
        lists.append({**key, "passages": candidates})
        for row in candidates:
            passage = {"passage_id": row["id"], "passage": row["text"], "bm25": row["bm25"]}
            flat.append({**key, **passage})
            qrels.append(f"{question['id']} 0 {row['id']} {grades.get(row['id'], 0)}\n")
        if question["id"] in PAIR_QUERY_IDS:
            wrong = next(name for name in texts if name not in grades)
            for name in (question["answers"][0], wrong):
                pairs.append({"query": question["text"], "passage": texts[name]})
    for stem, rows in (("python-docs", lists), ("python-docs-flat", flat)):
        write_jsonl(f"{stem}.jsonl", rows)
        pq.write_table(pa.Table.from_pylist(rows), FOLDER / f"{stem}.parquet", compression="zstd")
    write_jsonl("pairs.jsonl", pairs)
    (FOLDER / "qrels.txt").write_text("".join(qrels), encoding="utf-8")
    sys.stdout.write(f"{len(lists)} queries, {len(flat)} judged pairs\n")


if __name__ == "__main__":
    main()
