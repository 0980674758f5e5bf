"""The tokenizer of a checkpoint as its model was trained with it (lower case, special tokens), from `tokenizer.json`.

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

import json
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, normalizers, processors

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.encoding.choices import SpecialTokens
from rerank_cli.encoding.normaliser_growth import normalizers_in, refuse_exploding
from rerank_cli.encoding.tokenizer_classes import RULES, is_model_of, token_of, tokenizer_class
from rerank_cli.encoding.tokenizer_refusals import (
    refuse_failing_pair,
    refuse_ids_beyond_model,
    refuse_ids_out_of_order,
    refuse_merges_without_prefix,
    refuse_split_of_mistral,
)
from rerank_cli.errors import ModelError

_ENCODED_CHARACTERS = 2**20  # at a time: their encodings take 65 MB for English, 500 MB for CJK (tokenizers 0.23)
_TRUNCATION = re.compile(rb'"truncation"\s*:\s*(\{[^{}]*\})')  # a vocabulary of 17 MB is not parsed for it
_CONTROL = re.compile(r"<\|.*\|>")
# Classes whose models have no token types, or do not get them.
_WITHOUT_TYPES = {
    "BarthezTokenizer", "BartTokenizer", "CamembertTokenizer", "CohereTokenizer", "DistilBertTokenizer",
    "GPT2Tokenizer", "GPTNeoXTokenizer", "GemmaTokenizer", "LlamaTokenizer", "LongformerTokenizer", "MBartTokenizer",
    "MPNetTokenizer", "NllbTokenizer", "PegasusTokenizer", "Qwen2Tokenizer", "RobertaTokenizer", "T5Tokenizer",
    "XLMRobertaTokenizer",
}  # fmt: skip
_SIDES = ("lstrip", "rstrip", "single_word")
_TOKEN_FLAGS = (*_SIDES, "normalized")
# Their pair templates are mistaken in transformers 5.
_MISTAKEN_TEMPLATES = {"AlbertTokenizer", "DebertaTokenizer"}


def is_panic(error: BaseException) -> bool:
    """Whether the Rust code of tokenizers panicked, which is not an `Exception`; a regex at its limit does that."""
    return type(error).__name__ == "PanicException"


def _open_file(checkpoint: Checkpoint, special_tokens: SpecialTokens) -> Tokenizer:
    try:
        data = checkpoint.tokenizer_file.read_bytes()
        refuse_exploding(normalizers_in(data), checkpoint)  # opening the file normalises its added tokens
        refuse_merges_without_prefix(data, checkpoint)
        tokenizer = Tokenizer.from_buffer(data)
    except ModelError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise ModelError(f"{checkpoint.tokenizer_file}: not a tokenizer: {error}") from error
    refuse_ids_beyond_model(tokenizer, checkpoint, special_tokens)
    return tokenizer


def load_tokenizer(checkpoint: Checkpoint, special_tokens: SpecialTokens = "neutral") -> Tokenizer:
    """The checkpoint's tokenizer, without padding and truncation. special_tokens: what they are in a text."""
    if checkpoint.tokenizer_config.get("split_special_tokens"):
        raise ModelError(
            f"{checkpoint.path / 'tokenizer_config.json'}: `split_special_tokens`: a model whose template's special "
            "tokens are read as text is not known"
        )
    tokenizer = _open_file(checkpoint, special_tokens)
    refuse_split_of_mistral(tokenizer, checkpoint)
    _add_declared(tokenizer, checkpoint)
    name = tokenizer_class(checkpoint)
    # As in transformers: a LlamaTokenizer of bytes is that of Llama 3, whose file is right.
    if name == "LlamaTokenizer" and b'"ByteLevel"' in checkpoint.tokenizer_file.read_bytes():
        name = None
    if name in RULES and is_model_of(name, tokenizer, checkpoint):
        refuse_ids_out_of_order(tokenizer, checkpoint, name)
        _check_list(tokenizer, checkpoint, name)
        try:
            RULES[name](tokenizer, checkpoint.tokenizer_config)
        except (TypeError, ValueError, KeyError) as error:
            raise ModelError(f"{checkpoint.path / 'tokenizer_config.json'}: {error}") from error
    elif name is not None:
        template, tokenizer = tokenizer.post_processor, _backend_of_transformers(checkpoint)
        if name not in RULES and template is not None:
            _keep_template(tokenizer, template, name, checkpoint)
    refuse_failing_pair(tokenizer, checkpoint)
    # Some published files carry the padding and truncation of the machine that saved them.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if checkpoint.declared.lower_case:
        lower_case(tokenizer)
    return tokenizer


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
    """Whether a text that is too long loses its beginning, as transformers has it.

    `truncation_side` in tokenizer_config.json says so; without it the direction of the truncation in tokenizer.json,
    which must have been loaded: a file that is none is told there.
    """
    side = checkpoint.tokenizer_config.get("truncation_side")
    if side is None:
        found = _TRUNCATION.search(checkpoint.tokenizer_file.read_bytes())
        side = str(json.loads(found[1]).get("direction", "right")).lower() if found else "right"
    if side not in ("left", "right"):
        raise ModelError(
            f"{checkpoint.path / 'tokenizer_config.json'}: `truncation_side` must be left or right: {side!r}"
        )
    return bool(side == "left")


