"""Which files an input is: one, those of a folder, or those that a pattern matches.

Folders are read as Spark, Dask and polars write them: all data files below, in the order of their names (numbers in
names count as numbers, so `9.part` comes before `10.part`). Hidden files, names that begin with `_` (`_SUCCESS`), and
the errors and reports of earlier runs (`OUT.errors.jsonl` beside `OUT`) are left out. As in Hive, a folder named
`key=value` gives each row below it the field `key`: a number if all values of the key in this input are whole numbers,
null for `__HIVE_DEFAULT_PARTITION__`.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from rerank_cli.errors import InputError
from rerank_cli.storage import is_object, is_url, matching_objects, objects_below, path_of

Partition = tuple[tuple[str, str | int | None], ...]

_NULL = "__HIVE_DEFAULT_PARTITION__"
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_BESIDE = (".errors.jsonl", ".report.json")  # behind the name of an output
_PART_NAME = re.compile(r"part-.*|.*\.part", re.IGNORECASE)  # Hadoop, Dask: no suffix tells the format


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file of an input. folder: the folder that the user named, if any; partition: the fields that its path gives."""

    path: str
    folder: str | None = None
    partition: Partition = ()


def list_input_files(path: str, is_data: Callable[[str], bool]) -> list[FoundFile]:
    """The files that `path` stands for: itself, those in a folder, or those that a pattern matches.

    is_data: whether the name of a file in a folder has the suffix of a format.
    """
    if is_url(path):
        return _files_of_url(path, is_data)
    folder = Path(path)
    if folder.is_dir():
        files = list(data_files(folder, is_data))
        if not files:
            inside = sorted(entry.name for entry in folder.iterdir())[:5]
            has = f"it has {', '.join(f'`{name}`' for name in inside)}" if inside else "it is empty"
            raise InputError(f"{path}: no file in the folder has the suffix of a format: {has}")
        return _with_partitions(path, [(str(file), file.relative_to(folder).parts[:-1]) for file in files])
    if not glob.has_magic(path) or folder.exists():
        return [FoundFile(path)]
    matches = sorted(glob.glob(path, recursive=True), key=_natural_key)  # noqa: PTH207 (a path may be absolute)
    found = [
        file
        for match in matches
        if not _is_left_out(match, Path(match).name, lambda name: Path(name).exists())
        for file in list_input_files(match, is_data)
    ]
    if not found:
        raise InputError(f"{path}: no file matches")
    return found


def data_files(folder: Path, is_data: Callable[[str], bool]) -> Iterator[Path]:
    """The data files below a folder, in the order of their names."""
    for path in sorted(folder.rglob("*"), key=lambda path: _natural_key(str(path))):
        below = path.relative_to(folder).as_posix()
        if _is_left_out(str(path), below, lambda name: Path(name).exists()) or not path.is_file():
            continue
        if is_data(path.name) or _PART_NAME.fullmatch(path.name):
            yield path


def _is_left_out(path: str, below: str, is_there: Callable[[str], bool]) -> bool:
    """Whether a file is hidden, or holds the bad rows or the report that an earlier run wrote beside its output.

    below: its path in the folder that the user named. is_there: whether there is a file at a path.
    """
    output = next((path.removesuffix(end) for end in _BESIDE if path.endswith(end)), "")
    is_hidden = any(name.startswith((".", "_")) for name in below.split("/"))
    return is_hidden or (bool(output) and is_there(output))


def _natural_key(name: str) -> list[tuple[int, str]]:
    """A key that sorts names with the numbers in them as numbers."""
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", name)]


def _files_of_url(path: str, is_data: Callable[[str], bool]) -> list[FoundFile]:
    """The objects that a URL stands for: itself, those below a prefix, or those that a pattern matches."""
    try:
        if not path.endswith("/") and is_object(path):
            return [FoundFile(path)]
        if not glob.has_magic(path):
            return _files_below(path, is_data)
        matches = matching_objects(path)
        found = [
            file
            for match in sorted(matches, key=_natural_key)
            if not _is_left_out(match, match.rstrip("/").rpartition("/")[2], matches.__contains__)
            for file in (_files_below(match, is_data) if match.endswith("/") else [FoundFile(match)])
        ]
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be listed: {error.strerror or error}") from error
    if not found:
        raise InputError(f"{path}: no object matches")
    return found


def _files_below(path: str, is_data: Callable[[str], bool]) -> list[FoundFile]:
    folder = path.rstrip("/") + "/"
    names = [url[len(folder) :] for url in objects_below(folder)]
    files = [
        name
        for name in sorted(names, key=_natural_key)
        if not _is_left_out(name, name, names.__contains__)
        and (is_data(name.rpartition("/")[2]) or _PART_NAME.fullmatch(name.rpartition("/")[2]))
    ]
    if files:
        return _with_partitions(path, [(folder + name, tuple(name.split("/")[:-1])) for name in files])
    if names:
        inside = ", ".join(f"`{name}`" for name in sorted(names)[:5])
        raise InputError(f"{path}: no object below it has the suffix of a format: it has {inside}")
    return [FoundFile(path.rstrip("/"))]  # opening it says that there is none


def _with_partitions(path: str, files: Sequence[tuple[str, Sequence[str]]]) -> list[FoundFile]:
    """The files of a folder. files: the path of each, and the names of the folders between."""
    keys = [
        [(unquote(key), unquote(value)) for key, equals, value in (name.partition("=") for name in folders) if equals]
        for _, folders in files
    ]
    if len({tuple(name for name, _ in found) for found in keys}) > 1:
        raise InputError(f"{path}: its files lie in folders with different keys (`key=value`)", hint="name one of them")
    whole = {
        name: all((value := dict(found)[name]) == _NULL or _WHOLE_NUMBER.fullmatch(value) for found in keys)
        for name, _ in keys[0]
    }
    partitions = [
        tuple((name, None if value == _NULL else int(value) if whole[name] else value) for name, value in found)
        for found in keys
    ]
    return [FoundFile(file, path, fields) for (file, _), fields in zip(files, partitions, strict=True)]


def refuse_mixed_formats(path: str, formats: Iterable[str]) -> None:
    """`InputError` for a folder whose files have several formats: some of them may not be data."""
    found = sorted(set(formats))
    if len(found) > 1:
        raise InputError(
            f"{path}: the folder has files of several formats: {', '.join(found)}",
            hint=f"name those that are meant: '{path_of(path) / '*'}.{found[0]}'",
        )
