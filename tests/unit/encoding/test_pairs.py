from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.encoding.encoder import open_encoder
from rerank_cli.encoding.pairs import EncodingProblem, PairEncoder, PairForm, longest_first
from rerank_cli.encoding.tokenizer import load_tokenizer
from rerank_cli.errors import ModelError, UsageError
from rerank_cli.records import EncodedPair

PARITY = Path(__file__).parents[2] / "parity"
TYPED = {"single": "[C] $A [S]", "pair": "[C]:0 $A:0 [S]:0 $B:1 [S]:1"}
UNTYPED = {"single": "[C] $A [S]", "pair": "[C]:0 $A:0 [S]:0 [S]:0 $B:0 [S]:0"}


def word_tokenizer(template: dict[str, str] | None = TYPED, **changes) -> Tokenizer:
    """Words are tokens: w0, w1, ... and the letters of the template's check; [C] is 1, [S] is 2."""
    vocabulary = {"[U]": 0, "[C]": 1, "[S]": 2, "a": 3, "b": 4} | {f"w{n}": 10 + n for n in range(300)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[U]"))
    tokenizer.pre_tokenizer = changes.get("pre_tokenizer", pre_tokenizers.WhitespaceSplit())
    tokenizer.add_special_tokens(["[C]", "[S]"])
    if template:
        special = [("[C]", 1), ("[S]", 2)]
        tokenizer.post_processor = processors.TemplateProcessing(special_tokens=special, **template)
    return tokenizer


def encoder(*, template: dict[str, str] | None = TYPED, max_tokens: int = 100, **options) -> PairEncoder:
    return PairEncoder(word_tokenizer(template), where="model/tokenizer.json", max_tokens=max_tokens, **options)


def words(count: int, *, begin: int = 0) -> str:
    return " ".join(f"w{n}" for n in range(begin, begin + count))


def word_ids(count: int, *, begin: int = 0) -> list[int]:
    return [10 + n for n in range(begin, begin + count)]


def only(encoded) -> EncodedPair:
    (pair,) = encoded
    return pair


# --- the template


@pytest.mark.parametrize(
    ("template", "expected", "second"),
    [(TYPED, [1, 10, 11, 2, 60, 2], 4), (UNTYPED, [1, 10, 11, 2, 2, 60, 2], 7)],
    ids=["typed", "untyped"],
)
def test_a_pair_is_put_together_as_the_tokenizer_does_it(template, expected, second):
    pair = only(encoder(template=template).encode([(words(2), "w50")])[0])
    assert pair.input_ids.tolist() == expected
    assert pair.input_ids.dtype == np.int32
    assert (pair.second_start, pair.tokens, pair.truncated) == (second, len(expected), False)


def test_the_template_can_be_shown():
    assert encoder().template == "[C]{query}[S]{passage}[S]"
    assert encoder(template=UNTYPED).template == "[C]{query}[S][S]{passage}[S]"


def test_types_may_change_within_the_separator():
    template = {"single": "[C] $A [S]", "pair": "[C]:0 $A:0 [S]:0 [S]:1 $B:1 [S]:1"}
    assert only(encoder(template=template).encode([(words(2), "w50")])[0]).second_start == 4


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (None, "puts no special tokens around a pair"),
        ({"single": "[C] $A", "pair": "$A:0 $B:1"}, "puts no special tokens around a pair"),
        ({"single": "[C] $A", "pair": "[C]:0 $B:0 [S]:0 $A:1"}, "pair encoding is not `query passage`"),
        ({"single": "[C] $A", "pair": "[C]:1 $A:1 [S]:0 $B:0"}, "pair encoding is not `query passage`"),
        ({"single": "[C] $A", "pair": "[C]:1 $A:1 [S]:1 $B:1"}, "pair encoding is not `query passage`"),
        ({"single": "[C] $A", "pair": "[C]:0 $A:0 [S]:0 $B:2 [S]:2"}, "pair encoding is not `query passage`"),
        ({"single": "[C] $A", "pair": "[C]:0 $A:0 [S]:1 $B:0 [S]:1"}, "pair encoding is not `query passage`"),
    ],
)
def test_a_template_that_we_could_not_put_together_is_refused(template, why):
    with pytest.raises(ModelError) as caught:
        encoder(template=template)
    assert caught.value.message.startswith("model/tokenizer.json: ")
    assert why in caught.value.message


