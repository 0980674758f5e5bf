"""Every shape in every format it can have: all rows are accounted for, and what is the user's own comes back as it was.

Files are made at random: null texts, bad rows, repeated ids and texts, aliases that change from row to row, and fields
with hostile names. The oracle builds the row again with its good passages in the order of their scores.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rerank_cli.formats.shapes import NO_TEXTS, READABLE, Texts
from tests.conftest import LONG, FileRun, run_files
from tests.unit.formats.shapes.known_rows import ROWS as KNOWN_ROWS
from tests.unit.formats.shapes.known_rows import Candidate

SEEDS = 20 if LONG else 1
WORDS = ("kettle", "descale", "d\u00e9j\u00e0", "\u2028", 'a "quoted" one', "a, b; c", "two\nlines", "\t", "1.10", "''")
OURS = ("rank", "logit", "index", "truncated", "tokens", "kept_tokens")
"""Names that are ours in every row, whether a passage was cut or not."""
HOSTILE = {
    "rank": 40, "input_rank": "taken", "index": "chunk-7", "prob": 0.5, "tokens": 9, "a.b": 1, "": "no name",
    " ": "blank", "it's": '"', "__proto__": "x", "\u00fc\u2028": "\U0001f525", "truncated": False, "kept": [1.5, 2.5],
}  # fmt: skip
FLAT_HOSTILE = {**{name: str(value) for name, value in HOSTILE.items() if name.strip()}, "note": 'it\'s\n"x"; \t,'}
Row = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """A list as its writer has it. bad: its row cannot be read at all."""

    query: str
    id: str
    passages: tuple[Candidate, ...]
    bad: bool = False
    variant: int = 0


@dataclass(frozen=True)
class Form:
    """How lists become rows.

    rows: of a list, with what is the user's own. expected: of its good passages in rank order, and their old places.
    layout: what a row is (`objects`, `columns`, `rows`, `request`). formats: those that it can have.
    """

    shape: str
    layout: str
    rows: Callable[[Found], list[Row]]
    formats: tuple[str, ...]
    expected: Callable[[Found, Sequence[int], Sequence[str]], list[Row]] | None = None
    files: Callable[[Path, Sequence[Found]], Texts] = field(default=lambda folder, lists: NO_TEXTS)


# Formats


def _lines(rows: Sequence[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _table(rows: Sequence[Row], separator: str, **how: Any) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=separator, lineterminator="\n", **how)
    writer.writerows([list(rows[0]), *(row.values() for row in rows)])
    return stream.getvalue().encode()


def _parquet(rows: Sequence[Row]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink, row_group_size=3)
    return sink.getvalue()


FORMATS: dict[str, tuple[str, Callable[[Sequence[Row]], bytes]]] = {
    "jsonl": (".jsonl", _lines),
    "marked crlf": (".jsonl", lambda rows: b"\xef\xbb\xbf" + _lines(rows).replace(b"\n", b"\r\n")),
    "array": (".json", lambda rows: json.dumps(rows).encode()),
    "pretty": (".json", lambda rows: json.dumps(rows, indent=2, ensure_ascii=False).encode()),
    "objects": (".json", lambda rows: "\n".join(json.dumps(row, indent=2) for row in rows).encode()),
    "gz": (".jsonl.gz", lambda rows: gzip.compress(_lines(rows[:1])) + gzip.compress(_lines(rows[1:]))),
    "bz2": (".jsonl.bz2", lambda rows: bz2.compress(_lines(rows))),
    "xz": (".json.xz", lambda rows: lzma.compress(json.dumps(rows).encode())),
    "zst": (".jsonl.zst", lambda rows: pa.Codec("zstd").compress(_lines(rows), asbytes=True)),
    "no suffix": ("", _lines),
    "csv": (".csv", lambda rows: _table(rows, ",")),
    "semicolons": (".csv", lambda rows: _table(rows, ";", quoting=csv.QUOTE_ALL)),
    "quoted tsv": (".tsv.gz", lambda rows: gzip.compress(_table(rows, "\t", quoting=csv.QUOTE_ALL))),
    "parquet": (".parquet", _parquet),
    "parquet folder": ("folder", _parquet),
    "folder": ("folder", _lines),
    "pattern": ("pattern", _lines),
}
JSON_FORMATS = (
    "jsonl", "marked crlf", "array", "pretty", "objects", "gz", "bz2", "xz", "zst", "no suffix", "folder", "pattern",
)  # fmt: skip
TABLES = ("parquet", "parquet folder")
SEPARATED = ("csv", "semicolons", "quoted tsv")


def write(folder: Path, name: str, rows: Sequence[Row]) -> str:
    """A file (or several) of these rows; returns what the user would name."""
    suffix, dump = FORMATS[name]
    if suffix not in ("folder", "pattern"):
        path = folder / f"in{suffix}"
        path.write_bytes(dump(rows))
        return str(path)
    parts = folder / f"{name} parts"
    parts.mkdir()
    ending = ".parquet" if "parquet" in name else ".jsonl"
    for n, cut in enumerate((rows[:2], rows[2:])):
        if cut:
            (parts / f"part-{n}{ending}").write_bytes(dump(cut))
    return str(parts) if suffix == "folder" else str(parts / "*")


# Shapes


def _own(place: int) -> Row:
    return {**HOSTILE, "kept": [place + 0.5, 2.5], "n": place}


def _kept(own: Mapping[str, Any], ours: Sequence[str]) -> Row:
    """A passage's own fields as they come back: those with names of ours under a prefix."""
    after = {}
    for name, value in own.items():
        kept = name
        while kept in ours or (kept != name and kept in own):
            kept = f"input_{kept}"
        after[kept] = value
    return after


