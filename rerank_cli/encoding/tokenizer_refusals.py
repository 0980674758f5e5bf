"""Refuses a tokenizer.json that does not belong to its model, or that transformers reads otherwise than the library.

Without these checks a pair would get ids that the model has no embedding of, or other tokens than in training; or the
library would end the process.
"""

from __future__ import annotations

import json
import re

from tokenizers import Tokenizer
from tokenizers.models import Unigram

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.encoding.choices import SpecialTokens
from rerank_cli.errors import ModelError

# Of a Mistral: a smaller vocabulary is never changed, and this is a part of no other pattern.
_LARGE_VOCABULARY = 100_000
_SPLIT_OF_MISTRAL = rb"?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|"
_ADDED = re.compile(r'"added_tokens"\s*:\s*\[')
_PREFIX = re.compile(rb'"continuing_subword_prefix"\s*:\s*"(?!")')


def refuse_split_of_mistral(tokenizer: Tokenizer, checkpoint: Checkpoint) -> None:
    """Refuse a Mistral whose words transformers splits by another pattern than tokenizer.json says.

    It does so for `fix_mistral_regex` in tokenizer_config.json. A tokenizer that it saved then has the pattern itself.
    """
    of_mistral = checkpoint.config.get("model_type") in (None, "mistral")
    if not checkpoint.tokenizer_config.get("fix_mistral_regex") or not of_mistral:
        return
    is_large = tokenizer.get_vocab_size() > _LARGE_VOCABULARY
    if is_large and _SPLIT_OF_MISTRAL not in checkpoint.tokenizer_file.read_bytes():
        raise ModelError(
            f"{checkpoint.path / 'tokenizer_config.json'}: `fix_mistral_regex`: {checkpoint.tokenizer_file.name} has "
            "the pattern before the fix",
            hint="save the tokenizer again with `AutoTokenizer.from_pretrained(..., fix_mistral_regex=True)`",
        )


def refuse_merges_without_prefix(data: bytes, checkpoint: Checkpoint) -> None:
    """Refuse merges whose second part lacks the prefix of such parts.

    The library cuts off as many characters without looking: it makes another token, or panics.
    """
    if b'"merges"' not in data or not _PREFIX.search(data):
        return
    model = json.loads(data)["model"]
    prefix = model.get("continuing_subword_prefix") or ""
    for merge in model.get("merges") or ():
        second = merge.split(" ")[-1] if isinstance(merge, str) else merge[-1]
        if not second.startswith(prefix):
            raise ModelError(
                f"{checkpoint.tokenizer_file}: `continuing_subword_prefix` is `{prefix}`, and the merge {merge!r} has "
                "a second part without it"
            )


def refuse_ids_beyond_model(tokenizer: Tokenizer, checkpoint: Checkpoint, special_tokens: SpecialTokens) -> None:
    """Refuse a tokenizer with ids beyond the model's table: they would have no embedding."""
    rows, pieces = checkpoint.config.get("vocab_size"), tokenizer.get_vocab_size(with_added_tokens=False)
    other_model = "tokenizer and weights are of different models"
    if not isinstance(rows, int):
        return
    if pieces > rows:
        raise ModelError(
            f"{checkpoint.tokenizer_file}: {pieces} tokens, but the model's `vocab_size` is {rows}", hint=other_model
        )
    # A Unigram numbers its pieces itself, and listing a large one takes 0.1 s.
    if not isinstance(tokenizer.model, Unigram):
        piece, highest = max(
            tokenizer.get_vocab(with_added_tokens=False).items(), key=lambda one: one[1], default=("", -1)
        )
        if highest >= rows:
            raise ModelError(
                f"{checkpoint.tokenizer_file}: the token `{piece}` has the id {highest}, and the model's "
                f"`vocab_size` is {rows}",
                hint=other_model,
            )
    for number, token in tokenizer.get_added_tokens_decoder().items():
        # A special one, mostly for padding, never comes out of a text that is taken as it is.
        comes_out = not token.special or special_tokens == "allow"
        if number >= rows and comes_out:
            raise ModelError(
                f"{checkpoint.tokenizer_file}: the added token `{token.content}` has the id {number}, and the model's "
                f"`vocab_size` is {rows}",
                hint="the weights are of a model before that token was added",
            )


def refuse_failing_pair(tokenizer: Tokenizer, checkpoint: Checkpoint) -> None:
    """Refuse a tokenizer that fails on a pair, or that puts a token around it that the model has no embedding of."""
    try:
        found = tokenizer.encode("a", "\U00013000 b")  # no vocabulary has the letter
    except Exception as error:  # the library has no other kind
        raise ModelError(f"{checkpoint.path}: this tokenizer fails on a text: {error}") from error
    rows = checkpoint.config.get("vocab_size")
    for number, token, text in zip(found.ids, found.tokens, found.sequence_ids, strict=True):
        if text is None and isinstance(rows, int) and number >= rows:
            raise ModelError(
                f"{checkpoint.path}: the token `{token}` around a pair has the id {number}, and the model's "
                f"`vocab_size` is {rows}",
                hint="tokenizer and weights are of different models",
            )


def refuse_ids_out_of_order(tokenizer: Tokenizer, checkpoint: Checkpoint, name: str) -> None:
    """Refuse added tokens whose ids in tokenizer.json are not those that they get in their order there.

    The library numbers them by their order; a class adds them in the order of their ids.
    """
    found = _ADDED.search(checkpoint.tokenizer_file.read_text(encoding="utf-8"))
    # From the bracket on, so that a vocabulary of 17 MB is not parsed.
    listed = json.JSONDecoder().raw_decode(found.string, found.end() - 1)[0] if found else []
    for token in listed:
        number = tokenizer.token_to_id(token["content"])
        if number != token["id"]:
            raise ModelError(
                f"{checkpoint.tokenizer_file}: the added token `{token['content']}` has the id {token['id']}, and its "
                f"place in the list makes it {number}",
                hint=f"a {name} goes by the ids, and programs that read the file alone by the order: save the "
                "tokenizer again",
            )
