"""The tokenizer of a checkpoint as its model was trained with it, from `tokenizer.json`, without transformers.

`tokenizer.json` is not the whole truth. Where transformers has a class of its own for a checkpoint, it takes vocabulary
and merges from the file and rebuilds the rest from the class and the options in `tokenizer_config.json`: normaliser,
pre-tokeniser, options of the model, for some classes the pair template (lower-casing for BERT, white space for XLM-R,
digits for Qwen). The logits that a checkpoint's authors published were made in this way, so the classes of the packed
families have the same rules here. All other classes, and a class whose kind of model is not the file's, are built by
transformers itself. For plain classes the file is right as it is.

Which class it is, transformers decides by the type of the model too: whatever a ModernBERT names, the file is taken as
it is, and a Qwen2 has Qwen's class (`tokenizer_class`).

Even then transformers does not decide what goes around a pair: its version 5 puts two `[SEP]` between the texts of a
DeBERTa, where 4 and the training had one, and gives an ALBERT no token types (huggingface/transformers#48128). So the
template is that of tokenizer.json, if the file has one.

Source: transformers 5.24, tokenization_auto.py, tokenization_utils_tokenizers.py and the modules of the classes; the
parity tests compare token ids.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Encoding, Tokenizer, normalizers, pre_tokenizers, processors

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.json_file import read_json_file
from rerank_cli.encoding.normaliser import normalizers_in, refuse_exploding
from rerank_cli.errors import ModelError

_ENCODED_CHARACTERS = 2**20  # at a time: their encodings take 65 MB for English, 500 MB for CJK (tokenizers 0.23)
_CONTROL = re.compile(r"<\|.*\|>")
# Classes whose models have no token types, or do not get them.
_WITHOUT_TYPES = {
    "BarthezTokenizer", "BartTokenizer", "CamembertTokenizer", "DistilBertTokenizer", "LongformerTokenizer",
    "MPNetTokenizer", "RobertaTokenizer", "XLMRobertaTokenizer",
}  # fmt: skip
_PLAIN = {"PreTrainedTokenizer", "TokenizersBackend", "PreTrainedTokenizerBase"}
# The classes that transformers takes where a checkpoint names none; for other types the file is right as it is.
_CLASS_OF_MODEL_TYPE = {
    "bert": "BertTokenizer",
    "camembert": "CamembertTokenizer",
    "deberta-v2": "DebertaV2Tokenizer",
    "distilbert": "BertTokenizer",
    "electra": "BertTokenizer",
    "mpnet": "MPNetTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
}


def read_tokenizer_file(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer as tokenizer.json has it, without padding and truncation.

    `ModelError` where this file and tokenizer_config.json differ about a blank before texts: for a class with rules of
    its own transformers follows the latter.
    """
    tokenizer = _open_file(checkpoint)
    _check_added_tokens(tokenizer, checkpoint)
    if tokenizer_class(checkpoint) not in (None, *_PLAIN):
        declared = bool(checkpoint.tokenizer_config.get("add_prefix_space"))
        if any(prefix is not declared for prefix in _byte_level_prefixes(tokenizer)):
            raise ModelError(
                f"{checkpoint.path / 'tokenizer_config.json'}: add_prefix_space: {str(declared).lower()}, and "
                f"{checkpoint.tokenizer_file.name} says {str(not declared).lower()}",
                hint="programs differ in which of the two they take: make both say what the model was trained with",
            )
    return _as_declared(tokenizer, checkpoint)


def _byte_level_prefixes(tokenizer: Tokenizer) -> list[bool]:
    """Whether a blank is put before a text, by each ByteLevel step of the pre-tokeniser."""
    if tokenizer.pre_tokenizer is None:
        return []
    state = json.loads(tokenizer.pre_tokenizer.__getstate__())
    steps = state.get("pretokenizers", [state])
    return [step.get("add_prefix_space", True) for step in steps if step.get("type") == "ByteLevel"]


def is_panic(error: BaseException) -> bool:
    """Whether the Rust code of tokenizers panicked, which is not an `Exception`; a regex at its limit does that."""
    return type(error).__name__ == "PanicException"