def unknown_id(tokenizer: Tokenizer, config: Mapping[str, Any]) -> int | None:
    """The id of the token for what is not in the vocabulary; None where the vocabulary covers every text.

    config: tokenizer_config.json. A tokenizer of bytes may name such a token, which then never occurs.
    """
    named = (token_of(config, "unk_token", ""), getattr(tokenizer.model, "unk_token", None), "<unk>", "[UNK]")
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


def _add_declared(tokenizer: Tokenizer, checkpoint: Checkpoint) -> None:
    """Add the tokens that other files name or add, as transformers does: it cuts them out of a text.

    Refuses one that is not in the vocabulary: transformers adds it under an id that the model was not trained with.
    """
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for key, token, number in _declared_tokens(checkpoint):
        have = tokenizer.token_to_id(token.content)
        if have is None or number not in (None, have):
            where = "is not in it" if have is None else f"is {have} in it"
            said = f"adds `{token.content}`" + ("" if number is None else f" as {number}")
            raise ModelError(
                f"{checkpoint.tokenizer_file}: `{key}` {said}, which {where}",
                hint="save the tokenizer again with `AutoTokenizer.from_pretrained(...).save_pretrained(...)`",
            )
        if token.content not in added:
            tokenizer.add_tokens([token])


def _declared_tokens(checkpoint: Checkpoint) -> Iterator[tuple[str, AddedToken, int | None]]:
    """The tokens of tokenizer_config.json and added_tokens.json: where each stands, and its id where that is told."""
    config, place = checkpoint.tokenizer_config, checkpoint.path / "tokenizer_config.json"
    for key, value in config.items():
        if key.endswith("_token") and value not in (None, "") and not isinstance(value, bool):
            yield key, _as_added(value, f"{place}: `{key}`"), None
    for key in ("additional_special_tokens", "extra_special_tokens"):
        found = config.get(key) or ()
        if not isinstance(found, (Mapping, list, tuple)):
            raise ModelError(f"{place}: `{key}` must be a list of tokens: {found!r}")
        for one in found.values() if isinstance(found, Mapping) else found:
            yield key, _as_added(one, f"{place}: `{key}`"), None
    for text, one in (config.get("added_tokens_decoder") or {}).items():
        if text.isdecimal():
            token = _as_added(one, f"{place}: `added_tokens_decoder`")
            token.special = bool(one.get("special")) if isinstance(one, Mapping) else False
            yield "added_tokens_decoder", token, int(text)
    for content, number in checkpoint.read_json("added_tokens.json").items():
        yield "added_tokens.json", AddedToken(content), number


def _as_added(value: Any, where: str) -> AddedToken:
    """A special token of a file, which writes it as text or as an object with `content`."""
    flags = value if isinstance(value, Mapping) else {"content": value}
    if not isinstance(flags.get("content"), str):
        raise ModelError(f"{where} must be a token: {value!r}")
    return AddedToken(flags["content"], special=True, **{flag: bool(flags.get(flag)) for flag in _TOKEN_FLAGS})


def _check_list(tokenizer: Tokenizer, checkpoint: Checkpoint, name: str) -> None:
    """Refuse an `added_tokens_decoder` that differs from tokenizer.json: a class is made from it alone."""
    decoder = checkpoint.tokenizer_config.get("added_tokens_decoder")
    declared = {token.content: (key, token) for key, token, _ in _declared_tokens(checkpoint)}
    if decoder is None:
        _check_named(tokenizer, checkpoint, declared)
        return
    for token in tokenizer.get_added_tokens_decoder().values():
        key, other = declared.get(token.content, ("", None))
        as_here = key != "added_tokens_decoder" or all(getattr(other, flag) == getattr(token, flag) for flag in _SIDES)
        if other is None or not as_here:
            said = "lacks" if other is None else "has other blanks around"
            raise ModelError(
                f"{checkpoint.path / 'tokenizer_config.json'}: `added_tokens_decoder` {said} `{token.content}`, which "
                f"{checkpoint.tokenizer_file.name} adds, and a {name} is made from it",
                hint="save the tokenizer again with `AutoTokenizer.from_pretrained(...).save_pretrained(...)`",
            )