def test_a_query_whose_types_are_not_all_the_same_is_refused():
    # the query has type 1, what follows it 0 again: not monotone
    with pytest.raises(ModelError, match="token types 0 and then 1"):
        encoder(template={"single": "$A", "pair": "[C]:0 $A:1 [S]:0 $B:1 [S]:1"})


def test_a_tokenizer_without_tokens_for_a_letter_is_refused():
    tokenizer = word_tokenizer()
    tokenizer.normalizer = normalizers.Replace("a", "")
    with pytest.raises(ModelError, match="no tokens for a plain letter"):
        PairEncoder(tokenizer, where="here", max_tokens=10)


class Forgetful:
    """A tokenizer that loses the passage of any pair whose query is not a single letter."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, first, second=None, *, add_special_tokens=True):
        if second is not None and first != "a":
            second = ""
        return self._tokenizer.encode(first, second, add_special_tokens=add_special_tokens)


def test_a_pair_that_is_not_its_two_texts_is_refused():
    with pytest.raises(ModelError, match="encodes a pair otherwise than its two texts one by one"):
        PairEncoder(Forgetful(word_tokenizer()), where="here", max_tokens=10)


@pytest.mark.parametrize(("max_tokens", "fits"), [(3, False), (4, False), (5, True)])
def test_a_limit_that_the_template_fills_is_a_usage_error(max_tokens, fits):
    if fits:
        encoder(max_tokens=max_tokens)
        return
    with pytest.raises(UsageError, match=f"--max-tokens {max_tokens}: the template alone has 3 tokens"):
        encoder(max_tokens=max_tokens)


def test_each_text_is_tokenised_once():
    class Counting:
        def __init__(self, tokenizer):
            self.tokenizer, self.seen = tokenizer, []

        def __getattr__(self, name):
            return getattr(self.tokenizer, name)

        def encode_batch_fast(self, texts, **options):
            self.seen += texts
            return self.tokenizer.encode_batch_fast(texts, **options)

    counting = Counting(word_tokenizer())
    pairs = [("w1", "w2"), ("w1", "w3"), ("w1", "w2"), ("w2", "w1")]
    encoded = PairEncoder(counting, where="here", max_tokens=10).encode(pairs)
    assert counting.seen == ["w1", "w2", "w3"]
    assert [only(entry).input_ids[[1, 3]].tolist() for entry in encoded] == [[11, 12], [11, 13], [11, 12], [12, 11]]


def test_no_pairs_give_nothing():
    assert encoder().encode([]) == []


# --- truncation


@pytest.mark.parametrize("mode", ["end", "error", "chunk", "reference"])
def test_a_pair_that_fits_exactly_is_whole_in_every_mode(mode):
    pair = only(encoder(max_tokens=10, truncate=mode).encode([(words(3), words(4, begin=50))])[0])
    assert pair.input_ids.tolist() == [1, *word_ids(3), 2, *word_ids(4, begin=50), 2]
    assert (pair.tokens, len(pair.input_ids), pair.truncated) == (10, 10, False)


def test_end_cuts_the_passage_from_the_right():
    pair = only(encoder(max_tokens=10).encode([(words(3), words(9, begin=50))])[0])
    assert pair.input_ids.tolist() == [1, *word_ids(3), 2, *word_ids(4, begin=50), 2]
    assert (pair.tokens, len(pair.input_ids), pair.truncated) == (15, 10, True)


@given(query=st.integers(0, 20), passage=st.integers(0, 40), max_tokens=st.integers(5, 40))
def test_a_query_is_never_cut(query, passage, max_tokens):
    encoded = encoder(max_tokens=max_tokens).encode([(words(query), words(passage, begin=100))])[0]
    if isinstance(encoded, EncodingProblem):
        assert encoded.code == "query-too-long"
        assert query + 3 + 1 > max_tokens
        return
    ids = only(encoded).input_ids.tolist()
    assert ids[: query + 2] == [1, *word_ids(query), 2]
    assert ids[-1] == 2
    assert len(ids) == min(max_tokens, query + passage + 3)


@pytest.mark.parametrize("mode", ["end", "chunk"])
@pytest.mark.parametrize(("query", "room"), [(6, True), (7, False), (90, False)])
def test_a_query_without_room_for_its_passage_is_a_problem(mode, query, room):
    encoded = encoder(max_tokens=10, truncate=mode).encode([(words(query), words(30, begin=100))])[0]
    if room:
        assert not isinstance(encoded, EncodingProblem)
        return
    assert encoded == EncodingProblem(
        "query-too-long", f"the query alone has {query} tokens: no room for its passage in a limit of 10"
    )


def test_a_long_query_with_an_empty_passage_is_whole_where_it_fits_and_a_problem_where_not():
    exact, over = encoder(max_tokens=10).encode([(words(7), ""), (words(8), "")])
    assert len(only(exact).input_ids) == 10
    assert isinstance(over, EncodingProblem)


def test_error_refuses_any_cut():
    encoded = encoder(max_tokens=10, truncate="error").encode([(words(3), words(5))])[0]
    assert encoded == EncodingProblem("too-long", "the pair has 11 tokens, the limit is 10")


@settings(max_examples=200)
@given(
    query=st.integers(0, 8),
    passage=st.integers(1, 120),
    max_tokens=st.integers(12, 40),
    overlap=st.integers(0, 60),
)
def test_chunks_hold_the_whole_passage_each_with_the_whole_query(query, passage, max_tokens, overlap):
    chunking = encoder(max_tokens=max_tokens, truncate="chunk", chunk_overlap=overlap)
    chunks = chunking.encode([(words(query), words(passage, begin=100))])[0]
    head = [1, *word_ids(query), 2]
    pieces = []
    for chunk in chunks:
        ids = chunk.input_ids.tolist()
        assert len(ids) <= max_tokens
        assert (ids[: len(head)], ids[-1]) == (head, 2)
        assert chunk.second_start == len(head)
        assert not chunk.truncated
        pieces.append(ids[len(head) : -1])
    room = max_tokens - 3 - query
    shared = min(overlap, room // 2)
    text = list(pieces[0])
    for before, piece in pairwise(pieces):
        assert len(before) == room
        assert before[len(before) - shared :] == piece[:shared]
        assert len(piece) > shared  # a chunk that repeats only what was read already would be for nothing
        text += piece[shared:]
    assert text == word_ids(passage, begin=100)


def test_neighbouring_chunks_share_as_many_tokens_as_asked():
    chunks = encoder(max_tokens=14, truncate="chunk", chunk_overlap=3).encode([("w0", words(24, begin=100))])[0]
    assert [chunk.input_ids[3:-1].tolist() for chunk in chunks] == [
        word_ids(10, begin=100),
        word_ids(10, begin=107),
        word_ids(10, begin=114),
    ]


def test_reference_cuts_the_longer_text_first():
    long_query, long_passage, both = encoder(max_tokens=13, truncate="reference").encode(
        [(words(20), words(3, begin=100)), (words(3), words(20, begin=100)), (words(20), words(20, begin=100))]
    )
    assert only(long_query).input_ids.tolist() == [1, *word_ids(7), 2, *word_ids(3, begin=100), 2]
    assert only(long_passage).input_ids.tolist() == [1, *word_ids(3), 2, *word_ids(7, begin=100), 2]
    assert only(both).input_ids.tolist() == [1, *word_ids(5), 2, *word_ids(5, begin=100), 2]
    assert only(both).tokens == 43


def test_longest_first_is_that_of_the_tokenizers_library():
    tokenizer = word_tokenizer()
    for limit in (5, 6, 9, 12, 13, 20):
        tokenizer.enable_truncation(limit, strategy="longest_first")
        for first in range(24):
            for second in range(24):
                encoding = tokenizer.encode(words(first), words(second))
                counts = encoding.sequence_ids.count(0), encoding.sequence_ids.count(1)
                assert counts == longest_first(first, second, limit - 3), (first, second, limit)


# --- special tokens in a text


@pytest.mark.parametrize(
    ("family", "spelled"),
    [
        ("bert", "[SEP]"),
        ("modernbert", "[SEP]"),
        ("deberta", "[SEP]"),
        ("xlmr", "</s>"),
        ("xlmr", "<s>"),
        ("xlmr", "<pad>"),
    ],
)
def test_a_special_token_that_a_text_spells_is_text_unless_it_is_allowed_to_act(tiny, family, spelled):
    pairs = [(f"a {spelled} b", f"x{spelled}{spelled}"), ("a b", spelled)]
    found = {}
    for mode in ("neutral", "allow"):
        tokenizer = load_tokenizer(read_checkpoint(tiny(family)))
        number = tokenizer.token_to_id(spelled)
        encoding = PairEncoder(tokenizer, where="here", max_tokens=90, special_tokens=mode)
        counts = [only(entry).input_ids.tolist().count(number) for entry in encoding.encode([*pairs, ("a", "b")])]
        found[mode] = [count - counts[-1] for count in counts[:-1]]
    assert found == {"neutral": [0, 0], "allow": [3, 1]}


@pytest.mark.parametrize("family", ["bert", "xlmr", "modernbert", "deberta"])
def test_neutral_and_allow_agree_where_no_special_token_is_spelled(tiny, family):
    pairs = [("How many?", "Three 東京 🙂 < s > or [ four ]"), ("", "x"), ("É", "</ s>")]
    both = []
    for mode in ("neutral", "allow"):
        tokenizer = load_tokenizer(read_checkpoint(tiny(family)))
        encoding = PairEncoder(tokenizer, where="here", max_tokens=90, special_tokens=mode)
        both.append([only(entry).input_ids.tolist() for entry in encoding.encode(pairs)])
    assert both[0] == both[1]


def test_a_special_token_that_appears_only_after_normalising_is_text_too(tiny):
    # NFKC makes [SEP] of the full-width letters
    tokenizer = load_tokenizer(read_checkpoint(tiny("deberta")))
    encoding = PairEncoder(tokenizer, where="here", max_tokens=90)
    wide = "a ［ＳＥＰ］ b"  # noqa: RUF001
    assert tokenizer.token_to_id("[SEP]") in tokenizer.encode(wide, add_special_tokens=False).ids
    one, other = encoding.encode([(wide, "x"), ("a [SEP] b", "x")])
    assert only(one).input_ids.tolist() == only(other).input_ids.tolist()
    assert only(one).input_ids.tolist().count(tokenizer.token_to_id("[SEP]")) == 2


def unmarked(tiny) -> Tokenizer:
    """BERT's tokenizer whose special tokens are not marked as such, with added tokens besides."""
    state = json.loads(load_tokenizer(read_checkpoint(tiny("bert"))).to_str())
    for token in state["added_tokens"]:
        token["special"] = False
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_tokens(["<|begin|>", "<td>"])
    return tokenizer


