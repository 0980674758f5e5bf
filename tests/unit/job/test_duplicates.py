"""Passages that say the same are counted, and dropped where that is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rerank_cli.cli import main
from rerank_cli.job.duplicates import count_duplicates, what_they_say
from rerank_cli.records import CandidateList, ImagePassage, ImageSource
from tests.conftest import TINY_CHECKPOINT, read_lines, write_lines

LONG = "a passage that is longer than what is read of it first " * 4
TEXTS = ["Two roads.", "a wood", "two  ROADS", "Two roads!", "two road", "a wood"]


def run(folder: Path, rows: list[dict[str, Any]], *options: str, code: int = 0) -> tuple[list[dict[str, Any]], Any]:
    source = write_lines(folder / "in.jsonl", rows)
    out = folder / "out.jsonl"
    given = ["rerank-file", source, "-o", str(out), "--model", str(TINY_CHECKPOINT), "-q", "--overwrite", *options]
    assert main(given) == code
    return read_lines(out), json.loads(Path(f"{out}.report.json").read_text())["counts"]


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("Two roads.", "two  roads", True), ("STRASSE", "stra\u00dfe", True), ("a b", "ab", False),
        ("C++", "C", False), ("-5", "5", False), (".5", "5", False), ("1.5", "15", False), ("a-b", "ab", False),
        ('He said (twice): "no".', "he said twice no", True), ("", " . ", True), ("one", "two", False),
        (LONG, LONG.replace(" ", "   ").upper() + ".", True), (LONG, f"{LONG} again", False),
        (f"{LONG} stra\u00dfe", f"{LONG} Strasse", True), (f"\u201c{LONG}\u201d", f'"{LONG}"', True),
        (f"{LONG} a b", f"{LONG} ab", False),
    ],
)  # fmt: skip
def test_case_white_space_and_marks_around_words_do_not_count(a: str, b: str, same: bool) -> None:
    assert (len(set(what_they_say([a, b, "other"]))) == 2) is same


def test_an_image_is_another_passage_than_its_text() -> None:
    a, b = (ImagePassage("Two roads", ImageSource(name)) for name in ("a.png", "b.png"))
    again = ImagePassage("two roads.", ImageSource("a.png"))
    assert count_duplicates([CandidateList("q", ("two roads", a, b, again), ())]) == 1


def test_they_are_counted_and_stay(tmp_path: Path) -> None:
    rows, counts = run(tmp_path, [{"query": "q", "passages": TEXTS}])
    assert len(rows[0]["passages"]) == 6
    assert (counts["near_duplicates"], counts["dropped"]) == (3, 0)


@pytest.mark.parametrize("more", [[], ["--first", "bf16", "--first-top", "2"], ["--depth", "2"]])
def test_the_first_of_each_stays_and_keeps_its_place(tmp_path: Path, more: list[str]) -> None:
    rows, counts = run(tmp_path, [{"query": "q", "passages": TEXTS, "ids": list("abcdef")}], "--drop-duplicates", *more)
    (row,) = rows
    assert sorted(one["index"] for one in row["passages"]) == [0, 1, 4]
    assert [one["text"] for one in row["passages"]] == [TEXTS[one["index"]] for one in row["passages"]]
    assert row["ids"] == ["abcdef"[one["index"]] for one in row["passages"]]
    assert (counts["near_duplicates"], counts["dropped"]) == (3, 3)
    assert counts["pairs_scored"] >= (2 if more[:1] == ["--depth"] else 3)


def test_rows_of_one_passage_are_dropped_too_and_a_bad_one_is_told_by_its_own_row(tmp_path: Path) -> None:
    texts = [*TEXTS, "wood " * 600]
    flat = [{"query_id": 1, "query": "q", "passage": text, "mine": place} for place, text in enumerate(texts)]
    rows, counts = run(tmp_path, flat, "--drop-duplicates", "--truncate", "error", code=3)
    assert sorted(row["mine"] for row in rows) == [0, 1, 4]
    (error,) = read_lines(tmp_path / "out.jsonl.errors.jsonl")
    assert error["row"] == 7
    assert (counts["rows_in"], counts["rows_out"], counts["rows_error"], counts["output_rows"]) == (7, 6, 1, 3)
