"""What the user asked of a run, whichever command was used."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from rerank_cli.encoding.encoder import ImageLimits, SpecialTokens, Truncation
from rerank_cli.errors import InputError, TooManyBadRowsError, UsageError
from rerank_cli.evaluation.per_query import refuse_per_query_name
from rerank_cli.formats.inputs import can_be_reread, resolve_inputs
from rerank_cli.formats.shapes import NO_TEXTS, FieldNames, Selection, Texts
from rerank_cli.job.output_names import Names
from rerank_cli.job.ranking import Pool
from rerank_cli.planning.profiles import ProfileRequest
from rerank_cli.records import Counts

_RATE_IS_MEANINGFUL_FROM = 1000  # rows; a percentage of fewer rows stops a run for a bad first line


@dataclass(frozen=True, slots=True)
class ErrorLimit:
    """How many bad rows a run bears: `rows`, or `share` of all rows, or any number (both None).

    Bad passages of lists that are ranked without them count too: each against `rows`, and against `share` as part of
    all passages.
    """

    rows: int | None = None
    share: float | None = None

    def check(self, counts: Counts, *, last: bool) -> None:
        """Raise `TooManyBadRowsError` if `counts` is over the limit."""
        if self.rows is not None and counts.rows_error + counts.passages_error > self.rows:
            passages = f" and {counts.passages_error} passages" if counts.passages_error else ""
            raise TooManyBadRowsError(f"{counts.rows_error} rows{passages} failed, --max-errors allows {self.rows}")
        if self.share is not None and (last or counts.rows_in >= _RATE_IS_MEANINGFUL_FROM):
            allowed = self.share * counts.rows_in
            if counts.rows_error > allowed:
                share = f"{100 * counts.rows_error / counts.rows_in:.3g} %"
                raise TooManyBadRowsError(
                    f"{counts.rows_error} of {counts.rows_in} rows failed ({share}), "
                    f"--max-errors allows {100 * self.share:g} %"
                )
            whole = counts.pairs + counts.passages_error
            if counts.passages_error > self.share * whole:
                share = f"{100 * counts.passages_error / whole:.3g} %"
                raise TooManyBadRowsError(
                    f"{counts.passages_error} of {whole} passages failed ({share}), "
                    f"--max-errors allows {100 * self.share:g} %"
                )


@dataclass(frozen=True, slots=True)
class Command:
    """What a shell would be given to do a run again: a line, and the folder it was given in."""

    line: str
    folder: str


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What the user asked for; every field that changes the output's bytes is here.

    request_notes: variables that `request` did not hear. template: its text, or `none`. shard: (i, n), the i-th of n
    parts. checkpoint_every, lock_wait, deadline: seconds. check_precision: pairs scored in fp32 too. command: for the
    report; None without one.
    """

    inputs: tuple[str, ...]
    names: Names
    pairs: bool = False  # score: one pair a row, input order
    query: str | None = None
    in_format: str = "auto"
    shape: str = "auto"
    texts: Texts = NO_TEXTS
    fields: FieldNames = field(default_factory=FieldNames)
    model: str | None = None
    revision: str | None = None
    online: bool = False
    request: ProfileRequest = field(default_factory=ProfileRequest)
    request_notes: tuple[str, ...] = ()
    profiles_file: str | None = None
    truncate: Truncation = "end"
    chunk_overlap: int = 64
    pool: Pool = "max"
    special_tokens: SpecialTokens = "neutral"
    images: ImageLimits = field(default_factory=ImageLimits)
    instruction: str | None = None
    template: str | None = None
    selection: Selection = field(default_factory=Selection)
    error_limit: ErrorLimit = field(default_factory=ErrorLimit)
    overwrite: bool = False
    restart: bool = False
    checkpoint_every: float = 5.0
    lock_wait: float = 0.0
    deadline: float | None = None
    shard: tuple[int, int] | None = None
    skip: int = 0
    limit: int | None = None
    max_line_bytes: int = 64 * 2**20
    qrels: str | None = None
    metrics: tuple[str, ...] = ("nDCG@10",)
    command: Command | None = None
    check_precision: int | None = None


def refuse_unusable(options: JobOptions) -> None:
    """Values that parse and mean nothing, which would otherwise be found out when the run ends."""
    threshold = options.selection.threshold
    if threshold is not None and not math.isfinite(threshold):
        raise UsageError(f"--threshold {threshold}: not a number to compare with")
    if options.shard and options.pairs and options.selection.top_n is not None:
        raise UsageError("--shard: the best rows of a part are not the best of the whole", hint="leave out --top-n")
    if options.shard and not can_be_reread(resolve_inputs(options.inputs, options.in_format, options.shape)):
        raise UsageError("--shard: a pipe cannot be cut in parts", hint="give the name of a file")
    if options.names.per_query:
        refuse_per_query_name(options.names.per_query)
        if options.qrels is None:
            raise UsageError("--per-query: nothing is measured without judgements", hint="name them with `--qrels`")
    root = options.fields.image_root
    if root is not None and not Path(root).is_dir():
        raise InputError(f"--image-root {root}: no such folder")
    try:
        (options.query or "").encode()
    except UnicodeEncodeError as error:
        raise UsageError("--query: not UTF-8") from error