def _open_file(checkpoint: Checkpoint) -> Tokenizer:
    try:
        data = checkpoint.tokenizer_file.read_bytes()
        refuse_exploding(normalizers_in(data), checkpoint)  # opening the file normalises its added tokens
        tokenizer = Tokenizer.from_buffer(data)
    except ModelError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise ModelError(f"{checkpoint.tokenizer_file}: not a tokenizer: {error}") from error
    _check_vocabulary(tokenizer, checkpoint)
    return tokenizer


def _as_declared(tokenizer: Tokenizer, checkpoint: Checkpoint) -> Tokenizer:
    # Some published files carry the padding and truncation of the machine that saved them.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if checkpoint.declared.lower_case:
        lower_case(tokenizer)
    return tokenizer


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The checkpoint's tokenizer, without padding and truncation."""
    tokenizer = _open_file(checkpoint)
    name = tokenizer_class(checkpoint)
    if name is None or name in _RULES or name in _PLAIN:
        _check_added_tokens(tokenizer, checkpoint)
    try:
        if name in _RULES:
            _RULES[name](tokenizer, checkpoint.tokenizer_config)
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(f"{checkpoint.path / 'tokenizer_config.json'}: {error}") from error
    if name in _RULES:
        return _as_declared(tokenizer, checkpoint)
    if name is not None and name not in _PLAIN:
        template = tokenizer.post_processor
        tokenizer = _backend_of_transformers(checkpoint)
        if template is not None and _surrounds_pairs(template):
            tokenizer.post_processor = template
    return _as_declared(tokenizer, checkpoint)


def tokenizer_class(checkpoint: Checkpoint) -> str | None:
    """The name of the tokenizer's class without `Fast`; by the type of the model where no class is named."""
    named = checkpoint.tokenizer_config.get("tokenizer_class") or checkpoint.config.get("tokenizer_class")
    if isinstance(named, str):
        return named.removesuffix("Fast")
    return _CLASS_OF_MODEL_TYPE.get(str(checkpoint.config.get("model_type")))


def gives_token_types(checkpoint: Checkpoint) -> bool:
    """Whether the model gets token types: it learns which tokens are the passage's, if the template tells them apart.

    `model_input_names` in tokenizer_config.json says so; without it the class decides. Classes of no family keep the
    types of their template: their models were trained with them, whatever transformers 5 does.
    """
    names = checkpoint.tokenizer_config.get("model_input_names")
    if names is None:
        return tokenizer_class(checkpoint) not in _WITHOUT_TYPES
    if not isinstance(names, list):
        raise ModelError(
            f"{checkpoint.path / 'tokenizer_config.json'}: `model_input_names` must be a list of names: {names!r}"
        )
    return "token_type_ids" in names


def cuts_left(checkpoint: Checkpoint) -> bool:
    """Whether a text that is too long loses its beginning (`truncation_side` in tokenizer_config.json)."""
    side = checkpoint.tokenizer_config.get("truncation_side") or "right"
    if side not in ("left", "right"):
        raise ModelError(
            f"{checkpoint.path / 'tokenizer_config.json'}: `truncation_side` must be left or right: {side!r}"
        )
    return bool(side == "left")


def unknown_id(tokenizer: Tokenizer, config: Mapping[str, Any]) -> int | None:
    """The id of the token for what is not in the vocabulary; None where the vocabulary covers every text.

    config: tokenizer_config.json. A tokenizer of bytes may name such a token, which then never occurs.
    """
    named = (_token(config, "unk_token", ""), getattr(tokenizer.model, "unk_token", None), "<unk>", "[UNK]")
    ids = (tokenizer.token_to_id(name) for name in named if name)
    return next((number for number in ids if number is not None), None)


def lower_case(tokenizer: Tokenizer) -> None:
    """Make the tokenizer lower-case texts before its other steps; accents stay if these leave them.

    Source: `do_lower_case` in sentence-transformers' Transformer module, which changes nothing if the normaliser has a
    step `Lowercase` already.
    """
    state = json.loads(tokenizer.normalizer.__getstate__()) if tokenizer.normalizer else {}
    own = state.get("normalizers", [state])
    if any(step.get("type") == "Lowercase" for step in own):
        return
    after = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *after])


