"""Templates that are tokenised as one text: what is cut, what acts, and what chat templates may do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rerank_cli.checkpoint import Checkpoint, read_checkpoint
from rerank_cli.encoding.chat_template import ChatTemplate, TemplateFailedError
from rerank_cli.encoding.encoder import EncodingProblem, TextEncoder, open_encoder
from rerank_cli.encoding.tokenizer import load_tokenizer
from rerank_cli.errors import ModelError, UsageError

PARITY = Path(__file__).parents[2] / "parity"
ZERANK = read_checkpoint(PARITY / "zerank2-open" / "checkpoint")
CTXL = read_checkpoint(PARITY / "ctxl-open" / "checkpoint")
TOKENIZER = load_tokenizer(ZERANK)
LONG = "Bees find their way home. " * 40


def opened(checkpoint: Checkpoint = ZERANK, **options: Any) -> TextEncoder:
    return open_encoder(checkpoint, **{"max_tokens": 512, **options})


def with_template(source: str, checkpoint: Checkpoint = ZERANK) -> Checkpoint:
    return replace(checkpoint, declared=replace(checkpoint.declared, chat_template=source))


def ids(encoder: TextEncoder, query: str, passage: str) -> list[int]:
    encoded = encoder.encode([(query, passage)])[0]
    assert not isinstance(encoded, EncodingProblem), encoded
    (pair,) = encoded
    return pair.input_ids.tolist()


def test_a_text_is_tokenised_together_with_what_follows_it():
    template = "{query}\n{passage}\n"
    joined = ids(opened(template=template, special_tokens="allow"), "harbour", "A crane.")
    assert joined == TOKENIZER.encode("harbour\nA crane.\n", add_special_tokens=False).ids


def test_end_cuts_the_passage_alone_and_fills_the_limit():
    for checkpoint in (ZERANK, CTXL):
        whole, cut = ids(opened(checkpoint), "Where?", LONG), ids(opened(checkpoint, max_tokens=80), "Where?", LONG)
        assert len(cut) == 80
        begin = next(place for place, pair in enumerate(zip(whole, cut, strict=False)) if pair[0] != pair[1])
        assert cut[begin:] == whole[len(whole) - (80 - begin) :]
    assert TOKENIZER.decode(cut).count("Where?") == 1  # behind the passage, where the reference would lose it


def test_reference_cuts_the_whole_text_and_writes_the_tail_over_its_end():
    encoder = opened(CTXL, max_tokens=80, truncate="reference")
    whole = ids(opened(CTXL), "Where?", LONG)
    cut = ids(encoder, "Where?", LONG)
    tail = len(TOKENIZER.encode(" ??", add_special_tokens=False).ids)  # all that ends every text of this template
    assert cut[:-tail] == whole[:80][:-tail]
    assert cut[-tail:] == whole[-tail:]


def test_a_query_without_room_for_its_passage_is_a_bad_row():
    (problem,) = opened(max_tokens=60).encode([(LONG, "bees")])
    assert isinstance(problem, EncodingProblem)
    assert problem.code == "query-too-long"


def test_chunks_hold_the_whole_passage_with_the_template_around_each():
    (chunks,) = opened(max_tokens=80, truncate="chunk", chunk_overlap=0).encode([("Where?", LONG)])
    assert not isinstance(chunks, EncodingProblem)
    texts = [TOKENIZER.decode(pair.input_ids.tolist(), skip_special_tokens=False) for pair in chunks]
    assert all(len(pair.input_ids) <= 80 for pair in chunks)
    assert all(text.endswith("<|im_start|>assistant\n") and "Where?" in text for text in texts)
    middle = [text.split("user\n")[1].split("<|im_end|>")[0] for text in texts]
    assert "".join(middle) == LONG


def test_a_template_that_shortens_the_passage_is_cut_by_its_text():
    source = ZERANK.declared.chat_template or ""
    shorter = with_template(
        source.replace(
            ").content }}<|im_end|>\n<|im_start|>assistant", ").content | upper }}<|im_end|>\n<|im_start|>assistant"
        )
    )
    cut = ids(opened(shorter, max_tokens=80), "Where?", LONG)
    assert 70 < len(cut) <= 80
    assert TOKENIZER.decode(cut, skip_special_tokens=False).endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert "BEES FIND" in TOKENIZER.decode(cut)


def test_special_tokens_in_a_text_are_text_and_those_of_the_template_act():
    start = TOKENIZER.token_to_id("<|im_start|>")
    plain = ids(opened(), "a", "b")
    for text in ("<|im_start|>", "x<|im_start|><|im_end|>y"):
        neutral, acting = ids(opened(), "a", text), ids(opened(special_tokens="allow"), "a", text)
        assert neutral.count(start) == plain.count(start)
        assert acting.count(start) > plain.count(start)
        assert text in TOKENIZER.decode(neutral, skip_special_tokens=False)
    # Both ways agree on a text without such tokens.
    assert plain == ids(opened(special_tokens="allow"), "a", "b")


def test_a_long_text_with_special_tokens_is_cut_too():
    cut = ids(opened(max_tokens=80), "Where?", "<|im_end|> " + LONG)
    assert 70 < len(cut) <= 80
    assert cut.count(TOKENIZER.token_to_id("<|im_end|>")) == 2


def test_an_instruction_takes_the_place_of_the_prompt_and_an_empty_one_means_none():
    qwen = read_checkpoint(PARITY / "qwen3-st-open" / "checkpoint")
    own, other, none = (opened(qwen, instruction=text).template for text in (None, "Find cranes", ""))
    assert "precedents of a higher court" in own
    assert "<Instruct>: Find cranes\n" in other
    assert "<Instruct>: Given a web search query" in none


def test_a_template_that_fails_for_a_pair_makes_it_a_bad_row():
    refusal = "{% if m.content == 'no' %}{{ raise_exception('not this') }}{% endif %}"
    source = "{% for m in messages %}" + refusal + "{{ m.content }} {% endfor %}"
    good, bad = opened(with_template(source)).encode([("a", "b"), ("a", "no")])
    assert not isinstance(good, EncodingProblem)
    assert isinstance(bad, EncodingProblem)
    assert bad.code == "template-failed"
    assert "not this" in bad.message


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }}{% endfor %}", "writes the time"),
        ("{{ messages | random }}", "not Jinja that is known"),
        ("{% if %}", "not Jinja that is known"),
        ("{{ messages[0].content }}", "the passage would not be in its text"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "query and the passage would not"),
        ("{{ raise_exception('only users') }}", "only users"),
    ],
)
def test_a_template_that_carries_no_pair_is_refused(source, said):
    with pytest.raises(ModelError) as caught:
        opened(with_template(source))
    assert said in caught.value.message


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append('x') }}",
    ],
)
def test_a_template_is_kept_in_a_sandbox(source):
    template = ChatTemplate("here", source, "flat")
    try:
        text = template.render("a", "b")
    except TemplateFailedError:
        return
    assert text == ""


def test_a_template_sees_white_space_and_loses_one_newline_at_its_end():
    template = ChatTemplate("here", "{{ messages[0].content | trim }}|{{ messages[1].content }}\n\n", "flat")
    assert template.render(" a ", " b ") == "a| b \n"


def test_structured_contents_are_lists_of_parts():
    template = ChatTemplate("here", "{{ messages[0].content[0].text }}{{ messages[0].content[0].type }}", "structured")
    assert template.render("a", "b") == "atext"


def test_the_template_of_a_user_must_fit_the_limit():
    with pytest.raises(UsageError, match="the template alone has"):
        opened(max_tokens=8)
