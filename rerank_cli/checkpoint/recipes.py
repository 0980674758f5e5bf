"""Rerankers that are language models and whose files may not say so: the names that `--as` takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one family of rerankers asks a language model (`encoding/yes_no.py` has its prompt).

    answers: the words whose first tokens are compared: the score is the first one's logit, less the other's.
    """

    name: str  # as `--as` takes it
    title: str
    trunk: str  # its `architectures` begin with it: `Qwen3`
    answers: tuple[str, ...]


_ALL = (
    Recipe("qwen3-reranker", "Qwen3-Reranker", "Qwen3", ("yes", "no")),
    Recipe("mxbai-rerank-v2", "mxbai-rerank v2", "Qwen2", ("1", "0")),
    Recipe("bge-reranker-v2-gemma", "bge-reranker-v2-gemma", "Gemma", ("Yes",)),
)
RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for recipe in _ALL}


def trunk_of(architecture: str) -> str:
    """The kind of language model, without its head: `Qwen3` of `Qwen3ForCausalLM`."""
    return architecture.removesuffix("ForCausalLM").removesuffix("ForSequenceClassification")


def recipe_of(architecture: str) -> Recipe | None:
    """The family of rerankers that is made of this language model."""
    return next((recipe for recipe in _ALL if recipe.trunk == trunk_of(architecture)), None)
