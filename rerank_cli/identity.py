"""When two runs write the same bytes, and whether a finished run has done so already; without torch.

Every field of the options counts but those that only say how a run goes on: what is added to the options counts from
its first day. Paths do not count: files are known by what is in them.
"""

from __future__ import annotations

import json
import platform
import zlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import rerank_cli
from rerank_cli.checkpoint import Checkpoint
from rerank_cli.commit import Fingerprint, same_output
from rerank_cli.destination import STDOUT, Names, output_format
from rerank_cli.formats.compression import SUFFIXES
from rerank_cli.formats.inputs import Input
from rerank_cli.hardware import detect_cpu

_NOT_IN_THE_BYTES = {
    "inputs", "names", "model", "revision", "online", "qrels", "error_limit", "overwrite", "restart",
    "checkpoint_every", "lock_wait", "deadline",
}  # fmt: skip
# The reasons are words, and a run goes on with as many threads as it has begun with.
_NOT_IN_THE_PLAN = {"reasons", "threads"}
_LIBRARIES = ("torch", "tokenizers", "transformers", "safetensors", "numpy", "pyarrow")


def fingerprint_of(
    options: Mapping[str, Any],
    names: Names,
    inputs: Sequence[Input],
    checkpoint: Checkpoint,
    plan: Mapping[str, Any] | None = None,
) -> Fingerprint:
    """The fingerprint of a run of files.

    options, plan: the fields of `JobOptions` and `Plan`; plan: None where only a finished run is looked for.
    """
    files = {f"model file `{path.name}`": path for path in checkpoint.files}
    files |= {f"input {number}": Path(item.path) for number, item in enumerate(inputs, 1)}
    if options["qrels"] and Path(options["qrels"]).is_file():  # else reading them says what is wrong
        files["qrels"] = Path(options["qrels"])
    asked = {name: value for name, value in options.items() if name not in _NOT_IN_THE_BYTES}
    suffix = Path(names.output.lower()).suffix
    versions = {"rerank-cli": rerank_cli.__version__, "python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in _LIBRARIES}
    facts = {
        "options": asked,
        "input formats": [item.format for item in inputs],
        "output format": [output_format(names), SUFFIXES.get(suffix, "plain")],
        "versions": versions | {"zlib": zlib.ZLIB_RUNTIME_VERSION},
        "cpu": detect_cpu().name,
    }
    planned = {name: value for name, value in (plan or {}).items() if name not in _NOT_IN_THE_PLAN}
    return Fingerprint(asked=_plain(facts), plan=_plain(planned), files=files)


def finished_report(names: Names, fingerprint: Fingerprint) -> dict[str, Any] | None:
    """The report of the run that has written the output `names`, if it was this one; else None."""
    path = names.files.get("report")
    if names.output == STDOUT or path is None or not path.is_file():
        return None
    try:
        report: dict[str, Any] = json.loads(path.read_bytes())
        same = same_output(Path(names.output), report["output"])
        return report if same and not fingerprint.differs_in_request(report["job"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # of another program, or of a version that did not say these things


def _plain(facts: Any) -> Any:
    """`facts` as they come back from a JSON file."""
    return json.loads(json.dumps(facts))
