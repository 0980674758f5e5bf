"""A library that is not installed, as an error with the command that installs all that are missing.

Planning needs only typer, rich, numpy and nvidia-ml-py; the rest needs all that `pyproject.toml` names. Distributions
stand here by module, because a failed import tells the module.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec

from rerank_cli.errors import UsageError

_DISTRIBUTIONS = {
    "torch": "torch",
    "transformers": "transformers",
    "tokenizers": "tokenizers",
    "safetensors": "safetensors",
    "PIL": "pillow",
    "pyarrow": "pyarrow",
    "backports": "backports.zstd",
    "pandas": "pandas",
    "ir_measures": "ir-measures",
    "jinja2": "jinja2",
    "markupsafe": "markupsafe",
    "numpy": "numpy",
}
"""Distributions by the module that they bring."""


@cache
def version_of(distribution: str) -> str:
    """The version that is installed; reading it takes a millisecond, and a run asks for most of them three times."""
    from importlib import metadata  # not at the top: it would take 10 ms of every start

    return metadata.version(distribution)


@contextmanager
def explaining_missing_libraries() -> Iterator[None]:
    """Inside, the failed import of a library that is required and not installed is a `UsageError`."""
    try:
        yield
    except ModuleNotFoundError as error:
        if told := missing_library(error):
            raise told from error
        raise


def missing_library(error: ModuleNotFoundError) -> UsageError | None:
    """The error for the user; None where the module is not among those that this program requires."""
    name = (error.name or "").partition(".")[0]
    if name not in _DISTRIBUTIONS:
        return None
    return UsageError(f"{_DISTRIBUTIONS[name]} is not installed: `{install_command(missing_packages(name))}`")


def missing_packages(failed: str | None = None) -> list[str]:
    """The required distributions that are not installed, and that of `failed`, the module whose import failed."""
    return [package for module, package in _DISTRIBUTIONS.items() if module == failed or not _is_there(module)]


def install_command(packages: list[str]) -> str:
    """The command that installs `packages` into the environment of this process, which may not be the shell's."""
    tool = [sys.executable, "-m", "pip", "install"]
    if not _is_there("pip"):
        tool = ["uv", "pip", "install", "--python", sys.executable]
    return shlex.join([*tool, *packages])


def _is_there(module: str) -> bool:
    name = "backports.zstd" if module == "backports" and sys.version_info < (3, 14) else module
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):  # the package above it is missing; a module without a spec
        return False
