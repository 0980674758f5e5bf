"""How the pairs of one checkpoint are scored: by its chat template, by its family's recipe, or as plain pairs.

    modules.json is there            what it declares: a chat template with roles, or plain pairs; never anything else
    `--as FAMILY`                    the prompt and the answers of that family of rerankers
    a template that carries a pair   the template; a language model answers with its tokens `yes` and `no`
    a language model, no template    the recipe of the one family that is built on it, and the run says so
    any other chat template          refused: a chat model looks like this, and its logits would mean nothing

Nothing is scored on a guess: where the files can be read in two ways, the run is refused, and the message names the
option that decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.declared import LogitScore
from rerank_cli.checkpoint.families import family_of
from rerank_cli.checkpoint.labels import check_labels
from rerank_cli.checkpoint.recipes import RECIPES, Recipe, recipe_of, trunk_of
from rerank_cli.errors import ModelError, UsageError

if TYPE_CHECKING:
    from rerank_cli.encoding.chat_template import ChatTemplate


@dataclass(frozen=True)
class Scoring:
    """How pairs are written, and which tokens answer.

    template: of the checkpoint. recipe: of a family of rerankers, where there is no template. answers: for a language
    model the token whose logit is the score, and the one whose logit is subtracted; None for the recipe's words. told:
    the decision, in words; empty where there was nothing to decide. taken: the files do not say it, it was assumed.
    """

    template: ChatTemplate | None = None
    recipe: Recipe | None = None
    answers: LogitScore | None = None
    told: str = ""
    taken: bool = False


def check_scoring(checkpoint: Checkpoint, *, own_template: bool = False) -> Scoring:
    """How a checkpoint's pairs are scored; every command asks this before it estimates memory.

    Raises `ModelError` for a checkpoint whose files leave open what its score is, and `UsageError` for a `--as` or a
    `--label` that does not fit it.
    """
    scoring = decide_scoring(checkpoint, own_template=own_template)
    check_labels(checkpoint)
    return scoring


def decide_scoring(checkpoint: Checkpoint, *, instruction: str | None = None, own_template: bool = False) -> Scoring:
    """The only reading of a checkpoint's files, or `ModelError`; `UsageError` for a `--as` that does not fit them.

    instruction: the user's, which replaces the checkpoint's prompt. own_template: the user gives a template.
    """
    named = _named_recipe(checkpoint)
    family = family_of(checkpoint.architecture)
    if family.embeds or (family.prompted and not family.decoder):
        return Scoring()  # these have one prompt; the chat template of their tokenizer has another purpose
    template = None if own_template or named else _chat_template(checkpoint, instruction)
    if checkpoint.declared.listed:
        if template is not None and (failure := template.failure()):
            raise ModelError(
                f"{template.place}: the chat template carries no pair of query and passage, and modules.json wants "
                f"pairs written in it: {failure}"
            )
        answers = checkpoint.declared.logit_score
        return Scoring(template=template, answers=answers, told="scored as modules.json declares")
    if named is not None:
        return Scoring(recipe=named, told=f"scored as {named.title}: `--as {named.name}` says so", taken=True)
    if family.answers:
        return _scoring_of_language_model(checkpoint, template)
    if template is None:
        return Scoring()
    if failure := template.failure():
        recipe = recipe_of(checkpoint.architecture) if family.decoder else None
        told = f"`--as {recipe.name}` takes the prompt of {recipe.title}; " if recipe else ""
        raise ModelError(
            f"{template.place}: the chat template carries no pair of query and passage: {failure}",
            hint=f"{told}`--template` gives another one: text with {{query}} and {{passage}}",
        )
    return Scoring(template=template, told="pairs are written in the checkpoint's chat template")


def _chat_template(checkpoint: Checkpoint, instruction: str | None = None) -> ChatTemplate | None:
    if checkpoint.declared.chat_template is None:
        return None
    # Imported here: jinja2 costs 0.1 s that most checkpoints need not pay.
    from rerank_cli.encoding.chat_template import read_chat_template

    return read_chat_template(checkpoint, instruction)


def _named_recipe(checkpoint: Checkpoint) -> Recipe | None:
    """The recipe that `--as` names, if it is given."""
    name = checkpoint.taken_as
    if name is None:
        return None
    if name not in RECIPES:
        raise UsageError(f"--as {name}: no family of rerankers has this name", hint=f"known are {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    if checkpoint.declared.listed:
        raise UsageError(f"--as {name}: {checkpoint.name} declares in modules.json how it is scored")
    family = family_of(checkpoint.architecture)
    if not family.decoder or recipe.trunk != trunk_of(checkpoint.architecture):
        raise UsageError(
            f"--as {name}: a {recipe.title} is a {recipe.trunk}ForCausalLM, {checkpoint.name} is a "
            f"{checkpoint.architecture}"
        )
    return recipe


def _scoring_of_language_model(checkpoint: Checkpoint, template: ChatTemplate | None) -> Scoring:
    recipe = recipe_of(checkpoint.architecture)
    if checkpoint.declared.chat_template is None:
        if recipe is None:
            raise ModelError(
                f"{checkpoint.path}: a language model ({checkpoint.architecture}), and no file says how it reranks",
                hint="modules.json, with a LogitScore, and a chat template with the roles query and document say it",
            )
        told = (
            f"taken for a {recipe.title}: {checkpoint.architecture} without a chat template is all that tells; "
            f"`--as {recipe.name}` says the same"
        )
        return Scoring(recipe=recipe, told=told, taken=True)
    if template is None:  # the user gave one, but the answers must still be found
        template = _chat_template(checkpoint)
    assert template is not None, "a checkpoint without modules.json uses the chat template that it has"
    failure = template.failure()
    if failure is None and template.takes_any_role:
        failure = "it writes messages of any role"
    if failure is not None:
        raise ModelError(
            f"{template.place}: a chat model, by its chat template, which was not made for a query and a passage: "
            f"{failure}",
            hint=(
                f"if it is a {recipe.title}, say which family it is: `--as {recipe.name}`"
                if recipe
                else f"no family of rerankers is known for {checkpoint.architecture}"
            ),
        )
    # As sentence-transformers: the tokens `yes` and `no` where nothing is declared.
    from rerank_cli.encoding.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(checkpoint)
    yes, no = tokenizer.token_to_id("yes"), tokenizer.token_to_id("no")
    if yes is None or no is None:
        raise ModelError(
            f"{template.place}: the chat template carries a query and a passage, and the tokenizer has no tokens `yes` "
            "and `no`: which tokens answer is not declared",
            hint="modules.json, with a LogitScore, says it",
        )
    return Scoring(
        template=template,
        answers=LogitScore(yes, no),
        told="taken for a reranker by its chat template, which has a query and a document; the score is the logit of "
        "`yes` less that of `no`, since no LogitScore is declared",
        taken=True,
    )


def answer_ids(checkpoint: Checkpoint) -> list[int]:
    """The token ids of a language model's answers: yes and no, whose difference is the logit, or yes alone."""
    scoring = decide_scoring(checkpoint)
    if scoring.answers is not None:
        return [number for number in (scoring.answers.true_id, scoring.answers.false_id) if number is not None]
    if scoring.recipe is None:
        raise ModelError(f"{checkpoint.path}: a language model, and modules.json declares no LogitScore")
    from rerank_cli.encoding.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(checkpoint)
    found = []
    for answer in scoring.recipe.answers:
        ids = tokenizer.encode(answer, add_special_tokens=False).ids
        if not ids:
            raise ModelError(f"{checkpoint.tokenizer_file}: the answer `{answer}` has no token")
        found.append(ids[0])
    if len(set(found)) < len(found):
        raise ModelError(f"{checkpoint.tokenizer_file}: the answers begin with the same token")
    return found
