"""The parts of a run on a cluster: whole files, or shards of files if there are few files.

A shard is what `--shard i/n` reads of a file: whole queries and whole windows. The outputs of all shards, concatenated
in order, are what one run of the file writes. The list of tasks is made once, when a run begins, and kept with the run:
so a run that is resumed on a cluster of another size does the same parts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rerank_cli.errors import InputError, UsageError
from rerank_cli.formats.compression import SUFFIXES, text_suffix
from rerank_cli.formats.input_folders import data_files, list_input_files
from rerank_cli.formats.inputs import FORMATS, STDIN, Input, ReadOptions, resolve_inputs
from rerank_cli.formats.row_counts import count_exactly, count_lines
from rerank_cli.job.options import JobOptions
from rerank_cli.job.output_format import output_format
from rerank_cli.storage import UrlPath, is_url

_TASKS_PER_ENGINE = 4  # so that at the end no engine waits long for another one's last task
_LEAST_ROWS = 50  # of a shard: each reads its file from the start, so a smaller one costs more than it saves


@dataclass(frozen=True, slots=True)
class Task:
    """Shard `shard` of `shards` of a file."""

    input: str  # absolute path of the file, or its URL
    name: str  # of the output, in the output folder
    shard: int = 1  # from 1
    shards: int = 1
    limit: int | None = None
    """How many rows of the file are read; None for all."""


def find_files(paths: Sequence[str]) -> list[tuple[str, str]]:
    """List the files of `paths`, each as (absolute path, name without suffixes).

    A folder stands for its files, sorted by name; a URL means the same as in other commands. Hidden files and names
    that begin with `_` are skipped, as other readers of such folders do.
    """
    found: list[tuple[str, str]] = []
    for path in paths:
        if path == STDIN:
            raise UsageError("-: a cluster cannot read stdin", hint="give files or folders")
        if is_url(path):
            objects = list_input_files(path, _is_data)
            has_partitions = any(file.partition for file in objects)
            for file in objects:
                folder = "" if file.folder is None else f"{file.folder.rstrip('/')}/"
                below = file.path.removeprefix(folder) if folder else UrlPath(file.path).name
                found.append((file.path, _stem_of(Path(below))))
        else:
            place = Path(path)
            inside = list(data_files(place, _is_data)) if place.is_dir() else [place]
            has_partitions = any("=" in part for one in inside for part in one.relative_to(place).parts[:-1])
            if not inside:
                known = ", ".join(FORMATS)
                raise InputError(f"{path}: no file in it has the suffix of a format", hint=f"known are {known}")
            root = place if place.is_dir() else place.parent
            found += [(str(one.absolute()), _stem_of(one.relative_to(root))) for one in inside]
        if has_partitions:
            raise UsageError(
                f"{path}: has folders named `key=value`; a cluster does not add such fields to the rows",
                hint="name the folders in it, or leave out `--engine ray`",
            )
    names = Counter(name for _, name in found)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        both = [path for path, name in found if name == twice]
        raise UsageError(f"{both[0]} and {both[1]}: their outputs would have the same name", hint="rename one of them")
    return found


def cut_tasks(files: Sequence[tuple[str, str]], options: JobOptions, *, engines: int) -> tuple[Task, ...]:
    """Cut a run into tasks: several for each engine, if the files have enough rows."""
    inputs = resolve_inputs([path for path, _ in files], options.in_format, options.shape)
    limits: list[int | None] = [None] * len(inputs)
    if options.limit is not None:  # files after the last row of `--limit` are left out
        limits, left = [], options.limit
        for one in inputs:
            if left == 0 and limits:
                break
            limits.append(left)
            left -= count_exactly(one, ReadOptions(options.max_line_bytes, limit=left))
    inputs, files = inputs[: len(limits)], files[: len(limits)]
    wanted = engines * _TASKS_PER_ENGINE
    shards = [1] * len(files)
    if len(files) < wanted:
        rows = [
            count_lines([one], ReadOptions(options.max_line_bytes, limit=limit))
            for one, limit in zip(inputs, limits, strict=True)
        ]
        size = max(_LEAST_ROWS, -(-sum(rows) // wanted))
        shards = [max(1, round(count / size)) for count in rows]
    tasks = []
    for (path, stem), one, count, limit in zip(files, inputs, shards, limits, strict=True):
        for shard in range(1, count + 1):
            which = f".{shard:0{len(str(count))}}-of-{count}" if count > 1 else ""
            tasks.append(Task(path, f"{stem}{which}{_suffix(one, options)}", shard, count, limit))
    return tuple(tasks)


def _is_data(name: str) -> bool:
    return text_suffix(name) in FORMATS


def _stem_of(path: Path) -> str:
    name = path.with_suffix("") if path.suffix.lower() in SUFFIXES else path
    return ".".join(name.with_suffix("").parts)


def _suffix(read: Input, options: JobOptions) -> str:
    """The suffix of an output: that of `--out-format`, or by default of the input's format."""
    wanted = options.names.out_format
    if wanted == "auto":
        return {"parquet": ".parquet", "trec": ".trec"}.get(read.format, ".jsonl")
    if wanted == "trec":
        return ".trec"
    return f".{output_format(options.names)}"
