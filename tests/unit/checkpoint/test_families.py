"""The table of architectures agrees with the tables that have its names as keys."""

from __future__ import annotations

import pytest

from rerank_cli import models
from rerank_cli.checkpoint import families
from rerank_cli.checkpoint.families import family_of
from rerank_cli.encoding import yes_no
from rerank_cli.planning.memory import shape


def named(**facts: bool) -> set[str]:
    """The architectures of which these facts are true or not."""
    found = families.FAMILIES.items()
    return {name for name, family in found if all(getattr(family, fact) == value for fact, value in facts.items())}


def test_every_architecture_has_a_class_and_a_memory_model() -> None:
    assert set(families.FAMILIES) == {*models.FAMILIES, *models.EMBEDDERS} == set(shape.FAMILIES)


def test_what_embeds_is_loaded_as_an_embedder_and_nothing_else_is() -> None:
    assert named(embeds=True) == set(models.EMBEDDERS)


def test_what_answers_has_a_prompt_and_answers() -> None:
    assert named(answers=True) == set(yes_no._PROMPTS) == set(yes_no._ANSWERS) == set(yes_no._TRAINED_AS)
    assert named(answers=True, prompted=False) == set()


def test_a_bare_encoder_has_no_head_of_its_own() -> None:
    assert named(headless=True) == {name for name in families.FAMILIES if name.endswith("Model")} - named(embeds=True)


def test_what_reads_images_has_a_tower_in_the_memory_model() -> None:
    assert named(images=True) == {name for name, family in shape.FAMILIES.items() if family == "vl"}


@pytest.mark.parametrize("architecture", ["DebertaV2ForSequenceClassification", "Nonsense"])
def test_any_other_architecture_reads_a_pair(architecture: str) -> None:
    assert family_of(architecture) == families.Family()
