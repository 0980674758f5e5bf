"""The architectures that have a model of our own, by the entry of `architectures` in config.json: what each reads.

Whoever asks what kind of model a checkpoint is asks here. Any other `*ForSequenceClassification` is `Family()`: a pair
in the tokenizer's own form, scored by transformers.

Two more tables have these names as keys, and a test holds all three against each other: `models.FAMILIES` and
`models.EMBEDDERS`, the classes that compute (they need torch, this module needs nothing), and `memory.shape.FAMILIES`,
whose forward each is to the memory model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rerank_cli.checkpoint.transformers_classifiers import CLASSIFIERS


@dataclass(frozen=True, slots=True)
class Family:
    """How a model reads a query and a passage, and what it gives.

    prompted: set into a prompt, not as the tokenizer's own pair. decoder: a causal language model, whose files say what
    pairs are written in (`encoding/scoring.py`). answers: its score is a logit of its vocabulary. embeds: each of the
    two becomes a vector, the score is their cosine. headless: a bare encoder, whose head the modules of its checkpoint
    declare. images: passages may be images. fp8: its products can be in FP8 where its weights are in 16 bits.
    max_tokens: the longest pair (of an embedder, text) on the model card, where the model has more positions than it
    was trained to read.
    """

    prompted: bool = False
    decoder: bool = False
    answers: bool = False
    embeds: bool = False
    headless: bool = False
    images: bool = False
    fp8: bool = False
    max_tokens: int | None = None


_PAIR = Family()
_BARE = Family(headless=True)
# 8192: the limit on the model cards of the Nemotron rerankers and Qwen3-Reranker, and the default of mxbai-rerank.
_PROMPT = Family(prompted=True, fp8=True, max_tokens=8192)
_QUESTION = Family(prompted=True, decoder=True, answers=True, fp8=True, max_tokens=8192)
_DECODER = Family(decoder=True, fp8=True)
# 10240: text and image together, on the cards of the Llama-Nemotron VL models.
_PAGE = Family(prompted=True, images=True, fp8=True, max_tokens=10240)
_PAGE_VECTOR = Family(embeds=True, images=True, fp8=True, max_tokens=10240)

FAMILIES: Mapping[str, Family] = {
    "BertForSequenceClassification": _PAIR,
    "RobertaForSequenceClassification": _PAIR,
    "XLMRobertaForSequenceClassification": _PAIR,
    "CamembertForSequenceClassification": _PAIR,
    "ElectraForSequenceClassification": _PAIR,
    "ModernBertForSequenceClassification": _PAIR,
    "NewForSequenceClassification": _PAIR,
    "BertModel": _BARE,
    "RobertaModel": _BARE,
    "XLMRobertaModel": _BARE,
    "CamembertModel": _BARE,
    "ElectraModel": _BARE,
    "ModernBertModel": _BARE,
    "LlamaBidirectionalForSequenceClassification": _PROMPT,
    "LlamaNemotronVLForSequenceClassification": _PAGE,
    "LlamaNemotronVLModel": _PAGE_VECTOR,
    "Qwen3ForCausalLM": _QUESTION,
    "Qwen2ForCausalLM": _QUESTION,
    "GemmaForCausalLM": _QUESTION,
    "LlamaForCausalLM": _QUESTION,
    "MistralForCausalLM": _QUESTION,
    "Qwen3ForSequenceClassification": _DECODER,
    "Qwen2ForSequenceClassification": _DECODER,
    "GemmaForSequenceClassification": _DECODER,
    "LlamaForSequenceClassification": _DECODER,
    "MistralForSequenceClassification": _DECODER,
}


def family_of(architecture: str) -> Family:
    """What a model of this architecture reads and gives."""
    return FAMILIES.get(architecture, _PAIR)


def is_known(architecture: str) -> bool:
    """Some code scores it: a model of our own, or transformers'."""
    return architecture in FAMILIES or architecture in CLASSIFIERS


_INT8 = {f"{name}ForSequenceClassification" for name in ("Bert", "Roberta", "XLMRoberta", "Camembert")}


def int8_refusal(architecture: str, activation: str) -> str | None:
    """Why a model has no int8 layers (`models/int8_encoder.py`); None where it has. activation: of its MLP."""
    if architecture not in _INT8:
        return f"only BERT, RoBERTa and XLM-R classifiers have int8 layers, not {architecture}"
    return None if activation == "gelu" else f"int8 layers know the activation `gelu`, not `{activation}`"
