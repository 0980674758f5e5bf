"""What an embedding model declares about its vectors: how they are made, and how two of them become a score."""

from __future__ import annotations

from typing import Literal

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.declared import Normalize, Pooling
from rerank_cli.errors import ModelError

Similarity = Literal["cosine", "dot"]
_SIMILARITIES: tuple[Similarity, ...] = ("cosine", "dot")
_POOLINGS = {"mean": "avg", "cls": "cls", "lasttoken": "last"}
_ROLES = {"query": ("query",), "passage": ("document", "passage", "corpus")}


def similarity_of(checkpoint: Checkpoint) -> Similarity:
    """The declared `similarity_fn_name`, by default cosine; `ModelError` for one that is not computed here."""
    named = checkpoint.declared.similarity or "cosine"
    for known in _SIMILARITIES:
        if named == known:
            return known
    raise ModelError(
        f"{checkpoint.root}/config_sentence_transformers.json: `similarity_fn_name` is {named!r}",
        hint="known are cosine and dot",
    )


def check_embedder(checkpoint: Checkpoint) -> None:
    """Refuse an embedder with modules or prompts that are not computed here."""
    declared = checkpoint.declared
    similarity_of(checkpoint)
    if not declared.listed:
        return
    declared_pooling(checkpoint)
    if declared.pooling is not None and declared.pooling.skips_prompt and declared.prompts:
        raise ModelError(
            f"{checkpoint.root}/modules.json: `include_prompt` of its Pooling is false, and it has prompts: vectors "
            "without the prompts' tokens are not computed"
        )
    others = [type(one).__name__ for one in declared.modules if not isinstance(one, (Pooling, Normalize))]
    if others:
        raise ModelError(f"{checkpoint.root}/modules.json: {', '.join(others)} of an embedding model is not computed")
    if declared.message_format is not None:
        raise ModelError(
            f"{checkpoint.root}: `modality_config.message`: this embedding model reads texts behind a prefix, and no "
            "chat template"
        )


def declared_pooling(checkpoint: Checkpoint) -> str | None:
    """How tokens become a vector, in the words of config.json; None if modules.json does not say."""
    pooling = checkpoint.declared.pooling
    if pooling is None:
        return None
    if len(pooling.modes) != 1 or pooling.modes[0] not in _POOLINGS:
        raise ModelError(
            f"{checkpoint.root}/modules.json: `pooling_mode` {', '.join(pooling.modes)} is not computed for "
            f"{checkpoint.architecture}; known are {', '.join(_POOLINGS)}"
        )
    return _POOLINGS[pooling.modes[0]]


def declared_prefixes(checkpoint: Checkpoint) -> tuple[str, str] | None:
    """The prefixes of a query and of a passage, from the prompts of these roles; None without prompts."""
    declared = checkpoint.declared
    if not declared.listed or not declared.prompts:
        return None
    query, passage = (
        next((declared.prompts[name] for name in names if name in declared.prompts), declared.prompt or "")
        for names in _ROLES.values()
    )
    return query, passage
