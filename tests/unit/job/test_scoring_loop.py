from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rerank_cli.encoding.encoder import Encoded, EncodingProblem
from rerank_cli.encoding.pairs import EncodedWindow
from rerank_cli.engine.protocols import InProcess
from rerank_cli.errors import TooManyBadRowsError
from rerank_cli.formats.inputs import ReadOptions
from rerank_cli.formats.shapes import FieldNames, FlatShape, Grouped, ListShape, Selection
from rerank_cli.job.image_parts import encode_parts, pairs_of
from rerank_cli.job.options import ErrorLimit
from rerank_cli.job.ranking import pooled, rank_window, select
from rerank_cli.job.totals import Totals
from rerank_cli.job.windows import cut_windows
from rerank_cli.records import CandidateList, Counts, EncodedPair, Gap, RankedList, RowError, Window
from tests.conftest import LONG, FakeEncoder, FakeEngine, json_rows, ranked_of, run_files, score_all, told, write_lines

BAD = RowError("in.jsonl", 9, None, "bad-json", "not JSON", b"{")


def lists(*passages: Sequence[str], query: str = "q") -> list[CandidateList]:
    """One row a list."""
    rows = json_rows(*({"query": query, "passages": list(texts), "id": n} for n, texts in enumerate(passages)))
    return [item for item in ListShape(FieldNames()).group(rows) if isinstance(item, CandidateList)]


def group(*passages: str, query: str = "q") -> CandidateList:
    """One row a passage."""
    rows = json_rows(*({"query": query, "passage": text, "qid": "g"} for text in passages))
    (found,) = FlatShape(FieldNames()).group(rows)
    assert isinstance(found, CandidateList)
    return found


def ranking(item: RankedList) -> list[tuple[int, int, float]]:
    return [(entry.rank, entry.index, entry.logit) for entry in item.ranking]


class Memory:
    """A sink and its errors in memory."""

    def __init__(self) -> None:
        self.ranked: list[RankedList] = []
        self.errors: list[RowError] = []
        self.windows: list[int] = []

    def write(self, ranked: Sequence[RankedList]) -> int:
        self.ranked += ranked
        self.windows.append(len(ranked))
        return len(ranked)


def execute(items: Sequence[Grouped], **options: Any) -> tuple[Totals, Memory]:
    memory = options.pop("sink", None) or Memory()
    return score_all(iter(items), sink=memory, on_error=memory.errors.append, **options), memory


# Windows


def test_windows_hold_whole_lists_and_close_when_they_are_full() -> None:
    items = lists(["a"] * 3, ["b"] * 3, ["c"] * 9, [], ["d"])
    windows = list(cut_windows(items, max_pairs=4))
    assert [[len(item.passages) for item in window.lists] for window in windows] == [[3, 3], [9], [0, 1]]
    assert [window.number for window in windows] == [0, 1, 2]
    assert [window.rows for window in windows] == [2, 1, 2]


def test_bad_rows_and_empty_lists_fill_a_window_too() -> None:
    windows = list(cut_windows([BAD, *lists([], []), BAD, BAD], max_pairs=2))
    assert [(len(window.lists), len(window.errors), window.rows) for window in windows] == [
        (1, 1, 2),
        (1, 1, 2),
        (0, 1, 1),
    ]


def test_text_fills_a_window_before_it_takes_gigabytes() -> None:
    big = RowError("in.jsonl", 1, None, "bad-json", "", b"x" * 60)
    windows = cut_windows([*lists(["x" * 30], ["y" * 30], ["z"]), big, *lists(["a"])], max_pairs=100, max_bytes=60)
    assert [(len(window.lists), len(window.errors)) for window in windows] == [(2, 0), (1, 1), (1, 0)]


def test_a_pause_of_the_input_closes_a_window_that_holds_something() -> None:
    items = [Gap.IDLE, *lists(["a"]), Gap.IDLE, Gap.IDLE, BAD, Gap.IDLE, Gap.BLANK, Gap.IDLE, *lists(["b"])]
    windows = list(cut_windows(items, max_pairs=100))
    assert [(len(window.lists), len(window.errors), window.blank) for window in windows] == [
        (1, 0, 0),
        (0, 1, 0),
        (1, 0, 1),
    ]


