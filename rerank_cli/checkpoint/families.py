"""What kind of model each architecture is, by the entry of `architectures` in config.json.

All packages ask here: the classes that compute (`models/`), the memory model (`planning/memory/`), the templates
(`encoding/`). Any other `*ForSequenceClassification` is `Family()`: pairs in the tokenizer's own form, scored by
transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from rerank_cli.checkpoint.transformers_classifiers import CLASSIFIERS

Forward = Literal["bert", "roberta", "electra", "modernbert", "gte", "llama", "vl", "padded"]
"""Which forward pass runs: one of our packed ones, or `padded`, that of transformers."""
BERT_LIKE: tuple[Forward, ...] = ("bert", "roberta", "electra")
"""Forwards that differ in names, positions and heads only; the names of their weights begin with these words."""


@dataclass(frozen=True, slots=True)
class Family:
    """Which forward pass a model has, how it reads a query and a passage, and what it gives."""

    forward: Forward = "padded"
    prompted: bool = False
    """Query and passage are put into a prompt, not into the tokenizer's own form of a pair."""
    decoder: bool = False
    """A causal language model; its files say how pairs are written (`encoding/scoring.py`)."""
    answers: bool = False
    """The score is a logit of its vocabulary."""
    embeds: bool = False
    """Query and passage become a vector each; the score is their similarity."""
    headless: bool = False
    """A bare encoder; the modules of its checkpoint declare the head."""
    images: bool = False
    """Passages may be images."""
    fp8: bool = False
    """Its products can run in FP8 if its weights are in 16 bits."""
    leaves_fp16: bool = False
    """Its numbers leave the range of fp16, whatever type its weights are stored in."""
    int8: bool = False
    """It has int8 layers for a CPU (`models/int8_calibration.py`)."""
    activation_key: str = "hidden_act"
    """The key of config.json that names the activation of its MLP."""
    max_tokens: int | None = None
    """The longest pair (for an embedder: text) by the model card, if the model has more positions than that."""


def _bare(family: Family) -> Family:
    # The int8 layers of BERT want a head that reads [CLS] alone, and a declared one may read all tokens.
    return replace(family, headless=True, int8=family.int8 and family.forward not in BERT_LIKE)


_BERT, _ROBERTA = Family("bert", int8=True), Family("roberta", int8=True)
_ELECTRA = Family("electra")
_MODERNBERT = Family("modernbert", int8=True, activation_key="hidden_activation")
# 8192: the limit on the model cards of the Nemotron rerankers and Qwen3-Reranker, and the default of mxbai-rerank.
_PROMPT = Family("llama", prompted=True, fp8=True, max_tokens=8192)
_QUESTION = Family("llama", prompted=True, decoder=True, answers=True, fp8=True, max_tokens=8192)
_DECODER = Family("llama", decoder=True, fp8=True)
# 10240: text and image together, on the cards of the Llama-Nemotron VL models.
_PAGE = Family("vl", prompted=True, images=True, fp8=True, max_tokens=10240)
_PAGE_VECTOR = Family("vl", embeds=True, images=True, fp8=True, max_tokens=10240)

FAMILIES: Mapping[str, Family] = {
    "BertForSequenceClassification": _BERT,
    "RobertaForSequenceClassification": _ROBERTA,
    "XLMRobertaForSequenceClassification": _ROBERTA,
    "CamembertForSequenceClassification": _ROBERTA,
    "ElectraForSequenceClassification": _ELECTRA,
    "ModernBertForSequenceClassification": _MODERNBERT,
    "NewForSequenceClassification": Family("gte"),
    "BertModel": _bare(_BERT),
    "RobertaModel": _bare(_ROBERTA),
    "XLMRobertaModel": _bare(_ROBERTA),
    "CamembertModel": _bare(_ROBERTA),
    "ElectraModel": _bare(_ELECTRA),
    "ModernBertModel": _bare(_MODERNBERT),
    "LlamaBidirectionalForSequenceClassification": _PROMPT,
    "LlamaNemotronVLForSequenceClassification": _PAGE,
    "LlamaNemotronVLModel": _PAGE_VECTOR,
    "Qwen3ForCausalLM": _QUESTION,
    "Qwen2ForCausalLM": _QUESTION,
    "GemmaForCausalLM": replace(_QUESTION, leaves_fp16=True),
    "LlamaForCausalLM": _QUESTION,
    "MistralForCausalLM": _QUESTION,
    "Qwen3ForSequenceClassification": _DECODER,
    "Qwen2ForSequenceClassification": _DECODER,
    "GemmaForSequenceClassification": replace(_DECODER, leaves_fp16=True),
    "LlamaForSequenceClassification": _DECODER,
    "MistralForSequenceClassification": _DECODER,
}


_ANY = Family()


def family_of(architecture: str) -> Family:
    """The family of an architecture; `Family()` for one without a model of ours."""
    return FAMILIES.get(architecture, _ANY)


def is_known(architecture: str) -> bool:
    """Whether a model of ours or of transformers can score it."""
    return architecture in FAMILIES or architecture in CLASSIFIERS


def int8_refusal(architecture: str, config: Mapping[str, Any]) -> str | None:
    """Why a model has no int8 layers (`models/int8_calibration.py`); None if it has. config: config.json."""
    family = family_of(architecture)
    if not family.int8:
        return f"only BERT, RoBERTa and XLM-R classifiers and ModernBERT have int8 layers, not {architecture}"
    named = config.get(family.activation_key)
    activation = "gelu" if named is None else named
    return None if activation == "gelu" else f"int8 layers know the activation `gelu`, not `{activation}`"
