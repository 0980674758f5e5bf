"""Images through the command line: where they may lie, how they come from and go to Parquet, and who embeds them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rerank_cli.cli import main
from tests.conftest import read_lines, write_lines, write_table
from tests.unit.images import data_uri, encoded, picture, saved

PARITY = Path(__file__).parents[1] / "parity"
RERANKER = str(PARITY / "nemotron-vl-rerank-open" / "checkpoint")
EMBEDDER = str(PARITY / "nemotron-vl-embed-open" / "checkpoint")
PAGE = encoded(picture(850, 1100))  # 2 x 3 tiles and a thumbnail


def score(source: str, out: Path, *options: str, model: str = RERANKER) -> int:
    return main(["score", source, "-o", str(out), "--model", model, "-q", *options])


def codes(out: Path) -> list[tuple[int, str]]:
    return [(row["row"], row["error"]["code"]) for row in read_lines(f"{out}.errors.jsonl")]


# --- --image-root


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """A folder `root` with images and what is none, and images beside it."""
    root = tmp_path / "root"
    saved(root, "good.png")
    saved(root, "below/good.png")
    saved(tmp_path, "secret.png")
    (root / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "folder.png").symlink_to(tmp_path)
    (root / "inside.png").symlink_to(root / "below" / "good.png")
    (root / "text.png").write_text("no image")
    os.mkfifo(root / "fifo.png")
    return tmp_path


BAD = {
    "../secret.png": "image-outside-root",
    "below/../../secret.png": "image-outside-root",
    "out.png": "image-outside-root",
    "folder.png/secret.png": "image-outside-root",
    "missing.png": "image-missing",
    "fifo.png": "image-not-a-file",
    "below": "image-not-a-file",
    "text.png": "not-an-image",
    "https://example.invalid/a.png": "image-url",
}


@pytest.mark.parametrize("model", [RERANKER, EMBEDDER], ids=["reranker", "embedder"])
def test_what_lies_outside_or_is_no_image_costs_its_row_and_nothing_else(places, model):
    good = ["good.png", "below/good.png", "inside.png", "below/../good.png", str(places / "root" / "good.png")]
    named = [*good[:2], *BAD, str(places / "secret.png"), *good[2:]]
    source = write_lines(places / "rows.jsonl", [{"query": "q", "passage": "", "image": name} for name in named])
    out = places / "out.jsonl"
    assert score(source, out, "--image-root", str(places / "root"), "--max-input-tiles", "1", model=model) == 3
    rows = read_lines(out)
    assert [row["image"] for row in rows] == good
    assert len({row["cosine" if model == EMBEDDER else "logit"] for row in rows}) == 1  # of one image
    assert codes(out) == [*enumerate(BAD.values(), 3), (3 + len(BAD), "image-outside-root")]
    assert b"secret" not in (places / "out.jsonl").read_bytes()


def test_paths_start_from_the_inputs_own_folder_where_no_root_is_named(places):
    rows = [{"query": "q", "passage": "", "image": name} for name in ("good.png", "root/good.png", "secret.png")]
    out = places / "out.jsonl"
    assert score(write_lines(places / "rows.jsonl", rows), out, "--max-input-tiles", "1") == 3
    assert [row["image"] for row in read_lines(out)] == ["root/good.png", "secret.png"]
    assert codes(out) == [(1, "image-missing")]


def test_a_root_that_is_not_there_stops_the_run(places, capsys):
    source = write_lines(places / "rows.jsonl", [{"query": "q", "passage": "a text"}])
    assert score(source, places / "out.jsonl", "--image-root", str(places / "nowhere")) == 4
    assert "--image-root" in capsys.readouterr().err


def test_a_bad_image_is_bad_alone_and_its_list_is_ranked_without_it(places):
    lists = [{"query": "q", "passages": ["a", {"image": name}]} for name in ("good.png", "fifo.png", "good.png")]
    source, out = write_lines(places / "lists.jsonl", lists), places / "out.jsonl"
    arguments = ["--model", RERANKER, "-q", "--image-root", str(places / "root"), "--max-input-tiles", "1"]
    assert main(["rerank-file", source, "-o", str(out), *arguments]) == 3
    assert [len(row["passages"]) for row in read_lines(out)] == [2, 1, 2]
    assert codes(out) == [(2, "image-not-a-file")]


# --- Parquet


TIGHT = ("--max-tokens", "1500")  # room for 5 of the 7 tiles


def lists_table(folder: Path) -> str:
    """Lists of images as bytes, of which the first does not fit whole."""
    passage = pa.struct([("text", pa.string()), ("image", pa.binary())])
    small = encoded(picture(60, 60))
    passages = [[{"text": "", "image": PAGE}, {"text": "words", "image": small}, {"text": "words", "image": None}]]
    columns = {"query": pa.array(["what?"]), "passages": pa.array(passages, pa.list_(passage))}
    return write_table(folder / "lists.parquet", pa.table(columns))


def told(passage: dict[str, Any]) -> dict[str, Any]:
    names = ("truncated", "tokens", "kept_tokens", "tiles", "kept_tiles")
    return {name: passage[name] for name in names if passage.get(name) is not None}


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_an_image_in_fewer_tiles_is_told_from_parquet_to_either_format(tmp_path, suffix):
    out = tmp_path / f"out{suffix}"
    assert main(["rerank-file", lists_table(tmp_path), "-o", str(out), "--model", RERANKER, "-q", *TIGHT]) == 0
    (row,) = pq.read_table(out).to_pylist() if suffix == ".parquet" else read_lines(out)
    found = {passage["index"]: told(passage) for passage in row["passages"]}
    assert (found[0]["truncated"], found[0]["tiles"], found[0]["kept_tiles"]) == (True, 7, 5)
    assert found[0]["tokens"] - found[0]["kept_tokens"] == 2 * 256
    assert found[1] == found[2] == {}
    report = json.loads(Path(f"{out}.report.json").read_text())
    assert (report["counts"]["retiled"], report["counts"]["images"], report["counts"]["tiles"]) == (1, 2, 5 + 1)


def test_rows_of_parquet_tell_fewer_tiles_in_columns_of_their_own(tmp_path):
    rows = [{"query": "what?", "passage": "", "image": PAGE}, {"query": "what?", "passage": "a text", "image": None}]
    out = tmp_path / "out.parquet"
    assert score(write_table(tmp_path / "rows.parquet", rows), out, *TIGHT) == 0
    first, second = pq.read_table(out).to_pylist()
    assert (first["truncated"], first["tiles"], first["kept_tiles"]) == (True, 7, 5)
    assert not any(told(second).values())
    assert first["image"] == PAGE


def test_jsonl_and_parquet_give_an_image_one_logit(tmp_path):
    rows = [{"query": "what?", "passage": "", "image": PAGE}]
    texts = [{**rows[0], "image": data_uri(PAGE)}]
    sources = [write_table(tmp_path / "rows.parquet", rows), write_lines(tmp_path / "rows.jsonl", texts)]
    found = []
    for number, source in enumerate(sources):
        assert score(source, tmp_path / f"{number}.jsonl", "--max-input-tiles", "1") == 0
        found.append(read_lines(tmp_path / f"{number}.jsonl")[0]["logit"])
    assert found[0] == found[1]


# --- the embedder


def test_an_image_is_embedded_once_in_a_run_however_it_is_given(tmp_path):
    saved(tmp_path, "a.png", picture(60, 60))
    data = (tmp_path / "a.png").read_bytes()
    saved(tmp_path, "b.png", picture(60, 60))
    rows = [
        {"query": f"q{number}", "passage": "", "image": image}
        for number in range(70)  # more than a window of `score`
        for image in ("a.png", "b.png", data_uri(data))
    ]
    out, vectors = tmp_path / "out.jsonl", tmp_path / "vectors.parquet"
    options = ("--embeddings", str(vectors), "--max-input-tiles", "1")
    assert score(write_lines(tmp_path / "rows.jsonl", rows), out, *options, model=EMBEDDER) == 0
    assert [row["cosine"] for row in read_lines(out)][::3] == [row["cosine"] for row in read_lines(out)][2::3]
    report = json.loads(Path(f"{out}.report.json").read_text())
    counts = report["counts"]
    assert report["embedded"]["texts"] == 71
    assert (counts["images"], counts["tiles"], counts["image_tokens"]) == (1, 1, 256)
    assert counts["tokens"] == report["embedded"]["tokens"] < 70 * 20 + 300
    named = [row for row in pq.read_table(vectors).to_pylist() if row["kind"] == "passage"]
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert [(row["text"], row["image"]) for row in named] == [("", "a.png"), ("", "b.png"), ("", digest)]
    assert named[0]["vector"] == named[1]["vector"] == named[2]["vector"]


def test_the_speed_of_an_embedder_is_that_of_the_tokens_it_read(tmp_path):
    rows = [{"query": "the same query", "passage": "the same passage", "id": number} for number in range(300)]
    out = tmp_path / "out.jsonl"
    assert score(write_lines(tmp_path / "rows.jsonl", rows), out, model=EMBEDDER) == 0
    report = json.loads(Path(f"{out}.report.json").read_text())
    assert report["counts"]["tokens"] == report["embedded"]["tokens"] < 50
    spent = report["seconds"]["wall"]
    assert report["speed"]["tokens_per_second"] <= 50 / max(spent - 0.0005, 1e-9)


def test_text_and_image_of_a_passage_have_a_vector_together(tmp_path):
    saved(tmp_path, "a.png", picture(60, 60))
    passages = [{"passage": "words"}, {"passage": "", "image": "a.png"}, {"passage": "words", "image": "a.png"}]
    source = write_lines(tmp_path / "rows.jsonl", [{"query": "q", **passage} for passage in passages])
    vectors = tmp_path / "vectors.parquet"
    options = ("--embeddings", str(vectors), "--max-input-tiles", "1")
    assert score(source, tmp_path / "out.jsonl", *options, model=EMBEDDER) == 0
    rows = pq.read_table(vectors).to_pylist()[1:]
    assert [(row["text"], row["image"]) for row in rows] == [("words", None), ("", "a.png"), ("words", "a.png")]
    assert len({tuple(row["vector"]) for row in rows}) == 3
