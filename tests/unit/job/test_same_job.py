"""Which options decide bytes, and when a run has been done."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import typer

from rerank_cli.cli import app
from rerank_cli.formats.inputs import resolve_inputs
from rerank_cli.formats.shapes import Selection
from rerank_cli.job import same_job
from rerank_cli.job.options import Command, ErrorLimit, First, JobOptions, Names
from rerank_cli.job.prepare import find_known
from rerank_cli.job.run import run_job
from rerank_cli.job.same_job import fingerprint_of, finished_report
from rerank_cli.journal import Fingerprint
from rerank_cli.planning.choices import ProfileRequest
from tests.conftest import TINY_CHECKPOINT, write_lines

FREE = {
    "inputs", "names", "texts", "model", "revision", "online", "request_notes", "profiles_file", "qrels", "calibration",
    "error_limit", "overwrite", "restart", "checkpoint_every", "lock_wait", "deadline", "command", "store",
    "store_limit",
}  # fmt: skip
CHANGED: dict[str, Any] = {
    "pairs": True, "query": "q", "in_format": "jsonl", "shape": "list", "request": ProfileRequest(max_tokens=9),
    "truncate": "error", "chunk_overlap": 1, "pool": "mean", "special_tokens": "allow", "instruction": "i",
    "label": 0, "max_unknown": 0.05, "taken_as": "qwen3-reranker",
    "template": "none", "selection": Selection(top_n=1), "shard": (1, 2), "skip": 1, "limit": 1, "max_line_bytes": 9,
    "metrics": ("RR",), "check_precision": 9,
}  # fmt: skip


@pytest.fixture
def options(tmp_path: Path) -> JobOptions:
    source = write_lines(tmp_path / "in.jsonl", [{"query": "q", "passages": ["a", "b"]}, b"{"])
    return JobOptions((source,), Names(str(tmp_path / "out.jsonl")), model=str(TINY_CHECKPOINT))


def asked(options: JobOptions) -> Any:
    return fingerprint_of(options, resolve_inputs(options.inputs, options.in_format), find_known(options)).asked


@pytest.mark.parametrize("name", CHANGED)
def test_an_option_that_decides_bytes_counts(options: JobOptions, name: str) -> None:
    assert asked(replace(options, **{name: CHANGED[name]})) != asked(options)


def test_every_option_counts_or_is_known_not_to(options: JobOptions) -> None:
    counted = {field.name for field in fields(JobOptions)} - FREE
    assert counted - set(CHANGED) == {"fields", "images", "depth", "blend", "drop_duplicates", "first", "teacher"}
    values = asdict(options)
    leaves = (
        sum(len(values[name]) if isinstance(values[name], dict) else 1 for name in counted - {"teacher", "first"}) - 6
    )  # origins; depth, blend, drop_duplicates only where given; a calibration's curve; which scorer
    others = {"input formats", "output format", "versions", "cpu", "--embeddings", "--per-query"}
    assert len(set(asked(options)) - others) == leaves  # so no two have one name


def test_what_is_asked_has_the_names_and_values_that_are_typed(options: JobOptions) -> None:
    command = typer.main.get_command(app)
    known = {flag for name in command.commands for one in command.commands[name].params for flag in one.opts}
    counted = {name.removesuffix(" cuda:") for name in asked(options) if name.startswith("--")}
    assert counted - known == set()
    typed = replace(options, shard=(1, 2), metrics=("RR", "nDCG@3"), selection=Selection(top_n=3, prob=True))
    found = asked(replace(typed, first=First("int8", "10%", 4)))
    assert (found["--first"], found["--first-keep"], found["--first-top"]) == ("int8", "10%", 4)
    assert (found["command"], found["--shard"], found["--metric"]) == ("rerank-file", "1/2", "RR,nDCG@3")
    assert (found["--top-n"], found["--prob"], found["--threshold"]) == (3, "given", None)


def test_how_a_run_goes_on_does_not_count(options: JobOptions, tmp_path: Path) -> None:
    free = replace(
        options, overwrite=True, restart=True, checkpoint_every=1.0, lock_wait=1.0, deadline=1.0,
        error_limit=ErrorLimit(rows=1), request=ProfileRequest(origins={"precision": "NIM_PRECISION"}),
        names=Names(str(tmp_path / "other.jsonl"), errors="e", report="r"), command=Command("again", "here"),
    )  # fmt: skip
    assert asked(free) == asked(options)


@pytest.mark.parametrize(
    "names", [Names("out.jsonl.gz"), Names("out.parquet"), Names("out.jsonl", embeddings="v.parquet")]
)
def test_the_form_of_the_output_counts(options: JobOptions, names: Names) -> None:
    assert asked(replace(options, names=names)) != asked(options)


def test_qrels_and_profiles_count_by_their_content(options: JobOptions, tmp_path: Path) -> None:
    (tmp_path / "qrels").write_text("q 0 a 1\n")
    known, inputs = find_known(options), resolve_inputs(options.inputs, "auto")
    (tmp_path / "profiles").write_text("")
    with_files = replace(options, qrels=str(tmp_path / "qrels"), profiles_file=str(tmp_path / "profiles"))
    assert set(fingerprint_of(with_files, inputs, known).document()["files"]) == {
        "qrels", "profiles", "input 1", "model file `config.json`", "model file `model.safetensors`",
        "model file `special_tokens_map.json`", "model file `tokenizer.json`", "model file `tokenizer_config.json`",
    }  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "out.jsonl").unlink(),
        lambda folder: (folder / "out.jsonl").write_text("edited by hand"),
        lambda folder: (folder / "out.jsonl.errors.jsonl").unlink(),
        lambda folder: (folder / "out.jsonl.report.json").unlink(),
        lambda folder: (folder / "out.jsonl.report.json").write_text("{"),
        lambda folder: (folder / "out.jsonl.report.json").write_text("{}"),
        lambda folder: (folder / "in.jsonl").write_text('{"query": "q", "passages": ["a", "c"]}\n'),
    ],
    ids=["no output", "other output", "no errors", "no report", "broken report", "other report", "other input"],
)
def test_a_run_is_done_while_its_files_are_what_they_were(options: JobOptions, tmp_path: Path, change: Any) -> None:
    run_job(options)

    def found() -> Any:
        fingerprint = fingerprint_of(options, resolve_inputs(options.inputs, "auto"), find_known(options))
        return finished_report(options.names, fingerprint)

    assert found() == json.loads((tmp_path / "out.jsonl.report.json").read_bytes())
    change(tmp_path)
    assert found() is None


def test_a_run_to_stdout_is_never_done(options: JobOptions) -> None:
    fingerprint = fingerprint_of(options, resolve_inputs(options.inputs, "auto"), find_known(options))
    assert finished_report(Names("-"), fingerprint) is None


def test_another_transformers_which_padded_scores_and_some_tokenizers_depend_on_is_another_job(
    options: JobOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, version = asked(options), same_job.version_of
    monkeypatch.setattr(same_job, "version_of", lambda name: "4.57" if name == "transformers" else version(name))
    after = asked(options)
    assert after["versions"]["transformers"] == "4.57"
    assert {name for name in after if after[name] != before[name]} == {"versions"}


def test_an_option_that_is_not_given_leaves_a_job_of_before_its_time_what_it_was(options: JobOptions) -> None:
    older = asked(options)
    for name in ("--label", "--max-unknown"):
        del older[name]
    assert not Fingerprint(asked=asked(options), plan={}, files={}).differs_in_request({"asked": older, "files": {}})
    other = asked(replace(options, max_unknown=0.05))
    assert Fingerprint(asked=other, plan={}, files={}).differs_in_request({"asked": older, "files": {}})
