"""A file that holds no rows as it is: told by what it is, and the printed command makes one that is read."""

from __future__ import annotations

import gzip
import json
import lzma
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rerank_cli.cli import main
from tests.conftest import TINY_CHECKPOINT, write_table
from tests.stores import Bucket

ROW: dict[str, Any] = {"query": "kettle", "passages": [{"id": "a", "text": "vinegar"}, {"id": "b", "text": "crumbs"}]}
LINE = json.dumps(ROW)
FLAT = "query,passage\nkettle,vinegar\nkettle,crumbs\n"
ACCENTS = '{"query": "th\u00e9", "passages": ["cr\u00e8me", "caf\u00e9"]}\n'


def rerank(*given: str) -> int:
    return main(["rerank-file", *given, "-o", "out.jsonl", "--overwrite", "-q", "--model", str(TINY_CHECKPOINT)])


@pytest.fixture(autouse=True)
def older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out.jsonl").write_text("older\n")


def _pasted(said: str) -> str:
    """The command in a hint, and the file that it makes."""
    (command,) = [one for one in re.findall(r"`([^`]+)`", said.partition("hint: ")[2]) if " > " in one]
    return str(command)


MENDED = {
    "a.jsonl": (f"{LINE},\n{LINE},\n".encode(), "JSON lines with a comma behind each"),
    "b.jsonl": (f"data: {LINE}\n\ndata: {LINE}\n".encode(), "JSON lines with `data: ` before each"),
    "c.log": (f"2026-01-01 INFO {LINE}\n".encode() * 2, "JSON lines with `2026-01-01 INFO ` before each"),
    "d.jsonl": (f"\x1e{LINE}\n".encode() * 2, "JSON lines with ` ` before each"),
    "e.jsonl": (f"{LINE} {LINE}\n".encode(), "its first line is no whole object"),
    "f.jsonl": (ACCENTS.encode("latin-1"), "text that is not UTF-8"),
    "g.csv": (FLAT.replace("kettle", "th\u00e9").encode("latin-1"), "text that is not UTF-8"),
    "h.json": (json.dumps({"data": [ROW, ROW]}).encode(), "the rows seem to lie deeper"),
    "i.json": (json.dumps({"q1": ROW, "q2": ROW}, indent=1).encode(), "it holds a row for each key"),
    "j.json": (json.dumps({"n": 1, "my rows": {"page 1": [{"row": ROW}]}}).encode(), "the rows seem to lie deeper"),
    "k k.json": (json.dumps([{"hits": [ROW, ROW]}]).encode(), "the rows seem to lie deeper"),
}


