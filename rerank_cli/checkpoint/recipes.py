"""Rerankers that are language models but whose files may not say so: the names that `--as` takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one family of rerankers asks a language model (`encoding/recipe_prompts.py` has its prompt)."""

    name: str
    """As `--as` takes it."""
    title: str
    trunk: str
    """The beginning of its architecture's name: `Qwen3`."""
    answers: tuple[str, ...]
    """The score is the logit of the first word's first token, minus that of the second word, if there is one."""


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
    """The family of rerankers that is built on this language model; None if none is."""
    return next((recipe for recipe in _ALL if recipe.trunk == trunk_of(architecture)), None)
