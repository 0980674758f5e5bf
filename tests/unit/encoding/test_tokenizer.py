from __future__ import annotations

import base64
import json
import re
import shutil
import struct
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer
from transformers.models.auto.tokenization_auto import (
    MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS,
    TOKENIZER_MAPPING_NAMES,
)

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.encoding.pairs import PairEncoder
from rerank_cli.encoding.tokenizer import (
    cuts_left,
    encode_texts,
    gives_token_types,
    load_tokenizer,
    unknown_id,
    without_special_pieces,
)
from rerank_cli.encoding.tokenizer_classes import (
    _CLASS_OF_MODEL_TYPE,
    _CLASS_WHATEVER_IS_NAMED,
    tokenizer_class,
)
from rerank_cli.errors import ModelError
from tests.conftest import TINY_CHECKPOINT

OTHER = {"architectures": ["AlbertForSequenceClassification"]}  # for a `model_type` that is not BERT's
PARITY = Path(__file__).parents[2] / "parity"
SAMPLES = Path(__file__).parents[3] / "samples" / "python-docs.jsonl"
ODD_PAIRS = [
    ("", ""),
    (" \t\n ", "a"),
    ("Ä É ñ İstanbul ﬁ ①", "東京タワーの高さは? 北京 한국어"),
    ("👩‍💻🙂", "zero\u200bwidth \u00a0 soft\u00adhyphen \u202e"),
    ("don't can't I'll", "a\r\nb\tc  d   e"),
    ("x" * 300, "1234567890" * 20),
    ("[SEP] </s> <s> [CLS]", "<pad> [MASK] <mask> <unk> [UNK]"),
    ("[sep]", "▁▁ _ ##ing"),
]


@pytest.fixture(scope="module")
def texts() -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in SAMPLES.read_text(encoding="utf-8").splitlines()]
    return [(row["query"], passage["text"]) for row in rows for passage in row["passages"][:3]] + ODD_PAIRS


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_tokenizer(read_checkpoint(path))
    return caught.value.message


def assert_same_as_transformers(path: Path, pairs: list[tuple[str, str]]) -> None:
    """Ids and token types of every pair are those of `AutoTokenizer`."""
    tokenizer = load_tokenizer(read_checkpoint(path))
    encoder = PairEncoder(tokenizer, where="here", max_tokens=100_000, special_tokens="allow")
    reference = AutoTokenizer.from_pretrained(path)(
        [query for query, _ in pairs],
        [passage for _, passage in pairs],
        return_token_type_ids=True,
    )
    for place, encoded in enumerate(encoder.encode(pairs)):
        (pair,) = encoded
        assert pair.input_ids.tolist() == reference["input_ids"][place], pairs[place]
        types = [int(position >= pair.second_start) for position in range(len(pair.input_ids))]
        assert types == reference["token_type_ids"][place], pairs[place]


def ids(path: Path, text: str) -> list[int]:
    return load_tokenizer(read_checkpoint(path)).encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("family", ["bert", "xlmr", "modernbert", "deberta"])
def test_pairs_of_real_and_odd_texts_have_the_ids_of_transformers(tiny, texts, family):
    assert_same_as_transformers(tiny(family), texts)


# --- options of the class win over tokenizer.json


@pytest.mark.parametrize(
    "options",
    [
        {"do_lower_case": False},
        {"do_lower_case": False, "strip_accents": True},
        {"strip_accents": False},
        {"tokenize_chinese_chars": False},
        {"tokenizer_class": "BertTokenizerFast", "do_lower_case": False},
        {"do_lower_case": None},
    ],
    ids=str,
)
def test_the_options_of_bert_are_those_of_tokenizer_config(tiny, texts, options):
    assert_same_as_transformers(tiny("bert", tokenizer_config=options), texts[::4] + ODD_PAIRS)


def test_lower_case_is_a_matter_of_tokenizer_config_in_bert(tiny):
    lower, cased = tiny("bert"), tiny("bert", tokenizer_config={"do_lower_case": False})
    assert ids(lower, "Paris") == ids(lower, "paris")
    assert ids(cased, "Paris") != ids(cased, "paris")


