"""Commands that answer with one JSON document, also when an option is unknown or has a bad value."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer

from rerank_cli.cli.console import print_json
from rerank_cli.cli.quick_command import QuickCommand
from rerank_cli.cli.usage import usage_error
from rerank_cli.errors import RerankError


class JsonCommand(QuickCommand):
    """`QuickCommand` that also prints usage errors as documents; stderr has them as usual."""

    def error_document(self, error: RerankError) -> dict[str, Any]:
        """The document of an error; each command has its own."""
        raise NotImplementedError

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Parse `args`."""
        given = list(args)  # parsing empties the list
        try:
            return super().make_context(info_name, args, parent, **extra)
        except (typer.TyperException, RerankError) as error:
            # The last `--format` among arguments that cannot be parsed, else that of the environment.
            output_mode = os.environ.get("RERANK_FORMAT", "auto")
            for place, argument in enumerate(given):
                name, equals, value = argument.partition("=")
                if name == "--format":
                    output_mode = value if equals else next(iter(given[place + 1 :]), output_mode)
            if wants_json(output_mode):
                told = error if isinstance(error, RerankError) else usage_error(error)
                print_json(self.error_document(told))
                sys.stdout.flush()
            raise


def wants_json(output_mode: str) -> bool:
    """Whether `--format` asks for JSON; an unknown value counts as `auto`."""
    return output_mode == "json" or (output_mode != "text" and not sys.stdout.isatty())


def error_to_json(error: RerankError) -> dict[str, Any]:
    """An error as documents have it."""
    return {"exit_code": error.exit_code, "message": error.message, "hint": error.hint}
