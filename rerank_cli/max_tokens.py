"""The longest pair that a model can read, from its files alone; imports no numpy, so that planning stays quick."""

from __future__ import annotations

from rerank_cli.checkpoint import Checkpoint

# Families whose positions begin behind the padding id: a table of 514 rows holds 512 tokens.
_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "data2vec-text"}
_NO_LIMIT = 10**6  # tokenizer configs write 1e30 where they know no limit
# Rerankers made of language models have room for more than they were trained to read: 8192 is the limit on the model
# cards of the Nemotron rerankers and Qwen3-Reranker, and the default of mxbai-rerank.
_PROMPT_MAX_TOKENS = 8192
_EMBEDDING_MAX_TOKENS = 10240  # of the Nemotron VL embedder: `model_max_length`, an image with its text
PROMPTED = {
    "LlamaBidirectionalForSequenceClassification",
    "Qwen3ForCausalLM",
    "Qwen2ForCausalLM",
    "GemmaForCausalLM",
}
"""Architectures that read query and passage in a prompt."""
# Text and image together, on the cards of the Llama-Nemotron VL models.
_VISION_MAX_TOKENS = 10240
_VISION = {"LlamaNemotronVLForSequenceClassification"}


def model_max_tokens(checkpoint: Checkpoint) -> int:
    """The smaller of what its tokenizer says and what its position table allows.

    Source: sentence-transformers' CrossEncoder takes the same minimum; RoBERTa's table loses `pad_token_id + 1` rows.
    """
    if checkpoint.architecture in _VISION:
        return _vision_max_tokens(checkpoint)
    limits = [_PROMPT_MAX_TOKENS] if checkpoint.architecture in PROMPTED else []
    if checkpoint.architecture == "LlamaNemotronVLModel":
        limits = [_EMBEDDING_MAX_TOKENS]
    declared = checkpoint.tokenizer_config.get("model_max_length")
    if isinstance(declared, (int, float)) and declared < _NO_LIMIT:
        limits.append(int(declared))
    if "max_position_embeddings" in checkpoint.config:
        offset = 0
        if str(checkpoint.config.get("model_type")) in _OFFSET_POSITIONS:
            offset = checkpoint.integer("pad_token_id", 1) + 1
        limits.append(checkpoint.integer("max_position_embeddings") - offset)
    positive = [limit for limit in limits if limit > 0]
    return min(positive) if positive else 512


def _vision_max_tokens(checkpoint: Checkpoint) -> int:
    """What the processor says, else the tokenizer, else the model cards; and no more than there are positions."""
    declared = (
        checkpoint.processor_config.get("rerank_max_length"),
        checkpoint.tokenizer_config.get("model_max_length"),
    )
    said = [int(limit) for limit in declared if isinstance(limit, (int, float)) and 0 < limit < _NO_LIMIT]
    positions = checkpoint.within("llm_config").integer("max_position_embeddings", _NO_LIMIT)
    return min(*said[:1] or [_VISION_MAX_TOKENS], positions)