@pytest.mark.parametrize("token", ["[MASK]", {"content": "[MASK]", "lstrip": False, "__type": "AddedToken"}], ids=str)
@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_special_tokens_are_those_of_either_file(tiny, file, token):
    path = tiny("bert")
    (path / "special_tokens_map.json").write_text("{}")
    written = token if file == "tokenizer_config.json" or isinstance(token, str) else {"content": "[MASK]"}
    (path / file).write_text(json.dumps(json.loads((path / file).read_text()) | {"sep_token": written}))
    assert_same_as_transformers(path, [("a", "b"), ("", "")])
    assert load_tokenizer(read_checkpoint(path)).encode("a", "b").tokens == ["[CLS]", "a", "[MASK]", "b", "[MASK]"]


def test_the_old_file_of_special_tokens_is_not_heeded_beside_a_new_tokenizer_config(tiny):
    decoder = {"3": {"content": "[SEP]", "special": True}}
    path = tiny("bert", tokenizer_config={"added_tokens_decoder": decoder})
    (path / "special_tokens_map.json").write_text('{"sep_token": "[MASK]"}')
    assert_same_as_transformers(path, [("a", "b"), ("", "")])


@pytest.mark.parametrize("options", [{"add_prefix_space": False}, {"add_prefix_space": True}], ids=str)
def test_the_options_of_xlm_roberta_are_those_of_tokenizer_config(tiny, texts, options):
    assert_same_as_transformers(tiny("xlmr", tokenizer_config=options), texts[::4] + ODD_PAIRS)


# A trie without any entry: normalises nothing, but is one.
CHARSMAP = base64.b64encode(struct.pack("<I", 1024) + bytes(1024) + b"\0").decode()
PRECOMPILED = {"type": "Precompiled", "precompiled_charsmap": CHARSMAP}


@pytest.mark.parametrize(
    ("normalizer", "kept"),
    [
        (PRECOMPILED, True),
        ({"type": "Sequence", "normalizers": [{"type": "NFKC"}, PRECOMPILED]}, True),
        ({"type": "Sequence", "normalizers": [{"type": "NFKC"}]}, False),
        ({"type": "NFKC"}, False),
        (None, False),
    ],
    ids=["alone", "in-a-sequence", "none-in-a-sequence", "another", "none"],
)
def test_xlm_roberta_keeps_the_character_table_of_sentencepiece_and_nothing_else(tiny, normalizer, kept):
    path = tiny("xlmr")
    state = json.loads((path / "tokenizer.json").read_text()) | {"normalizer": normalizer}
    (path / "tokenizer.json").write_text(json.dumps(state))
    found = json.loads(load_tokenizer(read_checkpoint(path)).to_str())["normalizer"]
    assert found == (PRECOMPILED if kept else None)
    assert found == json.loads(AutoTokenizer.from_pretrained(path).backend_tokenizer.to_str())["normalizer"]


@pytest.fixture
def roberta(tiny, texts) -> Path:
    """A RoBERTa checkpoint with a byte-level BPE of its own, made from the samples."""
    path = tiny(
        "xlmr",
        config={"architectures": ["RobertaForSequenceClassification"], "model_type": "roberta"},
        tokenizer_config={"tokenizer_class": "RobertaTokenizer"},
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([passage for _, passage in texts], trainer)
    tokenizer.save(str(path / "tokenizer.json"))  # without a post-processor: the class brings it
    return path


@pytest.mark.parametrize("options", [{}, {"add_prefix_space": True}, {"trim_offsets": False}], ids=str)
def test_roberta_has_the_ids_of_transformers(roberta, texts, options):
    config = json.loads((roberta / "tokenizer_config.json").read_text()) | options
    (roberta / "tokenizer_config.json").write_text(json.dumps(config))
    assert_same_as_transformers(roberta, texts)
    tokens = load_tokenizer(read_checkpoint(roberta)).encode("a", "b").tokens
    assert tokens[0] == "<s>"
    assert tokens[2:4] == ["</s>", "</s>"]


# --- which class


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("bert", "ElectraTokenizer"),
        ("xlmr", "CamembertTokenizer"),
        ("deberta", "DebertaV2Tokenizer"),
    ],
)
def test_a_class_without_a_rule_is_built_by_transformers(tiny, texts, family, name):
    path = tiny(family, tokenizer_config={"tokenizer_class": name})
    assert_same_as_transformers(path, texts[::4] + ODD_PAIRS)


