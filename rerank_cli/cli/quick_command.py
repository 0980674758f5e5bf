"""Commands that start without pydantic.

Typer converts every value to its annotated type through pydantic, even the absent value of `--help`. Importing pydantic
and building its validators costs 60 ms on a fast core (typer 0.29, pydantic 2), a fifth of what `profile-select` may
take as a whole. A value that is absent or has the wanted type already needs no conversion; all others still go through
typer.

Typer has no public hook for this: it builds its parameters itself and validates in `process_value` of each. So we fill
the slot for the validator, which typer would fill lazily.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Literal, get_args, get_origin

from rerank_cli.cli.help import CommandWithHelp, Group


class QuickCommand(CommandWithHelp):
    """`CommandWithHelp` for which typer validates only the values that need it."""

    def get_params(self, ctx: Any) -> Any:
        """The parameters, `--help` among them."""
        return _without_validators(super().get_params(ctx))


class QuickGroup(Group):
    """`Group` for which typer validates only the values that need it."""

    def get_params(self, ctx: Any) -> Any:
        """The parameters, `--help` among them."""
        return _without_validators(super().get_params(ctx))


def _without_validators(parameters: Iterable[Any]) -> list[Any]:
    """The parameters with typer's slot for the validator filled, if it is still empty.

    A version of typer without this slot ignores it: that costs time and nothing else.
    """
    found = list(parameters)
    for parameter in found:
        if getattr(parameter, "_runtime_param", None) is None:
            parameter._runtime_param = _TextsAsTheyAre()
    return found


class _TextsAsTheyAre:
    """Stands in for a validator until one is needed; typer itself validates and reports a wrong value."""

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """`value` in the type of its parameter."""
        several = param.multiple or param.nargs == -1
        if value is None:
            return () if several else None
        if value is param.default:
            return value
        descriptor = param.type_descriptor
        wanted, parse = descriptor.annotation, descriptor.parameter_info.parser
        if parse is not None:
            with suppress(ValueError):
                return parse(value)
        elif type(value) is wanted or (get_origin(wanted) is Literal and value in get_args(wanted)):
            return value
        elif wanted == list[str] and isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value):
            return list(value)
        param._runtime_param = None
        return param.get_runtime_param().coerce(value, param=param, ctx=ctx)
