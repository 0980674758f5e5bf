"""Text to token ids, without torch: which encoder and which length limit a checkpoint asks for."""

from __future__ import annotations

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.encoding.pairs import Encoded, EncodingProblem, PairEncoder, SpecialTokens, Truncation
from rerank_cli.encoding.tokenizer import load_tokenizer
from rerank_cli.errors import UsageError

__all__ = [
    "Encoded",
    "EncodingProblem",
    "PairEncoder",
    "SpecialTokens",
    "Truncation",
    "model_max_tokens",
    "open_encoder",
]

# Families whose positions begin behind the padding id: a table of 514 rows holds 512 tokens.
_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "data2vec-text"}
_NO_LIMIT = 10**6  # tokenizer configs write 1e30 where they know no limit


def model_max_tokens(checkpoint: Checkpoint) -> int:
    """The longest pair that the model can read: what its tokenizer says and its position table allows, the smaller.

    Source: sentence-transformers' CrossEncoder takes the same minimum; RoBERTa's table loses `pad_token_id + 1` rows.
    """
    limits = []
    declared = checkpoint.tokenizer_config.get("model_max_length")
    if isinstance(declared, (int, float)) and declared < _NO_LIMIT:
        limits.append(int(declared))
    if "max_position_embeddings" in checkpoint.config:
        offset = 0
        if checkpoint.config.get("model_type") in _OFFSET_POSITIONS:
            offset = checkpoint.integer("pad_token_id", 1) + 1
        limits.append(checkpoint.integer("max_position_embeddings") - offset)
    positive = [limit for limit in limits if limit > 0]
    return min(positive) if positive else 512


def open_encoder(
    checkpoint: Checkpoint,
    *,
    max_tokens: int,
    truncate: Truncation = "end",
    chunk_overlap: int = 64,
    special_tokens: SpecialTokens = "neutral",
) -> PairEncoder:
    """The encoder of a checkpoint; `UsageError` where `max_tokens` is more than the model can read."""
    limit = model_max_tokens(checkpoint)
    if max_tokens > limit:
        raise UsageError(f"--max-tokens {max_tokens}: {checkpoint.name} reads at most {limit} tokens")
    return PairEncoder(
        load_tokenizer(checkpoint),
        where=str(checkpoint.tokenizer_file),
        max_tokens=max_tokens,
        truncate=truncate,
        chunk_overlap=chunk_overlap,
        special_tokens=special_tokens,
    )
