"""Each row of the list of what people's files are like has a test: the table says which, and this file has the rest.

The numbers are those of the list: what was lost (1 to 4), what was silently wrong (5 to 11), what was refused and
should work at once (12), what messages and codes said (13 to 17).
"""

from __future__ import annotations

import ast
import errno
import fcntl
import io
import json
import os
import shutil
import sys
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from rerank_cli.cli import main
from tests.cli.test_field_files import Field, field
from tests.conftest import TINY_CHECKPOINT, write_lines

__all__ = ["field"]  # a fixture
ROOT = Path(__file__).parents[2]

ROWS: dict[str, tuple[str, ...]] = {
    "1 another format": (
        "tests/cli/test_field_rows.py::test_what_is_no_row_replaces_nothing",
        "tests/cli/test_nothing_lost.py::test_another_format_is_refused_by_what_it_is",
        "tests/cli/test_field_rows.py::test_json_arrays_are_read_pretty_and_compact",
        "tests/cli/test_refusals.py::test_the_printed_command_makes_a_file_that_is_read",
    ),
    "1 no row out": (
        "tests/cli/test_nothing_lost.py::test_rows_of_which_none_can_be_scored_are_a_failure_of_its_own",
        "tests/cli/test_field_rows.py::test_a_model_of_nan_replaces_nothing",
        "tests/docs/test_nights.py::test_a_week_of_nights_leaves_the_last_good_output",
    ),
    "2": (
        "tests/cli/test_nothing_lost.py::test_nothing_replaces_nothing_and_not_something",
        "tests/cli/test_field_rows.py::test_a_pipe_without_rows_replaces_nothing",
    ),
    "3": (
        "tests/cli/test_field_files.py::test_parallel_lists_and_own_fields_come_back",
        "tests/cli/test_field_rows.py::test_no_value_of_the_users_is_lost",
        "tests/unit/formats/shapes/test_siblings.py::test_own_columns_are_kept_with_their_types",
    ),
    "4": (
        "tests/cli/test_field_files.py::test_a_null_passage_does_not_take_its_list_along",
        "tests/cli/test_field_rows.py::test_nulls_cost_lists_as_many_passages_as_rows",
    ),
    "5": ("tests/cli/test_field_files.py::test_two_text_fields_are_refused_and_both_commands_work",),
    "6": (
        "tests/cli/test_field_files.py::test_the_first_of_repeated_ids_counts_in_an_evaluation",
        "tests/cli/test_field_rows.py::test_a_run_has_the_best_chunk_of_each_document",
    ),
    "7": (
        "tests/cli/test_field_files.py::test_numbers_meet_the_ids_of_the_judgements",
        "tests/cli/test_field_files.py::test_ids_that_never_meet_are_an_error_with_one_of_each_side",
        "tests/cli/test_field_rows.py::test_marks_and_line_ends_of_judgements_do_not_matter",
        "tests/cli/test_field_rows.py::test_few_judged_passages_are_a_warning",
    ),
    "8": (
        "tests/cli/test_field_files.py::test_parallel_lists_and_own_fields_come_back",
        "tests/unit/formats/shapes/test_siblings.py::test_lists_in_step_come_back_in_step",
        "tests/unit/formats/shapes/test_siblings.py::test_a_list_that_is_as_long_by_chance_is_refused_with_both_commands",
    ),
    "9": (
        "tests/cli/test_field_rows.py::test_quotes_of_a_table_are_none_of_its_texts",
        "tests/unit/formats/test_mutations.py::test_no_text_is_read_that_nobody_wrote",
    ),
    "10": (
        "tests/cli/test_field_files.py::test_titles_are_told_and_joined_when_asked",
        "tests/unit/formats/shapes/test_other_programs.py::test_titles_have_one_rule_in_every_shape",
        "tests/cli/test_titles.py::test_a_title_is_read_where_it_is_asked_for_and_otherwise_told",
    ),
    "11 options of requests": (
        "tests/cli/test_field_files.py::test_raw_scores_are_logits",
        "tests/unit/formats/shapes/test_request_keys.py::test_the_documents_say_what_the_program_does_with_each_key",
        "tests/unit/formats/shapes/test_request_keys.py::test_a_key_that_cannot_be_followed_is_refused_by_name",
    ),
    "11 a language that cannot be read": (
        "tests/cli/test_unknown_tokens.py::test_pairs_of_unknown_tokens_are_warned_about_and_reported",
        "tests/cli/test_unknown_tokens.py::test_with_max_unknown_they_are_bad_rows",
    ),
    "12": (
        "tests/cli/test_field_files.py::test_a_file_of_the_field_is_read_without_an_option",
        "tests/cli/test_field_rows.py::test_folders_and_patterns_are_read",
        "tests/cli/test_named_shapes.py::test_a_file_is_read_as_it_is_or_as_the_message_says",
        "tests/cli/test_field_files.py::test_judgements_of_beir_are_read",
        "tests/cli/test_field_files.py::test_an_unknown_shape_is_told_with_a_command_that_works_as_printed",
    ),
    "13": ("tests/cli/test_nothing_lost.py::test_after_too_many_bad_rows_another_input_starts_over",),
    "14": (
        "tests/cli/test_nothing_lost.py::test_rows_of_which_none_can_be_scored_are_a_failure_of_its_own",
        "tests/cli/test_field_rows.py::test_a_dry_run_of_bad_rows_says_why",
    ),
    "15": (
        "tests/cli/test_nothing_lost.py::test_a_wrong_field_leaves_no_output_that_the_right_one_would_be_refused_for",
    ),
    "16": (
        "tests/cli/test_field_rows.py::test_a_message_names_the_field_that_stands_in_the_row",
        "tests/cli/test_field_files.py::test_an_unknown_shape_is_told_with_a_command_that_works_as_printed",
    ),
    "17": (
        "tests/cli/test_nothing_lost.py::test_parts_count_from_1",
        "tests/unit/journal/test_edges.py::test_a_file_system_without_locks_is_refused_with_a_sentence",
        "tests/cli/test_field_rows.py::test_a_lock_that_cannot_be_had_is_named_and_nothing_replaced",
        "tests/cli/test_field_rows.py::test_a_folder_is_no_pipe_and_judgements_are_told_in_words",
    ),
}
"""The tests of each row."""


