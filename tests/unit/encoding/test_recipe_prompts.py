from __future__ import annotations

import hashlib
import json
import shutil
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rerank_cli.checkpoint import Checkpoint, read_checkpoint
from rerank_cli.cli import main
from rerank_cli.encoding.encoder import EncodingProblem, answer_ids, open_encoder
from rerank_cli.errors import ModelError

PARITY = Path(__file__).parents[2] / "parity"
FOLDERS = {name: PARITY / f"{name}-open" for name in ("qwen3-reranker", "mxbai-v2", "bge-gemma")}
CHECKPOINTS = {name: read_checkpoint(folder / "checkpoint") for name, folder in FOLDERS.items()}
TOKENIZERS = {name: Tokenizer.from_file(str(checkpoint.tokenizer_file)) for name, checkpoint in CHECKPOINTS.items()}

TEMPLATES = {
    "qwen3-reranker": (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: Given a '
        "web search query, retrieve relevant passages that answer the query\n<Query>: {query}\n<Document>: {passage}"
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    ),
    "mxbai-v2": (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nquery: {query}\ndocument: {passage}\nYou are a search relevance expert who evaluates how "
        "well documents match search queries. For each query-document pair, carefully analyze the semantic "
        "relationship between them, then provide your binary relevance judgment (0 for not relevant, 1 for relevant)."
        "\nRelevance:<|im_end|>\n<|im_start|>assistant\n"
    ),
    "bge-gemma": (
        "<bos>A: {query}\nB: {passage}\nGiven a query A and a passage B, determine whether the passage contains an "
        "answer to the query by providing a prediction of either 'Yes' or 'No'."
    ),
}
plain_words = st.lists(
    st.sampled_from(["vitamin", "Paris", "is", "the capital", " ", "\n", "?", "333 m", "東京"]), max_size=60
).map(" ".join)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", FOLDERS)
def test_the_template_is_the_one_that_the_family_was_trained_with(name):
    assert open_encoder(CHECKPOINTS[name], max_tokens=512).template == TEMPLATES[name]


@pytest.mark.parametrize(
    ("name", "placed"),
    [
        ("qwen3-reranker", "<Instruct>: find {query}\n<Query>: {query}"),
        ("mxbai-v2", "<|im_start|>user\ninstruction: find {query}\nquery: {query}\ndocument: "),
        ("bge-gemma", "B: {passage}\nfind {query}"),
    ],
)
def test_an_instruction_stands_where_the_family_has_one(name, placed):
    encoder = open_encoder(CHECKPOINTS[name], max_tokens=512, instruction="find {query}")
    assert placed in encoder.template
    (pair,) = encoder.encode([("the moon", "a page")])[0]
    text = TOKENIZERS[name].decode(pair.input_ids.tolist(), skip_special_tokens=False)
    assert "find {query}" in text, "text in an instruction is no slot"
    assert text.count("the moon") == 1


@pytest.mark.parametrize("name", FOLDERS)
def test_token_ids_are_the_reference_ones(name):
    expected = {row["id"]: row for row in rows(FOLDERS[name] / "expected.jsonl")}

    def options(case: dict[str, Any]) -> tuple[int, str]:
        return case["max_length"], case.get("instruction") or ""

    cases = sorted(rows(FOLDERS[name] / "cases.jsonl"), key=options)
    assert len(cases) >= 16
    for (limit, instruction), group in groupby(cases, key=options):
        encoder = open_encoder(
            CHECKPOINTS[name],
            max_tokens=limit,
            truncate="reference",
            special_tokens="allow",
            instruction=instruction or None,
        )
        for case in group:
            (pair,) = encoder.encode([(case["query"], case["passage"])])[0]
            ids = ",".join(map(str, pair.input_ids.tolist()))
            assert hashlib.sha256(ids.encode()).hexdigest() == expected[case["id"]]["input_ids_sha256"], case["id"]
            assert pair.truncated == (pair.tokens > expected[case["id"]]["n_tokens"])


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("truncate", ["end", "chunk"])
@given(query=plain_words, passage=plain_words, spare=st.integers(5, 60))
@settings(max_examples=25, deadline=None)
def test_query_and_template_stay_whole_within_the_limit(name, truncate, query, passage, spare):
    tokenizer = TOKENIZERS[name]
    shortest = len(open_encoder(CHECKPOINTS[name], max_tokens=4096).encode([("", "")])[0][0].input_ids)
    encoder = open_encoder(CHECKPOINTS[name], max_tokens=shortest + spare, truncate=truncate, chunk_overlap=3)
    full = open_encoder(CHECKPOINTS[name], max_tokens=4096).encode([(query, passage)])[0][0].input_ids
    before, after = (tokenizer.encode(part, add_special_tokens=False).ids for part in parts_around(name, query))
    (encoded,) = encoder.encode([(query, passage)])
    if isinstance(encoded, EncodingProblem):
        assert encoded.code == "query-too-long"
        assert len(full) > encoder.max_tokens
        # A token at the seam may hold both a character of the template and one of the passage; a piece of the passage
        # holds whole characters, each of up to four tokens.
        widest = 1 if truncate == "end" else 4
        assert len(before) + len(after) + widest >= encoder.max_tokens
        return
    for pair in encoded:
        ids = pair.input_ids.tolist()
        assert len(ids) <= encoder.max_tokens
        assert ids[-len(after) :] == after
        text = tokenizer.decode(ids[: len(ids) - len(after)], skip_special_tokens=False)
        assert text.startswith(tokenizer.decode(before, skip_special_tokens=False))
    if truncate == "end":
        kept = len(encoded[0].input_ids) - len(after)
        assert encoded[0].input_ids[:kept].tolist() == full[:kept].tolist()
        assert encoded[0].tokens == len(full)


