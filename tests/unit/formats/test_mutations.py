"""Good files that were cut, put together, encoded, quoted or named in another way, and an oracle that wrote them.

Whatever is done to a file: no traceback, no pair that its writer does not know, never exit code 0 or 3 with fewer rows
than are accounted for, and no bad row only where every pair that was written is there. `RERANK_TORTURE=long` runs the
program itself on 1,000 files, an older output beside each; RERANK_SEED takes other files.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rerank_cli.cli import main
from rerank_cli.errors import RerankError
from rerank_cli.formats.inputs import ReadOptions, open_lists, resolve_inputs
from rerank_cli.formats.scattered_groups import ordered_by_group
from rerank_cli.formats.shapes import FieldNames
from rerank_cli.records import CandidateList, RowError
from tests.conftest import LONG, TINY_CHECKPOINT
from tests.unit.formats.shapes.known_rows import ROWS as KNOWN_ROWS
from tests.unit.formats.shapes.known_rows import Candidate

FILES = 2000 if LONG else 1000
WHOLE_RUNS = 1000 if LONG else 40
SEED = 100_000 * int(os.environ.get("RERANK_SEED", "0"))
WORDS = (
    "kettle", "d\u00e9j\u00e0 vu", 'he said "boil it"', "a, b; c", "it's ''it''", "\u6cb8", "1.10", '"quoted" word',
    "two\nlines", "tab\tbed",
)  # fmt: skip


@dataclass(frozen=True)
class Good:
    """A file, and the pairs that are in it.

    name: what the user gives: that of the file, or of the folder or pattern of `parts`. lost: what was done to it may
    have taken rows away without a trace.
    """

    name: str
    data: bytes
    pairs: frozenset[tuple[str, str]]
    lost: bool = False
    parts: tuple[tuple[str, bytes], ...] = ()


def _rows(rng: random.Random, *, plain: bool) -> list[dict[str, str]]:
    def text() -> str:
        words = [rng.choice(WORDS) for _ in range(rng.randint(1, 5))]
        found = f"{rng.choice(WORDS)} {rng.getrandbits(32)} {' '.join(words)} end{rng.getrandbits(20)}"
        return found.replace("\n", " ").replace("\t", " ").lstrip('"') if plain else found

    rows = []
    for query_id in range(rng.randint(1, 6)):
        query = text()
        for n in range(rng.randint(1, 5)):
            rows.append({"query_id": f"q{query_id}", "query": query, "doc_id": f"d{n}", "passage": text()})
    return rows


def _lists(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    lists: dict[str, dict[str, Any]] = {}
    for row in rows:
        one = lists.setdefault(row["query_id"], {"query_id": row["query_id"], "query": row["query"], "passages": []})
        one["passages"].append({"id": row["doc_id"], "text": row["passage"]})
    return list(lists.values())


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _separated(rows: list[dict[str, str]], **how: Any) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n", **how)
    names = how_names(rows)
    writer.writerow(names)
    writer.writerows([row[name] for name in names] for row in rows)
    return stream.getvalue().encode()


def how_names(rows: list[dict[str, str]]) -> list[str]:
    return list(rows[0])


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, write_page_checksum=True)
    return sink.getvalue()


def _plain_tsv(rows: list[dict[str, str]]) -> bytes:
    return "".join("\t".join(cells) + "\n" for cells in [how_names(rows), *(row.values() for row in rows)]).encode()


def _of_known(name: str, rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Rows of another program; what only looks like a list in step is taken out."""
    lists = []
    for one in _lists(rows):
        found = [Candidate(entry["id"], "T", entry["text"], 1.5) for entry in one["passages"]]
        row = KNOWN_ROWS[name][1](one["query"], one["query_id"], found)
        lists.append({key: value for key, value in row.items() if key not in ("answers", "reference_contexts")})
    return lists


def _known(name: str, rows: list[dict[str, str]]) -> bytes:
    return _lines(_of_known(name, rows))