def _passage(one: Candidate, place: int, variant: int) -> Any:
    entry: Row = {"docno" if variant else "id": one.id, "title": one.title, "text": one.text}
    return {**entry, **_own(place)}


def _list(found: Found) -> list[Row]:
    passages = [_passage(one, place, found.variant) for place, one in enumerate(found.passages)]
    ids = [one.id for one in found.passages]
    row: Row = {"qid" if found.variant else "query_id": found.id, "query": found.query, "own": {"n": {"a": None}}}
    row |= {"passages": passages, "doc_ids": ids, "meta": {"urls": [f"u{one}" for one in ids]}, "a.b": 1.5}
    return [_spoilt(row, found)]


def _list_after(found: Found, places: Sequence[int], ours: Sequence[str]) -> list[Row]:
    (row,) = _list(found)
    entries = [{**_kept(row["passages"][place], ours), "rank": rank} for rank, place in enumerate(places, 1)]
    row |= {"passages": entries, "doc_ids": [row["doc_ids"][place] for place in places]}
    return [row | {"meta": {"urls": [row["meta"]["urls"][place] for place in places]}}]


def _spoilt(row: Row, found: Found) -> Row:
    return {**row, "query": None} if found.bad else row


def _mixed(found: Found) -> list[Row]:
    """Aliases that change from row to row, and passages that are texts among objects."""
    passages: list[Any] = [
        one.text if place % 2 and not found.bad else {"docid": one.id, "text": one.text}
        for place, one in enumerate(found.passages)
    ]
    name = ("passages", "candidates", "documents", "docs")[found.variant % 4]
    return [_spoilt({"query": found.query, name: passages, "id": found.id}, found)]


def _mixed_after(found: Found, places: Sequence[int], ours: Sequence[str]) -> list[Row]:
    (row,) = _mixed(found)
    name = next(one for one in ("passages", "candidates", "documents", "docs") if one in row)
    own = [one if isinstance(one, dict) else {"text": one} for one in row[name]]
    return [{**row, name: [{**own[place], "rank": rank} for rank, place in enumerate(places, 1)]}]