@pytest.mark.parametrize(("name", "source"), [("DebertaTokenizer", "modernbert"), ("AlbertTokenizer", "deberta")])
def test_the_template_of_a_pair_is_the_files_where_transformers_is_mistaken(tiny, name, source):
    # Version 5 gives DeBERTa two [SEP] between the texts and takes ALBERT's token types away.
    path = tiny(
        source, tokenizer_config={"tokenizer_class": name, "tokenizer_type": None}, config={"model_type": "albert"}
    )
    _with_template(path)
    found = load_tokenizer(read_checkpoint(path)).encode("a", "b")
    special = [token for token, inside in zip(found.tokens, found.sequence_ids, strict=True) if inside is None]
    assert special == ["[CLS]", "[SEP]", "[SEP]"]
    assert found.type_ids[0] == 0
    assert found.type_ids[-1] == 1


def test_a_class_that_puts_other_tokens_around_a_pair_than_the_file_is_refused(tiny):
    path = tiny("bert", tokenizer_config={"tokenizer_class": "MPNetTokenizer"})
    assert "`tokenizer_class` is MPNetTokenizer, which puts other tokens around a pair" in refusal(path)


def test_a_file_without_a_template_gets_that_of_its_class(tiny):
    path = tiny("bert", tokenizer_config={"tokenizer_class": "MPNetTokenizer"})
    state = json.loads((path / "tokenizer.json").read_text())
    (path / "tokenizer.json").write_text(json.dumps({**state, "post_processor": None}))
    tokens = load_tokenizer(read_checkpoint(path)).encode("a", "b").tokens
    assert tokens == ["[CLS]", "a", "[SEP]", "[SEP]", "b", "[SEP]"]


def _with_template(path: Path) -> None:
    """Let the file say [CLS] A [SEP] B [SEP] with types 0 and 1, as it was saved by transformers 4."""
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.save(str(path / "tokenizer.json"))


# --- what tokenizer_config.json says beside the class


@pytest.mark.parametrize(
    ("config", "given"),
    [
        ({}, True),
        ({"model_input_names": ["input_ids", "attention_mask"]}, False),
        ({"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}, True),
        ({"tokenizer_class": "DistilBertTokenizer"}, False),
        ({"tokenizer_class": "RobertaTokenizerFast"}, False),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, True),
        ({"tokenizer_class": "DistilBertTokenizer", "model_input_names": ["input_ids", "token_type_ids"]}, True),
    ],
)
def test_token_types_are_given_as_declared_or_as_the_class_does(tiny, config, given):
    checkpoint = read_checkpoint(tiny("bert", tokenizer_config=config))
    assert gives_token_types(checkpoint) is given


@pytest.mark.parametrize(("side", "left"), [(None, False), ("right", False), ("left", True)])
def test_the_side_that_is_cut_is_the_declared_one(tiny, side, left):
    assert cuts_left(read_checkpoint(tiny("bert", tokenizer_config={"truncation_side": side}))) is left


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"truncation_side": "both"}, "`truncation_side` must be left or right: 'both'"),
        ({"model_input_names": "input_ids"}, "`model_input_names` must be a list of names: 'input_ids'"),
    ],
)
def test_a_declaration_that_cannot_be_obeyed_is_refused(tiny, config, message):
    checkpoint = read_checkpoint(tiny("bert", tokenizer_config=config))
    with pytest.raises(ModelError, match=message):
        cuts_left(checkpoint)
        gives_token_types(checkpoint)