@pytest.mark.parametrize(
    ("spelled", "acts"),
    [("[SEP]", False), ("[CLS]", False), ("<|begin|>", False), ("<td>", True), ("[MASK]", True)],
)
def test_what_the_template_holds_is_text_in_a_text_even_if_its_file_does_not_mark_it(tiny, spelled, acts):
    # As in prompts: tokens of the template and control tokens steer a model; other added tokens are its vocabulary.
    found = {}
    for mode in ("neutral", "allow"):
        tokenizer = unmarked(tiny)
        number = tokenizer.token_to_id(spelled)
        encoding = PairEncoder(tokenizer, where="here", max_tokens=90, special_tokens=mode)
        pair, plain = (only(entry).input_ids.tolist() for entry in encoding.encode([("a", f"b {spelled}"), ("a", "b")]))
        found[mode] = pair.count(number) - plain.count(number)
    assert found == {"neutral": int(acts), "allow": 1}


def test_unknown_characters_stay_the_unknown_token(tiny):
    tokenizer = load_tokenizer(read_checkpoint(tiny("xlmr")))
    pair = only(PairEncoder(tokenizer, where="here", max_tokens=90).encode([("\U0001f9ff", "</s> \U0001f9ff")])[0])
    assert pair.input_ids.tolist().count(tokenizer.token_to_id("<unk>")) == 2


