from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from rerank_cli.checkpoint import Checkpoint, read_checkpoint
from rerank_cli.checkpoint.max_tokens import model_max_tokens
from rerank_cli.cli import main
from rerank_cli.encoding.encoder import EncodingProblem, open_encoder
from rerank_cli.encoding.prompt import NEMOTRON, Prompt, PromptEncoder, Slot
from rerank_cli.encoding.whole_text import UserTemplate, WholeTextEncoder
from rerank_cli.errors import ModelError, UsageError
from rerank_cli.records import EncodedPair

PARITY = Path(__file__).parents[2] / "parity"
LLAMA = PARITY / "llama-rerank-open" / "checkpoint"
QWEN3 = PARITY / "qwen3-reranker-open" / "checkpoint"
BERT = PARITY / "bert-ce-open" / "checkpoint"
BOS, EOS = 703, 704
NEMOTRON_HEAD = "question: \n \n passage:"
TOKENIZER = Tokenizer.from_file(str(LLAMA / "tokenizer.json"))

# White space, letters that merge over the end of the template, control tokens, and characters of several tokens
words = st.lists(
    st.one_of(
        st.sampled_from(["the query", " ", "\n", "passage:", "a", "🙂", "東京", "e\u0301", "<|end_of_text|>", "?!"]),
        st.text(max_size=4),
    ),
    max_size=14,
).map("".join)


def encoder(*, max_tokens: int = 512, **options: Any) -> PromptEncoder | WholeTextEncoder:
    opened = open_encoder(read_checkpoint(LLAMA), max_tokens=max_tokens, **options)
    assert isinstance(opened, (PromptEncoder, WholeTextEncoder))
    return opened


def head(query: str) -> str:
    return f"question:{query} \n \n passage:"


def whole(query: str, passage: str, *, special: bool = False) -> list[int]:
    TOKENIZER.encode_special_tokens = not special
    return TOKENIZER.encode(head(query) + passage).ids


def decoded(pair: EncodedPair) -> str:
    ids = pair.input_ids.tolist()
    assert ids[0] == BOS
    return TOKENIZER.decode(ids[1:], skip_special_tokens=False)


@given(words, words)
@settings(max_examples=60, deadline=None)
def test_a_pair_within_the_limit_is_one_string_behind_one_bos(query, passage):
    (pair,) = encoder(max_tokens=4096).encode([(query, passage)])[0]
    assert pair.input_ids.tolist() == whole(query, passage)
    assert pair.input_ids.tolist().count(BOS) == 1
    assert pair.second_start == len(pair.input_ids)
    assert not pair.truncated


@given(words, words, st.integers(30, 90))
@settings(max_examples=150, deadline=None)
def test_end_keeps_query_and_template_whole_and_some_of_the_passage(query, passage, limit):
    full = whole(query, passage)
    (encoded,) = encoder(max_tokens=limit).encode([(query, passage)])
    if isinstance(encoded, EncodingProblem):
        assert encoded.code == "query-too-long"
        # The tokens up to the first that holds a character of the passage do not fit.
        TOKENIZER.encode_special_tokens = True
        offsets = TOKENIZER.encode(head(query) + passage).offsets
        needed = next((at + 1 for at, (_, end) in enumerate(offsets) if end > len(head(query))), len(full) + 1)
        assert len(full) > limit
        assert needed > limit
        return
    (pair,) = encoded
    assert pair.input_ids.tolist() == full[:limit]
    assert (pair.tokens, len(pair.input_ids)) == (len(full), min(limit, len(full)))
    text = decoded(pair)
    assert text.startswith(head(query))
    if passage:
        assert len(text) > len(head(query))


@given(words, words, st.integers(30, 90))
@settings(max_examples=60, deadline=None)
def test_reference_cuts_the_whole_text_from_the_right(query, passage, limit):
    (encoded,) = encoder(max_tokens=limit, truncate="reference").encode([(query, passage)])
    (pair,) = encoded
    assert pair.input_ids.tolist() == whole(query, passage)[:limit]
    assert pair.tokens == len(whole(query, passage))


