"""Turns parsed parameters into `JobOptions`, for `score` and `rerank-file`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import typer

from rerank_cli.cli.command_line import command_of
from rerank_cli.cli.declare import declared_options, fields_of, typed_options
from rerank_cli.cli.plan_request import read_plan_request
from rerank_cli.job.error_limit import ErrorLimit
from rerank_cli.job.options import JobOptions, refuse_idle


def read_job_options(context: typer.Context, **more: Any) -> JobOptions:
    """The `JobOptions` that a command's options set.

    Args:
        context: Of the command that runs.
        more: Fields that no option sets.
    """
    given, asked = context.params, read_plan_request(context)
    fields = fields_of(context) | {
        "request": asked.request, "request_notes": asked.notes, "profiles_file": asked.profiles_file,
        "error_limit": ErrorLimit(rows=0) if given["on_error"] == "fail" else given["max_errors"] or ErrorLimit(),
        "command": command_of(context),
    }  # fmt: skip
    options = JobOptions(**(fields | more))
    options = replace(options, metrics=tuple(options.metrics))
    declared = declared_options(context)
    refuse_idle(options, {declared[name].into or name: flag for name, flag in typed_options(context).items()})
    return options