# --- what a checkpoint declares


def formed(path, **options):
    checkpoint = read_checkpoint(path)
    more = {"truncate": "reference", "special_tokens": "allow"} | options
    return open_encoder(checkpoint, **{"max_tokens": 40} | more)


@pytest.mark.parametrize("special_tokens", ["allow", "neutral"])
def test_a_prompt_stands_before_the_query_and_its_special_tokens_act(tiny, special_tokens):
    path = tiny("bert")
    tokenizer = load_tokenizer(read_checkpoint(path))
    for prompt in ("ask: ", "[MASK] ", "a [SEP] b: ", "[SEP]"):
        expected = tokenizer.encode(f"{prompt}who?", "me").ids
        encoder = PairEncoder(
            load_tokenizer(read_checkpoint(path)), where="here", max_tokens=100, special_tokens=special_tokens,
            form=PairForm(prompt=prompt),
        )  # fmt: skip
        assert only(encoder.encode([("who?", "me")])[0]).input_ids.tolist() == expected
        assert f"{prompt}{{query}}" in encoder.template
        query = only(encoder.encode([("[SEP]", "me")])[0]).input_ids.tolist()
        same = tokenizer.encode(f"{prompt}[SEP]", "me").ids
        assert (query == same) is (special_tokens == "allow"), prompt


