"""Reads all that a checkpoint declares, from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rerank_cli.checkpoint.declared.modules import Config, read_modules
from rerank_cli.checkpoint.declared.transformer import Task, TransformerConfig, read_transformer_config
from rerank_cli.checkpoint.declared.values import Declaration, MessageFormat, Module
from rerank_cli.checkpoint.json_file import read_bounded, read_json_file
from rerank_cli.errors import ModelError

_FLAT_MODEL_TYPES = {"apertus", "deepseek_v3", "gpt_oss", "seed_oss"}
# Signs of a template that takes the content of a message as a list of parts.
_STRUCTURED = ("content[0]", ".type", "'type'", '"type"', "item.type", "message.content[")

_MAX_TEMPLATE_BYTES = 2**24
_MORE_TEMPLATES = "additional_chat_templates"


def read_declaration(root: Path) -> Declaration:
    """What the folder `root` declares; `ModelError` for an unknown key that changes a score."""
    if not (root / "modules.json").is_file():
        template = _read_template(root, "")
        return Declaration(
            message_format=None if template is None else _guess_format(template, root),
            chat_template=template.text if template else None,
            chat_template_place=template.place if template else "",
            files=_template_files(root, ""),
        )
    folder, modules, files = read_modules(root)
    model = root / folder
    transformer = read_transformer_config(model)
    _check_task(model, transformer, modules)
    # A template that pairs do not go through is not read, whatever it is.
    template = None if transformer.message_format is None else _read_template(root, folder)
    shared = root / "config_sentence_transformers.json"
    prompts, prompt, similarity = _read_shared(shared, modules)
    named = [str(PurePosixPath(folder, transformer.file))] if transformer.file else []
    return Declaration(
        listed=True,
        modules=modules,
        model_folder=folder,
        max_tokens=transformer.max_tokens,
        lower_case=transformer.lower_case,
        prompts=prompts,
        prompt=prompt,
        similarity=similarity,
        message_format=_message_format(transformer, template, model),
        chat_template=template.text if template else None,
        chat_template_place=template.place if template else "",
        template_variables=transformer.template_variables,
        files=(*files, *([shared.name] if shared.is_file() else []), *named, *_template_files(root, folder)),
    )


def _template_files(root: Path, folder: str) -> tuple[str, ...]:
    found = [*sorted((root / folder).glob("*.jinja")), *_additional_templates(root / folder)]
    return tuple(path.relative_to(root).as_posix() for path in found)


def _additional_templates(root: Path) -> list[Path]:
    return sorted((root / _MORE_TEMPLATES).glob("*.jinja"))


@dataclass(frozen=True, slots=True)
class _Template:
    """A chat template and the place where it stands. several: it is one of several named templates."""

    place: str
    text: str
    several: bool = False


def _read_template(root: Path, model: str) -> _Template | None:
    """The chat template of a model; None without one. model: its own folder, below `root`.

    Files come before tokenizer_config.json, whose templates are ignored if there are files. Of several templates the
    one called `default` is used. transformers looks for further files in the folder that it is given, not in the
    model's own folder below it, so they do not count there.
    Source: transformers 5.24, PreTrainedTokenizerBase.from_pretrained and get_chat_template.
    """
    folder = root / model
    own = folder / "chat_template.jinja"
    if model and _additional_templates(folder) and (_additional_templates(root) or not own.is_file()):
        raise ModelError(
            f"{folder}: `{_MORE_TEMPLATES}` does not count for a model in a folder of its own",
            hint="the template that counts belongs in chat_template.jinja, beside its config.json",
        )
    named = {"default": own} if own.is_file() else {}
    if not model:
        named |= {path.name.removesuffix(".jinja"): path for path in _additional_templates(root)}
    if named:
        if "default" not in named:
            raise ModelError(f"{folder / _MORE_TEMPLATES}: none of the templates is called `default`: {sorted(named)}")
        file = named["default"]
        return _Template(str(file), _read_template_file(file), several=len(named) > 1)
    config = folder / "tokenizer_config.json"
    value: Any = read_json_file(config).get("chat_template") if config.is_file() else None
    place, several = f"{config}: `chat_template`", isinstance(value, (list, dict))
    if isinstance(value, (list, dict)):
        listed = [one for one in value if isinstance(one, dict)]
        texts = value if isinstance(value, dict) else {one.get("name"): one.get("template") for one in listed}
        value = texts.get("default")
        if value is None:
            raise ModelError(f"{place}: none of the templates is called `default`: {sorted(map(str, texts))}")
    if value is not None and not isinstance(value, str):
        raise ModelError(f"{place}: must be text: {value!r}")
    return None if value is None else _Template(place, value, several=several)


def _read_template_file(file: Path) -> str:
    data = read_bounded(file, _MAX_TEMPLATE_BYTES, "template")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{file}: {error}") from error


def _message_format(transformer: TransformerConfig, template: _Template | None, model: Path) -> MessageFormat | None:
    form = transformer.message_format
    if form is None:
        return None
    if template is None:
        raise ModelError(
            f"{model / str(transformer.file)}: `modality_config` has `message`, and there is no chat template",
            hint="chat_template.jinja belongs to it",
        )
    if form == "auto":
        return _guess_format(template, model)
    return "flat" if form == "flat" else "structured"


def _guess_format(template: _Template, model: Path) -> MessageFormat:
    """Guess the form of messages like sentence-transformers, which does not look into several templates."""
    config = model / "config.json"
    model_type = read_json_file(config).get("model_type") if config.is_file() else None
    if model_type in _FLAT_MODEL_TYPES:
        return "flat"
    seen = "" if template.several else template.text
    return "flat" if seen and not any(sign in seen for sign in _STRUCTURED) else "structured"


def _check_task(model: Path, transformer: TransformerConfig, modules: tuple[Module, ...]) -> None:
    """Refuse a task that does not fit the modules behind the model."""
    kind = type(modules[0]).__name__ if modules else None
    wanted: dict[str | None, Task] = {
        None: "sequence-classification",
        "LogitScore": "text-generation",
        "Pooling": "feature-extraction",
    }
    # No task means feature-extraction, with which sentence-transformers fails for other modules.
    if transformer.task not in (None, wanted[kind]):
        raise ModelError(
            f"{model / str(transformer.file)}: `transformer_task` is {transformer.task!r}, and modules.json "
            f"{'names no module behind the model' if kind is None else f'lets a {kind} follow'}: "
            f"{wanted[kind]!r} belongs to that"
        )


def _read_shared(file: Path, modules: tuple[Module, ...]) -> tuple[Mapping[str, str], str | None, str | None]:
    """Prompts, the default prompt and the similarity, from config_sentence_transformers.json."""
    values = Config(str(file), read_json_file(file) if file.is_file() else {})
    embeds = Declaration(modules=modules).embeds
    model_type = values.take("model_type", "SentenceTransformer")
    if model_type != "CrossEncoder" and not embeds:
        raise ModelError(
            f"{file}: `model_type` is {model_type!r}, which makes it an embedding model, and its modules give a score",
            hint='where it is a reranker, `"model_type": "CrossEncoder"` belongs there',
        )
    values.only("truncate_dim", None, default=None)
    similarity = values.only("similarity_fn_name", "cosine", "dot", "euclidean", "manhattan", None, default=None)
    given = values.take("prompts") or {}
    if not isinstance(given, dict) or not all(isinstance(text, (str, type(None))) for text in given.values()):
        values.refuse("prompts", f"must be an object of texts: {given!r}")
    prompts = {name: text or "" for name, text in given.items()}
    default = values.take("default_prompt_name")
    if default is not None and default not in prompts:
        values.refuse("default_prompt_name", f"is {default!r}, and `prompts` has {sorted(prompts)}")
    return prompts, (prompts[default] or None) if default is not None else None, similarity
