"""The table of architectures agrees with what computes them."""

from __future__ import annotations

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from rerank_cli.checkpoint import families
from rerank_cli.checkpoint.families import family_of
from rerank_cli.checkpoint.recipes import RECIPES
from rerank_cli.checkpoint.transformers_classifiers import CLASSIFIERS
from rerank_cli.encoding import recipe_prompts
from rerank_cli.models import class_of
from rerank_cli.models.embedder import NemotronEmbedder

DECODERS, HEADS = ("Qwen3", "Qwen2", "Llama", "Mistral", "Gemma"), ("CausalLM", "SequenceClassification")


def named(**facts: bool) -> set[str]:
    """The architectures of which these facts are true or not."""
    found = families.FAMILIES.items()
    return {name for name, family in found if all(getattr(family, fact) == value for fact, value in facts.items())}


@pytest.mark.parametrize("architecture", families.FAMILIES)
def test_every_architecture_is_packed_by_a_class_of_its_own(architecture: str) -> None:
    assert family_of(architecture).forward != "padded"
    assert class_of(architecture).__module__ != class_of("DebertaV2ForSequenceClassification").__module__
    assert (class_of(architecture) is NemotronEmbedder) == family_of(architecture).embeds


def test_what_answers_has_a_prompt_and_answers() -> None:
    assert set(recipe_prompts._PROMPTS) == set(RECIPES)
    assert {f"{recipe.trunk}ForCausalLM" for recipe in RECIPES.values()} <= named(answers=True, decoder=True)
    assert named(answers=True, decoder=False) == set()
    assert named(decoder=True) == {f"{kind}For{head}" for kind in DECODERS for head in HEADS}


def test_the_classifiers_of_transformers_are_known() -> None:
    found = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()
    assert frozenset(found) == CLASSIFIERS


def test_a_bare_encoder_has_no_head_of_its_own() -> None:
    assert named(headless=True) == {name for name in families.FAMILIES if name.endswith("Model")} - named(embeds=True)


def test_what_reads_images_has_a_tower_in_the_memory_model() -> None:
    assert named(images=True) == {name for name, family in families.FAMILIES.items() if family.forward == "vl"}


@pytest.mark.parametrize("architecture", ["DebertaV2ForSequenceClassification", "Nonsense"])
def test_any_other_architecture_reads_a_pair(architecture: str) -> None:
    assert family_of(architecture) == families.Family()