def mark_special(tokenizer: Tokenizer, acts: Callable[[str], bool]) -> None:
    """Mark as special the added tokens for whose content `acts` is true, and those of the form `<|...|>`.

    A token in the model's template steers the model, even if its file does not mark it. Other added tokens are left
    alone: some vocabularies have runs of white space and HTML tags there, which are text.
    """
    # For a token that exists this only sets its mark; it keeps its id.
    tokenizer.add_special_tokens(
        [
            AddedToken(token.content, normalized=token.normalized, special=True)
            for token in tokenizer.get_added_tokens_decoder().values()
            if not token.special and (acts(token.content) or _CONTROL.fullmatch(token.content))
        ]
    )


def without_special_pieces(tokenizer: Tokenizer) -> Tokenizer:
    """A copy for plain text: no piece of its vocabulary is spelled like a special token, except the unknown one.

    With `encode_special_tokens` added tokens are not searched for in a text. But where `</s>` is also a piece of the
    vocabulary (XLM-R, DeBERTa-v2), the model finds it there. All other pieces keep their ids.
    """
    state = json.loads(tokenizer.to_str())
    model = state["model"]
    by_name = isinstance(model["vocab"], dict)
    pieces = list(model["vocab"]) if by_name else [piece for piece, _ in model["vocab"]]
    unknown = model.get("unk_token") if by_name else None if model["unk_id"] is None else pieces[model["unk_id"]]
    special = {token["content"] for token in state["added_tokens"] if token["special"]} - {unknown}
    # No text has such a piece: nobody writes it, and most tokenizers would cut at its spaces or drop its NUL.
    renamed = [f"\0 special {place}" if piece in special else piece for place, piece in enumerate(pieces)]
    if by_name:
        model["vocab"] = dict(zip(renamed, model["vocab"].values(), strict=True))
    else:
        model["vocab"] = [[piece, score] for piece, (_, score) in zip(renamed, model["vocab"], strict=True)]
    # An added token that is also a piece would be added again, under another id.
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in special & set(pieces)]
    state["post_processor"] = None
    copy = Tokenizer.from_str(json.dumps(state))
    copy.encode_special_tokens = True
    return copy


def _check_vocabulary(tokenizer: Tokenizer, checkpoint: Checkpoint) -> None:
    """Refuse a tokenizer whose own vocabulary is larger than the model's table: its ids would have no embedding."""
    rows, pieces = checkpoint.config.get("vocab_size"), tokenizer.get_vocab_size(with_added_tokens=False)
    if isinstance(rows, int) and pieces > rows:
        raise ModelError(
            f"{checkpoint.tokenizer_file}: {pieces} tokens, but the model's `vocab_size` is {rows}",
            hint="tokenizer and weights are of different models",
        )
    for number, token in tokenizer.get_added_tokens_decoder().items():
        # A special one, mostly for padding, never comes out of a text that is taken as it is.
        if isinstance(rows, int) and number >= rows and not token.special:
            raise ModelError(
                f"{checkpoint.tokenizer_file}: the added token `{token.content}` has the id {number}, and the model's "
                f"`vocab_size` is {rows}",
                hint="the weights are of a model before that token was added",
            )


def _check_added_tokens(tokenizer: Tokenizer, checkpoint: Checkpoint) -> None:
    """Refuse tokens that other files add and tokenizer.json lacks: transformers would cut them out of a text."""
    config, file = checkpoint.tokenizer_config, checkpoint.path / "added_tokens.json"
    added: list[tuple[str, Any, int | None]] = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        found = config.get(key) or ()
        added += [(key, one, None) for one in (found.values() if isinstance(found, Mapping) else found)]
    decoder = config.get("added_tokens_decoder") or {}
    added += [("added_tokens_decoder", one, int(number)) for number, one in decoder.items() if number.isdecimal()]
    if file.is_file():
        added += [(file.name, one, number) for one, number in read_json_file(file).items()]
    for key, one, number in added:
        token = str(one.get("content")) if isinstance(one, Mapping) else str(one)
        have = tokenizer.token_to_id(token)
        if have is None or number not in (None, have):
            where = "is not in it" if have is None else f"is {have} in it"
            said = f"adds `{token}`" + ("" if number is None else f" as {number}")
            raise ModelError(
                f"{checkpoint.tokenizer_file}: `{key}` {said}, which {where}",
                hint="save the tokenizer again with `AutoTokenizer.from_pretrained(...).save_pretrained(...)`",
            )


