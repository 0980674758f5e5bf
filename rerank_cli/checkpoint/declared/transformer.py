"""sentence_bert_config.json: how sentence-transformers opens the model and its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rerank_cli.checkpoint.declared.modules import Config
from rerank_cli.checkpoint.json_file import read_json_file

# The first file that exists and is not empty is read.
_NAMES = (
    "sentence_bert_config.json", "sentence_roberta_config.json", "sentence_distilbert_config.json",
    "sentence_camembert_config.json", "sentence_albert_config.json", "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)  # fmt: skip
Task = Literal["feature-extraction", "sequence-classification", "text-generation"]
# The name of the model's output, and the name under which the modules behind it find it.
_OUTPUTS: dict[Task, tuple[str, str]] = {
    "feature-extraction": ("last_hidden_state", "token_embeddings"),
    "sequence-classification": ("logits", "scores"),
    "text-generation": ("logits", "causal_logits"),
}
# Arguments of `from_pretrained` that do not change a score, except by rounding.
_HARMLESS_ARGUMENTS = {
    "attn_implementation", "cache_dir", "device_map", "dtype", "local_files_only", "low_cpu_mem_usage", "padding_side",
    "revision", "subfolder", "token", "torch_dtype", "trust_remote_code", "use_fast", "use_safetensors",
}  # fmt: skip
# Arguments of `apply_chat_template` that are no variables of the template.
_NOT_VARIABLES = {
    "chat_template", "common_kwargs", "continue_final_message", "conversation", "documents", "max_length", "messages",
    "padding", "processor_kwargs", "restore_suffix", "return_assistant_tokens_mask", "return_dict", "return_tensors",
    "tokenize", "tokenizer_kwargs", "tools", "truncation",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """The content of the file. message_format: None for plain pairs; `auto` if the template decides."""

    file: str | None = None
    task: Task | None = None
    max_tokens: int | None = None
    lower_case: bool = False
    message_format: str | None = None
    template_variables: Mapping[str, Any] = field(default_factory=dict)


def read_transformer_config(folder: Path) -> TransformerConfig:
    """Read the file in the folder of the model; all defaults without one."""
    for name in _NAMES:
        if (folder / name).is_file() and (values := read_json_file(folder / name)):
            break
    else:
        return TransformerConfig()
    config = Config(str(folder / name), values)
    task: Task | None = config.only("transformer_task", *_OUTPUTS, None, default=None)
    message_format = _message_format(config, task or "feature-extraction")
    limit = _read_limit(config, "max_seq_length", config.take("max_seq_length"))
    for old, new in (
        ("model_args", "model_kwargs"),
        ("tokenizer_args", "processor_kwargs"),
        ("config_args", "config_kwargs"),
    ):
        for key in (old, new):
            arguments = _read_object(config, key)
            own = arguments.pop("model_max_length", None) if new == "processor_kwargs" else None
            limit = limit if own is None else _read_limit(config, f"{key}.model_max_length", own)
            for argument in sorted(set(arguments) - _HARMLESS_ARGUMENTS):
                config.refuse(f"{key}.{argument}", f"is {arguments[argument]!r}, and nothing is known of it")
    config.only("unpad_inputs", True, False, None, default=None)  # a matter of speed
    for key in ("query_length", "document_length", "query_expansion", "tokenizer_name_or_path"):
        config.only(key, None, default=None)
    own, variables = _processing(config)
    lower_case = config.flag("do_lower_case", default=False)
    config.finish()
    return TransformerConfig(
        file=name,
        task=task,
        max_tokens=limit if own is None else own,
        lower_case=lower_case,
        message_format=message_format,
        template_variables=variables,
    )


def _read_object(config: Config, key: str) -> dict[str, Any]:
    value = config.take(key)
    if value is not None and not isinstance(value, dict):
        config.refuse(key, f"must be an object: {value!r}")
    return dict(value or {})


def _read_limit(config: Config, key: str, value: Any) -> int | None:
    """A number of tokens, cut to 2^62; None if there is none."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or value < 1:
        config.refuse(key, f"must be a number of tokens: {value!r}")
    return int(min(value, 2**62))


def _message_format(config: Config, task: Task) -> str | None:
    """The form of messages if pairs go through the chat template; None for plain pairs."""
    given = config.take("modality_config")
    own, output = _OUTPUTS[task]
    if given is None:
        config.take("module_output_name")  # without a `modality_config`, sentence-transformers uses its own
        return None
    if not isinstance(given, dict):
        config.refuse("modality_config", f"must be an object: {given!r}")
    config.only("module_output_name", output, default=None)
    if not {"text", "message"} & set(given):
        config.refuse("modality_config", f"has neither `text` nor `message`: {sorted(given)}")
    for kind in ("text", "message"):
        if kind in given:
            entry = given[kind] if isinstance(given[kind], dict) else {}
            part = Config(f"{config.place}: `modality_config.{kind}`", entry)
            part.only("method", "forward", default=None)
            part.only("method_output_name", own, default=None)
            if kind == "message":
                part.only("format", "flat", "structured", "auto", default="auto")
            part.finish()
    return str(given["message"].get("format", "auto")) if "message" in given else None


def _processing(config: Config) -> tuple[int | None, Mapping[str, Any]]:
    """The limit in tokens and the template's variables of `processing_kwargs`."""
    given = Config(f"{config.place}: `processing_kwargs`", _read_object(config, "processing_kwargs"))
    texts = Config(f"{config.place}: `processing_kwargs.text`", _read_object(given, "text"))
    limit = _read_limit(texts, "max_length", texts.take("max_length"))
    texts.only("truncation", True, "longest_first", default=True)
    texts.only("padding", True, "longest", default=True)
    texts.only("padding_side", "left", "right", None, default=None)
    texts.finish()
    variables = _read_object(given, "chat_template")
    for key in sorted(_NOT_VARIABLES & set(variables)):
        if variables.pop(key) not in ((True,) if key == "restore_suffix" else (None,)):
            given.refuse(f"chat_template.{key}", "is no variable of a template")
    for key in ("audio", "image", "video"):  # no part of a text
        given.take(key)
    common = Config(f"{config.place}: `processing_kwargs.common`", _read_object(given, "common"))
    common.only("return_tensors", "pt", None, default=None)
    common.finish()
    given.finish()
    return limit, variables