@pytest.mark.parametrize(("family", "unknown"), [("bert", "[UNK]"), ("xlmr", "<unk>"), ("deberta", "[UNK]")])
def test_the_unknown_token_is_what_a_foreign_letter_becomes(tiny, family, unknown):
    checkpoint = read_checkpoint(tiny(family))
    tokenizer = load_tokenizer(checkpoint)
    number = unknown_id(tokenizer, checkpoint.tokenizer_config)
    assert number == tokenizer.token_to_id(unknown)
    assert number in tokenizer.encode("\U00013000", add_special_tokens=False).ids


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "TokenizersBackend", "PreTrainedTokenizer"])
def test_a_plain_class_is_the_file_as_it_is(tiny, name):
    path = tiny("bert", tokenizer_config={"tokenizer_class": name, "do_lower_case": False})
    assert ids(path, "Paris") == ids(path, "paris")


def test_a_class_in_config_json_counts_where_tokenizer_config_names_none(tiny):
    path = tiny("bert", tokenizer_config={"tokenizer_class": None}, config={"tokenizer_class": "XLMRobertaTokenizer"})
    assert tokenizer_class(read_checkpoint(path)) == "XLMRobertaTokenizer"


@pytest.mark.parametrize("model_type", _CLASS_OF_MODEL_TYPE)
def test_without_a_class_the_type_of_the_model_decides_as_in_transformers(tiny, model_type):
    path = tiny("bert", tokenizer_config={"tokenizer_class": None}, config={"model_type": model_type, **OTHER})
    named = tokenizer_class(read_checkpoint(path))
    assert named == TOKENIZER_MAPPING_NAMES[model_type].removesuffix("Fast")


@pytest.mark.parametrize("model_type", _CLASS_WHATEVER_IS_NAMED)
def test_a_type_whose_checkpoints_name_wrong_classes_has_its_own_as_in_transformers(tiny, model_type):
    path = tiny(
        "bert", tokenizer_config={"tokenizer_class": "RobertaTokenizer"}, config={"model_type": model_type, **OTHER}
    )
    registered = TOKENIZER_MAPPING_NAMES[model_type]
    plain = registered in ("TokenizersBackend", "MistralCommonBackend")
    assert plain or model_type in MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
    assert tokenizer_class(read_checkpoint(path)) == (None if plain else registered)


@pytest.mark.parametrize(
    "config", [{"model_type": "modernbert", **OTHER}, {"model_type": None}, {"model_type": "my-own"}], ids=str
)
def test_a_type_without_a_class_has_the_file_as_it_is(tiny, config):
    path = tiny("bert", tokenizer_config={"tokenizer_class": None, "do_lower_case": False}, config=config)
    assert tokenizer_class(read_checkpoint(path)) is None
    assert ids(path, "Paris") == ids(path, "paris")


def test_a_tokenizer_that_transformers_cannot_build_is_refused(tiny):
    path = tiny("bert", tokenizer_config={"tokenizer_class": "XLMRobertaTokenizer"})  # which has no words by name
    assert refusal(path).startswith(f"{path}: transformers cannot load this tokenizer: ")


def test_padding_and_truncation_of_the_machine_that_saved_it_are_dropped(tiny):
    path = tiny("bert")
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(6)
    tokenizer.save(str(path / "tokenizer.json"))
    assert len(load_tokenizer(read_checkpoint(path)).encode("a b c", "d e f g h i").ids) == 12


def test_code_of_a_tokenizer_in_a_checkpoint_is_never_run(tiny):
    auto_map = {"AutoTokenizer": [None, "tokenization_mine.MyTokenizer"]}
    path = tiny("bert", tokenizer_config={"tokenizer_class": "MyTokenizer", "auto_map": auto_map})
    (path / "tokenization_mine.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('canary').touch()\nclass MyTokenizer: ...\n"
    )
    assert ids(path, "a b") == ids(tiny("bert"), "a b")  # transformers takes the file as it is
    assert not (path / "canary").exists()


# --- what is refused


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"model": {"type": "Magic"}}', b"\xff\xfe"])
def test_a_file_that_is_no_tokenizer_is_refused(tiny, content):
    path = tiny("bert")
    (path / "tokenizer.json").write_bytes(content)
    assert refusal(path).startswith(f"{path / 'tokenizer.json'}: not a tokenizer: ")