@given(words, words, st.integers(30, 60), st.integers(0, 20))
@settings(max_examples=150, deadline=None)
def test_chunks_fit_and_hold_all_of_the_passage(query, passage, limit, overlap):
    (encoded,) = encoder(max_tokens=limit, truncate="chunk", chunk_overlap=overlap).encode([(query, passage)])
    if isinstance(encoded, EncodingProblem):
        assert encoded.code == "query-too-long"
        return
    # How far the pieces may reach: text that repeats itself leaves more than one answer.
    covered = {0}
    for chunk in encoded:
        assert len(chunk.input_ids) <= limit
        assert not chunk.truncated
        text = decoded(chunk)
        assert text.startswith(head(query))
        piece = text[len(head(query)) :]
        begins = {at for far in covered for at in range(far + 1) if passage.startswith(piece, at)}
        covered = {at + len(piece) for at in begins}
    assert len(passage) in covered


def test_chunks_share_the_tokens_that_are_asked_for():
    passage = " ".join(f"w{number}" for number in range(200))
    texts = {}
    for overlap in (0, 10):
        chunks = encoder(max_tokens=64, truncate="chunk", chunk_overlap=overlap).encode([("q", passage)])[0]
        texts[overlap] = [decoded(chunk)[len(head("q")) :] for chunk in chunks]
        assert all(len(chunk.input_ids) > 56 for chunk in chunks[:-1])
    assert "".join(texts[0]) == passage
    assert sum(map(len, texts[10])) > len(passage) + 10 * len(texts[10])
    assert len(texts[10]) > len(texts[0]) > 5


def test_error_refuses_a_pair_over_the_limit():
    full = len(whole("q", "a b c " * 30))
    (fits,) = encoder(max_tokens=full, truncate="error").encode([("q", "a b c " * 30)])
    assert not isinstance(fits, EncodingProblem)
    (problem,) = encoder(max_tokens=full - 1, truncate="error").encode([("q", "a b c " * 30)])
    assert isinstance(problem, EncodingProblem)
    assert problem.code == "too-long"
    assert str(full) in problem.message


@pytest.mark.parametrize("truncate", ["end", "chunk"])
def test_a_query_that_alone_fills_the_limit_is_a_problem_of_its_pair_only(truncate):
    long_query, (_, fits) = "why " * 100, ("q", "p")
    encoded = encoder(max_tokens=64, truncate=truncate).encode([(long_query, "p"), ("q", fits), (long_query, "")])
    assert [isinstance(entry, EncodingProblem) for entry in encoded] == [True, False, True]


def test_special_tokens_in_texts_are_text_unless_they_are_allowed():
    pair = ("a <|end_of_text|> b", "<|begin_of_text|><|end_of_text|>")
    (neutral,) = encoder().encode([pair])[0]
    assert not {BOS, EOS} & set(neutral.input_ids.tolist()[1:])
    assert decoded(neutral) == head(pair[0]) + pair[1]
    (allowed,) = encoder(special_tokens="allow").encode([pair])[0]
    assert allowed.input_ids.tolist() == whole(*pair, special=True)
    assert allowed.input_ids.tolist().count(EOS) == 2


def with_added(*tokens: AddedToken) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(LLAMA / "tokenizer.json"))
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def test_of_the_added_tokens_those_are_neutralised_that_can_act():
    tokenizer = with_added(AddedToken("<|tool|>"), AddedToken("</think>"), AddedToken("<table>"), AddedToken("\n\n\n"))
    numbers = {name: tokenizer.token_to_id(name) for name in ("<|tool|>", "</think>", "<table>", "\n\n\n")}
    prompt = Prompt(parts=(("Q:", Slot.QUERY, " P:", Slot.PASSAGE), ("</think>",)), wrapped=True)
    opened = PromptEncoder(tokenizer, prompt, where="here", max_tokens=512)
    (pair,) = opened.encode([("q", "a <|tool|> b </think> c <table> d\n\n\ne")])[0]
    ids = pair.input_ids.tolist()
    assert {name for name, number in numbers.items() if number in ids[:-1]} == {"<table>", "\n\n\n"}
    assert ids[-1] == numbers["</think>"], "in the template it acts"