def test_the_tests_of_the_table_are_there() -> None:
    named = list(dict.fromkeys(chain.from_iterable(ROWS.values())))
    found: dict[str, set[str]] = {}
    for file in {name.partition("::")[0] for name in named}:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        found[file] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert [name for name in named if name.partition("::")[2] not in found[name.partition("::")[0]]] == []
    assert {int(row.split()[0]) for row in ROWS} == set(range(1, 18))


@pytest.mark.parametrize("name", ["s22_html_error.jsonl", "s21_lfs.jsonl", "s21_t.feather"])
def test_what_is_no_row_replaces_nothing(field: Field, name: str) -> None:
    field.out.write_text("{}\n")
    field(name, code=4)
    assert sorted(path.name for path in Path().glob("out.jsonl*")) == ["out.jsonl"]
    assert field.out.read_text() == "{}\n"


@pytest.mark.parametrize("name", ["s01_rankllm_pretty.json", "s06_dpr.json"])
def test_json_arrays_are_read_pretty_and_compact(field: Field, name: str) -> None:
    expected = field(f"{name.replace('_pretty', '')}l")
    assert field(name) == expected
    compact = json.dumps(json.loads(Path(name).read_text()), separators=(",", ":"))
    Path("compact.json").write_text(compact)
    assert field("compact.json") == expected
    Path("wrong.jsonl").write_text(compact)
    assert field("wrong.jsonl") == expected