def test_a_vocabulary_larger_than_the_models_table_is_refused(tiny):
    path = tiny("bert", config={"vocab_size": 900})
    assert refusal(path) == f"{path / 'tokenizer.json'}: 908 tokens, but the model's `vocab_size` is 900"


def test_an_id_beyond_the_models_table_is_refused_also_in_a_small_vocabulary(tiny):
    path = tiny("bert")
    file = path / "tokenizer.json"
    state = json.loads(file.read_bytes())
    state["model"]["vocab"]["the"] = 5000
    file.write_text(json.dumps(state))
    assert refusal(path) == f"{file}: the token `the` has the id 5000, and the model's `vocab_size` is 908"


@pytest.mark.parametrize(("merge", "shown"), [(["a", "b"], "['a', 'b']"), ("a b", "'a b'"), (["a", "#"], "['a', '#']")])
def test_merges_that_lack_their_prefix_are_refused(tiny, merge, shown):
    """Today's library panics on the first, and takes another token for longer ones."""
    path = tiny("bert")
    vocab = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "##b": 4, "a##b": 5, "ab": 6, "b": 7, "#": 8}
    state = json.loads((path / "tokenizer.json").read_bytes())
    state["model"] = {
        "type": "BPE", "vocab": vocab, "merges": [["a", "##b"], merge], "continuing_subword_prefix": "##",
    }  # fmt: skip
    (path / "tokenizer.json").write_text(json.dumps(state))
    assert refusal(path) == (
        f"{path / 'tokenizer.json'}: `continuing_subword_prefix` is `##`, and the merge {shown} has a second part "
        "without it"
    )


@pytest.mark.parametrize("size", [908, 1000, None, "many"])
def test_a_vocabulary_that_fits_or_is_not_told_is_fine(tiny, size):
    assert load_tokenizer(read_checkpoint(tiny("bert", config={"vocab_size": size}))).get_vocab_size() == 908


@pytest.mark.parametrize("family", ["bert", "xlmr"])
def test_a_special_token_that_the_vocabulary_lacks_is_refused_by_name(tiny, family):
    path = tiny(family, tokenizer_config={"sep_token": "<nothing>", "eos_token": "<nothing>"})
    (path / "special_tokens_map.json").unlink()
    assert re.search(r"tokenizer.json: `(sep|eos)_token` adds `<nothing>`, which is not in it", refusal(path))


@pytest.mark.parametrize(
    ("family", "options"),
    [("bert", {"strip_accents": "yes"}), ("bert", {"sep_token": {"text": "[SEP]"}}), ("bert", {"sep_token": 5})],
    ids=str,
)
def test_an_option_that_makes_no_sense_is_refused(tiny, family, options):
    path = tiny(family, tokenizer_config=options)
    (path / "special_tokens_map.json").unlink()
    assert refusal(path).startswith(f"{path / 'tokenizer_config.json'}: ")


# --- text that spells special tokens


@pytest.mark.parametrize("family", ["bert", "xlmr", "modernbert", "deberta"])
def test_a_tokenizer_without_special_pieces_differs_only_where_one_is_spelled(tiny, texts, family):
    tokenizer = load_tokenizer(read_checkpoint(tiny(family)))
    plain = without_special_pieces(tokenizer)
    special = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    unknown = special[next(name for name in special if "unk" in name.lower())]
    for _, text in texts:
        encoded = plain.encode(text, add_special_tokens=False).ids
        assert {unknown}.issuperset(set(encoded) & set(special.values()))
        if not any(name in text for name in special):
            assert encoded == tokenizer.encode(text, add_special_tokens=False).ids


def test_words_of_a_vocabulary_by_name_are_renamed_too():
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "[SEP]": 1, "a": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["[UNK]", "[SEP]", "[LATE]"])
    plain = without_special_pieces(tokenizer)
    assert tokenizer.encode("a [SEP] [LATE]").ids == [2, 1, 3]
    assert plain.encode("a [SEP] [LATE] [UNK]").ids == [2, 0, 0, 0]