FORMATS: dict[str, tuple[str, Callable[[list[dict[str, str]]], bytes]]] = {
    "lists": (".jsonl", lambda rows: _lines(_lists(rows))),
    "flat": (".jsonl", lambda rows: _lines(rows)),
    "array": (".json", lambda rows: json.dumps(_lists(rows), ensure_ascii=False).encode()),
    "pretty": (".json", lambda rows: json.dumps(_lists(rows), indent=1).encode()),
    "csv": (".csv", lambda rows: _separated(rows)),
    "all quoted": (".csv", lambda rows: _separated(rows, quoting=csv.QUOTE_ALL)),
    "quoted tsv": (".tsv", lambda rows: _separated(rows, delimiter="\t")),
    "plain tsv": (".tsv", _plain_tsv),
    "parquet": (".parquet", lambda rows: _parquet(rows)),
    "parquet lists": (".parquet", lambda rows: _parquet(_lists(rows))),
    **{name: (".jsonl", partial(_known, name)) for name in KNOWN_ROWS},
    "rank_llm array": (".json", lambda rows: json.dumps(_of_known("rank_llm", rows), indent=2).encode()),
    "dpr array": (".json", lambda rows: json.dumps(_of_known("dpr", rows)).encode()),
    "elasticsearch table": (".parquet", lambda rows: _parquet(_of_known("elasticsearch", rows))),
    "msmarco table": (".parquet", lambda rows: _parquet(_of_known("msmarco", rows))),
}


def _good(rng: random.Random) -> tuple[Good, str, list[dict[str, str]]]:
    kind = rng.choice(list(FORMATS))
    suffix, write = FORMATS[kind]
    rows = _rows(rng, plain=kind == "plain tsv")
    pairs = frozenset((row["query"], row["passage"]) for row in rows)
    return Good(f"in{suffix}", write(rows), pairs), kind, rows


def _cut(rng: random.Random, good: Good, rows: list[dict[str, str]]) -> Good:
    left = rng.choice([rng.randrange(len(good.data)), len(good.data) - rng.randint(1, min(20, len(good.data)))])
    return Good(good.name, good.data[:left], good.pairs, lost=True)


def _joined(rng: random.Random, good: Good, rows: list[dict[str, str]]) -> Good:
    other = good if rng.random() < 0.5 else _good(rng)[0]
    between = rng.choice([b"", b"\n", b"\xef\xbb\xbf"])
    return Good(good.name, good.data + between + other.data, good.pairs | other.pairs)


