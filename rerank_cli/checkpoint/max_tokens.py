"""The longest pair that a model can read, from its files alone; imports no numpy, so that planning stays quick."""

from __future__ import annotations

import re
from typing import Any

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.families import family_of

# Architectures whose positions begin behind the padding id: a table of 514 rows holds 512 tokens. Their configurations
# say `model_type` too, but a published one may leave it out. Source: `create_position_ids_from_input_ids` in
# transformers' modeling files of text encoders.
_OFFSET_POSITIONS = re.compile(
    r"^(Roberta|XLMRoberta|XLMRobertaXL|RobertaPreLayerNorm|Camembert|MPNet|Longformer|Data2VecText|Xmod|IBert|Luke|Lilt"
    r")(For|Model)"
)
_NO_LIMIT = 10**6  # tokenizer configs write 1e30 where they know no limit


def model_max_tokens(checkpoint: Checkpoint) -> int:
    """The smaller of what its tokenizer and its model card say, and no more than there are positions.

    A processor that names a limit of its own (`rerank_max_length`) is asked in place of tokenizer and card, and so is
    sentence-transformers' `max_seq_length`.
    Source: sentence-transformers' CrossEncoder takes the same minimum; RoBERTa's table loses `pad_token_id + 1` rows.
    """
    family = family_of(checkpoint.architecture)
    said = [_read_limit(checkpoint.processor_config.get("rerank_max_length"))]
    if said == [None] and checkpoint.declared.max_tokens is not None:
        said = [_read_limit(checkpoint.declared.max_tokens)]
    elif said == [None]:
        # The card's limit is that of a family of rerankers: what declares its own score is not taken for one.
        own = family.decoder and (checkpoint.declared.listed or checkpoint.declared.chat_template is not None)
        card = None if own and checkpoint.taken_as is None else family.max_tokens
        said = [card, _read_limit(checkpoint.tokenizer_config.get("model_max_length"))]
    language = checkpoint.within("llm_config") if family.images else checkpoint
    said += [_positions(language, checkpoint.architecture), _window(checkpoint) if family.decoder else None]
    limits = [limit for limit in said if limit is not None]
    return min(limits) if limits else 512


def _read_limit(value: Any) -> int | None:
    """A number of tokens that means a limit."""
    return int(value) if isinstance(value, (int, float)) and 0 < value < _NO_LIMIT else None


def _positions(checkpoint: Checkpoint, architecture: str) -> int | None:
    """Tokens that the model has positions for, where config.json says so. architecture: of the whole model."""
    if "max_position_embeddings" not in checkpoint.config:
        return None
    offset = 0
    if _OFFSET_POSITIONS.search(architecture):
        offset = checkpoint.integer("pad_token_id", 1) + 1
    return _read_limit(checkpoint.integer("max_position_embeddings") - offset)


def _window(checkpoint: Checkpoint) -> int | None:
    """Tokens up to which the attention of a Mistral with a sliding window is that of one without."""
    mistral = checkpoint.architecture.startswith("Mistral")
    return _read_limit(checkpoint.config.get("sliding_window")) if mistral else None
