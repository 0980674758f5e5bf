"""The longest pair that a model can read, from its files alone; imports no numpy, so that planning stays quick."""

from __future__ import annotations

import re
from typing import Any

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.families import family_of

# Architectures whose positions begin behind the padding id: a table of 514 rows holds 512 tokens. Their configurations
# also have a `model_type`, but published ones may lack it. Source: `create_position_ids_from_input_ids` in the text
# encoders of transformers.
_OFFSET_POSITIONS = re.compile(
    r"^(Roberta|XLMRoberta|XLMRobertaXL|RobertaPreLayerNorm|Camembert|MPNet|Longformer|Data2VecText|Xmod|IBert|Luke|Lilt"
    r")(For|Model)"
)
_NO_LIMIT = 10**6  # tokenizer configs write 1e30 where they know no limit


def model_max_tokens(checkpoint: Checkpoint) -> int:
    """The smallest of the tokenizer's limit, the model card's limit and the number of positions.

    A limit of a VL model's processor (`rerank_max_length`) or of sentence-transformers (`max_seq_length`) replaces
    those of tokenizer and card.
    Source: sentence-transformers' CrossEncoder takes the same minimum; RoBERTa's table loses `pad_token_id + 1` rows.
    """
    family = family_of(checkpoint.architecture)
    said = [_read_limit(checkpoint.processor_config.get("rerank_max_length") if family.images else None)]
    if said == [None] and checkpoint.declared.max_tokens is not None:
        said = [_read_limit(checkpoint.declared.max_tokens)]
    elif said == [None]:
        # The card's limit belongs to a family of rerankers; a model that declares its own score is not one of them.
        own = family.decoder and (checkpoint.declared.listed or checkpoint.declared.chat_template is not None)
        card = None if own and checkpoint.taken_as is None else family.max_tokens
        config = checkpoint.tokenizer_config
        # `max_len` is the name of 2020, which transformers heeds where the other is missing.
        said = [card, _read_limit(config.get("model_max_length", config.get("max_len")))]
    language = checkpoint.within("llm_config") if family.images else checkpoint
    if "max_position_embeddings" in language.config:
        offset = 0
        if _OFFSET_POSITIONS.search(checkpoint.architecture):
            offset = language.integer("pad_token_id", 1) + 1
        said.append(_read_limit(language.integer("max_position_embeddings") - offset))
    if family.decoder and checkpoint.architecture.startswith("Mistral"):
        # Up to so many tokens, attention in its sliding window is the same as without one.
        said.append(_read_limit(checkpoint.config.get("sliding_window")))
    limits = [limit for limit in said if limit is not None]
    return min(limits) if limits else 512


def _read_limit(value: Any) -> int | None:
    """A number of tokens; None if it is no limit."""
    return int(value) if isinstance(value, (int, float)) and 0 < value < _NO_LIMIT else None
