"""Keeps a run without a single row from replacing a good output.

    rows in, none scored    exit code 10: only the errors file gets its name
    no row in               exit code 4 if there is an output with rows; else the output is empty

Neither leaves a work folder behind, so the next run begins anew, whatever its input is.
"""

from __future__ import annotations

from rerank_cli.errors import InputError, nothing_scored
from rerank_cli.job.options import JobOptions
from rerank_cli.job.output import Destination
from rerank_cli.job.totals import Totals


def refuse_empty(totals: Totals, destination: Destination, options: JobOptions) -> None:
    """Raise if all windows are done and the output would hold nothing; the older output is kept."""
    counts, out = totals.counts, options.names.output
    if counts.rows_in and not counts.rows_out and not options.error_limit.all:
        errors = destination.give_up()
        raise nothing_scored(counts.rows_in, totals.first_error, errors)
    if not counts.rows_in and destination.holds_rows:
        destination.give_up()
        what = "has no row" if not options.shard else f"has no row in part {options.shard[0]}/{options.shard[1]}"
        first, *others = options.inputs
        inputs = f"{first} and {len(others)} more" if others else first
        raise InputError(
            f"{inputs}: {what}; {out} holds the rows of an earlier run, and was kept",
            hint=f"if an empty output is right, remove {out} first",
        )