def _known(name: str) -> Form:
    shape, build = KNOWN_ROWS[name]
    columns = name in ("ragas", "msmarco")
    has_name = "user_input" if name == "ragas" else "question" if name == "dpr" else "query"

    def rows(found: Found) -> list[Row]:
        row = build(found.query, found.id, found.passages)
        if "answers" in row:  # of their own, which only looks as if it belonged
            row["answers"] = ["a"]
        row.pop("reference_contexts", None)
        own = {"own \u2028": {"n": 1}, "input_own": None, "n.m": 1}
        return [{**row, **own, **({has_name: None} if found.bad else {})}]

    def after(found: Found, places: Sequence[int], ours: Sequence[str]) -> list[Row]:
        (row,) = rows(Found(found.query, found.id, tuple(found.passages[place] for place in places)))
        if name == "elasticsearch":
            row["hits"]["total"]["value"] = len(found.passages)
        return [row]

    return Form(shape, "columns" if columns else "objects", rows, (*JSON_FORMATS, *TABLES), after)


def _flat_row(names: Sequence[str], own: Mapping[str, Any], found: Found) -> list[Row]:
    rows = []
    for place, one in enumerate(found.passages):
        values = (found.id, found.query, one.id, one.text)
        rows.append({**dict(zip(names, values, strict=True)), **own, "n": f"n{found.id} {place}"})
    return rows


def _flat(shape: str, *names: str, own: Mapping[str, Any], formats: tuple[str, ...]) -> Form:
    def rows(found: Found) -> list[Row]:
        return _flat_row(names, own, found)

    def after(found: Found, places: Sequence[int], ours: Sequence[str]) -> list[Row]:
        made = rows(found)
        return [{**_kept(made[place], ours), "rank": rank} for rank, place in enumerate(places, 1)]

    return Form(shape, "rows", rows, formats, after)


def _requests(shape: str, build: Callable[[Found], Row]) -> Form:
    return Form(shape, "request", lambda found: [build(found)], JSON_FORMATS)


def _nim(found: Found) -> Row:
    passages = [{"text": one.text} for one in found.passages]
    return {"id": found.id, "query": {"text": found.query}, "passages": passages, "own \u2028": {"rank": 1}}


def _cohere(found: Found) -> Row:
    documents = [one.text for one in found.passages]
    return {"id": found.id, "query": found.query, "documents": documents, "top_n": 99, "own \u2028": {"rank": 1}}


def _tei(found: Found) -> Row:
    texts = [one.text for one in found.passages]
    return {"id": found.id, "query": found.query, "texts": texts, "truncate": True, "own \u2028": {"rank": 1}}


def _batch(found: Found) -> Row:
    body = {"query": found.query, "documents": [one.text for one in found.passages], "model": "m"}
    return {"custom_id": found.id, "method": "POST", "url": "/v1/rerank", "body": body}


def _texts_of(folder: Path, lists: Sequence[Found]) -> Texts:
    queries = _lines([{"_id": one.id, "text": one.query} for one in lists if not one.bad])
    (folder / "queries.jsonl").write_bytes(queries)
    corpus = {one.id: one.text for found in lists for one in found.passages if one.text is not None}
    (folder / "corpus.jsonl").write_bytes(
        _lines([{"_id": id_, "title": "", "text": text} for id_, text in corpus.items()])
    )
    return Texts(str(folder / "queries.jsonl"), str(folder / "corpus.jsonl"))


def _beir(found: Found) -> list[Row]:
    return [
        {"query-id": found.id, "corpus-id": one.id, "score": "1.5", "n": f"n{found.id} {place}", **FLAT_HOSTILE}
        for place, one in enumerate(found.passages)
    ]


def _beir_after(found: Found, places: Sequence[int], ours: Sequence[str]) -> list[Row]:
    made = _beir(found)
    return [{**_kept(made[place], ours), "rank": rank} for rank, place in enumerate(places, 1)]


def _mteb(found: Found) -> list[Row]:
    return [{"query-id": found.id, "corpus-ids": [one.id for one in found.passages], "own \u2028": [1, None]}]


def _mteb_after(found: Found, places: Sequence[int], ours: Sequence[str]) -> list[Row]:
    return _mteb(Found(found.query, found.id, tuple(found.passages[place] for place in places)))


