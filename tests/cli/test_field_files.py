"""Files as people have them, by the command line: each is read, or refused with a command that works as printed."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from rerank_cli.cli import main
from tests.conftest import TINY_CHECKPOINT, read_lines, write_lines

FIELD = Path(__file__).parents[1] / "data" / "field"


class Field:
    """`rerank-file` in a folder with the files."""

    def __init__(self, folder: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._model, self._capsys = folder, model, capsys
        self.out, self.talk = folder / "out.jsonl", ""

    def __call__(self, name: str, *options: str, code: int = 0) -> list[dict[str, Any]]:
        given = ["rerank-file", name, "-o", "out.jsonl", "--model", self._model, "--overwrite", *options]
        return self.run(given, code)

    def run(self, given: list[str], code: int = 0) -> list[dict[str, Any]]:
        found = main(given)
        self.talk = self._capsys.readouterr().err
        assert found == code, self.talk
        lines = self.out.read_text(encoding="utf-8").splitlines() if self.out.exists() else []
        return [json.loads(line) for line in lines]

    def pasted(self) -> list[list[str]]:
        """The commands of the last message."""
        lines = [line.strip() for line in self.talk.splitlines()]
        return [shlex.split(line)[1:] for line in lines if line.startswith("rerank-cli ")]


@pytest.fixture
def field(
    tmp_path: Path, tiny_model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Field:
    shutil.copytree(FIELD, tmp_path / "field")
    monkeypatch.chdir(tmp_path / "field")
    return Field(tmp_path / "field", tiny_model, capsys)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("s01_rankllm.jsonl", "rank_llm"),
        ("s06_dpr.jsonl", "dpr"),
        ("s08_es.jsonl", "elasticsearch"),
        ("s08_es_fields.jsonl", "elasticsearch"),
        ("s11_langchain.jsonl", "langchain"),
        ("s15_phoenix_str.jsonl", "phoenix"),
        ("s21_list_struct.parquet", ""),
    ],
)
def test_a_file_of_the_field_is_read_without_an_option(field: Field, name: str, shape: str) -> None:
    rows = field(name)
    assert len(rows) == 2
    if shape:
        assert f"note: read as {shape} (" in field.talk
        report = json.loads(Path("out.jsonl.report.json").read_text())
        assert any(f"rows of the shape {shape}" in reason for reason in report["plan"]["reasons"])
        assert len(field(name, "--shape", shape)) == 2


def test_two_text_fields_are_refused_and_both_commands_work(field: Field) -> None:
    assert field("g_raglog.jsonl", code=4) == []
    assert "`document` and `text`" in field.talk
    commands = field.pasted()
    assert [command[-2:] for command in commands] == [["--text-field", "document"], ["--text-field", "text"]]
    for command in commands:
        assert len(field.run(command)) == 2


@pytest.mark.parametrize(
    "rows",
    [
        [{"query": "kettle", "document": {"title": "T", "content": "Pour vinegar in."}}],
        [{"frage": "kettle", "treffer": [{"n": 1, "inhalt": "Pour vinegar in."}, {"n": 2, "inhalt": "A toaster."}]}],
        [{"meta": {"q": "kettle"}, "r": {"hits": [{"n": {"b": "Pour vinegar in."}, "uid": 4}]}}],
        [{"q": "kettle", "cands": {"txt": ["Pour vinegar in.", "tea"], "key": ["1", "2"]}}],
        [{"my question": "kettle", "it's": [{"the 'text'": "Pour vinegar in."}]}],
        [{"q": "kettle", "hits": json.dumps([{"body text": "Pour vinegar in."}])}],
    ],
)
def test_an_unknown_shape_is_told_with_a_command_that_works_as_printed(
    field: Field, rows: list[dict[str, Any]]
) -> None:
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert field("in.jsonl", code=4) == []
    assert "neither a list of passages nor a passage: the row has " in field.talk
    (command,) = field.pasted()
    assert len(field.run(command)) == 1
    assert not Path("out.jsonl.errors.jsonl").exists()


def test_a_null_passage_does_not_take_its_list_along(field: Field) -> None:
    rows = field("e_null.jsonl", code=3)
    assert [len(row["passages"]) for row in rows] == [2, 2, 1]
    errors = [json.loads(line) for line in Path("out.jsonl.errors.jsonl").read_text().splitlines()]
    assert sorted((error["row"], error.get("index")) for error in errors if "index" in error) == [
        (1, 1),
        (2, 1),
        (5, 0),
    ]
    assert "3 passages of lists that are ranked without them" in field.talk
    field("e_null.jsonl", "--on-error", "fail", "--restart", code=7)


def test_parallel_lists_and_own_fields_come_back(field: Field) -> None:
    (row,) = field("p1.jsonl")
    places = [passage["index"] for passage in row["docs"]]
    assert row["doc_ids"] == [f"a{place + 1}" for place in places]
    assert row["scores"] == [[9.5, 8.5, 7.5][place] for place in places]
    (row,) = field("i_own.jsonl")
    assert {passage["input_index"] for passage in row["passages"]} == {"chunk-17", "chunk-2"}
    assert field.talk.count("`input_rank`") == 1


def test_titles_are_told_and_joined_when_asked(field: Field) -> None:
    field("s06_dpr.jsonl")
    assert "have a `title`, which is not read: `--text-field title,text` reads it" in field.talk
    joined = field("s06_dpr.jsonl", "--text-field", "title,text")
    assert "not read" not in field.talk
    flat = [{"query": row["question"], "passages": [dict(one) for one in row["ctxs"]]} for row in joined]
    for row in flat:
        for passage in row["passages"]:
            passage["text"] = f"{passage['title']} {passage['text']}"
    Path("flat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in flat), encoding="utf-8")
    again = field("flat.jsonl")
    scores = [[passage["logit"] for passage in row["passages"]] for row in again]
    assert scores == [[passage["logit"] for passage in row["ctxs"]] for row in joined]


def test_raw_scores_are_logits(field: Field) -> None:
    for row in field("s13_infinity.jsonl"):
        assert any(not 0 <= result["relevance_score"] <= 1 for result in row["results"])


def test_the_first_of_repeated_ids_counts_in_an_evaluation(field: Field) -> None:
    field("g_chunks.jsonl", "--qrels", "qrels.txt")
    assert "1 passages have an id that stands before them in their list; the first one counts" in field.talk
    report = json.loads(Path("out.jsonl.report.json").read_text())
    assert report["evaluation"]["metrics"][0]["given"] == 1.0


def test_numbers_meet_the_ids_of_the_judgements(field: Field) -> None:
    field("docfloat.jsonl", "--qrels", "qrels_int.txt")
    report = json.loads(Path("out.jsonl.report.json").read_text())
    assert (report["evaluation"]["queries"], report["evaluation"]["met"]) == (2, 2)


def test_judgements_of_beir_are_read(field: Field) -> None:
    field("s22_bom.jsonl", "--qrels", "qrels_beir.tsv")
    report = json.loads(Path("out.jsonl.report.json").read_text())
    assert report["evaluation"]["met"] == 2


def test_ids_that_never_meet_are_an_error_with_one_of_each_side(field: Field) -> None:
    Path("other.txt").write_text("11 0 x1 1\n12 0 x2 1\n")
    rows = field("s22_bom.jsonl", "--qrels", "other.txt", code=4)
    assert len(rows) == 2
    assert "query `11` has `a" in field.talk
    assert "the judgements have `x1`" in field.talk
    Path("queries.txt").write_text("q11 0 a1 1\n")
    field("s22_bom.jsonl", "--qrels", "queries.txt", "--restart", code=4)
    assert "the input has `11`, the judgements have `q11`" in field.talk


def test_what_a_command_cannot_read_names_the_command_that_can(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "lists.jsonl", [{"query": "road", "passages": ["a wood", "a road"]}] * 2)
    assert main(["score", source, "-o", str(tmp_path / "out.jsonl"), "--model", str(TINY_CHECKPOINT)]) == 4
    said = capsys.readouterr().err
    assert "it looks like lists of passages" in said
    assert "`rerank-cli rerank-file` takes lists" in said


def test_a_file_without_a_header_is_told_how_it_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "top.tsv"
    source.write_text("1\t7\ttwo roads\ta wood\n1\t8\ttwo roads\ta yellow wood\n")
    assert main(["rerank-file", str(source), "-o", str(tmp_path / "o.jsonl"), "--model", str(TINY_CHECKPOINT)]) == 0
    assert "has no header and is read as top1000: query id, passage id, query, passage" in capsys.readouterr().err


def test_an_output_with_a_depth_is_known_as_one_of_ours(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"query": "road", "passages": ["a wood", "a road", "mud"]}])
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    model = ["--model", str(TINY_CHECKPOINT), "-q"]
    assert main(["rerank-file", source, "-o", str(first), "--depth", "2", *model]) == 0
    assert main(["rerank-file", str(first), "-o", str(second), *model]) == 0
    (row,) = read_lines(second)
    assert all(passage.keys() == {"text", "rank", "logit", "index"} for passage in row["passages"])
