"""Messages for a command line that cannot be parsed: what is wrong, where it came from, and what to do."""

from __future__ import annotations

import difflib
from typing import Any

import typer

from rerank_cli.cli.declare import declared_options
from rerank_cli.errors import UsageError

_BAD_ROWS = "bad rows are left out and told in OUT.errors.jsonl, always; `--max-errors` says how many may be"
_ELSEWHERE = {
    "--batch-size": "`--token-budget N` is the size of a batch here, in tokens; pairs of like length are put together",
    "--input": "inputs have no option: `rerank-cli rerank-file IN... -o OUT`",
    "--resume": "run the same command again: it continues by itself",
    "--continue": "run the same command again: it continues by itself",
    "--api-key": "models run on this machine; nothing is sent anywhere",
    "--trust-remote-code": "code in a checkpoint is never run",
    "--shuffle": "rows keep the order of the input",
    "--skip-errors": _BAD_ROWS,
    "--ignore-errors": _BAD_ROWS,
    "--continue-on-error": _BAD_ROWS,
}
"""Options of other tools without a direct counterpart, and what to do instead."""
_NO_LISTS = "rows of `score` are single pairs, not lists; `rerank-cli rerank-file` has it"
_OF_THE_OTHER = {
    ("rerank-file", "--query"): "rows of `rerank-file` have their own query; `rerank-cli score --query Q` asks one of "
    "all rows",
    **{("score", flag): _NO_LISTS for flag in ("--first", "--first-keep", "--first-top")},
}
"""Options that only the other command has, and why."""
_SAME = {
    "--top-n": ("--top-k", "--topk", "-k", "--top", "--k", "--n"),
    "--max-tokens": ("--max-length", "--max-seq-length", "--max-len", "--max-seq-len", "--max-model-len"),
    "--model": ("--model-name", "--model-id", "--model-path", "--model-name-or-path", "-m", "--checkpoint"),
    "--precision": ("--dtype", "--torch-dtype", "--quantize", "--fp16", "--bf16", "--fp32", "--int8", "--half"),
    "--device": ("--gpus", "--gpu-id", "--cuda", "--cpu", "--devices"),
    "--engines": ("--workers", "--num-workers", "--num-gpus", "--data-parallel-size", "--replicas", "--jobs", "-j"),
    "--overwrite": ("--force", "-f", "--overwrite-output"),
    "--output": ("--output-file", "--out", "--outfile", "--output-path", "--output-dir"),
    "--passages-field": ("--documents-field", "--docs-field", "--candidates-field", "--document-field"),
    "--metric": ("--metrics", "--measures", "--eval-metric"),
    "--query-field": ("--query-column", "--query-col", "--query-key"),
    "--text-field": ("--passage-field", "--text-column", "--text-key", "--passage-column", "--content-field"),
    "--report": ("--report-file", "--html", "--report-to"),
    "--prob": ("--sigmoid", "--normalize", "--probabilities"),
    "--lines": ("--text", "--plain"),
    "--threshold": ("--min-score", "--score-threshold", "--cutoff"),
    "--pool": ("--pooling", "--aggregate"),
    "--limit": ("--max-rows", "--max-samples", "--head"),
}
"""Our options, and what other tools call them."""

_WRONG = {
    "int_parsing": "not a whole number",
    "int_from_float": "not a whole number",
    "float_parsing": "not a number",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than_equal": "must be at most {le:g}",
}
"""Our words for pydantic's kinds of errors."""


def usage_error(error: typer.TyperException) -> UsageError:
    """Typer's error as one of ours, with a message and a hint."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "rerank-cli"
    name, parameter = getattr(error, "option_name", None), getattr(error, "param", None)
    if name is not None and context is not None and hasattr(error, "possibilities"):
        return UsageError(f"{path}: no option {name}", hint=_hint_for_unknown(name, context))
    if parameter is not None and context is not None and error.__cause__ is not None:
        # `--deadline 5x: not a time`; with the variable's name if the value came from it.
        one, source = declared_options(context).get(parameter.name), context.get_parameter_source(parameter.name)
        flag = one.flag if one and one.flag else parameter.opts[0]
        if one and source is not None and source.name == "ENVIRONMENT":
            flag = one.variable
        (first, *_) = error.__cause__.errors() if hasattr(error.__cause__, "errors") else [{}]
        hint = f"{path} --help"
        if choices := parameter.type_descriptor.choices:
            what, hint = "not known", "known are " + ", ".join(choices)
        elif first.get("type") == "value_error":
            what, *hints = first["ctx"]["error"].args  # raised by a `parse` function
            hint = hints[0] if hints else hint
        else:
            what = _WRONG.get(first.get("type", ""), error.message.rstrip(".")).format(**first.get("ctx", {}))
        return UsageError(f"{flag} {first.get('input', '')}".rstrip() + f": {what}", hint=hint)
    message: str = error.format_message() if hasattr(error, "format_message") else str(error)
    return UsageError(message[:1].lower() + message[1:].rstrip("."), hint=f"{path} --help")


def _hint_for_unknown(name: str, context: Any) -> str:
    """A hint for an option that the command does not have."""
    command = context.command_path.rpartition(" ")[2]
    own = {one.flag: one for one in declared_options(context).values() if one.flag}
    if told := _OF_THE_OTHER.get((command, name)):
        return told
    for flag, others in _SAME.items():
        if name in others and flag in own:
            return f"here it is `{flag}`"
    if name in _ELSEWHERE and (name != "--batch-size" or "--token-budget" in own):
        return _ELSEWHERE[name]
    commands = getattr(context.find_root().command, "commands", {})
    having = [f"`{other}`" for other, one in commands.items() if any(name in option.opts for option in one.params)]
    if having:
        return f"it is an option of {', '.join(having)}"
    if near := difflib.get_close_matches(name, own, n=2):
        return "did you mean " + " or ".join(f"`{flag}`" for flag in near) + "?"
    return f"{context.command_path} --help-all"