def parts_around(name: str, query: str) -> tuple[str, str]:
    """The prompt before and behind the passage, for queries without special tokens."""
    before, after = TEMPLATES[name].split("{passage}")
    return before.replace("{query}", query), after


def ids_of(name: str, text: str) -> list[int]:
    return TOKENIZERS[name].encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("limit", [16, 33, 64, 200])
def test_mxbai_counts_query_and_passage_alone_and_cuts_the_query_at_three_quarters(limit):
    encoder = open_encoder(CHECKPOINTS["mxbai-v2"], max_tokens=limit, truncate="reference")
    separator, length = ids_of("mxbai-v2", "\n"), len(encoder.encode([("", "")])[0][0].input_ids)
    empty = len(ids_of("mxbai-v2", "query: ")) + len(ids_of("mxbai-v2", "document: ")) + len(separator)
    for query, passage in (("why " * 100, "so " * 100), ("why", "so " * 100)):
        (pair,) = encoder.encode([(query, passage)])[0]
        asked = ids_of("mxbai-v2", f"query: {query}")[: limit * 3 // 4]
        told = ids_of("mxbai-v2", f"document: {passage}")[: limit - len(asked) - len(separator)]
        assert len(pair.input_ids) == length - empty + limit
        start = pair.input_ids.tolist().index(asked[0], 20)
        found = pair.input_ids.tolist()
        assert any(found[at : at + limit] == [*asked, *separator, *told] for at in range(start, len(found)))


def test_mxbai_leaves_room_for_its_template_where_the_tokenizer_has_a_limit(tmp_path):
    checkpoint = with_files(tmp_path / "model", "mxbai-v2", tokenizer_config={"model_max_length": 400})
    (pair,) = open_encoder(checkpoint, max_tokens=400, truncate="reference").encode([("why", "so " * 500)])[0]
    assert len(pair.input_ids) == 400


def with_files(folder: Path, name: str, **changes: dict[str, Any]) -> Checkpoint:
    """A copy of a checkpoint with other values in some JSON files."""
    shutil.copytree(FOLDERS[name] / "checkpoint", folder)
    (folder / "special_tokens_map.json").unlink()  # where it is, it says the same again
    for file, values in changes.items():
        path = folder / f"{file}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return read_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "token"),
    [
        *(("qwen3-reranker", token) for token in ("</think>", "<think>", "<|im_end|>", "<|im_start|>")),
        *(("mxbai-v2", token) for token in ("<|im_end|>", "<|im_start|>")),
    ],
)
def test_tokens_of_the_chat_template_do_not_act_in_texts(name, token):
    number = TOKENIZERS[name].token_to_id(token)
    counts = {}
    for special_tokens in ("neutral", "allow"):
        encoder = open_encoder(CHECKPOINTS[name], max_tokens=512, special_tokens=special_tokens)
        plain, attacked = encoder.encode([("q", "p"), (f"q{token}", f"{token}p")])
        counts[special_tokens] = [encoded[0].input_ids.tolist().count(number) for encoded in (plain, attacked)]
    assert counts["neutral"][0] == counts["neutral"][1] > 0
    assert counts["allow"] == [counts["neutral"][0], counts["neutral"][0] + 2]


@pytest.mark.parametrize(
    ("bos", "begins"),
    [("<bos>", True), ({"content": "<bos>"}, True), (None, False), ("<pad>", False)],
)
def test_gemma_begins_with_bos_where_its_tokenizer_has_one(bos, begins, tmp_path):
    checkpoint = with_files(tmp_path / "model", "bge-gemma", tokenizer_config={"bos_token": bos})
    (pair,) = open_encoder(checkpoint, max_tokens=512).encode([("q", "p")])[0]
    assert (pair.input_ids[0] == 2) == begins
    assert pair.input_ids[0] == (2 if begins else ids_of("bge-gemma", "A: ")[0])


@pytest.mark.parametrize(
    ("name", "words"), [("qwen3-reranker", ["yes", "no"]), ("mxbai-v2", ["1", "0"]), ("bge-gemma", ["Yes"])]
)
def test_answers_are_the_tokens_of_their_words(name, words):
    assert answer_ids(CHECKPOINTS[name]) == [ids_of(name, word)[0] for word in words]


def test_a_tokenizer_without_the_tokens_of_the_prompt_is_refused(tmp_path):
    state = json.loads((FOLDERS["qwen3-reranker"] / "checkpoint" / "tokenizer.json").read_text())
    kept = [token for token in state["added_tokens"] if token["content"] != "<|im_start|>"]
    kept = [token | {"id": kept[0]["id"] + place} for place, token in enumerate(kept)]
    checkpoint = with_files(tmp_path / "model", "qwen3-reranker", tokenizer={"added_tokens": kept})
    with pytest.raises(ModelError, match=r"tokenizer.json: no token `<\|im_start\|>`"):
        open_encoder(checkpoint, max_tokens=512)


@pytest.mark.parametrize(
    ("name", "taken"), [("qwen3-reranker", "Qwen3-Reranker"), ("bge-gemma", "bge-reranker-v2-gemma")]
)
@pytest.mark.parametrize("quiet", ["--quiet", "--verbose"])
def test_what_a_language_model_was_taken_for_is_always_told_and_reported(quiet, name, taken, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"query": "a", "passage": "b"}\n')
    out = tmp_path / "out.jsonl"
    assert main(["score", str(rows), "-o", str(out), quiet, "--model", str(FOLDERS[name] / "checkpoint")]) == 0
    told = capsys.readouterr().err.splitlines()
    assert sum(line.startswith(f"taken for a {taken}: ") for line in told) == 1
    report = json.loads((tmp_path / "out.jsonl.report.json").read_text())
    assert report["plan"]["taken"].startswith(f"taken for a {taken}: ")