def test_a_special_token_that_the_vocabulary_spells_is_refused_in_neutral_mode():
    state = json.loads((LLAMA / "tokenizer.json").read_text())
    # `a` is a piece of the vocabulary, found in any text
    state["added_tokens"].append({**state["added_tokens"][0], "id": state["model"]["vocab"]["a"], "content": "a"})
    prompted: dict[str, Any] = {"where": "tokenizer.json", "max_tokens": 64}
    with pytest.raises(ModelError, match=r"tokenizer.json: `a` written in a text acts"):
        PromptEncoder(Tokenizer.from_str(json.dumps(state)), NEMOTRON, **prompted)
    PromptEncoder(Tokenizer.from_str(json.dumps(state)), NEMOTRON, **prompted, special_tokens="allow")


def changed(folder: Path, **tokenizer: Any) -> Checkpoint:
    """The Llama checkpoint with another tokenizer.json."""
    shutil.copytree(LLAMA, folder)
    state = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(state | tokenizer))
    return read_checkpoint(folder)


def test_what_the_post_processor_puts_behind_stays_behind(tmp_path):
    marks = {name: {"id": name, "ids": [number], "tokens": [name]} for name, number in
             (("<|begin_of_text|>", BOS), ("<|end_of_text|>", EOS))}  # fmt: skip
    around = [{"SpecialToken": {"id": name, "type_id": 0}} for name in marks]
    single = [around[0], {"Sequence": {"id": "A", "type_id": 0}}, around[1]]
    processor = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": marks}
    processor["pair"] = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    checkpoint = changed(tmp_path / "model", post_processor=processor)
    for truncate in ("end", "reference"):
        opened = open_encoder(checkpoint, max_tokens=40, truncate=truncate)
        (pair,) = opened.encode([("q", "long " * 50)])[0]
        assert pair.input_ids.tolist() == [*whole("q", "long " * 50)[:39], EOS]


def test_a_tokenizer_without_bos_is_taken_as_it_is(tmp_path):
    checkpoint = changed(tmp_path / "model", post_processor=None)
    (pair,) = open_encoder(checkpoint, max_tokens=64).encode([("q", "p")])[0]
    assert pair.input_ids.tolist() == whole("q", "p")[1:]


@pytest.mark.parametrize("text", ["", "{query}", "{passage}", "{query}{query}{passage}", "{query}{passage}{passage}"])
def test_a_template_without_each_slot_once_is_refused(text):
    with pytest.raises(UsageError, match="must stand in the template once"):
        UserTemplate(text)


def test_what_stands_behind_the_passage_is_never_cut():
    template = "<|eot_id|>Find {query} in {passage} -- answer:"
    for truncate in ("end", "chunk", "reference"):
        opened = encoder(max_tokens=48, truncate=truncate, template=template)
        assert opened.template == template
        for pair in opened.encode([("x", "word " * 80)])[0]:
            assert len(pair.input_ids) <= 48
            assert TOKENIZER.decode(pair.input_ids.tolist(), skip_special_tokens=False).endswith(" -- answer:")
            assert pair.input_ids.tolist()[:2] == [BOS, TOKENIZER.token_to_id("<|eot_id|>")]


def test_template_none_is_the_pair_encoding_of_the_tokenizer():
    (pair,) = open_encoder(read_checkpoint(LLAMA), max_tokens=64, template="none").encode([("ab", "cd")])[0]
    assert pair.input_ids.tolist() == TOKENIZER.encode("ab", "cd").ids