FORMS: dict[str, Form] = {
    "list": Form("list", "objects", _list, (*JSON_FORMATS, *TABLES), _list_after),
    "list of aliases": Form("list", "objects", _mixed, JSON_FORMATS, _mixed_after),
    "flat": _flat(
        "flat", "query_id", "query", "doc_id", "passage", own=FLAT_HOSTILE,
        formats=(*JSON_FORMATS, *TABLES, *SEPARATED),
    ),
    "flat of other names": _flat(
        "flat", "qid", "query", "pid", "document", own={**HOSTILE, "rank": "x"}, formats=(*JSON_FORMATS, *TABLES)
    ),
    "tirex": _flat(
        "flat", "qid", "query", "docno", "text", own=FLAT_HOSTILE, formats=(*JSON_FORMATS, *TABLES, *SEPARATED)
    ),
    **{name: _known(name) for name in KNOWN_ROWS},
    "beir": Form("beir", "rows", _beir, (*JSON_FORMATS, *TABLES, *SEPARATED), _beir_after, _texts_of),
    "mteb": Form("mteb", "columns", _mteb, (*JSON_FORMATS, *TABLES), _mteb_after, _texts_of),
    "nim": _requests("nim", _nim),
    "cohere": _requests("cohere", _cohere),
    "tei": _requests("tei", _tei),
    "openai-batch": _requests("openai-batch", _batch),
}  # fmt: skip


# Files


def _made(rng: random.Random, form: Form, name: str) -> list[Found]:
    separated = name in SEPARATED
    lists = []
    for n in range(rng.randint(2, 5)):

        def text() -> str:
            return " ".join(rng.choices(WORDS, k=rng.randint(1, 4)))

        passages: list[Candidate] = []
        for place in range(rng.randint(1, 5)):
            words: str | None = text()
            if place and not separated and rng.random() < 0.25:
                words = None
            identity = f"d{n}-{place}"
            if passages and form.files is Form.__dataclass_fields__["files"].default and rng.random() < 0.2:
                identity = passages[-1].id  # a chunk of the same document
            passages.append(Candidate(identity, rng.choice(["T", "", "\u00fc"]), words, 9.5 - place))
        bad = n > 0 and form.layout in ("objects", "columns") and rng.random() < 0.2
        bad = bad and form.shape != "mteb"
        query = f"descale kettle {text()} {n}"
        lists.append(
            Found(query, f"q{n}", tuple(passages), bad, variant=rng.randint(0, 3) if name not in TABLES else 0)
        )
    return lists


def _order(found: Found) -> list[int]:
    """The places of the good passages as the fake engine ranks them: by words in common, then as they came."""
    query = set(found.query.split())
    good = [place for place, one in enumerate(found.passages) if one.text is not None]
    shared = {place: len(query & set((found.passages[place].text or "").split())) for place in good}
    return sorted(good, key=lambda place: (-shared[place], place))


def _without(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, dict):
        return {name: _without(inner, names) for name, inner in value.items() if name not in names}
    if isinstance(value, str) and value.startswith("[{"):
        return _without(json.loads(value), names)
    return [_without(inner, names) for inner in value] if isinstance(value, list) else value


def _check_requests(run: FileRun, lists: Sequence[Found]) -> None:
    good = [one for one in lists if not one.bad and all(passage.text is not None for passage in one.passages)]
    assert run.counts.rows_in == len(lists)
    assert run.counts.rows_out == len(good) == len(run.rows)
    assert run.counts.rows_error == len(lists) - len(good) == len(run.errors)
    for one, row in zip(good, run.rows, strict=True):
        answer = row["response"]["body"] if "response" in row else row
        results = answer["rankings" if "rankings" in answer else "results"]
        assert [result["index"] for result in results] == _order(one)
        assert one.id in (row.get("id"), row.get("custom_id"))
        if "response" not in row:
            assert row["own \u2028"] == {"rank": 1}


