"""What one process of a run leaves for the next: a state with every window, and notes of single windows.

A run that goes on reads its input again and scores from the first window that is not committed. What is not in the rows
comes from the journal:

    state   the numbers so far (`Totals`), the comparison with fp32, the digest of the images of finished rows, the
            texts that an embedding model has read, threads and token budget, how far the run is and its rate (of the
            last commit alone)
    notes   the values for `--qrels`, the best rows of `score --top-n`, the calibration of an int8 model (all of them)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rerank_cli.encoding.images.seen import SeenImages
from rerank_cli.errors import StoppedError
from rerank_cli.evaluation.measures import Evaluator
from rerank_cli.formats.inputs import Input, ReadOptions
from rerank_cli.formats.row_counts import count_rows
from rerank_cli.formats.sinks import BestSink
from rerank_cli.job.kept_vectors import EmbeddedTexts
from rerank_cli.job.output import Destination
from rerank_cli.job.precision_check import PrecisionCheck
from rerank_cli.job.progress import Progress, about, rows_of
from rerank_cli.job.totals import Totals
from rerank_cli.job.windows import Windows
from rerank_cli.journal import Job
from rerank_cli.planning.run_plan import Plan
from rerank_cli.records import Window

if TYPE_CHECKING:
    from rerank_cli.engine import Engine


class Resume:
    """Takes a run over from an earlier process, and commits windows for a later one.

    Args:
        destination: Knows what an earlier process has left, and gets what this one leaves.
        output: What the user calls the output.
        plan: Made for this process.
        totals, precision, evaluator, best: What grows with the windows; None where the run has none of it.
        progress: Begins where the earlier process has ended.
    """

    def __init__(  # noqa: PLR0913 (what grows with the windows)
        self,
        destination: Destination,
        output: str,
        plan: Plan,
        totals: Totals,
        precision: PrecisionCheck,
        evaluator: Evaluator | None,
        best: BestSink | None,
        progress: Progress,
    ) -> None:
        self._destination, self._output, self._plan = destination, output, plan
        self._totals, self._precision, self._evaluator, self._best = totals, precision, evaluator, best
        self._images = SeenImages()
        self._progress = progress

    def begin(self, on_note: Callable[[str], None], count: Callable[[], int | None]) -> Plan:
        """Take over what is left, and say so; returns the plan that the run has begun with.

        count: counts the rows of the run, if that is soon done.
        """
        if (state := self._destination.state) is not None:
            # Both can move the last digit of a logit, and depend on what else the machine does: a run ends as it began.
            self._plan = replace(
                self._plan,
                threads=state["threads"],
                lanes=state.get("lanes", 1),
                token_budget=state["token_budget"],
            )
            if self._best:
                self._best.dropped = state["dropped"]
            for _, note in self._destination.notes:
                if "values" in note and self._evaluator:
                    self._evaluator.restore(note["values"])
            said = state.get("progress") or {}
            self._progress.begin_at(said.get("share"), self._totals.counts.rows_in)
            on_note(_describe_earlier(self._totals.counts.rows_in, count(), said))
        return self._plan

    def pass_over(self, windows: Windows) -> None:
        """Read the windows that an earlier process has finished; raises `JobChangedError` if their images changed."""
        state, last = self._destination.state, self._destination.next_window - 1
        if state is None:
            return
        notes = {window: note["best"] for window, note in self._destination.notes if "best" in note}
        for window in windows:
            self._images.add(window)
            if self._best and window.number in notes:
                self._best.restore(window, notes[window.number])
            if window.number == last:
                if self._images.digest != state["images"]:
                    raise Job.changed(self._output, "an image file of its finished rows was changed")
                return

    def commit(
        self, window: Window, engine: Engine, texts: EmbeddedTexts | None, cascade: Mapping[str, Any] | None = None
    ) -> None:
        """Hand a window that is written to the destination, with what a later process must know.

        cascade: what that is of two scorers.
        """
        self._images.add(window)
        self._progress.end_window(window.share, self._totals.counts.rows_in)
        state = {
            **self._totals.state,
            **self._precision.state,
            "images": self._images.digest,
            "threads": self._plan.threads,
            "lanes": self._plan.lanes,
            "token_budget": self._plan.token_budget,
            "embedded": texts.state if texts else None,
            "dropped": self._best.dropped if self._best else 0,
            "progress": self._progress.state(),
            "cascade": cascade,
        }
        note: dict[str, Any] = self._precision.take_note(engine)
        if self._evaluator and self._evaluator.note:
            note["values"] = self._evaluator.note
        if self._best and self._best.note:
            note["best"] = self._best.note
        self._destination.end_window(window.number, state, note or None, texts.take() if texts else {})


def _describe_earlier(rows: int, total: int | None, said: Mapping[str, Any]) -> str:
    """What an earlier process has done; said: `Progress.state` of it."""
    text = f"goes on after {rows_of(rows, total, said.get('share'))}, which an earlier process has finished"
    if speed := said.get("pairs_per_second"):
        text += f" at {speed:,.1f} pairs/s"
    left = said.get("seconds_left")
    return text if left is None else f"{text}; {about(left)} is left"


@contextmanager
def say_stopped(
    progress: Progress, inputs: Sequence[Input], read: ReadOptions, shard: object, *, kept: bool
) -> Iterator[None]:
    """Inside, a run that is stopped says what is kept of it and how long the rest takes.

    Args:
        progress: Of the run.
        inputs: Read it.
        read: As `inputs`.
        shard: Set where the run does a share of the input, whose rows are not counted.
        kept: A later process may go on.
    """
    try:
        yield
    except StoppedError as error:
        if not kept:
            error.add_note(f"stopped: {progress.kept_rows:,} rows are done; the next run starts over")
        elif not progress.kept_rows:
            error.add_note("stopped: no row is finished yet; run the same command again")
        else:
            total = count_rows(inputs, read) if shard is None else None
            left = progress.seconds_after(progress.kept_share)
            rest = "" if left is None else f"{about(left)} is left; "
            rows = rows_of(progress.kept_rows, total, progress.kept_share)
            error.add_note(f"stopped: {rows} are kept; {rest}run the same command again")
        raise