def _token(config: Mapping[str, Any], key: str, default: str) -> str:
    """A special token of tokenizer_config.json, which writes it as text or as an object with `content`."""
    value = config.get(key) or default
    return str(value["content"] if isinstance(value, dict) else value)


def _with_ids(tokenizer: Tokenizer, *tokens: str) -> list[tuple[str, int]]:
    ids = []
    for token in tokens:
        number = tokenizer.token_to_id(token)
        if number is None:
            raise ValueError(f"special token `{token}` is not in tokenizer.json")
        ids.append((token, number))
    return ids


def _as_bert(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    first, end = _token(config, "cls_token", "[CLS]"), _token(config, "sep_token", "[SEP]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first}:0 $A:0 {end}:0",
        pair=f"{first}:0 $A:0 {end}:0 $B:1 {end}:1",
        special_tokens=_with_ids(tokenizer, first, end),
    )


def _as_xlm_roberta(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    charsmap = _precompiled_charsmap(tokenizer)
    tokenizer.normalizer = normalizers.Precompiled(charsmap) if charsmap else None
    scheme = "always" if config.get("add_prefix_space", True) else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)]
    )
    first, end = _token(config, "bos_token", "<s>"), _token(config, "eos_token", "</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[first, "$A", end],
        pair=[first, "$A", end, end, "$B", end],
        special_tokens=_with_ids(tokenizer, first, end),
    )


def _precompiled_charsmap(tokenizer: Tokenizer) -> bytes | None:
    """SentencePiece's character table, if the file's normaliser has one, alone or in a sequence."""
    if tokenizer.normalizer is None:
        return None
    state = json.loads(tokenizer.normalizer.__getstate__())
    for part in state.get("normalizers", [state]):
        if part.get("precompiled_charsmap"):
            return base64.b64decode(part["precompiled_charsmap"])
    return None


def _as_roberta(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    prefix = config.get("add_prefix_space", False)
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    end, first = _with_ids(tokenizer, _token(config, "sep_token", "</s>"), _token(config, "cls_token", "<s>"))
    tokenizer.post_processor = processors.RobertaProcessing(end, first, config.get("trim_offsets", True), prefix)


_RULES: dict[str, Callable[[Tokenizer, Mapping[str, Any]], None]] = {
    "BertTokenizer": _as_bert,
    "ElectraTokenizer": _as_bert,
    "XLMRobertaTokenizer": _as_xlm_roberta,
    "RobertaTokenizer": _as_roberta,
}


def _surrounds_pairs(template: processors.PostProcessor) -> bool:
    """Whether a post-processor of tokenizer.json puts special tokens around texts, itself or by one of its steps."""
    state = json.loads(template.__getstate__())
    steps = state.get("processors", [state])
    return any(step.get("type") in ("TemplateProcessing", "BertProcessing", "RobertaProcessing") for step in steps)


def _backend_of_transformers(checkpoint: Checkpoint) -> Tokenizer:
    # Imported here: transformers costs seconds that the classes above need not pay.
    from transformers import AutoTokenizer

    try:
        wrapper = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
        backend = wrapper.backend_tokenizer
    except Exception as error:  # whatever goes wrong in there, the checkpoint cannot be used
        raise ModelError(f"{checkpoint.path}: transformers cannot load this tokenizer: {error}") from error
    return Tokenizer.from_str(backend.to_str())


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[tuple[str, Encoding]]:
    """Each text with its encoding, without special tokens.

    An encoding takes 60 bytes for each byte of its text until its ids are taken, so few long texts are encoded at once.
    """
    for group in _groups(texts):
        yield from zip(group, tokenizer.encode_batch_fast(group, add_special_tokens=False), strict=True)


def _groups(texts: Sequence[str]) -> Iterator[list[str]]:
    group: list[str] = []
    characters = 0
    for text in texts:
        if group and characters + len(text) > _ENCODED_CHARACTERS:
            yield group
            group, characters = [], 0
        group.append(text)
        characters += len(text)
    if group:
        yield group
