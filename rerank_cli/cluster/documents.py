"""The JSON documents in the output folder of a cluster, field by field; one with other fields is not ours.

A name in them must be that of a file in the folder, because `--restart` removes the files that they name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, ConfigDict, TypeAdapter

from rerank_cli.cluster.tasks import Task
from rerank_cli.evaluation.evaluator import Evaluation
from rerank_cli.records import Counts

TASKS_SCHEMA: Final = "rerank-cli/tasks/1"
MANIFEST_SCHEMA: Final = "rerank-cli/manifest/1"

_EXACTLY: ConfigDict = {"strict": True, "extra": "forbid"}
"""No value is converted to another type, and no key is ignored."""

_NO_PARTS = ("", "..", "_rerank", "_manifest.json")


def _in_the_folder(name: str) -> str:
    if name != Path(name).name or "\0" in name or name in _NO_PARTS:
        raise ValueError("leads out of the folder")
    return name


def _of_its_shards(task: Task) -> Task:
    _in_the_folder(task.name)
    if not 1 <= task.shard <= task.shards:
        raise ValueError("no such shard")
    return task


@dataclass(frozen=True, slots=True)
class SeenFile:
    """A file that a run reads (`journal/fingerprint.py`)."""

    path: str
    bytes: int
    stat: list[int]  # as in the fingerprint
    settled: bool
    sha256: str | None


@dataclass(frozen=True, slots=True)
class RunFacts:
    """The document of a run's `Fingerprint`."""

    asked: dict[str, Any]
    plan: dict[str, Any]
    files: dict[str, SeenFile]


@dataclass(frozen=True, slots=True)
class Part:
    """A finished part."""

    name: Annotated[str, AfterValidator(_in_the_folder)]
    input: str
    shard: tuple[int, int]
    bytes: int
    sha256: str
    modified_ns: int
    rows_in: int
    rows_out: int
    rows_error: int
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Begun:
    """`_rerank/tasks.json`: the parts of a run, and its fingerprint."""

    __pydantic_config__ = _EXACTLY

    schema: Literal["rerank-cli/tasks/1"]
    job: RunFacts
    tasks: tuple[Annotated[Task, AfterValidator(_of_its_shards)], ...]

    def __post_init__(self) -> None:
        if len({task.name for task in self.tasks}) < len(self.tasks):
            raise ValueError("two parts have one name")


@dataclass(frozen=True, slots=True)
class Manifest:
    """`_manifest.json`: the parts and the report of a finished run."""

    __pydantic_config__ = _EXACTLY

    schema: Literal["rerank-cli/manifest/1"]
    version: str
    model: dict[str, Any]
    plan: dict[str, Any]
    cluster: dict[str, Any]
    counts: Counts
    seconds: dict[str, float]
    speed: dict[str, float]
    first_error: tuple[str, int, str] | None
    job: RunFacts
    parts: tuple[Part, ...]
    store: dict[str, Any] | None = None
    evaluation: Evaluation | None = None


BEGUN, MANIFEST = TypeAdapter(Begun), TypeAdapter(Manifest)