def test_an_instruction_takes_the_place_of_a_declared_prompt_and_an_empty_one_means_none():
    path = PARITY / "bert-prompt-open" / "checkpoint"
    template = {instruction: formed(path, instruction=instruction).template for instruction in (None, "", "find: ")}
    assert template == {
        None: "[CLS]search_query: {query}[SEP]{passage}[SEP]",
        "": "[CLS]{query}[SEP]{passage}[SEP]",
        "find: ": "[CLS]find: {query}[SEP]{passage}[SEP]",
    }


def test_a_model_without_prompts_takes_no_instruction_but_the_empty_one(tiny):
    assert formed(tiny("bert"), instruction="").template == "[CLS]{query}[SEP]{passage}[SEP]"
    with pytest.raises(UsageError, match=r"--instruction: .* takes no instruction"):
        formed(tiny("bert"), instruction="find: ")


@pytest.mark.parametrize("truncate", ["end", "reference"])
def test_the_declared_side_of_a_text_is_cut(tiny, truncate):
    whole = only(formed(tiny("bert"), max_tokens=500).encode([("a b", "c d e " * 30)])[0]).input_ids.tolist()
    kept = {
        side: only(
            formed(tiny("bert", tokenizer_config={"truncation_side": side}), truncate=truncate).encode(
                [("a b", "c d e " * 30)]
            )[0]
        ).input_ids.tolist()
        for side in ("left", "right")
    }
    assert all(len(ids) == 40 for ids in kept.values())
    assert kept["right"][:-1] == whole[:39]
    assert kept["left"][-20:] == whole[-20:]
    assert kept["left"][:4] == whole[:4]  # the query is short, and longest first


@pytest.mark.parametrize("family", ["bert", "xlmr"])
@pytest.mark.parametrize("mode", ["end", "chunk", "error", "reference"])
def test_pairs_of_a_window_are_encoded_as_each_alone(tiny, family, mode):
    texts = ["", "a", "x </s> y", "[SEP]", "\U00013000 b \u16a0", "a b c d " * 9, "one <pad> " * 20]
    pairs = [(query, passage) for query in texts for passage in texts]

    def shown(entry):
        return entry if isinstance(entry, EncodingProblem) else [(pair.input_ids.tolist(), pair) for pair in entry]

    encoding = PairEncoder(
        load_tokenizer(read_checkpoint(tiny(family))), where="here", max_tokens=40, truncate=mode,
        form=PairForm(unknown=1, max_unknown=0.9), chunk_overlap=3,
    )  # fmt: skip
    together = [shown(entry) for entry in encoding.encode(pairs)]
    alone = [shown(encoding.encode([pair])[0]) for pair in pairs]
    assert len({repr(entry) for entry in together}) > 30
    assert repr(together) == repr(alone)


def test_unknown_tokens_are_counted_and_too_many_are_a_problem(tiny):
    path, pairs = tiny("bert"), [("a b", "c d"), ("a \U00013000", "\u16a0 \ua4d0"), ("", "")]
    found = [only(entry) for entry in formed(path).encode(pairs)]
    assert [(pair.unknown, len(pair.input_ids) - pair.template) for pair in found] == [(0, 4), (3, 4), (0, 0)]
    strict = formed(path, max_unknown=0.5).encode(pairs)
    assert [isinstance(entry, EncodingProblem) for entry in strict] == [False, True, False]
    assert strict[1].code == "unknown-tokens"
    assert "3 of the pair's 4 tokens (75 %) are unknown to the model, --max-unknown allows 50 %" in strict[1].message
    assert not any(isinstance(entry, EncodingProblem) for entry in formed(path, max_unknown=0.75).encode(pairs))