def test_a_vocabulary_without_an_unknown_piece_can_be_copied():
    tokenizer = Tokenizer(models.Unigram([("a", -1.0), ("<", -2.0), ("s", -2.0), (">", -2.0), ("<s>", 0.0)], None))
    tokenizer.add_special_tokens(["<s>"])
    assert tokenizer.encode("a<s>").ids == [0, 4]
    assert without_special_pieces(tokenizer).encode("a<s>").ids == [0, 1, 2, 3]


def test_long_texts_are_encoded_few_at_a_time_and_none_is_lost():
    tokenizer = load_tokenizer(read_checkpoint(TINY_CHECKPOINT))
    sizes = []

    class Watched:
        def encode_batch_fast(self, texts, **options):
            sizes.append([len(text) for text in texts])
            return tokenizer.encode_batch_fast(texts, **options)

    texts = ["a " * 300_000, "b", "c " * 150_000, "d " * 200_000, "", "e"]
    found = [ids.tolist() for ids in encode_texts(Watched(), texts)]
    assert found == [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert sizes == [[600_000, 1, 300_000], [400_000, 0, 1]]


@pytest.mark.parametrize("name", ["Qwen2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", None])
@pytest.mark.parametrize("said", [True, False, None])
def test_a_blank_before_texts_is_a_matter_of_the_class(name: str, said: bool, tmp_path: Path) -> None:
    shutil.copytree(PARITY / "qwen3-st-open" / "checkpoint", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8")) | {"tokenizer_class": name, "add_prefix_space": said}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}), "utf-8")
    wanted = AutoTokenizer.from_pretrained(tmp_path)("pump seal 12", add_special_tokens=False)["input_ids"]
    assert ids(tmp_path, "pump seal 12") == wanted


@pytest.mark.parametrize(
    ("kind", "more", "fixed", "refused"),
    [
        ("mistral", 100_000, False, True),
        ("mistral", 100_000, True, False),
        ("mistral", 0, False, False),
        ("llama", 100_000, False, False),
    ],
)
def test_a_mistral_whose_pattern_transformers_would_mend_is_refused(tmp_path, kind, more, fixed, refused):
    folder = tmp_path / "checkpoint"
    shutil.copytree(TINY_CHECKPOINT.parents[1] / "llama-seqcls-st-open" / "checkpoint", folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": kind, "architectures": [f"{kind.title()}ForSequenceClassification"], "vocab_size": 200_000}
    config.pop("transformers_version")
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words |= {f"<<{number}>>": 1000 + number for number in range(more)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    options = json.loads((folder / "tokenizer_config.json").read_text()) | {"fix_mistral_regex": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    if fixed:
        AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
        assert json.loads((folder / "tokenizer.json").read_text())["pre_tokenizer"] != tokenizer["pre_tokenizer"]
    if refused:
        with pytest.raises(ModelError, match="`fix_mistral_regex`"):
            load_tokenizer(read_checkpoint(folder))
    else:
        loaded = load_tokenizer(read_checkpoint(folder)).encode("HelloWorld fooBar 123").ids
        assert loaded == AutoTokenizer.from_pretrained(folder)("HelloWorld fooBar 123")["input_ids"]


def test_added_tokens_out_of_the_order_of_their_ids_are_refused_where_a_class_goes_by_the_ids(tmp_path):
    shutil.copytree(PARITY / "qwen3-st-open" / "checkpoint", tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tokenizer.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    state["added_tokens"].reverse()
    file.write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(ModelError) as caught:
        load_tokenizer(read_checkpoint(tmp_path))
    assert caught.value.message == (
        f"{file}: the added token `</think>` has the id 624, and its place in the list makes it 620"
    )


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_a_named_token_with_other_blanks_than_in_the_file_is_refused_where_a_class_adds_it(tmp_path, flag):
    shutil.copytree(PARITY / "qwen3-st-open" / "checkpoint", tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tokenizer.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    for token in state["added_tokens"]:
        token[flag] = token["content"] == "<|im_end|>"
    file.write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(ModelError) as caught:
        load_tokenizer(read_checkpoint(tmp_path))
    where = tmp_path / "tokenizer_config.json"
    assert caught.value.message == f"{where}: `eos_token` has other blanks around `<|im_end|>` than tokenizer.json"
