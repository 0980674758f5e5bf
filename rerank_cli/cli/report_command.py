"""Commands that print a report: one JSON document where JSON is wanted, also for an option that does not exist."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import typer

from rerank_cli.cli.console import print_json
from rerank_cli.cli.quick import QuickCommand
from rerank_cli.cli.usage import usage_error
from rerank_cli.errors import RerankError


class ReportCommand(QuickCommand):
    """`QuickCommand` whose errors of usage are documents too; stderr tells them as ever."""

    def error_document(self, error: RerankError) -> dict[str, Any]:
        """The document of an error that came before there was anything to report."""
        raise NotImplementedError

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Parse `args`."""
        given = list(args)  # parsing eats them
        try:
            return super().make_context(info_name, args, parent, **extra)
        except (typer.TyperException, RerankError) as error:
            if wants_json(_format_of(given)):
                told = error if isinstance(error, RerankError) else usage_error(error)
                print_json(self.error_document(told))
                sys.stdout.flush()
            raise


def wants_json(output_mode: str) -> bool:
    """`--format` asks for JSON; a value that is not known is taken for `auto`."""
    return output_mode == "json" or (output_mode != "text" and not sys.stdout.isatty())


def error_to_json(error: RerankError) -> dict[str, Any]:
    """What a document says of an error."""
    return {"exit_code": error.exit_code, "message": error.message, "hint": error.hint}


def _format_of(arguments: Sequence[str]) -> str:
    """The last `--format` among arguments that cannot be parsed, else that of the environment."""
    found = os.environ.get("RERANK_FORMAT", "auto")
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == "--format":
            found = value if equals else next(iter(arguments[place + 1 :]), found)
    return found
