"""What one process of a run leaves for the next: a state with each commit, and notes of single windows.

A resumed run reads its input again and scores from the first window that is not committed. What is not in the rows
comes from the journal:

    state   of the last commit: the totals so far (`Totals`), the comparison with fp32, the digest of the images of
            finished rows, the texts that an embedding model has read, threads and token budget, progress and speed
    notes   of all windows: the measures for `--qrels`, the best rows of `score --top-n`, an int8 model's calibration
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rerank_cli.encoding.images.same_files import SeenImages
from rerank_cli.errors import StoppedError
from rerank_cli.evaluation.evaluator import Evaluator
from rerank_cli.formats.inputs import Input, ReadOptions
from rerank_cli.formats.row_counts import count_rows
from rerank_cli.formats.sinks import BestSink
from rerank_cli.job.kept_vectors import EmbeddedTexts
from rerank_cli.job.output import Destination
from rerank_cli.job.precision_check import PrecisionCheck
from rerank_cli.job.progress import Progress, about, rows_of
from rerank_cli.job.totals import Totals
from rerank_cli.job.watched_images import WatchedImages
from rerank_cli.job.windows import Windows
from rerank_cli.journal import Job
from rerank_cli.planning.run_plan import Plan
from rerank_cli.records import Window

if TYPE_CHECKING:
    from rerank_cli.engine import Engine


class Resume:
    """Resumes a run from what an earlier process has left, and commits windows for a later one.

    Args:
        destination: Has the job on disk.
        output: The output as the user typed it.
        plan: Made for this process.
        watched: The images of the windows in progress.
        totals, precision, evaluator, best: What grows with the windows; None if the run does not have it.
        progress: Continues from where the earlier process ended.
    """

    def __init__(  # noqa: PLR0913 (all that grows with the windows)
        self,
        destination: Destination,
        output: str,
        plan: Plan,
        watched: WatchedImages,
        totals: Totals,
        precision: PrecisionCheck,
        evaluator: Evaluator | None,
        best: BestSink | None,
        progress: Progress,
    ) -> None:
        self._destination, self._output, self._plan = destination, output, plan
        self._totals, self._precision, self._evaluator, self._best = totals, precision, evaluator, best
        self._watched, self._images = watched, SeenImages()
        self._progress = progress

    def begin(self, on_note: Callable[[str], None], count: Callable[[], int | None]) -> Plan:
        """Take over what an earlier process has left, and note it; returns the plan that the run began with.

        count: counts the rows of the run, or gives None if that would take long.
        """
        if (state := self._destination.state) is not None:
            # These can move the last digit of a logit, and depend on the load of the machine: a run keeps them.
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
            rows = rows_of(self._totals.counts.rows_in, count(), said.get("share"))
            speed, left = said.get("pairs_per_second"), said.get("seconds_left")
            at = f" at {speed:,.1f} pairs/s" if speed else ""
            rest = "" if left is None else f"; {about(left)} is left"
            on_note(f"resumes after {rows}, which an earlier process has finished{at}{rest}")
        return self._plan

    def pass_over(self, windows: Windows) -> None:
        """Skip the windows that an earlier process has finished; `JobChangedError` if their images have changed."""
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
                    raise Job.changed(self._output, "an image file of its finished rows has changed")
                return

    def commit(
        self, window: Window, engine: Engine, texts: EmbeddedTexts | None, cascade: Mapping[str, Any] | None = None
    ) -> None:
        """Hand a written window to the destination, with the state for a later process.

        Raises `InputError` if an image of it was changed meanwhile.

        Args:
            window: That was written.
            engine: May have been calibrated on it.
            texts: That an embedding model has read.
            cascade: The state of a cascade.
        """
        if window.has_images:
            self._watched.finish(window)
            self._images.add(window)
        self._progress.end_window(window.share, self._totals.counts.rows_in)
        state = {
            "progress": self._progress.state(),
            **self._totals.state,
            **self._precision.state,
            "images": self._images.digest,
            "threads": self._plan.threads,
            "lanes": self._plan.lanes,
            "token_budget": self._plan.token_budget,
            "embedded": texts.state if texts else None,
            "dropped": self._best.dropped if self._best else 0,
            "cascade": cascade,
        }
        note: dict[str, Any] = self._precision.take_note(engine)
        if self._evaluator and self._evaluator.note:
            note["values"] = self._evaluator.note
        if self._best and self._best.note:
            note["best"] = self._best.note
        self._destination.end_window(window.number, state, note or None, texts.take() if texts else {})


@contextmanager
def noting_kept(
    progress: Progress, inputs: Sequence[Input], read: ReadOptions, shard: object, *, kept: bool
) -> Iterator[None]:
    """Inside, the error of a stopped run gets a note on what is kept, and how long the rest takes.

    Args:
        progress: Of the run.
        inputs: Of the run; their rows are counted.
        read: How the rows are read.
        shard: Set if the run does a share of the input; then the rows are not counted.
        kept: Whether a later process can resume.
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