def test_a_model_of_nan_replaces_nothing(field: Field) -> None:
    model = Path("nan").resolve()
    shutil.copytree(TINY_CHECKPOINT, model)
    with safe_open(model / "model.safetensors", "np") as weights:
        tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118 (it is no dict)
        metadata = weights.metadata()
    save_file(
        {name: tensor * float("nan") if tensor.dtype.kind == "f" else tensor for name, tensor in tensors.items()},
        model / "model.safetensors",
        metadata,
    )
    field.out.write_text("{}\n")
    field("s22_bom.jsonl", "--model", str(model), code=10)
    assert "the model gave nan as its score" in field.talk
    assert field.out.read_text() == "{}\n"


def test_a_pipe_without_rows_replaces_nothing(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    field.out.write_text("{}\n")
    for data in (b"", b"\n\n", b"\xef\xbb\xbf"):
        reading, writing = os.pipe()
        os.write(writing, data)
        os.close(writing)
        with os.fdopen(reading, "rb") as stream:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
            field("-", code=4)
    assert "has no row; " in field.talk
    assert field.out.read_text() == "{}\n"


def test_no_value_of_the_users_is_lost(field: Field) -> None:
    own = [
        {"text": "tea", "rank": 9, "index": "c-1", "logit": 4.5, "prob": 0.25, "tokens": 7, "truncated": "no"},
        {"text": "Pour vinegar in. " * 200, "rank": 8, "index": "c-2", "logit": 3.5, "prob": 0.75, "tokens": 5,
         "truncated": "yes", "input_rank": "mine"},
    ]  # fmt: skip
    write_lines(Path("in.jsonl"), [{"query": "kettle", "passages": own, "rank": 1, "index": [1]}])
    (row,) = field("in.jsonl", "--max-tokens", "32", "--prob")
    assert (row["rank"], row["index"]) == (1, [1])
    for passage in row["passages"]:
        before = own[passage["index"]]
        kept = list(passage.values())
        assert all(value in kept for value in before.values()), passage
    pq.write_table(pa.Table.from_pylist([{"query": "kettle", "passages": own}]), "in.parquet")
    (row,) = field("in.parquet", "--max-tokens", "32", "--prob")
    for passage in row["passages"]:
        kept = list(passage.values())
        assert all(value in kept for value in own[passage["index"]].values()), passage


def test_nulls_cost_lists_as_many_passages_as_rows(field: Field) -> None:
    texts = [None if n % 33 == 0 else f"text {n}" for n in range(1, 401)]
    lists = [{"query": f"q{n}", "passages": texts[n * 20 : n * 20 + 20]} for n in range(20)]
    rows = [{"query": one["query"], "passage": text} for one in lists for text in one["passages"]]
    write_lines(Path("lists.jsonl"), lists)
    write_lines(Path("flat.jsonl"), rows)
    of_lists = sum(len(row["passages"]) for row in field("lists.jsonl", code=3))
    assert of_lists == len(field("flat.jsonl", "--restart", code=3)) == 388


def test_a_run_has_the_best_chunk_of_each_document(field: Field) -> None:
    (row,) = field("g_chunks.jsonl")
    order = [passage["doc_id"] for passage in row["passages"]]
    given = ["rerank-file", "g_chunks.jsonl", "-o", "out.trec", "--model", str(TINY_CHECKPOINT), "-q"]
    assert main(given) == 0
    lines = [line.split() for line in Path("out.trec").read_text().splitlines()]
    assert [line[2] for line in lines] == list(dict.fromkeys(order))
    assert [line[3] for line in lines] == ["1", "2", "3"]


@pytest.mark.parametrize(
    "judged", [b"\xef\xbb\xbf11 0 a1 1\r\n12 0 b1 1\r\n", b"query-id\tcorpus-id\tscore\r\n11\ta1\t1\r\n12\tb1\t1\r\n"]
)
def test_marks_and_line_ends_of_judgements_do_not_matter(field: Field, judged: bytes) -> None:
    Path("judged.txt").write_bytes(judged)
    field("s22_bom.jsonl", "--qrels", "judged.txt")
    evaluation = json.loads(Path("out.jsonl.report.json").read_text())["evaluation"]
    assert (evaluation["queries"], evaluation["met"]) == (2, 2)


def test_few_judged_passages_are_a_warning(field: Field) -> None:
    lists = [{"query_id": n, "query": "kettle", "passages": [{"id": f"p{n}", "text": "tea"}]} for n in range(8)]
    write_lines(Path("in.jsonl"), lists)
    Path("judged.txt").write_text("0 0 p0 1\n" + "".join(f"{n} 0 elsewhere{n} 1\n" for n in range(1, 8)))
    field("in.jsonl", "--qrels", "judged.txt")
    assert "only 1 of 8 judged queries have a judged passage in their list: are the ids the same?" in field.talk
    evaluation = json.loads(Path("out.jsonl.report.json").read_text())["evaluation"]
    assert evaluation["met"] == 1


@pytest.mark.parametrize("name", ["s19_pandas.tsv", "s19_pandas_quotes_only.tsv", "s19.csv"])
def test_quotes_of_a_table_are_none_of_its_texts(field: Field, name: str) -> None:
    if name == "s19.csv":
        Path(name).write_text('query_id,query,doc_id,passage\n11,kettle,a1,"He said ""boil it twice"" and rinse."\n')
    texts = {row["doc_id"]: row["passage"] for row in field(name)}
    assert texts["a1"] == 'He said "boil it twice" and rinse.'
    if name == "s19_pandas.tsv":
        assert texts["b1"] == "The stone bridge\nat the old mill."
        assert texts["b2"] == "A ferry\truns on Sundays."


def test_folders_and_patterns_are_read(field: Field) -> None:
    rows = field("s21_dir.parquet")
    assert rows
    assert field("s21_dir.parquet/*.parquet") == rows
    shutil.copytree("s21_dir.parquet", "hive/day=1")
    assert [{**row, "day": None} for row in field("hive")] == [{**row, "day": None} for row in rows]


def test_a_dry_run_of_bad_rows_says_why(field: Field) -> None:
    write_lines(Path("in.jsonl"), [{"query": 7, "passages": ["x"]}] * 3)
    field("in.jsonl", "--dry-run", code=10)
    assert "`query` is a number, not text" in field.talk
    assert not field.out.exists()


def test_a_message_names_the_field_that_stands_in_the_row(field: Field) -> None:
    write_lines(Path("in.jsonl"), [{"query": "q", "document": 7}])
    field("in.jsonl", code=10)
    assert "`document` is a number, not text" in field.talk
    field("i_flatdoc.jsonl", "--overwrite", code=4)
    assert "document" in field.talk
    assert field.pasted()
    assert len(field.run(field.pasted()[0])) == 2
    write_lines(Path("in.jsonl"), [{"query": "q", "passages": [{"body": "vinegar"}, {"body": "tea"}]}])
    field.out.unlink()
    field("in.jsonl", code=4)
    assert "--text-field" in field.talk
    (command,) = field.pasted()
    assert len(field.run(command)) == 1


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_lock_that_cannot_be_had_is_named_and_nothing_replaced(
    field: Field, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    field.out.write_text("{}\n")
    monkeypatch.setattr(fcntl, "flock", flock)
    field("s22_bom.jsonl", code=4)
    assert "the file system has no locks" in field.talk
    assert field.out.read_text() == "{}\n"


def test_a_folder_is_no_pipe_and_judgements_are_told_in_words(field: Field) -> None:
    Path("empty folder").mkdir()
    field("empty folder", code=4)
    assert "empty folder" in field.talk
    assert "pipe" not in field.talk
    Path("bad.txt").write_text("11 a1\n")
    field("s22_bom.jsonl", "--qrels", "bad.txt", code=4)
    assert "bad.txt:1" in field.talk
    assert "unpack" not in field.talk