def _check(run: FileRun, lists: Sequence[Found], form: Form) -> None:
    assert form.expected is not None
    expected = [row for one in lists if not one.bad for row in form.expected(one, _order(one), OURS)]
    nulls = sum(passage.text is None for one in lists if not one.bad for passage in one.passages)
    bad = sum(one.bad for one in lists)
    counts = run.counts
    assert len(run.rows) == len(expected)
    if form.layout == "rows":
        assert counts.rows_in == sum(len(one.passages) for one in lists)
        assert (counts.rows_out, counts.rows_error) == (len(expected), nulls)
    else:
        assert (counts.rows_in, counts.rows_out, counts.rows_error) == (len(lists), len(expected), bad)
        assert counts.passages_error == nulls
    assert len(run.errors) == nulls + bad
    for row, wanted in zip(run.rows, expected, strict=True):
        assert _without(_as_written(row, run.out), OURS) == _without(_as_written(wanted, run.out), OURS)


def _as_written(row: Row, out: Path) -> Row:
    """A row of a separated output has texts alone."""
    return {name: str(value) for name, value in row.items()} if out.suffix == ".csv" else row


def _outputs(form: Form, name: str) -> Iterator[str]:
    yield "out.jsonl"
    if name in TABLES:
        yield "out.parquet"
    if name in SEPARATED:
        yield "out.csv"


def test_every_shape_is_tried() -> None:
    tried = {form.shape for form in FORMS.values()} | {"tirex", "trec", "top1000"}
    assert {kind.name for kind in READABLE.values()} <= tried


@pytest.mark.parametrize("name", FORMS)
def test_rows_are_accounted_for_and_what_is_the_users_own_comes_back(name: str, tmp_path: Path) -> None:
    form = FORMS[name]
    for place, kind in enumerate(form.formats):
        for seed in range(SEEDS):
            folder = tmp_path / f"{place} {seed}"
            folder.mkdir()
            lists = _made(random.Random(f"{name} {kind} {seed}"), form, kind)
            path = write(folder, kind, [row for one in lists for row in form.rows(one)])
            for out in _outputs(form, kind):
                said = f"{name}, {kind}, seed {seed}, {out}"
                try:
                    run = run_files([path], folder / out, texts=form.files(folder, lists))
                    if form.layout == "request":
                        _check_requests(run, lists)
                    else:
                        _check(run, lists, form)
                except Exception as error:
                    error.add_note(said)
                    raise


def _write_run(folder: Path, lists: Sequence[Found]) -> str:
    lines = [
        f"{found.id} Q0 {one.id} {place + 1} {one.score} x"
        for found in lists
        for place, one in enumerate(found.passages)
    ]
    (folder / "in.trec").write_text("".join(line + "\n" for line in lines))
    return str(folder / "in.trec")


@pytest.mark.parametrize("seed", range(SEEDS * 3))
def test_each_line_of_a_run_comes_back_once_or_is_an_error(seed: int, tmp_path: Path) -> None:
    lists = _made(random.Random(f"trec {seed}"), FORMS["beir"], "jsonl")
    run = run_files([_write_run(tmp_path, lists)], tmp_path / "out.trec", texts=_texts_of(tmp_path, lists))
    wanted = [(one.id, one.passages[place].id) for one in lists for place in _order(one)]
    lines = [line.split() for line in run.out.read_text().splitlines()]
    assert [(line[0], line[2]) for line in lines] == wanted
    assert run.counts.rows_in == sum(len(one.passages) for one in lists) == len(wanted) + len(run.errors)
    assert run.counts.rows_error == len(run.errors)


@pytest.mark.parametrize("suffix", [".tsv", ".tsv.gz", ""])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_each_row_of_a_file_without_a_header_comes_back_once(seed: int, suffix: str, tmp_path: Path) -> None:
    lists = _made(random.Random(f"top1000 {seed}"), FORMS["beir"], "csv")
    blanks = str.maketrans("\t\n\u2028", "   ")
    rows = [
        (one.id, passage.id, one.query.translate(blanks), (passage.text or "").translate(blanks))
        for one in lists
        for passage in one.passages
    ]
    data = "".join("\t".join(row) + "\n" for row in rows).encode()
    (tmp_path / f"in{suffix}").write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    run = run_files([str(tmp_path / f"in{suffix}")], tmp_path / "out.jsonl")
    assert run.counts.rows_in == run.counts.rows_out == len(rows) == len(run.rows)
    names = ("query_id", "passage_id", "query", "passage")
    assert sorted(tuple(row[name] for name in names) for row in run.rows) == sorted(rows)