def test_blank_lines_alone_make_one_window() -> None:
    (window,) = cut_windows([Gap.BLANK] * 5, max_pairs=2)
    assert (window.rows, window.blank) == (0, 5)
    assert list(cut_windows([], max_pairs=2)) == []


@given(st.lists(st.one_of(st.just(BAD), st.just(Gap.BLANK), st.integers(0, 5)), max_size=30), st.integers(1, 7))
def test_windows_lose_nothing_and_depend_on_the_input_alone(plan: list[Any], max_pairs: int) -> None:
    items = [lists(["p"] * item)[0] if isinstance(item, int) else item for item in plan]
    windows = list(cut_windows(iter(items), max_pairs=max_pairs))
    assert [item for window in windows for item in window.lists] == [i for i in items if isinstance(i, CandidateList)]
    assert sum(len(window.errors) for window in windows) == items.count(BAD)
    assert sum(window.blank for window in windows) == items.count(Gap.BLANK)
    assert windows == list(cut_windows(items, max_pairs=max_pairs))
    for window in windows[:-1]:
        assert (
            sum(len(i.passages) for i in window.lists) >= max_pairs
            or len(window.lists) + len(window.errors) >= max_pairs
        )
        shorter = window.lists[:-1] if not window.errors else ()
        assert sum(len(i.passages) for i in shorter) < max_pairs


# Encoding and scoring


def test_the_same_two_texts_are_encoded_once_in_a_window() -> None:
    encoder = FakeEncoder()
    window = Window(0, (*lists(["a", "b", "a"], ["b"]), *lists(["a"], query="other")), (), 3, 0)
    (part,) = encode_parts(window, encoder)
    assert encoder.encoded == [("q", "a"), ("q", "b"), ("other", "a")]
    assert part.places == [0, 1, 0, 1, 2]


@pytest.mark.parametrize(("pool", "expected"), [("max", 3.0), ("mean", 2.0), ("first", 1.0)])
def test_the_logits_of_chunks_are_pooled(pool: Any, expected: float) -> None:
    (chunks,) = FakeEncoder(chunk_tokens=3).encode([("a b c", "a x y a b c a b z")])
    pairs = pairs_of([chunks])
    logits = pooled([chunks], FakeEngine().score(pairs), pool)
    assert logits.tolist() == [expected]
    assert logits.dtype == np.float32
    assert len(pairs) == 3


def test_a_pair_with_a_problem_is_not_scored() -> None:
    encoded = FakeEncoder().encode([("q", "unscorable"), ("q", "q"), ("q", "unscorable")])
    pairs = pairs_of(encoded)
    assert len(pairs) == 1
    logits = pooled(encoded, np.array([1.0], dtype=np.float32), "max")
    assert np.array_equal(logits, [np.nan, 1.0, np.nan], equal_nan=True)


# Ranks


def pair(tokens: int = 5, kept: int = 5) -> tuple[EncodedPair]:
    return (EncodedPair(np.zeros(kept, dtype=np.int32), 1, tokens),)


def ranked(items: Sequence[CandidateList], *logits: float, entries: Sequence[Encoded] | None = None) -> Any:
    """The lists ranked by these logits of all their pairs, and the errors."""
    window = Window(0, tuple(items), (), len(items), 0)
    encoded = EncodedWindow(window, list(entries or [pair() for _ in logits]), list(range(len(logits))))
    return rank_window(encoded, np.array(logits, dtype=np.float32))


def test_the_best_comes_first_and_equal_logits_in_input_order() -> None:
    (first, second), errors = ranked(lists(["a", "b", "c", "d"], ["e"]), 1.0, 2.0, 1.0, 2.0, -3.0)
    assert errors == []
    assert ranking(first) == [(1, 1, 2.0), (2, 3, 2.0), (3, 0, 1.0), (4, 2, 1.0)]
    assert ranking(second) == [(1, 0, -3.0)]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_ranks_are_one_to_n_and_logits_fall(logits: list[float]) -> None:
    ((found,), _) = ranked(lists(["p"] * len(logits)), *logits)
    assert [entry.rank for entry in found.ranking] == list(range(1, len(logits) + 1))
    assert sorted(entry.index for entry in found.ranking) == list(range(len(logits)))
    keys = [(-np.float32(logits[entry.index]), entry.index) for entry in found.ranking]
    assert keys == sorted(keys)
    assert all(np.float32(entry.logit) == np.float32(logits[entry.index]) for entry in found.ranking)