def _check_named(tokenizer: Tokenizer, checkpoint: Checkpoint, declared: Mapping[str, tuple[str, AddedToken]]) -> None:
    """Refuse a special token that takes other blanks with it than in tokenizer.json, where a class adds it anew.

    That is so for one that is no piece of the vocabulary. The mask's blanks are the class's own, and no text has it.
    """
    pieces = tokenizer.get_vocab_size(with_added_tokens=False)
    for number, token in tokenizer.get_added_tokens_decoder().items():
        key, other = declared.get(token.content, ("", token))
        if (
            number >= pieces
            and key != "mask_token"
            and any(getattr(other, flag) != getattr(token, flag) for flag in _SIDES)
        ):
            raise ModelError(
                f"{checkpoint.path / 'tokenizer_config.json'}: `{key}` has other blanks around `{token.content}` than "
                f"{checkpoint.tokenizer_file.name}",
                hint="save the tokenizer again with `AutoTokenizer.from_pretrained(...).save_pretrained(...)`",
            )


def _keep_template(tokenizer: Tokenizer, template: processors.PostProcessor, name: str, checkpoint: Checkpoint) -> None:
    """Give a tokenizer of transformers the template of tokenizer.json; `ModelError` where its class has another.

    Nothing changes where the file's post-processor puts no special tokens around texts, itself or by one of its steps.
    """
    state = json.loads(template.__getstate__())
    kinds = {step.get("type") for step in state.get("processors", [state])}
    if kinds.isdisjoint(("TemplateProcessing", "BertProcessing", "RobertaProcessing")):
        return
    typed = gives_token_types(checkpoint)
    of_class = _surroundings(tokenizer, typed=typed)
    tokenizer.post_processor = template
    of_file = _surroundings(tokenizer, typed=typed)
    if name in _MISTAKEN_TEMPLATES:  # more of the same tokens, or no token types
        of_class, of_file = [{number for number, _ in one if number >= 0} for one in (of_class, of_file)]
    if of_class != of_file:
        raise ModelError(
            f"{checkpoint.path / 'tokenizer_config.json'}: `tokenizer_class` is {name}, which puts other tokens around "
            f"a pair than {checkpoint.tokenizer_file.name}",
            hint="programs differ in which of the two they take: name the class that the model was trained with, or "
            "PreTrainedTokenizerFast for the file as it is",
        )


def _surroundings(tokenizer: Tokenizer, *, typed: bool) -> Any:
    """The tokens around a pair of texts with their types; -2 and -1 stand for the texts."""
    found = tokenizer.encode("a", "a")
    numbers = [number if text is None else text - 2 for number, text in zip(found.ids, found.sequence_ids, strict=True)]
    return [
        one
        for place, one in enumerate(zip(numbers, found.type_ids if typed else [0] * len(numbers), strict=True))
        if not place or one[0] >= 0 or one[0] != numbers[place - 1]
    ]


def _backend_of_transformers(checkpoint: Checkpoint) -> Tokenizer:
    # Imported here: transformers costs seconds that the classes above need not pay.
    from transformers import AutoTokenizer

    try:
        wrapper = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
        backend = wrapper.backend_tokenizer
    except Exception as error:  # whatever goes wrong in there, the checkpoint cannot be used
        raise ModelError(f"{checkpoint.path}: transformers cannot load this tokenizer: {error}") from error
    return Tokenizer.from_str(backend.to_str())


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[npt.NDArray[np.int32]]:
    """The ids of each text, without special tokens; views of one array for some texts.

    An encoding takes 60 bytes for each byte of its text until its ids are taken, so few long texts are encoded at once.
    """
    for group in _groups(texts):
        flat, ends = array("I"), [0]  # of unsigned numbers: a list is taken four times as fast as of signed ones
        for encoding in tokenizer.encode_batch_fast(group, add_special_tokens=False):
            flat.fromlist(encoding.ids)
            ends.append(len(flat))
        ids = np.frombuffer(flat, dtype=np.int32)
        yield from (ids[begin:end] for begin, end in pairwise(ends))


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
