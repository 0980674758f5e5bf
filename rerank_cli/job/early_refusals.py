"""Refuses names of files and models that cannot be right, in a fifth of a second: before the slow imports.

`run_job` checks the same again, and everything else.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from rerank_cli.checkpoint import locate_checkpoint
from rerank_cli.formats.compression import open_input
from rerank_cli.formats.inputs import STDIN, resolve_inputs
from rerank_cli.job.options import JobOptions
from rerank_cli.job.output_format import output_format
from rerank_cli.storage import is_url


def refuse_early(options: JobOptions) -> None:
    """Raise for an input, a model or judgements that are not there, and an output whose name tells no format."""
    if any(path != STDIN and not is_url(path) and not _is_there(path) for path in options.inputs):
        resolve_inputs(options.inputs, options.in_format, options.shape)
    output_format(options.names)
    if not options.online and not is_url(options.model or ""):  # those may be fetched, and that comes last
        locate_checkpoint(options.model, revision=options.revision)
    if options.qrels not in (None, STDIN) and not is_url(options.qrels) and not _is_there(options.qrels):
        open_input(options.qrels).close()


def _is_there(path: str) -> bool:
    with suppress(OSError, ValueError):  # a name that no file can have
        return Path(path).exists()
    return False
