"""Good files that were cut, put together, encoded, quoted or named in another way, and an oracle that wrote them.

Whatever is done to a file: no traceback, no pair that its writer does not know, and never exit code 0 or 3 with fewer
rows than are accounted for. `RERANK_TORTURE=long` runs the program itself on 1,000 files, an older output beside each.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rerank_cli.cli import main
from rerank_cli.errors import RerankError
from rerank_cli.formats.inputs import ReadOptions, open_lists, ordered_by_group, resolve_inputs
from rerank_cli.formats.shapes import FieldNames
from rerank_cli.records import CandidateList, RowError
from tests.conftest import LONG, TINY_CHECKPOINT

FILES = 1000
WHOLE_RUNS = 1000 if LONG else 12
WORDS = (
    "kettle", "d\u00e9j\u00e0 vu", 'he said "boil it"', "a, b; c", "it's ''it''", "\u6cb8", "1.10", '"quoted" word',
    "two\nlines", "tab\tbed",
)  # fmt: skip


@dataclass(frozen=True)
class Good:
    """A file, and the pairs that are in it."""

    name: str
    data: bytes
    pairs: frozenset[tuple[str, str]]


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
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def _plain_tsv(rows: list[dict[str, str]]) -> bytes:
    return "".join("\t".join(cells) + "\n" for cells in [how_names(rows), *(row.values() for row in rows)]).encode()


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
}


def _good(rng: random.Random) -> tuple[Good, str, list[dict[str, str]]]:
    kind = rng.choice(list(FORMATS))
    suffix, write = FORMATS[kind]
    rows = _rows(rng, plain=kind == "plain tsv")
    pairs = frozenset((row["query"], row["passage"]) for row in rows)
    return Good(f"in{suffix}", write(rows), pairs), kind, rows


def _cut(rng: random.Random, good: Good, rows: list[dict[str, str]]) -> Good:
    return Good(good.name, good.data[: rng.randrange(len(good.data))], good.pairs)


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


def _other_line_ends(rng: random.Random, good: Good, rows: list[dict[str, str]]) -> Good:
    """Of files whose texts have no line ends of their own."""
    if good.name.endswith((".parquet", ".csv", ".tsv")):
        return good
    return Good(good.name, good.data.replace(b"\n", rng.choice([b"\r\n", b"\n\n", b"\n \n"])), good.pairs)


def _garbled(rng: random.Random, good: Good, rows: list[dict[str, str]]) -> Good:
    """A byte that is none of any text in its place; UTF-8 never has it."""
    at = rng.randrange(len(good.data))
    return Good(good.name, good.data[:at] + b"\xff" + good.data[at + 1 :], good.pairs)


MUTATIONS = (_cut, _joined, _encoded, _quoted, _renamed, _reordered, _packed, _other_line_ends, _garbled)


def mutated(seed: int) -> tuple[str, Good]:
    """A file, and what was done to it."""
    rng = random.Random(seed)
    good, kind, rows = _good(rng)
    mutation = MUTATIONS[seed % len(MUTATIONS)]
    return f"seed {seed}: {kind}{mutation.__name__}", mutation(rng, good, rows)


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
        path = tmp_path / file.name
        path.write_bytes(file.data)
        try:
            found = [one for one in _pairs(str(path)) if not isinstance(one, RowError)]
        except RerankError as error:
            assert error.exit_code in (2, 4), what
            refused += 1
        else:
            wrong += [(what, pair) for pair in found if pair not in file.pairs][:1]
            read += bool(found)
        path.unlink()
    assert not wrong
    assert read > FILES / 4  # else the test would say little
    assert refused > FILES / 10


@pytest.mark.parametrize("seed", range(WHOLE_RUNS))
def test_a_run_keeps_the_older_output_or_writes_what_is_known(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    what, file = mutated(10_000 + seed)
    path, out = tmp_path / file.name, tmp_path / "out.jsonl"
    path.write_bytes(file.data)
    out.write_text("older\n")
    code = main(["rerank-file", str(path), "-o", str(out), "--overwrite", "-q", "--model", str(TINY_CHECKPOINT)])
    assert "Traceback" not in capsys.readouterr().err, what
    assert code in (0, 2, 3, 4, 10), what
    if code not in (0, 3):
        assert out.read_text() == "older\n", what
        return
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    scored = {
        (row["query"], passage["text"] if "passages" in row else row["passage"])
        for row in rows
        for passage in row.get("passages", [row])
    }
    assert rows, what
    assert scored <= file.pairs, what
    counts = json.loads((tmp_path / "out.jsonl.report.json").read_text())["counts"]
    assert counts["rows_in"] == counts["rows_out"] + counts["rows_error"], what
    assert (code == 3) == (tmp_path / "out.jsonl.errors.jsonl").exists(), what
