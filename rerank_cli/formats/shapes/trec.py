"""`trec`: TREC runs, read with texts from other files, written with scores that fall, as trec_eval breaks ties itself.

    q1 Q0 d7 1 12.5 bm25          in and out, a pair a line

The passages of a query are taken in the order of their scores, highest first, whatever the rank column says; equal
scores stay in the order of the lines, which may say more than the ids that trec_eval goes by. The output's scores are
logits with six decimals, made to fall strictly: where two logits are equal, or differ by less than six decimals show,
the later passage gets the next lower number. trec_eval holds scores as 32-bit floats and orders equal ones by their
ids, so "next lower" is the next number with six decimals that is lower as a 32-bit float too (at a logit of 20 it is
0.000002 lower). So every evaluator sees the run's own order. Of passages with the same id (chunks of a document) the
run holds the best one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from rerank_cli.errors import UsageError
from rerank_cli.formats.choices import FieldNames, Selection, Texts
from rerank_cli.formats.shapes.corpus import open_corpus
from rerank_cli.formats.shapes.fields import id_text, number_in, row_error
from rerank_cli.formats.shapes.flat import digest_of
from rerank_cli.formats.shapes.shape import Exchange, Grouped, Item, Kind, refuse_field_names
from rerank_cli.formats.text_index import TextFile, open_texts
from rerank_cli.records import CandidateList, Gap, RankedList, RankedPassage, Row, RowError

TAG = "rerank-cli"
_COLUMNS = 6
_UNITS = 1_000_000  # a score has six decimals
RUN_LINE = re.compile(r"^\S+\s+[Qq]0\s+\S+\s+\d+\s+[-+.\deE]+\s+\S+\s*$")
"""What a line of unknown origin looks like if it is one of a TREC run."""

_BLANKS = re.compile(r"[ \t\n\r\f\v]+")  # those of C, which trec_eval cuts at: a no-break space is part of an id


@dataclass(frozen=True, slots=True)
class RunLine:
    """A line of a run."""

    query: str
    passage: str
    score: float


def _columns(line: str) -> list[str]:
    return [column for column in _BLANKS.split(line) if column]


def parse_line(row: Row) -> RunLine | RowError:
    """The line that `row` holds as its one field."""
    columns = _columns(str(row.fields["passage"]))
    if len(columns) != _COLUMNS:
        message = f"a line of a run has 6 columns (query Q0 passage rank score tag), this one has {len(columns)}"
        return row_error(row, "bad-run-line", message, columns[0] if columns else None)
    score = number_in(columns[4])
    if not math.isfinite(score):
        return row_error(row, "bad-run-line", f"its score is `{columns[4]}`, not a number", columns[0])
    return RunLine(columns[0], columns[2], score)


def falling_scores(logits: Iterable[float]) -> list[str]:
    """Logits that do not rise, as numbers with six decimals that fall strictly, also as 32-bit floats."""
    import numpy as np  # here, since each run imports this module and few write a run of TREC

    scores: list[str] = []
    last: int | None = None
    for logit in logits:
        units = round(logit * _UNITS)
        if last is not None:
            units = min(units, last - 1)
            before = np.float32(last / _UNITS)
            if np.float32(units / _UNITS) >= before:
                units = min(units, math.floor(float(np.nextafter(before, np.float32(-np.inf))) * _UNITS))
        last = units
        whole, part = divmod(abs(units), _UNITS)
        scores.append(f"{'-' if units < 0 else ''}{whole}.{part:06d}")
    return scores


def _open(names: FieldNames, texts: Texts) -> TrecShape:
    refuse_field_names("trec", replace(names, text=None))  # `--text-field` names the text in the corpus
    if texts.queries is None or texts.corpus is None:
        raise UsageError(
            "a TREC run holds ids only: --queries and --corpus are needed",
            hint="TSV (`id`, tab, text) or JSONL (`_id`, `text`, `title`)",
        )
    for option, path in (("--queries", texts.queries), ("--corpus", texts.corpus)):
        if path == "-":
            raise UsageError(f"{option} -: texts are looked up in a file, not in a pipe")
    corpus, told = open_corpus(texts.corpus, names.text)
    return TrecShape(names, open_texts(texts.queries), corpus, told)


def _write(exchange: Exchange, ranked: RankedList, selection: Selection) -> Iterator[dict[str, Any]]:
    best: dict[str, RankedPassage] = {}
    for entry in ranked.ranking:
        best.setdefault(id_text(exchange.ids[entry.index]), entry)
    scores = falling_scores(entry.logit for entry in best.values())
    for place, (identity, score) in enumerate(zip(best, scores, strict=True), 1):
        yield {
            "query_id": id_text(exchange.id), "q0": "Q0", "passage_id": identity,
            "rank": place, "score": score, "tag": TAG,
        }  # fmt: skip


def _refuse(exchange: Exchange) -> tuple[str, str] | None:
    """A run separates columns by blanks and tells passages apart by their ids: each must be there, without blanks."""
    if exchange.id is None:
        return "no-query-id", "the row has no query id, which a TREC run needs"
    for index, identity in enumerate((exchange.id, *exchange.ids)):
        name = "the query" if index == 0 else f"passages[{index - 1}]"
        if identity is None:
            return "no-passage-id", f"{name} has no id, which a TREC run needs"
        text = id_text(identity)
        if not text or _BLANKS.search(text):
            return "unfit-id", f"the id of {name} is empty or has white space in it, which a TREC run cannot carry"
    return None


TREC = Kind(
    "trec", lambda fields, names: 0, _open, _write,
    has=frozenset(("query ids", "passage ids", "texts")),
    carries=frozenset(("query ids", "passage ids", "logits")),
    refuse=_refuse, dump=lambda row: (" ".join(map(str, row.values())) + "\n").encode(),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TrecShape:
    """A pair a line; the lines of a query stand together."""

    kind: ClassVar[Kind] = TREC
    names: FieldNames
    queries: TextFile
    corpus: TextFile
    told: tuple[str, ...] = ()

    def group(self, items: Iterable[Item]) -> Iterator[Grouped]:
        """See `Shape`. A query that comes back after another one is a `RowError` for each of its lines."""
        pairs: list[tuple[Row, RunLine]] = []
        finished: set[int] = set()
        for item in items:
            line = item if isinstance(item, (RowError, Gap)) else parse_line(item)
            if not isinstance(line, RunLine) or isinstance(item, (RowError, Gap)):
                assert not isinstance(line, RunLine), "lines come from rows"
                yield line
                continue
            if pairs and line.query != pairs[0][1].query:
                yield from self._close(pairs)
                finished.add(digest_of(pairs[0][1].query))
                pairs = []
            if digest_of(line.query) in finished:
                message = "the lines of its query are not adjacent; sort them, or give a file"
                yield row_error(item, "scattered-group", message, line.query)
            else:
                pairs.append((item, line))
        if pairs:
            yield from self._close(pairs)

    def _close(self, pairs: list[tuple[Row, RunLine]]) -> Iterator[Grouped]:
        """The list of one query, and its bad lines."""
        query_id = pairs[0][1].query
        query = self.queries.find(query_id)
        if not isinstance(query, str):
            for row, _ in pairs:
                yield row_error(row, query.code, f"query {query.message}", query_id)
            return
        good: list[tuple[Row, RunLine, str]] = []
        seen: set[str] = set()
        for row, line in pairs:
            text = self.corpus.find(line.passage)
            if line.passage in seen:
                message = f"passage `{line.passage}` has stood in its query before"
                yield row_error(row, "repeated-passage", message, query_id)
            elif not isinstance(text, str):
                yield row_error(row, text.code, f"passage {text.message}", query_id)
            else:
                good.append((row, line, text))
            seen.add(line.passage)
        good.sort(key=lambda entry: -entry[1].score)  # stable: equal scores in the order of the lines
        if good:
            rows = tuple(row for row, _, _ in good)
            yield CandidateList(query, tuple(text for _, _, text in good), rows, query_id)

    def render(self, ranked: RankedList, selection: Selection) -> Iterator[dict[str, Any]]:
        """See `Shape`."""
        source = ranked.source
        ids = tuple(self.passage_id(source, index) for index in range(len(source.passages)))
        return _write(Exchange(source.id, source.query, {}, (), ids), ranked, selection)

    def columns(self, names: Sequence[str]) -> Mapping[str, tuple[str, ...] | None]:
        """See `Shape`."""
        return dict.fromkeys(names)

    def group_key(self, fields: Mapping[str, Any]) -> int:
        """What decides the query of a line."""
        return digest_of((_columns(str(fields["passage"])) or [""])[0])

    def passage_id(self, source: CandidateList, index: int) -> object:
        """See `Shape`."""
        line = parse_line(source.row_of(index))
        assert isinstance(line, RunLine), "group() has checked it"
        return line.passage

    def exchange(self, source: CandidateList) -> Exchange:
        """See `Shape`."""
        ids = tuple(self.passage_id(source, index) for index in range(len(source.passages)))
        passages = [{"id": identity, "text": text} for identity, text in zip(ids, source.passages, strict=True)]
        return Exchange(source.id, source.query, {"query_id": source.id}, passages, ids)
