"""A run on a Ray cluster, from options to manifest: skip finished parts, score the others, write the manifest."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import rerank_cli
from rerank_cli.cluster.actors import Actors, ClusterOptions, FinishedParts, Resources, connected, resources_for
from rerank_cli.cluster.documents import MANIFEST_SCHEMA
from rerank_cli.cluster.folder import OutputFolder
from rerank_cli.cluster.tasks import Task, cut_tasks, find_files
from rerank_cli.errors import InputError, UsageError, nothing_scored
from rerank_cli.evaluation.evaluator import Evaluation, Evaluator
from rerank_cli.evaluation.output_paths import refuse_outputs
from rerank_cli.evaluation.per_query import per_query_bytes, read_values
from rerank_cli.formats.choices import TEACHER_FORMATS
from rerank_cli.formats.inputs import resolve_inputs
from rerank_cli.formats.jsonl import dump_document
from rerank_cli.job.options import PAGE_SUFFIXES, JobOptions
from rerank_cli.job.prepare import find_known
from rerank_cli.job.run import Outcome, Watcher
from rerank_cli.job.run_paths import files_of_folder, paths_read
from rerank_cli.job.same_job import fingerprint_of
from rerank_cli.job.stop import Stop
from rerank_cli.journal import Files, Fingerprint, naming, write_file
from rerank_cli.planning.choices import least_overlap
from rerank_cli.records import Counts, Timing
from rerank_cli.report.document import evaluation_report
from rerank_cli.storage import is_url, path_of

_SETTLED_SECONDS = 2.5  # the times of a file younger than this would not show another change
_HASH_SECONDS = 60.0  # limit for hashing the inputs, which begins after the run


def run_on_ray(
    options: JobOptions, cluster: ClusterOptions, watcher: Watcher | None = None, *, stop: Stop | None = None
) -> Outcome:
    """Rerank files into the folder `options.names.output`; raises `RerankError` for what stops the run.

    Finished parts are kept, and the same call resumes the run.
    """
    watcher, stop = watcher or Watcher(), stop or Stop()
    began = time.perf_counter()
    with stop.listening(options.deadline):
        refuse_unusable_on_cluster(options)
        files = find_files(options.inputs)
        evaluator = Evaluator(options.qrels, options.metrics) if options.qrels else None
        with OutputFolder(options.names.output, lock_wait=options.lock_wait) as folder:
            fingerprint = _fingerprint(options, files, folder)
            if options.restart:
                folder.clear(finished=options.overwrite)
            elif (manifest := folder.finished(fingerprint)) is not None:
                _write_copy(manifest, options)
                return _make_outcome(manifest, folder, was_done=True)
            _refuse_taken(options, files)
            with connected(cluster) as ray:
                resources = resources_for(ray.cluster_resources(), options, cluster)
                tasks = folder.tasks(fingerprint)
                if tasks is None:
                    tasks = cut_tasks(files, options, engines=resources.engines)
                    folder.begin(tasks, fingerprint)
                run = Actors(ray, options, folder, resources, watcher, stop)
                finished = run.do(tasks)
            fingerprint.start()
            fingerprint.wait(_HASH_SECONDS)
            _refuse_changed(finished, tasks, fingerprint)
            manifest = _manifest(finished, folder, tasks, fingerprint, resources, time.perf_counter() - began)
            if evaluator:
                for task in tasks:
                    found = Evaluation.of_report(finished.reports[task.name]["evaluation"])
                    evaluator.add_part(read_values(folder.values(task)), found)
                manifest |= evaluation_report(evaluator.finish(), changes=None)
                if options.names.per_query:
                    values = b"".join(per_query_bytes(evaluator.per_query(), options.names.per_query))
                    write_file(path_of(options.names.per_query), values, Files())
            stop.is_late()
            if finished.counts.rows_in and not finished.counts.rows_out:
                raise nothing_scored(finished.counts.rows_in, manifest["first_error"], str(folder.path / "_rerank"))
            folder.finish(manifest)
            _write_copy(manifest, options)
            return _make_outcome(manifest, folder, was_done=False)


def refuse_unusable_on_cluster(options: JobOptions) -> None:
    """`UsageError` for options that do not work where many processes write at once."""
    names = options.names
    if names.output == "-":
        raise UsageError("--engine ray: writes a folder, not stdout", hint="name it with `-o`")
    on_hub = next((path for path in (*options.inputs, options.qrels) if path and path.startswith("hf://")), None)
    if on_hub is not None:
        raise UsageError(
            f"--engine ray: {on_hub}: a cluster cannot read from the Hub", hint="copy it to an object store"
        )
    if names.report and Path(names.report).suffix.lower() in PAGE_SUFFIXES:
        raise UsageError(f"--report {names.report}: a cluster writes no HTML page", hint="let the name end in .json")
    if least_overlap(options.request.precision):
        raise UsageError(
            f"--precision {options.request.precision}: does not work with `--engine ray`, whose machines may differ",
            hint="name a precision, for example `--precision bf16`",
        )
    for flag, given in {
        "--shard": options.shard, "--skip": options.skip or None, "--errors": names.errors,
        "--embeddings": names.embeddings, "--calibration": options.calibration,
        "--out-format": names.out_format if names.out_format in TEACHER_FORMATS else None,
        "--device cuda:N": options.request.gpus or None,
    }.items():  # fmt: skip
        if given is not None:
            raise UsageError(f"{flag}: does not work with `--engine ray`")


def _refuse_taken(options: JobOptions, files: Sequence[tuple[str, str]]) -> None:
    """Refuse paths of `--report` and `--per-query` that clash or exist, and an output folder inside an input."""
    outputs = {"--report": options.names.report, "--per-query": options.names.per_query}
    for flag, path in outputs.items():
        if path is not None and path_of(path).absolute().is_relative_to(path_of(options.names.output).absolute()):
            raise UsageError(f"{flag} {path}: lies in the output folder", hint="write to another folder")
    for given in options.inputs:
        if path_of(given).is_dir() and path_of(options.names.output).resolve().is_relative_to(path_of(given).resolve()):
            raise UsageError(
                f"{options.names.output}: lies in {given}, whose files are the input", hint="write to another folder"
            )
    inputs = resolve_inputs([path for path, _ in files], options.in_format, options.shape)
    read = paths_read(options, inputs) | files_of_folder(options.model) | files_of_folder(options.first.scorer)
    refuse_outputs(outputs, [str(path) for path in read.values()], overwrite=options.overwrite)


def _write_copy(manifest: Mapping[str, Any], options: JobOptions) -> None:
    """Write the manifest to `--report` too."""
    if options.names.report is None:
        return
    path, data = path_of(options.names.report), dump_document(manifest)
    if path.exists() and path.read_bytes() == data:
        return
    refuse_outputs({"--report": options.names.report}, (), overwrite=options.overwrite)
    write_file(path, data, Files())


def _refuse_changed(finished: FinishedParts, tasks: Sequence[Task], fingerprint: Fingerprint) -> None:
    """`InputError` if an engine has read another version of an object than the run began with."""
    known = {facts["path"]: facts["stat"] for facts in fingerprint.document()["files"].values()}
    for task in tasks:
        for facts in finished.reports[task.name]["job"]["files"].values():
            if is_url(facts["path"]) and known.get(facts["path"], facts["stat"]) != facts["stat"]:
                raise InputError(
                    f"{facts['path']}: was changed while it was read: {task.name} was made from another version",
                    hint="start over with `--restart`",
                )


def _fingerprint(options: JobOptions, files: Sequence[tuple[str, str]], folder: OutputFolder) -> Fingerprint:
    """Make the fingerprint of the whole run, without the number of engines, which does not change the output."""
    paths = tuple(path for path, _ in files)
    local = [Path(path) for path in paths if not is_url(path)]
    youngest = max((path.stat().st_ctime for path in local if path.exists()), default=0.0)
    if (missing := youngest + _SETTLED_SECONDS - time.time()) > 0:
        time.sleep(min(missing, _SETTLED_SECONDS))
    request = replace(options.request, engine_count=None)
    names = replace(options.names, output=str(folder.path / "_.jsonl"), out_format="auto")
    asked = replace(options, inputs=paths, names=names, request=request)
    inputs = resolve_inputs(paths, options.in_format, options.shape)
    found = fingerprint_of(asked, inputs, find_known(options))
    facts = {**found.asked, "files": [name for _, name in files], "out format": options.names.out_format}
    return found.of(facts)


def _manifest(
    finished: FinishedParts,
    folder: OutputFolder,
    tasks: Sequence[Task],
    fingerprint: Fingerprint,
    resources: Resources,
    seconds: float,
) -> dict[str, Any]:
    """Make the manifest, whose existence shows that the run is complete."""
    reports = [finished.reports[task.name] for task in tasks]
    counts, timing = finished.counts, Timing()
    for report in reports:
        for name in asdict(timing):
            setattr(timing, name, getattr(timing, name) + report["seconds"][name])
    spent = seconds or float("inf")
    first = next((report["first_error"] for report in reports if report["first_error"]), None)
    parts = []
    for task, report in zip(tasks, reports, strict=True):
        path = folder.path / task.name
        with naming(path):
            modified = path.lstat().st_mtime_ns
        parts.append(
            {
                "name": task.name,
                "input": task.input,
                "shard": [task.shard, task.shards],
                **({} if task.limit is None else {"limit": task.limit}),
                **{name: report["output"][name] for name in ("bytes", "sha256")},
                "modified_ns": modified,
                **{name: report["counts"][name] for name in ("rows_in", "rows_out", "rows_error")},
            }
        )
    return {
        "schema": MANIFEST_SCHEMA,
        "version": rerank_cli.__version__,
        "model": reports[0]["model"],
        "plan": reports[0]["plan"],
        "cluster": asdict(resources),
        "counts": counts.done,
        "seconds": {"wall": round(seconds, 3), **{name: round(value, 3) for name, value in asdict(timing).items()}},
        "speed": {
            "pairs_per_second": round(counts.pairs / spent, 3),
            "tokens_per_second": round(counts.tokens / spent, 1),
        },
        **_sum_stores(reports),
        "first_error": first,
        "job": fingerprint.document(),
        "parts": parts,
    }


def _sum_stores(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up the reports on the store; empty if none was used."""
    parts = [report["store"] for report in reports if "store" in report]
    if not parts:
        return {}
    saved = [part["seconds_saved"] for part in parts if part["seconds_saved"] is not None]
    texts = [part["texts"] for part in parts if "texts" in part]
    return {
        "store": {
            "path": parts[0]["path"],
            **_sums(parts, ("asked", "found", "computed", "added", "damaged")),
            "seconds_saved": round(sum(saved), 3) if saved else None,
            "bytes": max(part["bytes"] for part in parts),
            "notes": list(dict.fromkeys(text for part in parts for text in part["notes"])),
            **({"texts": _sums(texts, ("asked", "found", "embedded"))} if texts else {}),
        }
    }


def _sums(parts: Sequence[Mapping[str, int]], names: Sequence[str]) -> dict[str, int]:
    return {name: sum(part[name] for part in parts) for name in names}


def _make_outcome(manifest: dict[str, Any], folder: OutputFolder, *, was_done: bool) -> Outcome:
    counts = Counts(**manifest["counts"])
    first = manifest["first_error"]
    errors = str(folder.path / "_rerank") if counts.rows_error else None
    found = manifest.get("evaluation")
    evaluation = Evaluation.of_report(found) if found else None
    return Outcome(counts, manifest, evaluation, errors, tuple(first) if first else None, was_done=was_done)