def _encoded(rng: random.Random, good: Good, rows: list[dict[str, str]]) -> Good:
    if good.name.endswith(".parquet"):
        return Good(good.name, gzip.compress(good.data), good.pairs)
    encoding = rng.choice(["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "gb18030"])
    return Good(good.name, good.data.decode().encode(encoding), good.pairs)


def _quoted(rng: random.Random, good: Good, rows: list[dict[str, str]]) -> Good:
    how: dict[str, Any] = {"delimiter": rng.choice(",;\t|")}
    how |= rng.choice(
        [
            {"quoting": csv.QUOTE_ALL},
            {"quoting": csv.QUOTE_NONNUMERIC},
            {"quotechar": "'"},
            {"quotechar": "'", "quoting": csv.QUOTE_ALL},
            {"quoting": csv.QUOTE_NONE, "escapechar": "\\"},
            {"doublequote": False, "escapechar": "\\"},
        ]
    )
    return Good(rng.choice(["in.csv", "in.tsv"]), _separated(rows, **how), good.pairs)


def _renamed(rng: random.Random, good: Good, rows: list[dict[str, str]]) -> Good:
    suffix = rng.choice([".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", "", ".jsonl.gz", ".csv.zst", ".trec"])
    return Good(f"in{suffix}", good.data, good.pairs)


def _reordered(rng: random.Random, good: Good, rows: list[dict[str, str]]) -> Good:
    names = how_names(rows)
    rng.shuffle(names)
    mixed = [{name: row[name] for name in names} for row in rows]
    suffix, write = FORMATS[rng.choice(["flat", "csv", "all quoted", "quoted tsv", "parquet"])]
    return Good(f"in{suffix}", write(mixed), good.pairs)


def _packed(rng: random.Random, good: Good, rows: list[dict[str, str]]) -> Good:
    data = gzip.compress(good.data)
    return Good(good.name, data[: rng.choice([len(data), rng.randrange(1, len(data))])], good.pairs)


def _in_a_folder(rng: random.Random, good: Good, rows: list[dict[str, str]]) -> Good:
    """With what Spark and editors leave beside it, under other names and in folders of keys."""
    suffix = Path(good.name).suffix
    other = _good(rng)[0] if rng.random() < 0.2 else good  # of another format or shape: refused, or read as it is
    folder = rng.choice(["parts", "my parts [1]", "p.jsonl", "year=2026", "a=1/b=x y"])
    parts = [
        (f"top/{folder}/part-0{suffix}", good.data),
        (f"top/{folder}/part-10{Path(other.name).suffix}", other.data),
    ]
    parts += [("top/_SUCCESS", b""), (f"top/{folder}/.part-0{suffix}.crc", b"crc"), (f"top/{folder}/_meta.json", b"{}")]
    name = rng.choice(["top", "top/", "top/**/part-*"])
    return Good(name, b"", good.pairs | other.pairs, parts=tuple(parts))


def _of_lines(
    change: Callable[[random.Random, dict[str, Any]], Any],
) -> Callable[[random.Random, Good, list[dict[str, str]]], Good]:
    """A change of some rows, each with a line of its own in JSON."""

    def changed(rng: random.Random, good: Good, rows: list[dict[str, str]]) -> Good:
        made = [dict(row) for row in (_lists(rows) if rng.random() < 0.5 else rows)]
        lines = [change(rng, row) if rng.random() < 0.5 else row for row in made]
        texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
        if rng.random() < 0.3:
            return Good("in.json", ("[" + ",\n".join(texts) + "]").encode(), good.pairs, lost=True)
        return Good("in.jsonl", ("\n".join(texts) + "\n").encode(), good.pairs, lost=True)

    changed.__name__ = change.__name__
    return changed


def _renamed_field(rng: random.Random, row: dict[str, Any]) -> Any:
    old = rng.choice([name for name in ("query", "passage", "passages", "query_id") if name in row])
    new = rng.choice(["title", "Query", "text", "id", "body", "answer", "documents", "x y", ""])
    return {new if name == old else name: value for name, value in row.items()}


def _lost_field(rng: random.Random, row: dict[str, Any]) -> Any:
    gone = rng.choice(list(row))
    return {name: value for name, value in row.items() if name != gone}


def _other_value(rng: random.Random, row: dict[str, Any]) -> Any:
    value = rng.choice([None, 7, 1.5, True, [], {}, [None], [[]], [{}], {"a": 1}, [None, 7]])
    return {**row, rng.choice(list(row)): value}


def _deeper(rng: random.Random, row: dict[str, Any]) -> Any:
    return rng.choice([{"row": row}, {"data": [row]}, [row], {"n": 1, "hits": {"hits": [row]}}])


def _key_twice(rng: random.Random, row: dict[str, Any]) -> Any:
    name = rng.choice(list(row))
    return "{" + f"{json.dumps(name)}: {json.dumps(rng.choice(['other', row[name]]))}, " + json.dumps(row)[1:]


def _no_number(rng: random.Random, row: dict[str, Any]) -> Any:
    return json.dumps({**row, "score": 0.5}).replace("0.5}", rng.choice(["NaN}", "-Infinity}", "01}", "+1}", "1e999}"]))


def _commented(rng: random.Random, row: dict[str, Any]) -> Any:
    return rng.choice(["// mine\n", "# mine\n", "/* mine */ "]) + json.dumps(row)


def _own_fields(rng: random.Random, row: dict[str, Any]) -> Any:
    """Fields that do not decide what is scored, some with names that could."""
    name = rng.choice(["rank", "logit", "index", "title", "url", "metadata", "input_rank", "a.b", "image_url", "label"])
    return {**row, name: rng.choice(["x", 1, None, ["a"], {"text": "not a passage"}])}


def _a_second_text(rng: random.Random, row: dict[str, Any]) -> Any:
    """Another field with a name of the role, which holds something else: nobody knows which is meant."""
    return {**row, rng.choice(["document", "text", "doc"]): "what nobody has meant"} if "passage" in row else row


def _other_line_ends(rng: random.Random, good: Good, rows: list[dict[str, str]]) -> Good:
    """Of files whose texts have no line ends of their own."""
    if good.name.endswith((".parquet", ".csv", ".tsv")):
        return good
    return Good(good.name, good.data.replace(b"\n", rng.choice([b"\r\n", b"\n\n", b"\n \n"])), good.pairs)


def _garbled(rng: random.Random, good: Good, rows: list[dict[str, str]]) -> Good:
    """A byte that is none of any text in its place; UTF-8 never has it."""
    at = rng.randrange(len(good.data))
    return Good(good.name, good.data[:at] + b"\xff" + good.data[at + 1 :], good.pairs)


def _of_latin(rng: random.Random, good: Good, rows: list[dict[str, str]]) -> Good:
    if good.name.endswith(".parquet"):
        return good
    text = good.data.decode()
    pairs = frozenset((_narrow(query), _narrow(passage)) for query, passage in good.pairs)
    is_escaped = text.isascii()  # which loses nothing
    return Good(
        good.name, text.encode(rng.choice(["latin-1", "cp1252"]), "ignore"), good.pairs if is_escaped else pairs
    )


def _narrow(text: str) -> str:
    return text.encode("latin-1", "ignore").decode("latin-1")


CHANGES = (
    _renamed_field, _lost_field, _other_value, _deeper, _key_twice, _no_number, _commented, _own_fields, _a_second_text,
)  # fmt: skip
MUTATIONS = (
    _cut, _joined, _encoded, _quoted, _renamed, _reordered, _packed, _other_line_ends, _garbled, _in_a_folder,
    _of_latin, *map(_of_lines, CHANGES),
)  # fmt: skip


def mutated(seed: int) -> tuple[str, Good]:
    """A file, and what was done to it."""
    rng = random.Random(seed + SEED)
    good, kind, rows = _good(rng)
    mutation = MUTATIONS[seed % len(MUTATIONS)]
    return f"seed {seed}: {kind}{mutation.__name__}", mutation(rng, good, rows)


def _place(folder: Path, file: Good) -> str:
    """Write a file; returns what the user gives."""
    for name, data in file.parts or ((file.name, file.data),):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return f"{folder}/{file.name}"


def _pairs(path: str) -> Iterator[tuple[str, str] | RowError]:
    """What would be scored."""
    inputs = resolve_inputs([path])
    shape, items = open_lists(inputs, FieldNames(), ReadOptions(), "auto")
    for found in shape.group(ordered_by_group(inputs, shape, items, ReadOptions())):
        if isinstance(found, CandidateList):
            yield from ((query, passage) for query, passage in found.pairs if isinstance(passage, str))
        elif isinstance(found, RowError):
            yield found


def test_no_text_is_read_that_nobody_wrote(tmp_path: Path) -> None:
    read = refused = 0
    wrong: list[tuple[str, object]] = []
    for seed in range(FILES):
        what, file = mutated(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            found = list(_pairs(_place(folder, file)))
        except RerankError as error:
            assert error.exit_code in (2, 4), what
            refused += 1
        else:
            scored = {one for one in found if not isinstance(one, RowError)}
            wrong += [(what, pair) for pair in scored - file.pairs][:1]
            if len(scored) == len(found) and scored and not file.lost:
                wrong += [(what, ("lost", pair)) for pair in file.pairs - scored][:1]
            read += bool(scored)
        shutil.rmtree(folder)
    assert not wrong
    assert read > FILES / 4  # else the test would say little
    assert refused > FILES / 10


@pytest.mark.parametrize("seed", range(WHOLE_RUNS))
def test_a_run_keeps_the_older_output_or_writes_what_is_known(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    what, file = mutated(10_000 + seed)
    out = tmp_path / "out.jsonl"
    out.write_text("older\n")
    path = _place(tmp_path, file)
    code = main(["rerank-file", path, "-o", str(out), "--overwrite", "-q", "--model", str(TINY_CHECKPOINT)])
    said = capsys.readouterr().err
    assert "Traceback" not in said, what
    assert code in (0, 2, 3, 4, 10), what
    if code not in (0, 3):
        assert out.read_text() == "older\n", what
        assert said.startswith("error: "), what
        return
    scored = {pair for pair in _pairs(str(out)) if not isinstance(pair, RowError)}
    assert scored <= file.pairs, what
    assert scored == file.pairs or file.lost or code == 3, what
    counts = json.loads((tmp_path / "out.jsonl.report.json").read_text())["counts"]
    assert counts["rows_in"] == counts["rows_out"] + counts["rows_error"], what
    assert (code == 3) == (tmp_path / "out.jsonl.errors.jsonl").exists(), what
