"""The classes that transformers makes tokenizers with, and what those of the packed families make of a vocabulary.

A class takes vocabulary and merges from tokenizer.json; all else is its own, or an option in tokenizer_config.json.

Source: transformers 5.24, tokenization_auto.py and the modules of the classes.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from rerank_cli.checkpoint import Checkpoint

_PLAIN = {"PreTrainedTokenizer", "PreTrainedTokenizerBase", "PythonBackend", "TokenizersBackend"}
# The classes that transformers takes where a checkpoint names none; for other types the file is right as it is.
_CLASS_OF_MODEL_TYPE = {
    "bert": "BertTokenizer",
    "camembert": "CamembertTokenizer",
    "deberta-v2": "DebertaV2Tokenizer",
    "distilbert": "BertTokenizer",
    "electra": "BertTokenizer",
    "gemma": "GemmaTokenizer",
    "mpnet": "MPNetTokenizer",
    "qwen3": "Qwen2Tokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
}
# The classes (None: the file as it is) of types whose checkpoints often name a wrong one, which transformers ignores.
_CLASS_WHATEVER_IS_NAMED = {"mistral": None, "modernbert": None, "qwen2": "Qwen2Tokenizer"}


def tokenizer_class(checkpoint: Checkpoint) -> str | None:
    """The class that transformers makes the tokenizer with, without `Fast`; None where it takes the file as it is."""
    model_type = str(checkpoint.config.get("model_type"))
    if model_type in _CLASS_WHATEVER_IS_NAMED and "auto_map" not in checkpoint.tokenizer_config:
        return _CLASS_WHATEVER_IS_NAMED[model_type]
    named = checkpoint.tokenizer_config.get("tokenizer_class") or checkpoint.config.get("tokenizer_class")
    if not isinstance(named, str):
        return _CLASS_OF_MODEL_TYPE.get(model_type)
    name = named.removesuffix("Fast")
    return None if name in _PLAIN else name


def token_of(config: Mapping[str, Any], key: str, default: str) -> str:
    """A special token of tokenizer_config.json, which writes it as text or as an object with `content`."""
    value = config.get(key)
    value = default if value is None else value
    return str(value["content"] if isinstance(value, dict) else value)


def _with_ids(tokenizer: Tokenizer, *tokens: str) -> list[tuple[str, int]]:
    ids = []
    for token in tokens:
        number = tokenizer.token_to_id(token)
        if number is None:
            raise ValueError(f"special token `{token}` is not in tokenizer.json")
        ids.append((token, number))
    return ids


# The models that the classes make of a vocabulary; what is not named here is as the library has it.
_BPE = {"continuing_subword_prefix": None, "end_of_word_suffix": None, "dropout": None, "ignore_merges": False}
_BYTES = {**_BPE, "fuse_unk": False, "byte_fallback": False}
_SENTENCEPIECE = {**_BPE, "fuse_unk": True, "byte_fallback": True}
_WORD_PIECE = {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
_MODELS: dict[str, tuple[type[models.Model], Mapping[str, Any]]] = {
    "BertTokenizer": (models.WordPiece, _WORD_PIECE),
    "ElectraTokenizer": (models.WordPiece, _WORD_PIECE),
    "GemmaTokenizer": (models.BPE, _SENTENCEPIECE),
    "LlamaTokenizer": (models.BPE, _SENTENCEPIECE),
    "Qwen2Tokenizer": (models.BPE, _BYTES),
    "RobertaTokenizer": (models.BPE, _BYTES),
    "XLMRobertaTokenizer": (models.Unigram, {}),
}


def is_model_of(name: str, tokenizer: Tokenizer, checkpoint: Checkpoint) -> bool:
    """Whether the model of tokenizer.json is the one that the class makes of its vocabulary."""
    kind, options = _MODELS[name]
    if not isinstance(tokenizer.model, kind):
        return False
    if kind is models.Unigram:  # its options cannot be asked for; no piece looks so: its quotes are escaped
        data = checkpoint.tokenizer_file.read_bytes()
        found = re.search(rb'"unk_id"\s*:\s*(\d+)', data)
        return found is not None and int(found[1]) == 3 and not re.search(rb'"byte_fallback"\s*:\s*true', data)
    return all((getattr(tokenizer.model, option) or None) == (value or None) for option, value in options.items())


def _as_bert(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    tokenizer.model.unk_token = token_of(config, "unk_token", "[UNK]")
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    first, end = token_of(config, "cls_token", "[CLS]"), token_of(config, "sep_token", "[SEP]")
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
    first, end = token_of(config, "bos_token", "<s>"), token_of(config, "eos_token", "</s>")
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
    end, first = _with_ids(tokenizer, token_of(config, "sep_token", "</s>"), token_of(config, "cls_token", "<s>"))
    tokenizer.post_processor = processors.RobertaProcessing(end, first, config.get("trim_offsets", True), prefix)


def _as_qwen2(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    tokenizer.model.unk_token = None
    tokenizer.normalizer = normalizers.NFC()
    prefix = bool(config.get("add_prefix_space"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False),
        ]
    )


def _as_gemma(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    tokenizer.model.unk_token = token_of(config, "unk_token", "<unk>")
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")


def _as_llama(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    tokenizer.model.unk_token = None
    tokenizer.normalizer = None
    prefix = config.get("add_prefix_space")
    scheme = "never" if prefix is False else "always" if config.get("legacy") else "first"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)


_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
RULES: dict[str, Callable[[Tokenizer, Mapping[str, Any]], None]] = {
    "BertTokenizer": _as_bert,
    "ElectraTokenizer": _as_bert,
    "GemmaTokenizer": _as_gemma,
    "LlamaTokenizer": _as_llama,
    "Qwen2Tokenizer": _as_qwen2,
    "RobertaTokenizer": _as_roberta,
    "XLMRobertaTokenizer": _as_xlm_roberta,
}
