"""Tells whether two runs write the same bytes, and whether a finished run is this one; without torch.

Every field of the options counts unless `_NOT_IN_THE_BYTES` lists it; so a new field counts until it is listed.
Each has the name and the value that a user types, because the message that refuses another job shows both. Paths do not
count: files are known by their content. Images that rows name are not checked here: there may be millions, and a
finished window does not change with them (`encoding/images/same_files.py` checks them when a run is resumed).
"""

from __future__ import annotations

import json
import platform
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import rerank_cli
from rerank_cli.formats.choices import TEACHER_FORMATS
from rerank_cli.formats.compression import SUFFIXES
from rerank_cli.formats.inputs import Input
from rerank_cli.job.options import STDOUT, JobOptions, Names
from rerank_cli.job.output_format import output_format, output_shape
from rerank_cli.job.run_paths import model_files
from rerank_cli.journal import Fingerprint, same_output
from rerank_cli.machine.cpu import detect_cpu
from rerank_cli.machine.detect import Machine
from rerank_cli.machine.libraries import version_of
from rerank_cli.planning.known_model import KnownModel
from rerank_cli.planning.run_plan import Plan
from rerank_cli.storage import path_of

_NOT_IN_THE_BYTES = {
    "inputs", "names", "texts", "model", "revision", "online", "request_notes", "profiles_file",
    "qrels", "calibration", "error_limit", "overwrite", "restart", "checkpoint_every", "lock_wait", "deadline",
    "command", "store", "store_limit",
}  # fmt: skip
_TYPED_AS = {
    "pairs": "command", "metrics": "--metric", "fields.query": "--query-field", "fields.passages": "--passages-field",
    "fields.text": "--text-field", "fields.id": "--id-field", "fields.image": "--image-field",
    "images.max_tiles": "--max-input-tiles", "images.max_pixels": "--max-image-pixels",
    "teacher.relevant_from": "--relevant-from", "first.scorer": "--first", "first.keep": "--first-keep",
    "first.top": "--first-top",
    "taken_as": "--as", "request.engine_count": "--engines", "request.gpus": "--device cuda:",
    "selection.score": "score", "request.assume_cuda": "CUDA is assumed",
}  # fmt: skip
"""Fields of the options that are not named like their option, or have no option."""

# Words, an estimate, and what a resumed run takes from its beginning.
_NOT_IN_THE_PLAN = {
    "reasons", "warnings", "needed_bytes", "threads", "lanes", "token_budget", "image_processes", "taken",
}  # fmt: skip
_LIBRARIES = ("torch", "tokenizers", "transformers", "safetensors", "numpy", "pyarrow")


def fingerprint_of(
    options: JobOptions,
    inputs: Sequence[Input],
    known: KnownModel,
    plan: Plan | None = None,
    machine: Machine | None = None,
    *,
    first: KnownModel | None = None,
    first_plan: Plan | None = None,
) -> Fingerprint:
    """The fingerprint of a run of files.

    Args:
        options: Of the run.
        inputs: What it reads.
        known: Its model.
        plan: Of the run; None if only a finished run is looked for.
        machine: This one; None likewise.
        first: The model of the cheap scorer of a cascade.
        first_plan: Its plan; None likewise.
    """
    assert known.checkpoint is not None, "a run has a checkpoint"
    files = model_files(known.checkpoint)
    if first and first.checkpoint:
        files |= {f"first {name}": path for name, path in model_files(first.checkpoint).items()}
    files |= {f"input {number}": path_of(item.path) for number, item in enumerate(inputs, 1)}
    read = {
        "qrels": options.qrels,
        "calibration": options.calibration,
        "profiles": options.profiles_file,
        **asdict(options.texts),
    }
    for name, path in read.items():
        if path and path_of(path).is_file():  # else reading it will report the error
            files[name] = path_of(path)
    names = options.names
    versions = {"rerank-cli": rerank_cli.__version__, "python": platform.python_version()}
    versions |= {name: version_of(name) for name in _LIBRARIES}
    facts = {
        **dict(_typed(options)),
        "input formats": [
            [item.format, *map(list, item.partition)] if item.partition else item.format for item in inputs
        ],
        "output format": [
            output_format(names),
            output_shape(names),
            SUFFIXES.get(Path(names.output.lower()).suffix, "plain"),
        ],
        "--embeddings": _value(names.embeddings is not None),
        "--per-query": names.per_query and "".join(Path(names.per_query.lower()).suffixes[-2:]),
        "versions": versions | {"zlib": zlib.ZLIB_RUNTIME_VERSION},
        "cpu": detect_cpu().name,
    }
    planned = _planned(plan) | {f"first {name}": value for name, value in _planned(first_plan).items()}
    if plan and machine:
        shown = {one.index for one in machine.devices if f"cuda:{one.cuda_index}" == plan.device}
        planned["gpu"] = [gpu.name for gpu in machine.gpus if gpu.index in shown]
    return Fingerprint(asked=_plain(facts), plan=_plain(planned), files=files)


def _planned(plan: Plan | None) -> dict[str, Any]:
    return {name: value for name, value in (asdict(plan) if plan else {}).items() if name not in _NOT_IN_THE_PLAN}


def finished_report(names: Names, fingerprint: Fingerprint) -> dict[str, Any] | None:
    """The report of the run that wrote the output in `names`, if it was this run; else None."""
    path = names.files.get("report")
    if names.output == STDOUT or path is None or not path.is_file():
        return None
    try:
        report: dict[str, Any] = json.loads(path.read_bytes())
        whole = all(same_output(names.files[kind], report[kind]) for kind in names.results)
        bad = any(report["counts"].get(name) for name in ("rows_error", "passages_error"))
        if bad and not names.files["errors"].is_file():
            return None
        return report if whole and not fingerprint.differs_in_request(report["job"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a report of another program, or of a version without these keys


def _typed(options: JobOptions) -> Iterator[tuple[str, Any]]:
    """Each field that decides bytes: the name of its option, and the value as it is typed."""
    fields = {name: value for name, value in asdict(options).items() if name not in _NOT_IN_THE_BYTES}
    del fields["request"]["origins"]  # where the values came from
    del fields["selection"]["probability"]  # follows from the file of `--calibration`
    fields["pairs"] = "score" if options.pairs else "rerank-file"
    fields["shard"] = options.shard and "{}/{}".format(*options.shard)
    # Only if they are given, so that unfinished runs of versions without these options still match.
    fields["blend"] = options.blend and str(options.blend)
    if options.names.out_format not in TEACHER_FORMATS:
        del fields["teacher"]
    del fields["selection"]["scored_by"]  # follows from `--first`
    if options.first.scorer is None:
        del fields["first"]
    for name in ("depth", "blend", "drop_duplicates"):
        if not fields[name]:
            del fields[name]
    for name, value in fields.items():
        inner = {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
        for path, part in inner.items():
            yield _TYPED_AS.get(path, "--" + path.rpartition(".")[2].replace("_", "-")), _value(part)


def _value(value: Any) -> Any:
    """A value for the fingerprint: `given` or None for a flag, one text for several values."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value))
    return {True: "given", False: None}[value] if isinstance(value, bool) else value


def _plain(facts: Any) -> Any:
    """`facts` as they would be read from a JSON file."""
    return json.loads(json.dumps(facts))
