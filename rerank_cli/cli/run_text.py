"""What `score` and `rerank-file` say of a run or a dry run, on stderr or as JSON, and the exit code they choose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rerank_cli.cli.console import (
    SHOWN_ERRORS,
    ErrorTeller,
    ProgressDisplay,
    forget_stdout,
    print_json,
    print_table,
    say,
    write,
)
from rerank_cli.cli.json_command import wants_json
from rerank_cli.cli.measures_text import print_evaluation
from rerank_cli.errors import StoppedError, UsageError, nothing_scored
from rerank_cli.job.early_refusals import refuse_early

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_cli.checkpoint import Checkpoint
    from rerank_cli.cluster import ClusterOptions
    from rerank_cli.job.dry_run import DryRun
    from rerank_cli.job.options import JobOptions
    from rerank_cli.job.run import Outcome
    from rerank_cli.planning.run_plan import Plan
    from rerank_cli.records import Counts

_ONE = {
    "pairs were truncated": "pair was truncated",
    "passages were scored in chunks": "passage was scored in chunks",
    "images were cut in fewer tiles to fit": "image was cut in fewer tiles to fit",
    "queries are empty": "query is empty",
    "passages are empty": "passage is empty",
}
"""Notes on one thing, by the same note on several."""
_LONG_SECONDS = 30  # longer runs are told what would be faster


def run_and_report(
    options: JobOptions, cluster: ClusterOptions | None = None, *, quiet: bool, verbose: bool, output_mode: str
) -> int:
    """Run the job, here or on a cluster; returns the exit code."""
    if cluster is None:
        refuse_early(options)
    from rerank_cli.job.progress import Progress
    from rerank_cli.job.run import Watcher, run_job

    # Without an errors file, bad rows are told on stderr.
    tell = ErrorTeller() if options.names.output == "-" and options.names.errors is None else None
    progress = Progress()
    with ProgressDisplay(progress, quiet=quiet):
        watcher = Watcher(
            on_start=lambda checkpoint, plan: _say_plan(checkpoint, plan, quiet=quiet, verbose=verbose),
            on_note=None if quiet else say,
            on_error=tell,
            progress=progress,
        )
        try:
            if cluster:
                from rerank_cli.cluster import run_on_ray

                outcome = run_on_ray(options, cluster, watcher)
            else:
                outcome = run_job(options, watcher)
        except BrokenPipeError:
            # Here and not in main(): click turns a closed pipe into exit code 1 before main() sees it.
            forget_stdout()
            return 141
        except StoppedError as error:
            if cluster is None and not getattr(error, "__notes__", None):  # while the model was loaded
                kept = "" if options.names.output == "-" else "what an earlier run has kept stays; "
                error.add_note(f"stopped: nothing was scored yet; {kept}run the same command again")
            if options.names.output == "-":
                forget_stdout()  # flushing would wait for its reader
            raise
    if not quiet:
        _say_outcome(outcome, options.names.output)
    failed = outcome.counts.in_errors_file > 0 and not outcome.was_done
    if failed:
        _say_bad_rows(outcome, tell)
    if outcome.evaluation is not None:
        print_evaluation(outcome.evaluation, output_mode, to_stdout=options.names.output != "-", quiet=quiet)
    return 3 if failed else 0


def _say_plan(checkpoint: Checkpoint, plan: Plan, *, quiet: bool, verbose: bool) -> None:
    if verbose:
        say(f"model {checkpoint.name}: {checkpoint.architecture}, {checkpoint.parameters:,} parameters")
        for reason in plan.reasons:
            say(f"plan: {reason}")
    if plan.taken:
        say(plan.taken)  # with `--quiet` too: a wrong guess gives scores that mean nothing
    if not quiet:
        for warning in plan.warnings:
            say(f"warning: {warning}")


def _say_agreement(found: dict[str, Any], precision: str) -> None:
    """Say what `--check-precision` found."""
    if not found["lists"]:
        return
    say(
        f"{precision} against fp32 on {found['pairs']:,} pairs: max |logit difference| "
        f"{found['max_logit_difference']:.2g}, Kendall's tau {found['kendall_tau']:.3f}, "
        f"top-10 overlap {found['top10_overlap']:.3f}"
    )
    from rerank_cli.job.precision_check import LEAST_OVERLAP

    if found["top10_overlap"] < LEAST_OVERLAP:
        say(f"warning: more than one in twenty of the ten best passages is another than in fp32 ({precision})")


def _say_bad_rows(outcome: Outcome, told: ErrorTeller | None) -> None:
    """Say how many rows were bad. told: has said them one by one, without an errors file."""
    bad = f"{_bad_in_words(outcome.counts)} could not be scored"
    if told is not None:
        left = outcome.counts.in_errors_file - SHOWN_ERRORS
        say(bad + (f"; {left} not shown, `--errors FILE` keeps all" if left > 0 else ""))
    elif first := outcome.first_error:
        file, row, message = first
        say(f"{bad} and are in {outcome.errors}; the first is {file}:{row}: {message}")


def _bad_in_words(counts: Counts) -> str:
    """How many rows and passages were bad; lists are ranked without their bad passages."""
    bad = counts.passages_error
    passages = f"{bad} passages of lists that are ranked without them"
    if bad == 1:
        passages = "1 passage of a list that is ranked without it"
    if not counts.rows_error and counts.passages_error:
        return passages
    rows = f"{counts.rows_error} of {counts.rows_in} rows"
    return f"{rows} and {passages}" if counts.passages_error else rows


def _say_outcome(outcome: Outcome, output: str) -> None:
    """Say what the run has done, or that an earlier one had done it, and what to know about its rows."""
    counts, report = outcome.counts, outcome.report
    if outcome.was_done:
        bad = f", and {counts.rows_error} bad rows in {outcome.errors}" if counts.rows_error else ""
        done = f"{output}: is complete, with {counts.rows_out:,} rows{bad}"
        say(f"{done}; nothing to do (`--restart --overwrite` does it again)")
        return
    seconds = report["seconds"]["wall"]
    speed = report["speed"]["pairs_per_second"]
    where = "" if output == "-" else f" -> {output}"
    say(
        f"{counts.rows_out:,} rows, {counts.pairs:,} pairs in {seconds:.1f} s ({speed:,.1f} pairs/s, "
        f"{report['plan']['precision']} on {report['plan']['device']}){where}"
    )
    if both := report.get("cascade"):
        _say_cascade(both)
    if stored := report.get("store"):
        _say_store(stored)
    if seconds >= _LONG_SECONDS and (told := report.get("faster")):
        say(f"note: {told}")
    if found := report.get("precision_check"):
        _say_agreement(found, report["plan"]["precision"])
    notes = {
        "pairs were truncated": counts.truncated,
        "passages were scored in chunks": counts.chunked,
        "images were cut in fewer tiles to fit": counts.retiled,
        "queries are empty": counts.empty_queries,
        "passages are empty": counts.empty_passages,
    }
    for text, number in notes.items():
        if number:
            say(f"note: {number:,} {text if number > 1 else _ONE[text]}")
    _warn_of_unknown(report.get("unknown_tokens"))


def _say_cascade(both: Mapping[str, Any]) -> None:
    """Say what each of two scorers read, and how well the first passages agree with a full run."""
    first, second, agreed = both["first"], both["second"], both["agreement"]
    names = [one["precision"] for one in (first, second)]
    if first["sha256"] != second["sha256"]:
        names = [f"{one['model']} in {one['precision']}" for one in (first, second)]
    share = f" ({100 * both['share_read']:.1f} %)" if both["share_read"] is not None else ""
    text = f"{names[0]} scored {both['passages']:,} passages, {names[1]} {both['read_by_second']:,} of them{share}"
    if agreed["lists"]:
        low, high = agreed["interval"]
        text += (
            f"; of {agreed['lists']:,} sampled lists the first {agreed['top_n']} agree with a full run by "
            f"{agreed['overlap']:.3f} ({low:.3f} to {high:.3f})"
        )
    say(text)
    if (bound := both["bound"]) and bound["exceeded"]:
        say(
            f"warning: {bound['exceeded']:,} scores of {names[1]} lie up to {bound['furthest']:.3g} above those of "
            f"{names[0]}, further than the bound {bound['bound']:.3g} that the first {bound['pairs']:,} pairs gave; "
            "`--first-keep N` reads more"
        )


def _say_store(stored: Mapping[str, Any]) -> None:
    """Say what the store saved."""
    saved = stored["seconds_saved"]
    texts = stored.get("texts")
    is_found = stored["found"] or (texts and texts["found"])
    time = f", about {_duration(saved)} saved" if saved is not None and is_found else ""
    of_texts = ""
    if texts:
        of_texts = f"; {texts['asked']:,} texts asked, {texts['found']:,} found, {texts['embedded']:,} embedded"
    say(
        f"store {stored['path']}: {stored['asked']:,} pairs asked, {stored['found']:,} found, "
        f"{stored['computed']:,} computed{of_texts}{time}"
    )


def _warn_of_unknown(unknown: Mapping[str, Any] | None) -> None:
    """Warn of tokens that the model does not know. unknown: as in a report."""
    if unknown and (unread := unknown["pairs_over_5_percent"]):
        say(
            f"warning: of {unread:,} pair{'s' * (unread > 1)} more than 5 % of the tokens are unknown to the model "
            f"({100 * unknown['share']:.2g} % of all): it cannot read them, and their scores mean little; "
            "`--max-unknown 5%` makes them bad rows"
        )


def refuse_gpu(gpus: Sequence[str] | None) -> None:
    """`UsageError` for `--gpu`, which describes a card, in a run on this machine."""
    if gpus:
        raise UsageError(
            f"--gpu {gpus[0]}: describes a card, and the run is on this machine",
            hint="`--dry-run --gpu NAME` tells the time there; `--device` names a GPU of this machine",
        )


def print_dry_run(options: JobOptions, output_mode: str, gpus: Sequence[str] = ()) -> int:
    """Print what a run would do; returns the exit code."""
    from dataclasses import asdict

    refuse_early(options)

    from rerank_cli.job.dry_run import dry_run
    from rerank_cli.job.prepare import find_known
    from rerank_cli.machine.cpu import detect_cpu
    from rerank_cli.planning.card_time import BASIS
    from rerank_cli.planning.faster_hint import faster_on

    result = dry_run(options, gpus)
    if result.plan.taken:
        say(result.plan.taken)
    for warning in result.plan.warnings:
        say(f"warning: {warning}")
    _warn_of_unknown(result.unknown_tokens)
    if wants_json(output_mode):
        print_json({"schema": "rerank-cli/dry-run/1", **asdict(result)})
    else:
        print_table(["dry run", ""], [[name, value] for name, value in _dry_facts(result).items()])
        write(f"expected time: at 70 % of {result.gflops:,.0f} GFLOP/s, measured just now")
        if any(one.time for one in result.elsewhere):
            write(f"on other cards: {BASIS}")
        plan, known = result.plan, find_known(options)
        if told := faster_on(detect_cpu(), device=plan.device, precision=plan.precision, checkpoint=known.checkpoint):
            write(f"faster: {told}")
    counts = result.counts  # the exit code is that of the run, as far as its rows tell
    options.error_limit.check(counts, last=True)
    if counts.rows_in and not counts.rows_out:
        raise nothing_scored(counts.rows_in, result.first_error, None)
    if result.first_error:
        file, row, message = result.first_error
        say(f"{_bad_in_words(counts)} cannot be scored; the first is {file}:{row}: {message}")
    return 3 if counts.in_errors_file else 0


def _dry_facts(result: DryRun) -> dict[str, str]:
    """The lines of the table."""
    from rerank_cli.planning.card_time import show_time

    counts, plan = result.counts, result.plan
    facts = {"rows": f"{counts.rows_in:,}", "bad rows": f"{counts.rows_error:,}"}
    if counts.passages_error:
        facts["bad passages"] = f"{counts.passages_error:,}"
    facts |= {
        "lists": f"{counts.lists:,}",
        "pairs": f"{counts.pairs:,}",
        "pairs to score": f"{counts.pairs_scored:,}",
        "tokens to score": f"{result.total_tokens:,}",
        **{f"tokens of a pair, {name}": f"{value:,}" for name, value in result.tokens.items()},
    }
    if counts.images:
        facts |= {
            "images": f"{counts.images:,}",
            "tiles": f"{counts.tiles:,}",
            "tokens of images": f"{counts.image_tokens:,}",
            "images in fewer tiles to fit": f"{counts.retiled:,}",
        }
    facts["pairs that would be truncated"] = f"{result.truncated:,}"
    facts["pairs that cannot be scored"] = f"{result.unscorable:,}"
    if unknown := result.unknown_tokens:
        share = f"{100 * unknown['share']:.2g} % of the texts"
        facts["tokens that the model does not know"] = f"{unknown['tokens']:,} ({share})"
        facts["pairs with more than 5 % of them"] = f"{unknown['pairs_over_5_percent']:,}"
    if first := result.first:
        facts["first scorer"] = f"{first.model} in {first.precision}, every pair"
        facts["pairs for the second"] = f"at least {first.pairs_of_second:,}"
        if first.needed_bytes is not None:
            facts["memory of both"] = f"{first.needed_bytes / 2**30:.2f} GiB"
    facts["expected time"] = f"about {_duration(result.seconds)}"
    for one in result.elsewhere:
        told = f"not known: {one.reason}"
        if one.time is not None:
            took = show_time(one.time.low, one.time.high)
            told = f"{took} in {one.precision}, most of it {one.time.limit}"
        facts[f"expected time on {one.gpu}"] = told
    facts["precision"] = f"{plan.precision} on {plan.device}, at most {plan.max_tokens} tokens a pair"
    return facts


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