def test_a_logit_is_written_with_the_fewest_digits_that_name_it() -> None:
    ((found,), _) = ranked(lists(["a", "b", "c"]), 9.267, 0.1, 1e-8)
    assert [entry.logit for entry in found.ranking] == [9.267, 0.1, 1e-8]


@pytest.mark.parametrize(("logit", "shown"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_a_logit_that_is_no_number_is_an_error_and_never_a_rank(logit: float, shown: str) -> None:
    (first, second), (error,) = ranked(lists(["a", "b"], ["c"]), 1.0, logit, 2.0)
    assert (ranking(first), ranking(second)) == ([(1, 0, 1.0)], [(1, 0, 2.0)])
    assert (told(error), error.id, error.passage) == ((1, "not-finite"), 0, 1)
    assert error.message == f"passages[1]: the model gave {shown} as its score"
    ((rest,), (error,)) = ranked([group("a", "b", "c")], 1.0, logit, 2.0)
    assert ranking(rest) == [(1, 2, 2.0), (2, 0, 1.0)]
    assert (told(error), error.id, error.message) == ((2, "not-finite"), "g", f"the model gave {shown} as its score")


def test_bad_passages_are_errors_of_their_own_and_all_together_make_the_list_one() -> None:
    problem = EncodingProblem("too-long", "600 tokens")
    (good,), errors = ranked(lists(["a", "b", "c"]), 1.0, 1.0, np.nan, entries=[pair(), problem, pair()])
    assert ranking(good) == [(1, 0, 1.0)]
    assert [(error.passage, error.message) for error in errors] == [
        (1, "passages[1]: 600 tokens"),
        (2, "passages[2]: the model gave nan as its score"),
    ]
    none, (error,) = ranked(lists(["a", "b"]), np.nan, 1.0, entries=[pair(), problem])
    assert (none, error.passage, error.message) == ([], None, "passages[0]: the model gave nan as its score")
    _, (error,) = ranked(lists(["a"]), 1.0, entries=[problem])
    assert error.message == "600 tokens"


def test_of_a_group_only_the_bad_rows_are_errors() -> None:
    problem = EncodingProblem("too-long", "600 tokens")
    good, errors = ranked([group("a", "b", "c")], 1.0, 1.0, 1.0, entries=[problem, pair(), problem])
    assert [ranking(item) for item in good] == [[(1, 1, 1.0)]]
    assert [told(error) for error in errors] == [(1, "too-long"), (3, "too-long")]
    good, errors = ranked([group("a", "b")], 1.0, 1.0, entries=[problem, problem])
    assert (good, len(errors)) == ([], 2)


def test_an_empty_list_has_an_empty_ranking() -> None:
    ((found,), errors) = ranked(lists([]))
    assert (found.ranking, errors) == ((), [])


def test_the_length_before_truncation_is_told_of_whole_pairs_alone() -> None:
    entries: list[Encoded] = [pair(600, 512), pair(20, 20), (*pair(512, 512), *pair(90, 90))]
    ((found,), _) = ranked(lists(["a", "b", "c"]), 3.0, 2.0, 1.0, entries=entries)
    assert [(entry.tokens > entry.kept_tokens, entry.tokens, entry.kept_tokens) for entry in found.ranking] == [
        (True, 600, 512),
        (False, 20, 20),
        (False, 0, 0),
    ]


@pytest.mark.parametrize(
    ("selection", "kept"),
    [
        (Selection(), [(1, 1), (2, 3), (3, 0), (4, 2)]),
        (Selection(top_n=2), [(1, 1), (2, 3)]),
        (Selection(top_n=9), [(1, 1), (2, 3), (3, 0), (4, 2)]),
        (Selection(threshold=0.5), [(1, 1), (2, 3), (3, 0)]),
        (Selection(threshold=0.51), [(1, 1), (2, 3)]),
        (Selection(threshold=0.5, top_n=1), [(1, 1)]),
        (Selection(threshold=7.0), []),
    ],
)
def test_ranks_are_given_before_the_selection_drops_anything(selection: Selection, kept: list[Any]) -> None:
    (source,) = lists(["a", "b", "c", "d"])
    found = select(ranked_of(source, 0.5, 3.0, -1.0, 2.0), selection)
    assert [(entry.rank, entry.index) for entry in found.ranking] == kept


# The run


def test_a_run_counts_what_it_did() -> None:
    items = [
        *lists(["q a", "q a", "b", ""], ["nan"], [], query="q"),
        BAD,
        Gap.BLANK,
        group("q x y z w", "unscorable", "x"),
        *lists(["x"], query=""),
        Gap.IDLE,
    ]
    batches: list[tuple[int, int]] = []
    windows: list[int] = []
    run, memory = execute(
        items,
        window_pairs=100,
        encoder=FakeEncoder(max_tokens=4),
        selection=Selection(threshold=0.5),
        on_batch=lambda *batch: batches.append(batch),
        on_window=lambda window, counts: windows.append(counts.rows_in),
    )
    assert run.counts == Counts(
        rows_in=8, rows_out=5, rows_error=3, blank=1, output_rows=4, lists=4, pairs=9, pairs_scored=8,
        tokens=3 + 2 + 1 + 2 + 4 + 2 + 1, truncated=1, chunked=0, dropped=4, ties=2, near_duplicates=1,
        empty_queries=1, empty_passages=1, empty_lists=2,
    )  # fmt: skip
    assert [told(error) for error in memory.errors] == [(2, "not-finite"), (2, "too-long"), (9, "bad-json")]
    assert [len(item.ranking) for item in memory.ranked] == [2, 0, 1, 0]
    assert batches == [(7, 15)]
    assert windows == [8]
    assert min(run.timing.read, run.timing.tokenise, run.timing.compute, run.timing.write) > 0


def test_pairs_in_chunks_are_counted() -> None:
    run, _ = execute(lists(["a b c", "a", "d e f"]), encoder=FakeEncoder(chunk_tokens=2))
    assert (run.counts.chunked, run.counts.pairs, run.counts.truncated) == (2, 3, 0)


def test_complete_rankings_are_seen_before_the_selection() -> None:
    seen: list[RankedList] = []
    run, memory = execute(lists(["q", "a"], ["b"]), selection=Selection(top_n=1, threshold=0.5), on_ranked=seen.extend)
    assert [len(item.ranking) for item in seen] == [2, 1]
    assert [len(item.ranking) for item in memory.ranked] == [1, 0]
    assert run.counts.dropped == 2


def test_windows_follow_each_other_in_order() -> None:
    items = lists(*([f"p{n}"] for n in range(20)))
    run, memory = execute(items, window_pairs=3)
    assert [item.source for item in memory.ranked] == items
    assert memory.windows == [3] * 6 + [2]
    assert run.counts.lists == 20


def test_an_input_without_rows_is_a_run() -> None:
    run, memory = execute([])
    assert (run.counts, memory.ranked) == (Counts(), [])


class StageError(Exception):
    pass


class Broken(InProcess):
    """Every stage's part, and it fails."""

    def encode(self, pairs: Any, limits: Any = None) -> Any:
        raise StageError

    def score(self, pairs: Any, **options: Any) -> Any:
        raise StageError

    def write(self, ranked: Any) -> Any:
        raise StageError


@pytest.mark.parametrize("where", ["items", "encoder", "engine", "sink"])
def test_a_fault_in_any_stage_ends_the_run_and_its_threads(where: str) -> None:
    def items() -> Iterator[Grouped]:
        while True:
            yield from lists(["a"])
            if where == "items":
                raise StageError

    broken = {where: Broken()} if where != "items" else {}
    options: dict[str, Any] = {"sink": Memory(), **broken}
    before = set(threading.enumerate())
    with pytest.raises(StageError) as caught:
        score_all(items(), window_pairs=2, on_error=lambda error: None, **options)
    # The exception still holds all of its frames, so no generator of them is closed by being forgotten.
    threads = set(threading.enumerate()) - before
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)
    assert caught.value.__traceback__ is not None


# Limits for bad rows


@pytest.mark.parametrize(
    ("limit", "bad", "rows", "last", "message"),
    [
        (ErrorLimit(), 900, 1000, True, None),
        (ErrorLimit(rows=0), 0, 5, True, None),
        (ErrorLimit(rows=0), 1, 5, False, "1 rows failed, --max-errors allows 0"),
        (ErrorLimit(rows=3), 3, 5, True, None),
        (ErrorLimit(rows=3), 4, 5, False, "4 rows failed, --max-errors allows 3"),
        (ErrorLimit(share=0.1), 1, 10, True, None),
        (ErrorLimit(share=0.1), 2, 10, True, "2 of 10 rows failed (20 %), --max-errors allows 10 %"),
        (ErrorLimit(share=0.1), 900, 999, False, None),
        (ErrorLimit(share=0.1), 101, 1000, False, "101 of 1000 rows failed (10.1 %), --max-errors allows 10 %"),
        (ErrorLimit(share=0.0), 0, 0, True, None),
    ],
)
def test_the_limit_of_bad_rows(limit: ErrorLimit, bad: int, rows: int, last: bool, message: str | None) -> None:
    counts = Counts(rows_in=rows, rows_error=bad)
    if message is None:
        limit.check(counts, last=last)
    else:
        with pytest.raises(TooManyBadRowsError) as caught:
            limit.check(counts, last=last)
        assert caught.value.message == message


def test_a_run_stops_at_the_window_that_passes_the_limit() -> None:
    memory = Memory()
    items = [*lists(["a"]), BAD, BAD, *lists(*(["a"] for _ in range(30)))]
    with pytest.raises(TooManyBadRowsError):
        execute(items, sink=memory, error_limit=ErrorLimit(rows=1))
    assert memory.windows == [2]


def test_a_share_of_few_rows_is_looked_at_when_the_run_ends() -> None:
    memory = Memory()
    items = [*lists(["a"]), BAD, BAD, *lists(*(["a"] for _ in range(30)))]
    with pytest.raises(TooManyBadRowsError):
        execute(items, sink=memory, error_limit=ErrorLimit(share=0.05))
    assert sum(memory.windows) == 31
    execute(items, error_limit=ErrorLimit(share=0.1))


# Every row in exactly one place

WORDS = st.sampled_from(["alpha", "beta", "gamma", "delta", "nan", "inf", "unscorable", "é", ""])
TEXT = st.lists(WORDS, max_size=4).map(" ".join)
QUERY = st.sampled_from(["alpha beta", "gamma", ""])
BROKEN_LINES = st.sampled_from(
    [
        b"{", b"[1]", b"5", b"null", b'"text"', b"\xff\xfe", b"{}", b"[" * 300,
        b'{"query": NaN}', b'{"a": 1, "a": 2}', b'{"query": "\\ud800"}',
        b'{"query": "q", "x": "' + b"y" * 2000 + b'"}',
        b'{"query": "q"}',
        b'{"passages": ["a"], "passage": "a"}',
        b'{"query": 5, "passages": ["a"], "passage": "a"}',
        b'{"query": null, "passages": [], "passage": "a"}',
        b'{"query": "q", "passages": "a", "passage": ["a"]}',
        b'{"query": "q", "passages": [{"image": "a.png"}], "passage": null}',
        b'{"query": "q", "passages": [7], "passage": 7}',
    ]
)  # fmt: skip
BLANK_LINES = st.sampled_from([b"", b" ", b"\t\r"])


def lines_of(rows: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[list[Any]]:
    """JSONL files in which good rows, rows without a score, broken lines and blank ones are mixed."""
    return st.lists(st.one_of(rows, rows, BROKEN_LINES, BLANK_LINES), max_size=14)


LIST_ROWS = st.fixed_dictionaries({"query": QUERY, "passages": st.lists(TEXT, max_size=4)})
FLAT_ROWS = st.fixed_dictionaries(
    {"query": QUERY, "passage": TEXT}, optional={"query_id": st.sampled_from([1, 2, "1", None])}
)


def has_rows(lines: list[Any]) -> bool:
    """Whether a line is a row, or all are blank: a file whose lines are all bad is refused as a whole.

    So is one that begins like text in UTF-16.
    """
    if lines and isinstance(lines[0], bytes) and lines[0].startswith((b"\xff\xfe", b"\xfe\xff")):
        return False
    return any(isinstance(line, dict) for line in lines) or not any(line.strip() for line in lines)


def run_mixed(
    folder: Path, lines: list[Any], shape: str, window_pairs: int, suffix: str
) -> tuple[Any, list[int], list[int]]:
    """What a run over these lines left; the places of its output rows, and of its error rows, in the file."""
    numbered = [{**line, "n": place} if isinstance(line, dict) else line for place, line in enumerate(lines, 1)]
    path = write_lines(folder / "in.jsonl", numbered)
    done = run_files(
        [path], folder / f"out.{suffix}", shape=shape, window_pairs=window_pairs, read=ReadOptions(max_line_bytes=1500),
        overwrite=True,
    )  # fmt: skip
    bad_rows = [error["row"] for error in done.errors if "index" not in error]
    return done, [row["n"] for row in done.rows], bad_rows


@settings(
    max_examples=10_000 if LONG else 60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lines_of(LIST_ROWS), st.integers(1, 6), st.sampled_from(["jsonl", "parquet"]))
def test_every_row_of_lists_is_in_the_output_or_in_the_errors(
    tmp_path: Path, lines: list[Any], window_pairs: int, suffix: str
) -> None:
    assume(has_rows(lines))
    done, out, errors = run_mixed(tmp_path, lines, "list", window_pairs, suffix)
    blank = sum(isinstance(line, bytes) and not line.strip() for line in lines)
    assert sorted(out + errors) == [n for n, line in enumerate(lines, 1) if isinstance(line, dict) or line.strip()]
    assert out == sorted(out), "the output keeps the order of the input"
    bad = {"nan", "inf", "unscorable"}
    good = {
        n: [place for place, text in enumerate(line["passages"]) if not bad & set(text.split())]
        for n, line in enumerate(lines, 1)
        if isinstance(line, dict)
    }
    assert out == [n for n, places in good.items() if places or not lines[n - 1]["passages"]]
    check_counts(done.counts, len(out), len(errors), blank)
    assert done.counts.passages_error == sum(len(lines[n - 1]["passages"]) - len(good[n]) for n in out)
    for row in done.rows:
        given = lines[row["n"] - 1]
        assert sorted(p["index"] for p in row["passages"]) == good[row["n"]]
        assert [p["rank"] for p in row["passages"]] == list(range(1, len(good[row["n"]]) + 1))
        assert all(p["text"] == given["passages"][p["index"]] for p in row["passages"])
        assert all(p["logit"] == len(set(p["text"].split()) & set(row["query"].split())) for p in row["passages"])


@settings(
    max_examples=10_000 if LONG else 60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lines_of(FLAT_ROWS), st.integers(1, 6), st.sampled_from(["jsonl", "parquet"]))
def test_every_flat_row_is_in_the_output_or_in_the_errors(
    tmp_path: Path, lines: list[Any], window_pairs: int, suffix: str
) -> None:
    if suffix == "parquet":  # a column has one type
        lines = [{**line, "query_id": str(line.get("query_id"))} if isinstance(line, dict) else line for line in lines]
    assume(has_rows(lines))
    done, out, errors = run_mixed(tmp_path, lines, "flat", window_pairs, suffix)
    blank = sum(isinstance(line, bytes) and not line.strip() for line in lines)
    assert sorted(out + errors) == [n for n, line in enumerate(lines, 1) if isinstance(line, dict) or line.strip()]
    check_counts(done.counts, len(out), len(errors), blank)
    keys = [
        json.dumps(row.get("query_id") if row.get("query_id") is not None else ["q", row["query"]]) for row in done.rows
    ]
    assert len(list(dict.fromkeys(keys))) == sum(a != b for a, b in zip([None, *keys], keys, strict=False)), (
        "one run a group"
    )
    order = {key: min(row["n"] for row, other in zip(done.rows, keys, strict=True) if other == key) for key in keys}
    assert all(row["logit"] == len(set(row["passage"].split()) & set(row["query"].split())) for row in done.rows)
    for key in order:
        rows = [row for row, other in zip(done.rows, keys, strict=True) if other == key]
        assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
        assert [(-row["logit"], row["n"]) for row in rows] == sorted((-row["logit"], row["n"]) for row in rows)


def check_counts(counts: Counts, out: int, errors: int, blank: int) -> None:
    assert counts.rows_in == counts.rows_out + counts.rows_error
    assert (counts.rows_out, counts.output_rows, counts.rows_error, counts.blank) == (out, out, errors, blank)
