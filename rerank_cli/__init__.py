"""Rerank candidate lists with a cross-encoder, from files, unattended; and from Python (`rerank`, `Reranker`)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rerank_cli.reranker import Reranker, rerank

__all__ = ["Reranker", "__version__", "rerank"]

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """`Reranker` and `rerank`, when they are asked for: the command line starts without torch."""
    if name not in ("Reranker", "rerank"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from rerank_cli import reranker
    except ModuleNotFoundError as error:
        from rerank_cli.machine.libraries import missing_library

        if missing := missing_library(error):
            raise ImportError(missing.message, name=error.name) from None
        raise
    return getattr(reranker, name)
