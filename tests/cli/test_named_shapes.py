"""Files as the named programs write them, version by version: read with no option, or refused with what then works.

`tests/data/field/variants.jsonl` has a file a line, with three passages of our own words. Its fields are those of the
programs' sources and documentation as of November 2026: the classes that are written as JSON (`Request` of rank_llm,
`Document` of Rankify, samples of Ragas 0.1 and 0.2, `NodeWithScore` with and without `text_resource`, documents of
Haystack 1 and 2, `dumps` of LangChain in Python and JavaScript), the answers of the engines, columns of OpenInference.
What a refusal prints is pasted here as it stands; whichever way, the encoder must be given these texts and no other.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rerank_cli.cli import main
from rerank_cli.encoding.pairs import PairEncoder
from rerank_cli.errors import InputError
from rerank_cli.formats.inputs import ReadOptions, open_lists, resolve_inputs
from rerank_cli.formats.shapes import FieldNames, Texts
from rerank_cli.formats.shapes.other_programs import KNOWN
from rerank_cli.records import CandidateList
from tests.conftest import read_lines, write_lines

FILE = Path(__file__).parents[1] / "data" / "field" / "variants.jsonl"
VARIANTS: dict[str, dict[str, Any]] = {row["name"]: row for row in read_lines(FILE)}
QUERY = "how do I descale a kettle"
TEXTS = {"Pour vinegar and water into the kettle.", "A toaster should be unplugged.", "Hard water leaves chalk."}
FIRST = {name.split()[0]: name for name in reversed(VARIANTS)}.values()
"""A file of each program, which goes through a whole run; of the others the rows that a run is given are looked at."""
OF_IDS = ("mteb top_ranked", "mteb top_ranked instruct", "mteb predictions json", "beir results")


class Pasting:
    """`rerank-file` in a folder, whose pairs are seen where they are encoded, and what its messages say to do."""

    def __init__(self, model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._model, self._capsys = model, capsys
        self.seen: set[tuple[str, str]] = set()
        self.said = ""
        encode = PairEncoder.encode

        def encode_and_tell(encoder: PairEncoder, pairs: Sequence[tuple[str, str]], *rest: Any) -> Any:
            self.seen.update(pairs)
            return encode(encoder, pairs, *rest)

        monkeypatch.setattr(PairEncoder, "encode", encode_and_tell)

    def rerank(self, path: str, *options: str) -> int:
        return self.run(["rerank-file", path, "-o", "out.jsonl", "--model", self._model, "--overwrite", *options])

    def run(self, given: list[str]) -> int:
        self.seen.clear()
        code = main(given)
        self.said = self._capsys.readouterr().err
        return code

    def commands(self) -> list[list[str]]:
        lines = [line.strip() for line in self.said.splitlines()]
        return [shlex.split(line)[1:] for line in lines if line.startswith("rerank-cli ")]

    def paste_program(self) -> str:
        """Run what makes another file, and return the name of that."""
        (command,) = re.findall(r"`((?:jq|python3) .*?)`", self.said)
        subprocess.run(["sh", "-c", command], check=True)
        return shlex.split(command)[-1]


@pytest.fixture
def pasting(
    tmp_path: Path, tiny_model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Pasting:
    monkeypatch.chdir(tmp_path)
    Path("queries.tsv").write_text(f"q7\t{QUERY}\n")
    write_lines(Path("corpus.jsonl"), [{"_id": f"a{n}", "text": text} for n, text in enumerate(sorted(TEXTS), 1)])
    return Pasting(tiny_model, capsys, monkeypatch)


def _wanted(row: dict[str, Any]) -> set[tuple[str, str]]:
    return {(QUERY, text) for text in row.get("texts", TEXTS)}


def _read(name: str, path: str) -> set[tuple[str, Any]]:
    """The pairs of a file, read with no option."""
    texts = Texts("queries.tsv", "corpus.jsonl") if name.startswith(OF_IDS) else Texts(None, None)
    shape, items = open_lists(resolve_inputs([path]), FieldNames(), ReadOptions(), "auto", texts)
    found = [item for item in shape.group(items) if isinstance(item, CandidateList)]
    return {(one.query, passage) for one in found for passage in one.passages}


def test_each_named_program_has_a_file() -> None:
    programs = {known.name for known in KNOWN} | {"rankify", "mteb", "beir", "tirex", "top1000"}
    assert programs <= {name.split()[0] for name in VARIANTS}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_file_is_read_as_it_is_or_as_the_message_says(name: str, pasting: Pasting) -> None:
    row = VARIANTS[name]
    Path(row["file"]).write_text(row["content"], encoding="utf-8")
    if row["way"] == "read" and name not in FIRST:
        assert _read(name, row["file"]) == _wanted(row)
        return
    texts = ("--queries", "queries.tsv", "--corpus", "corpus.jsonl") if name.startswith(OF_IDS) else ()
    code = pasting.rerank(row["file"], *texts)
    if row["way"] == "read":
        assert (code, pasting.seen) == (0, _wanted(row)), pasting.said
        return
    assert (code, pasting.seen) == (4, set()), pasting.said
    assert not Path("out.jsonl").exists()
    if row["way"] == "refused":
        assert pasting.commands() == []
        return
    if row["way"] in ("program", "query"):
        if not shutil.which("jq"):
            pytest.skip("needs jq")
        said = pasting.said
        pasting.said = said.replace('query: "..."', f'query: "{QUERY}"')
        code = pasting.rerank(pasting.paste_program(), *texts)
        if code == 0:
            assert pasting.seen == _wanted(row), said
            return
    commands = pasting.commands()
    assert commands, pasting.said
    for number, command in enumerate(commands):
        assert pasting.run(command) == 0, pasting.said
        assert pasting.seen == _wanted(row) or number > 0


@pytest.mark.parametrize("name", [name for name, row in VARIANTS.items() if row["file"] == "in.jsonl"])
def test_a_table_of_such_rows_holds_the_same_texts(name: str, tmp_path: Path, pasting: Pasting) -> None:
    row = VARIANTS[name]
    path = tmp_path / "in.parquet"
    rows = [json.loads(line) for line in row["content"].splitlines()]
    try:
        pq.write_table(pa.Table.from_pylist(rows), path)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        return  # a document beside its score is no column
    try:
        found = _read(name, str(path))
    except InputError as error:
        assert row["way"] != "read"
        assert error.commands or row["way"] != "command"
        return
    assert found == _wanted(row)