@pytest.mark.parametrize("name", MENDED)
@pytest.mark.skipif(not all(map(shutil.which, ("jq", "sed", "iconv"))), reason="needs jq, sed and iconv")
def test_the_printed_command_makes_a_file_that_is_read(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    data, words = MENDED[name]
    Path(name).write_bytes(data)
    assert rerank(name) == 4
    said = capsys.readouterr().err
    assert words in said
    assert Path("out.jsonl").read_text() == "older\n"
    before = {path.name for path in Path().iterdir()}
    subprocess.run(["sh", "-c", _pasted(said)], check=True)
    (made,) = {path.name for path in Path().iterdir()} - before
    more = ["--in-format", "csv"] if ".csv" in name else []
    assert rerank(made, *more) == 0
    assert "older" not in Path("out.jsonl").read_text()


def test_a_run_of_ms_marco_becomes_a_run_of_trec(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run.tsv").write_text("7\td1\t1\n7\td2\t2\n".replace("d", "1"))
    Path("q.tsv").write_text("7\tkettle\n")
    Path("c.tsv").write_text("11\tvinegar\n12\tcrumbs\n")
    texts = ("--queries", "q.tsv", "--corpus", "c.tsv")
    assert rerank("run.tsv", *texts) == 4
    said = capsys.readouterr().err
    assert "a run of MS MARCO" in said
    subprocess.run(["sh", "-c", _pasted(said)], check=True)
    assert rerank("run.tsv.trec", *texts) == 0
    (row,) = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert {one["id"] for one in row["passages"]} == {"11", "12"}


TOLD = {
    "error.json": (b'{"error": {"code": 503, "message": "unavailable"}}', "answered with an error"),
    "error.jsonl": (b'{"message": "Not Found", "documentation_url": "https://x", "status": "404"}\n', "with an error"),
    "comment.json": (f"[\n  // mine\n  {LINE}\n]".encode(), "JSON has no comments"),
    "comma.json": (f"[{LINE},]".encode(), "no comma before a closing bracket"),
    "comma2.json": (f"[\n{LINE},\n]\n".encode(), "no comma before a closing bracket"),
    "blank.csv": (b"query, passage\nkettle, vinegar\n", "names ` passage`, with a blank before or behind it"),
    "none.csv": (b"kettle,vinegar\nkettle,crumbs\n", "seems to be a row"),
    "none.tsv": (b"1\t2\n1\t3\n", "the first line seems to be a row"),
    "mac.csv": (FLAT.replace("\n", "\r").encode(), "old Macs"),
    "python.csv": (b"query,passages\nkettle,\"['vinegar', 'crumbs']\"\n", "a list as Python prints it"),
    "numpy.csv": (b"query,passages\nkettle,\"['vinegar' 'crumbs']\"\n", "a list as Python prints it"),
    "corpus.jsonl": (b'{"_id": "d1", "title": "t", "text": "x"}\n', "a corpus of BEIR"),
    "five.json": (b"[{query: 'tea', passages: ['a']}]", "JSON with a fault"),
    "old.jsonl": (
        lzma.compress(b"x" * 99, format=lzma.FORMAT_ALONE),
        "xz --format=lzma -dc old.jsonl > old.jsonl.jsonl",
    ),
    "table.parquet": (gzip.compress(b"PAR1"), "is compressed with gzip"),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_is_wrong_is_told_and_nothing_replaced(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    data, words = TOLD[name]
    Path(name).write_bytes(data)
    assert rerank(name) in (4, 10)
    assert words in capsys.readouterr().err
    assert Path("out.jsonl").read_text() == "older\n"


def test_of_several_lists_each_has_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    Path("in.jsonl").write_text(json.dumps({"query": "kettle", "pos": ["vinegar"], "neg": ["crumbs", "tea"]}) + "\n")
    assert rerank("in.jsonl") == 4
    said = capsys.readouterr().err
    commands = [line.split()[1:] for line in said.splitlines() if line.strip().startswith("rerank-cli ")]
    assert [command[-2:] for command in commands] == [["--passages-field", "pos"], ["--passages-field", "neg"]]
    for command in commands:
        assert main(command) == 0


def test_bars_and_the_line_that_names_the_separator_are_read() -> None:
    for data in (FLAT.replace(",", "|"), "sep=;\n" + FLAT.replace(",", ";"), "sep=|\n" + FLAT.replace(",", "|")):
        Path("in.csv").write_text(data)
        assert rerank("in.csv") == 0
        assert len(Path("out.jsonl").read_text().splitlines()) == 2


def test_files_of_one_table_that_were_put_together_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    one = Path(write_table(Path("one.parquet"), [ROW] * 3)).read_bytes()
    Path("in.parquet").write_bytes(one + one)
    assert rerank("in.parquet") == 4
    assert "several Parquet files put together" in capsys.readouterr().err
    assert Path("out.jsonl").read_text() == "older\n"


@pytest.mark.parametrize("option", ["--siblings", "--id-field"])
def test_a_field_that_no_row_has_is_refused_and_not_ignored(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in.jsonl").write_text(LINE + "\n")
    assert rerank("in.jsonl", option, "nope") == 4
    assert f"{option} nope: none of the first 1 rows of in.jsonl has it: one has `" in capsys.readouterr().err
    assert Path("out.jsonl").read_text() == "older\n"


@pytest.mark.parametrize("given", ["d", "d/*.jsonl", "d/*"])
def test_what_an_earlier_run_left_beside_its_output_is_no_input(given: str) -> None:
    Path("d").mkdir()
    Path("d/a.jsonl").write_text(LINE + "\n")
    Path("d/a.jsonl.errors.jsonl").write_text('{"file": "x", "row": 1}\n')
    Path("d/a.jsonl.report.json").write_text("{}\n")
    assert rerank(given) == 0
    assert len(Path("out.jsonl").read_text().splitlines()) == 1


def test_titles_and_ids_in_step_are_not_taken_for_texts(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"question": "kettle", "context": {"title": ["A", "B"], "sentences": [["x", "y"], ["z"]]}}
    Path("in.jsonl").write_text(json.dumps(row) + "\n")
    assert rerank("in.jsonl") == 4
    assert "--text-field title" not in capsys.readouterr().err


def test_a_command_names_what_a_shell_can_open(capsys: pytest.CaptureFixture[str], bucket: Bucket) -> None:
    url = bucket.put("2026/a b.jsonl", ACCENTS.encode("utf-16"))
    assert rerank(url) == 4
    said = capsys.readouterr().err
    assert _pasted(said) == "iconv -f UTF-16 -t UTF-8 'a b.jsonl' > 'a b.jsonl'.utf8"
    url = bucket.put("2026/lists.parquet.gz", gzip.compress(b"PAR1"))
    assert rerank(url) == 4
    assert _pasted(capsys.readouterr().err) == "gzip -dc < lists.parquet.gz > lists.parquet"


def test_a_command_for_a_pipe_names_a_file_to_be_made() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "rerank_cli", "rerank-file", "-", "-o", "out.jsonl"],
        input=ACCENTS.encode("utf-16"),
        capture_output=True,
    )
    assert found.returncode == 4
    assert _pasted(found.stderr.decode()) == "iconv -f UTF-16 -t UTF-8 IN > IN.utf8"


@pytest.mark.parametrize(
    ("flag", "name"),
    [("--errors", "bad.jsonl.gz"), ("--errors", "bad.CSV"), ("--report", "run.json.zst"), ("--report", "run.html.gz")],
)
def test_a_suffix_that_says_another_format_is_refused(flag: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in.jsonl").write_text(LINE + "\n")
    assert rerank("in.jsonl", flag, name) == 2
    assert f"{flag} {name}: is written as JSON" in capsys.readouterr().err
    assert not Path(name).exists()
