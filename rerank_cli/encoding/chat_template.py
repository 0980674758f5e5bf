"""Chat templates: a query and a passage as messages, written as one text by the checkpoint's own Jinja template.

A template cannot do whatever it likes: jinja2's immutable sandbox renders it, with the filters and functions that
transformers offers, except those that give another text each time (the time, `random`, `lipsum`). It is rendered for
each pair, as templates trim and cut texts, or leave out a line where a text is empty.

Rendering shows whether a template carries a pair: if the text does not change with the query, or with the passage, the
model would never see it. A template that writes messages of any role, as ChatML does, belongs to a chat model: it
carries a pair too, but no reranker was trained with its text.

Source: transformers' utils/chat_template_utils.py; sentence-transformers' base/modality.py (pair_roles_failure).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.declared import MessageFormat
from rerank_cli.errors import ModelError

_TIME = "strftime_now"
# The special tokens that these classes take where tokenizer_config.json names none.
_CLASS_TOKENS: dict[str, dict[str, str]] = {
    "Qwen2Tokenizer": {"unk_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    "LlamaTokenizer": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    "GemmaTokenizer": {"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
}
_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_PROBES = (("alpha", "bravo"), ("charlie", "bravo"), ("alpha", "foxtrot"))


class TemplateFailedError(Exception):
    """A template raised an error, or failed, for a pair."""


class _Generation(Extension):
    """`{% generation %}`, a block of transformers: its content is written unchanged."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 wants it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The nodes inside the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Like the filter of transformers: without the HTML escapes of jinja2's own."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


@dataclass(frozen=True)
class ChatTemplate:
    """A checkpoint's template, with all of its variables except the pair.

    place: the file, for messages. system: the content of a first message; empty for none. variables: further ones.
    """

    place: str
    source: str
    form: MessageFormat
    system: str = ""
    variables: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def _template(self) -> Template:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        del environment.filters["random"], environment.globals["lipsum"]
        try:
            used = find_undeclared_variables(environment.parse(self.source))
            template = environment.from_string(self.source)
        except (TemplateError, RecursionError) as error:
            raise ModelError(f"{self.place}: the chat template is not Jinja that is known: {error}") from error
        if _TIME in used:
            raise ModelError(f"{self.place}: the chat template writes the time (`{_TIME}`): no two runs would agree")
        return template

    def render(self, query: str, passage: str, roles: tuple[str, str] = ("query", "document")) -> str:
        """The text of a pair; `TemplateFailedError` where the template fails."""
        messages = [(role, text) for role, text in zip(roles, (query, passage), strict=True)]
        if self.system:
            messages.insert(0, ("system", self.system))
        variables = {"add_generation_prompt": False, "tools": None, "documents": None, **self.variables}
        template = self._template
        written = [
            {"role": role, "content": text if self.form == "flat" else [{"type": "text", "text": text}]}
            for role, text in messages
        ]
        try:
            return template.render(messages=written, **variables)
        except Exception as error:  # whatever a template does, only this pair cannot be written
            raise TemplateFailedError(f"{type(error).__name__}: {error}") from error

    def failure(self) -> str | None:
        """Why the template carries no pair; None where it does."""
        try:
            first, *others = (self.render(*probe) for probe in _PROBES)
        except TemplateFailedError as failure:
            return f"it fails with {failure}"
        lost = [role for role, text in zip(("query", "passage"), others, strict=True) if text == first]
        return f"the {' and the '.join(lost)} would not be in its text" if lost else None

    @property
    def takes_any_role(self) -> bool:
        """Whether messages of made-up roles are written too, as the template of a chat model does it."""
        try:
            texts = [self.render(*probe, roles=("zulu", "yankee")) for probe in _PROBES]
        except TemplateFailedError:
            return False
        return texts[0] not in texts[1:]


def read_chat_template(checkpoint: Checkpoint, instruction: str | None = None) -> ChatTemplate | None:
    """The chat template in which this checkpoint's pairs are written; None where they are not.

    instruction: replaces the checkpoint's own prompt; an empty one means no prompt.
    """
    declared = checkpoint.declared
    if declared.message_format is None or declared.chat_template is None:
        return None
    return ChatTemplate(
        place=declared.chat_template_place,
        source=declared.chat_template,
        form=declared.message_format,
        system=(declared.prompt or "") if instruction is None else instruction,
        variables={**_special_tokens(checkpoint), **declared.template_variables},
    )


def _special_tokens(checkpoint: Checkpoint) -> dict[str, str]:
    """The special tokens by name, as transformers gives them to a template."""
    config = checkpoint.tokenizer_config
    name = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    found = dict(_CLASS_TOKENS.get(name, {}))
    for key in (*_TOKENS, *(key for key in config if key.endswith("_token") and not key.startswith(("add_", "use_")))):
        value = config.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[key] = text
        elif key in config:
            found.pop(key, None)
    return found
