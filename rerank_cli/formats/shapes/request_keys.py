"""What the keys of rerank requests ask for, and what is done about each: followed, refused, or without effect.

`KEYS` has every key of the APIs that are read here, so none is ignored in silence. A key that would change scores or
order and cannot be followed makes its request an error row, unless it asks for what is done anyway. Keys that no API
knows pass through. `docs/reference/api-requests.md` shows the same by API; a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rerank_cli.formats.shapes.fields import RowProblem, number_of, text_or_type, type_in_words
from rerank_cli.records import Limits

Treatment = Literal["followed", "refused", "no effect"]


@dataclass(frozen=True, slots=True)
class RequestKey:
    """One key. harmless: values of a refused key that ask only for what is done anyway."""

    name: str
    treatment: Treatment
    does: str
    harmless: tuple[object, ...] = ()


KEYS: tuple[RequestKey, ...] = (
    RequestKey("query", "followed", "the query"),
    RequestKey("documents", "followed", "the passages"),
    RequestKey("texts", "followed", "the passages"),
    RequestKey("passages", "followed", "the passages"),
    RequestKey("top_n", "followed", "only so many results; 0 is all"),
    RequestKey("top_k", "followed", "as `top_n`"),
    RequestKey("return_documents", "followed", "each result has its document"),
    RequestKey("return_text", "followed", "each result has its text"),
    RequestKey("raw_scores", "followed", "scores are logits, not their sigmoids"),
    RequestKey("use_activation", "followed", "false: scores are logits, not their sigmoids"),
    RequestKey("activation", "followed", "as `use_activation`"),
    RequestKey("softmax", "followed", "as `use_activation`, whose oldest name it is"),
    RequestKey("max_tokens_per_doc", "followed", "passages are cut to so many tokens of the run's model"),
    RequestKey("truncation", "followed", "false: a pair that is too long is an error"),
    RequestKey("truncate", "followed", "NONE or false: a pair that is too long is an error; END or true: it is cut"),
    RequestKey("truncation_direction", "refused", "passages are cut from the right", ("right", "Right", "RIGHT")),
    RequestKey("truncation_side", "refused", "passages are cut from the right", ("right",)),
    RequestKey("truncate_prompt_tokens", "refused", "pairs are cut to what the model can read", (-1,)),
    RequestKey("max_tokens_per_query", "refused", "queries are never cut", (0,)),
    RequestKey("max_chunks_per_doc", "refused", "`--truncate chunk` scores all chunks of a passage"),
    RequestKey("overlap_tokens", "refused", "`--chunk-overlap` says it for a run"),
    RequestKey("rank_fields", "refused", "the text of a document is `text`"),
    RequestKey("instruction", "refused", "`--instruction` says it for a run"),
    RequestKey("rewrite_query", "refused", "queries are read as they are", (False,)),
    RequestKey("chat_template", "refused", "`--template` says it for a run"),
    RequestKey("chat_template_kwargs", "refused", "`--template` says it for a run"),
    RequestKey("mm_processor_kwargs", "refused", "`--max-input-tiles` says it for a run"),
    RequestKey("add_special_tokens", "refused", "a pair has the special tokens of its model", (True,)),
    RequestKey("additional_data", "refused", "what it tells a model cannot be followed"),
    RequestKey("normalize", "refused", "scores are logits or their sigmoids", (True,)),
    RequestKey("return_embeddings", "refused", "answers hold scores and no vectors", (False,)),
    RequestKey("parameters", "refused", "what it says of the model cannot be followed", ({},)),
    RequestKey("model", "no effect", "the model is the run's"),
    RequestKey("priority", "no effect", "requests are answered in their order"),
    RequestKey("user", "no effect", "nothing is accounted"),
    RequestKey("cache_salt", "no effect", "nothing is cached between users"),
    RequestKey("request_id", "no effect", "it comes back"),
)

_BY_NAME = {key.name: key for key in KEYS}
STEERS = tuple(key.name for key in KEYS if key.name not in ("query", "documents", "texts", "passages", "request_id"))
"""Keys that steer a request: they do not come back with its answer."""

MARKS = tuple(
    key.name
    for key in KEYS
    if key.treatment != "no effect" and key.name not in ("query", "documents", "texts", "passages", "parameters")
)
"""Keys that tell a request from a list of the user's own."""


def refuse_unfollowed(fields: Mapping[str, Any]) -> None:
    """Raise `RowProblem` for a key that would change the answer and cannot be followed."""
    for name, value in fields.items():
        key = _BY_NAME.get(name)
        if key is None or key.treatment != "refused" or value is None:
            continue
        if not any(type(value) is type(harmless) and value == harmless for harmless in key.harmless):
            raise RowProblem("not-supported", f"`{name}` cannot be followed, and would change the scores: {key.does}")


def wants_logits(fields: Mapping[str, Any]) -> bool:
    """Whether a request asks for scores without an activation; raises `RowProblem` where its keys contradict."""
    asked = {
        name: switch(fields, name) is (name == "raw_scores")
        for name in ("raw_scores", "use_activation", "activation", "softmax")
        if fields.get(name) is not None
    }
    if len(set(asked.values())) > 1:
        raise RowProblem("bad-value", " and ".join(f"`{name}`" for name in asked) + " contradict each other")
    return any(asked.values())


def most_results(fields: Mapping[str, Any]) -> int | None:
    """How many results a request wants; None for all."""
    asked = {name: number_of(fields, name, least=0) for name in ("top_n", "top_k")}
    given = {name: value for name, value in asked.items() if value is not None}
    if len(set(given.values())) > 1:
        raise RowProblem("bad-value", "`top_n` and `top_k` differ")
    return next(iter(given.values()), None) or None


def length_limits(fields: Mapping[str, Any], *, whole: bool = False) -> Limits:
    """How long the pairs of a request may be. whole: its API makes a pair that is too long an error by default."""
    if fields.get("truncation") is not None:
        whole = not switch(fields, "truncation")
    if (value := fields.get("truncate")) is not None:
        if isinstance(value, str) and value.upper() in ("NONE", "END"):
            whole = value.upper() == "NONE"
        elif isinstance(value, bool):
            whole = not value
        else:
            raise RowProblem("bad-value", f"`truncate` is {text_or_type(value)}, not NONE, END, true or false")
    return Limits(whole=whole, passage_tokens=number_of(fields, "max_tokens_per_doc", least=1))


def switch(fields: Mapping[str, Any], name: str) -> bool:
    """The value of a key that is true or false; false where it is missing. Raises `RowProblem` for anything else."""
    value = fields.get(name)
    if not isinstance(value, (bool, type(None))):
        raise RowProblem("bad-value", f"`{name}` is {type_in_words(value)}, not true or false")
    return bool(value)