@pytest.mark.parametrize(
    ("model", "options", "told"),
    [
        (LLAMA, {"instruction": "be kind"}, "takes no instruction"),
        (BERT, {"instruction": "be kind"}, "takes no instruction"),
        (BERT, {"template": "{query} {passage}"}, "as a pair, without a prompt"),
        (QWEN3, {"template": "none"}, "answers a prompt"),
        (QWEN3, {"template": "{query} {passage}", "instruction": "be kind"}, "replaces the whole prompt"),
        (LLAMA, {"max_tokens": 10}, f"the template alone has {len(TOKENIZER.encode(NEMOTRON_HEAD).ids)} tokens"),
        (QWEN3, {"max_tokens": 80}, "the template alone has"),
        (QWEN3, {"max_tokens": 80, "truncate": "reference"}, "the template alone has"),
        (LLAMA, {"max_tokens": 8193}, "reads at most 8192 tokens"),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused(model, options, told):
    with pytest.raises(UsageError, match=told):
        open_encoder(read_checkpoint(model), **{"max_tokens": 512} | options)


def test_prompted_models_read_8192_tokens_or_what_their_files_say(tmp_path):
    assert model_max_tokens(read_checkpoint(LLAMA)) == 8192
    shutil.copytree(LLAMA, tmp_path / "model")
    config = json.loads((LLAMA / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    assert model_max_tokens(read_checkpoint(tmp_path / "model")) == 2048


@given(words)
@settings(max_examples=30, deadline=None)
def test_a_normaliser_does_not_move_the_end_of_the_query(passage):
    # Qwen3's tokenizer composes characters; prefix and suffix are parts of their own
    opened = open_encoder(read_checkpoint(QWEN3), max_tokens=250)
    query = "e\u0301t\u00e9 A\u030a"
    (encoded,) = opened.encode([(query, passage)])
    (pair,) = encoded
    tokenizer = Tokenizer.from_file(str(QWEN3 / "tokenizer.json"))
    text = tokenizer.decode(pair.input_ids.tolist(), skip_special_tokens=False)
    before, after = (unicodedata.normalize("NFC", part) for part in opened.template.split("{passage}"))
    assert text.startswith(before.replace("{query}", unicodedata.normalize("NFC", query)))
    assert text.endswith(after)


@pytest.fixture
def pair_file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"query": "q", "passage": "p"}\n')
    return path


def test_the_template_is_in_the_report_and_one_newline_at_its_end_does_not_count(tmp_path, pair_file, capsys):
    template, report = tmp_path / "template.txt", tmp_path / "report.json"
    logits = []
    for text in ("question:{query} \n \n passage:{passage}\n", "question:{query}\npassage:{passage}\n"):
        template.write_text(text)
        arguments = ["score", str(pair_file), "--model", str(LLAMA), "--report", str(report), "--overwrite"]
        assert main([*arguments, "--template", str(template), "-v"]) == 0
        out, err = capsys.readouterr()
        logits.append(json.loads(out)["logit"])
        assert json.loads(report.read_text())["model"]["template"] == text.removesuffix("\n")
        assert f"template {text.removesuffix(chr(10))!r}" in err
    assert main(["score", str(pair_file), "--model", str(LLAMA), "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["logit"] == logits[0] != logits[1]


def test_a_template_file_that_cannot_be_read_is_an_input_error(tmp_path, pair_file, capsys):
    assert main(["score", str(pair_file), "--model", str(LLAMA), "--template", str(tmp_path / "absent")]) == 4
    assert "--template" in capsys.readouterr().err
    (tmp_path / "latin").write_bytes(b"\xe9{query}{passage}")
    assert main(["score", str(pair_file), "--model", str(LLAMA), "--template", str(tmp_path / "latin")]) == 4
    assert "not UTF-8" in capsys.readouterr().err


def test_unknown_tokens_of_the_texts_are_counted_and_those_of_the_template_are_not():
    tokenizer = Tokenizer.from_file(str(BERT / "tokenizer.json"))
    unknown = tokenizer.token_to_id("[UNK]")
    prompt = Prompt(parts=(("\u6c64 ", Slot.QUERY), (" \u6c64 passage ", Slot.PASSAGE)), wrapped=True)
    pairs = [("a pump", "a seal"), ("a \u6c64", "\u6c64 \u8c31 seal")]
    options = {"where": "here", "max_tokens": 64, "unknown": unknown}
    (known,), (unread,) = PromptEncoder(tokenizer, prompt, **options).encode(pairs)
    assert (known.unknown, unread.unknown) == (0, 3)
    assert len(known.input_ids) > known.template
    strict = PromptEncoder(tokenizer, prompt, **options, max_unknown=0.2).encode(pairs)
    assert isinstance(strict[1], EncodingProblem)
    assert strict[1].code == "unknown-tokens"
    assert not isinstance(strict[0], EncodingProblem)
