"""Checks all paths that a run reads and writes, before anything is opened.

Paths are compared by what they lead to: by device and inode of a file, or by the real path if there is no file yet, so
links and other spellings are the same path. The following is refused by name:

* an output in place of a file that is read: inputs, texts, judgements, template, profiles, model, standard input, or an
  image that a row names;
* an output in the store of scores, or in the folder of a model under a name that models read;
* an errors file or a report whose suffix says another format;
* two outputs in one file, or under names that are the same for the file system;
* an output, an input or the store in the work folder of the run;
* standard output that is appended to a file that is read (`>> in.jsonl`);
* a folder that does not exist or cannot be written to, a name that is too long, a pipe without a reader;
* existing files without `--overwrite`, except the errors file of a run that gave no output. With `--overwrite`, only
  files that were there when the run began are replaced.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.errors import OutputError, UsageError
from rerank_cli.formats.compression import SUFFIXES
from rerank_cli.formats.inputs import STDIN, Input
from rerank_cli.job.options import STDOUT, JobOptions, Names
from rerank_cli.journal import Identity, Job, identity_of, is_special, naming
from rerank_cli.journal.placing import open_special
from rerank_cli.storage import UrlPath, is_url, path_of
from rerank_cli.storage.at_once import at_once
from rerank_cli.storage.upload import refuse_unwritable

_OPTIONS = {
    "output": "--output", "errors": "--errors", "report": "--report", "page": "--report", "embeddings": "--embeddings",
    "per_query": "--per-query",
}  # fmt: skip
_SUFFIXES = {
    "errors": ("JSON lines, not compressed", "end the name in .jsonl"),
    "report": ("JSON, not compressed", "end the name in .json, or in .html for a page"),
}
_MODEL_FILES = {
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "processor_config.json",
    "preprocessor_config.json", "hf_quant_config.json", "vocab.txt", "tokenizer.model", "chat_template.jinja",
}  # fmt: skip
_IMAGE_MAGICS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"RIFF")
_PART_SUFFIX = ".12345678.part"  # the longest suffix of a copy beside a final name (`journal/placing.py`)

_KEYS_OF_BAD_ROWS = {"file", "row", "id", "error"}
_FIRST_LINE_BYTES = 2**20


def paths_read(options: JobOptions, inputs: Sequence[Input]) -> dict[str, Path]:
    """The files that a run reads besides its model, by the names that messages use."""
    found = {f"input {number}": path_of(item.path) for number, item in enumerate(inputs, 1) if item.path != STDIN}
    others = {
        "--queries": options.texts.queries, "--corpus": options.texts.corpus, "--qrels": options.qrels,
        "--calibration": options.calibration,
        "--profile": options.profiles_file, "--template": getattr(options.template, "path", None),
    }  # fmt: skip
    return found | {name: path_of(path) for name, path in others.items() if path}


def model_files(checkpoint: Checkpoint) -> dict[str, Path]:
    """The files of a model, by the names that messages use."""
    return {f"model file `{name}`": path for name, path in checkpoint.files.items()}


def files_of_folder(model: str | None) -> dict[str, Path]:
    """The files of a model that is a local folder, before any is read; empty for other models."""
    if model is None or is_url(model) or not (folder := Path(model).expanduser()).is_dir():
        return {}
    return {f"model file `{path.name}`": path for path in sorted(folder.iterdir()) if path.is_file()}


def folders_of(inputs: Sequence[Input]) -> set[str]:
    """The folders whose files are inputs."""
    return {item.folder for item in inputs if item.folder is not None}


class RunPaths:
    """The paths of one run; raises `UsageError` or `OutputError` for what is refused.

    A store is asked once whether an object exists.

    Args:
        names: What the run writes.
        read: What it reads, by name.
        folders: Whose files are inputs.
        models: The folders of the checkpoints.
        store: The folder of known scores.
        overwrite: Existing files may be replaced.
    """

    def __init__(
        self,
        names: Names,
        read: Mapping[str, Path],
        *,
        folders: Iterable[str] = (),
        models: Sequence[Path] = (),
        store: str | None = None,
        overwrite: bool = False,
    ) -> None:
        self._names = names
        self._overwrite = overwrite
        self._work = None if names.output == STDOUT else Job.folder_of(names.output)
        self._read = {identity_of(path): f"{name}, {path}" for name, path in read.items()}
        self._read |= dict.fromkeys(_identity_of_stream(sys.stdin), "standard input")
        urls = [path for path in reversed(names.files.values()) if isinstance(path, UrlPath)]
        looks = at_once([partial(_refuse_unwritable_url, path) for path in urls])
        self._there: dict[Path, os.stat_result | None] = dict(zip(urls, looks, strict=True))
        for kind, path in reversed(names.files.items()):
            self._refuse_unwritable(kind, path)
            self._refuse_read(kind, path, models)
        self._refuse_inside(folders, store)
        self._refuse_twice()
        self._refuse_work_folder(read, store)
        if names.output == STDOUT:
            for identity in _identity_of_stream(sys.stdout):
                if what := self._read.get(identity):
                    raise UsageError(f"--output -: standard output is appended to a file that is read ({what})")
        self._there |= {path: _lstat(path) for path in names.files.values() if path not in self._there}
        self._leftovers = self._find_leftovers()
        self.pipes: dict[Path, int] = {}
        """Descriptors of the pipes and devices that `open_pipes` opened."""

    def refuse_existing(self, is_mine: Callable[[Path], bool] = lambda _: False, *, anew: bool = False) -> None:
        """`OutputError` if a file exists and may not be replaced; names the output before the files beside it.

        is_mine: whether the same job wrote a file. anew: ask the stores once more.
        """
        urls = [path for path in self._names.files.values() if isinstance(path, UrlPath) and anew]
        now = dict(zip(urls, at_once([path.exists for path in urls]), strict=True))
        for path in reversed(self._names.files.values()):
            if isinstance(path, UrlPath):
                there = now.get(path, self.was_there(path))
            else:
                there = os.path.lexists(path) and not is_special(path)
            if there and not self._overwrite and path not in self._leftovers and not is_mine(path):
                raise OutputError(f"{path}: exists", hint="`--overwrite` replaces it when the run is complete")

    def was_there(self, path: Path) -> bool:
        """Whether a path that the run writes existed when it began."""
        return self._there[path] is not None

    def _find_leftovers(self) -> set[Path]:
        """The errors file, under its default name, of an earlier run that scored no row and so left no output.

        It is a regular file that begins with a bad row as we write it. Without this exception, the command would be
        refused for that file even after the user has corrected it.
        """
        errors = self._names.files.get("errors")
        if errors is None or self._names.errors is not None or self._there[self._names.files["output"]] is not None:
            return set()
        if (there := self._there[errors]) is None or not stat.S_ISREG(there.st_mode):
            return set()
        try:
            with errors.open("rb") as stream:
                row = json.loads(stream.readline(_FIRST_LINE_BYTES))
        except (OSError, ValueError):
            return set()
        return {errors} if isinstance(row, dict) and row.keys() >= _KEYS_OF_BAD_ROWS else set()

    def may_replace(self, path: Path, found: os.stat_result) -> bool:
        """Whether a file may be replaced: with `--overwrite`, if it has not changed since the run began."""
        before = self._there.get(path)
        if before is None or not (self._overwrite or path in self._leftovers):
            return False
        same = (before.st_size, before.st_mtime_ns) == (found.st_size, found.st_mtime_ns)
        return same and os.path.samestat(before, found)

    def refuse_image(self, path: Path, found: os.stat_result) -> None:
        """`UsageError` if the run would replace an image that a row names."""
        for written in self._names.files.values():
            if (there := self._there[written]) and os.path.samestat(there, found):
                raise UsageError(
                    f"{written}: would replace an image that the run reads ({path})", hint="write to another file"
                )

    def open_pipes(self, stack: ExitStack) -> None:
        """Open outputs that are pipes or devices; a pipe without a reader is refused before anything is computed."""
        for path in self._names.files.values():
            if is_special(path) and path not in self.pipes:
                with naming(path):
                    self.pipes[path] = open_special(path)
                stack.callback(os.close, self.pipes[path])

    def _refuse_unwritable(self, kind: str, path: Path) -> None:
        folder = path.parent
        if kind in _SUFFIXES and path.suffix.lower() in (*SUFFIXES, ".csv", ".tsv", ".parquet", ".trec"):
            words, hint = _SUFFIXES[kind]
            raise UsageError(f"{_OPTIONS[kind]} {path}: is written as {words}, whatever the suffix says", hint=hint)
        if isinstance(path, UrlPath):
            return
        if path.is_dir():
            raise OutputError(f"{path}: is a folder", hint="name a file in it")
        if kind == "output" and is_special(path):
            raise OutputError(f"{path}: is not a regular file", hint="`--output -` writes to stdout")
        if not folder.is_dir():
            raise OutputError(
                f"{path}: cannot be written: its folder does not exist", hint=f"make the folder `{folder}` first"
            )
        with naming(path):
            _lstat(path.with_name(f"{path.name}{_PART_SUFFIX}"))  # fails if the name is too long
            if not is_special(path):
                tempfile.TemporaryFile(dir=folder).close()  # a mode shows no read-only mount, attribute or /proc
            elif not os.access(path, os.W_OK):
                raise OutputError(f"{path}: cannot be written: no permission")

    def _refuse_read(self, kind: str, path: Path, models: Sequence[Path]) -> None:
        if is_special(path):
            return
        if what := self._read.get(identity_of(path)):
            replaced = "an input" if what.startswith("input") else f"a file that the run reads ({what})"
            raise UsageError(f"{path}: would replace {replaced}", hint="write to another file")
        if (model := next((one for one in models if _is_of_model(path, one)), None)) is not None:
            raise UsageError(f"{path}: would replace a file of the model in {model}", hint="write to another file")
        if self._there.get(path, ...) is not None and _is_image(path):
            raise UsageError(f"{path}: is an image ({_OPTIONS[kind]})", hint="write to another file")

    def _refuse_inside(self, folders: Iterable[str], store: str | None) -> None:
        """Refuse outputs in a folder of inputs, which the next run would read, and in the store of scores."""
        for folder in folders:
            for path in self._names.files.values():
                if path.resolve().is_relative_to(path_of(folder).resolve()):
                    raise UsageError(
                        f"{path}: lies in {folder}, whose files are the input", hint="write to another folder"
                    )
        if store is None:
            return
        scores = Path(store).expanduser().resolve()
        there: set[Identity] = set()
        with suppress(OSError):  # there is none yet, or it may not be read
            there = {identity_of(path) for path in scores.iterdir()}
        for path in self._names.files.values():
            if isinstance(path, UrlPath):
                continue
            if path.resolve().is_relative_to(scores) or identity_of(path) in there:
                raise UsageError(f"{path}: lies in {store}, the store of scores", hint="write to another folder")

    def _refuse_twice(self) -> None:
        seen: dict[Identity, Path] = {}
        for path in self._names.files.values():
            if is_special(path):
                continue
            identity = identity_of(path)
            if identity in seen or any(_are_one_name(path, other) for other in seen.values()):
                raise UsageError(
                    f"{path.resolve()}: two outputs in one file",
                    hint="give --output, --errors, --report, --embeddings and --per-query different paths",
                )
            seen[identity] = path

    def _refuse_work_folder(self, read: Mapping[str, Path], store: str | None) -> None:
        if self._work is None:
            return
        works = {path.resolve(): path for path in (self._work, path_of(f"{self._names.output}.job"))}
        for kind, path in self._names.files.items():
            if work := next((one for one in works if path.resolve().is_relative_to(one)), None):
                raise UsageError(
                    f"{_OPTIONS[kind]} {path}: lies in {works[work]}, the work folder of this run",
                    hint="name another file",
                )
        for path in (*read.values(), *([Path(store).expanduser()] if store else [])):
            if work := next((one for one in works if path.resolve().is_relative_to(one)), None):
                raise UsageError(f"{path}: is read, and lies in {works[work]}, the work folder of this run")


def _are_one_name(one: Path, other: Path) -> bool:
    """Whether two names that differ in case or Unicode composition are the same for the file system."""
    if isinstance(one, UrlPath) or isinstance(other, UrlPath) or _folded(one) != _folded(other):
        return False
    if identity_of(one.parent) != identity_of(other.parent):
        return False
    with naming(one), tempfile.TemporaryDirectory(dir=one.parent) as probe:
        Path(probe, one.name).touch()
        return Path(probe, other.name).exists()


def _folded(path: Path) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path.name).casefold())


def _refuse_unwritable_url(path: UrlPath) -> os.stat_result | None:
    """`OutputError` if the URL cannot be written to; else the stat of the object there, or None."""
    if not path.url.key or path.url.key.endswith("/"):
        raise OutputError(
            f"{path}: cannot be written: it names a bucket or a folder", hint=f"for example {path / 'out.jsonl'}"
        )
    with naming(path):
        refuse_unwritable(path)
        return _lstat(path)


def _identity_of_stream(stream: object) -> Iterable[Identity]:
    """The identity of a standard stream, if it is a regular file."""
    with suppress(OSError, ValueError, AttributeError):
        found = os.fstat(stream.fileno())  # type: ignore[attr-defined]  # a stream without it is suppressed
        if stat.S_ISREG(found.st_mode):
            yield found.st_dev, found.st_ino


def _is_of_model(path: Path, model: Path) -> bool:
    """Whether a path is a file in a model's folder, or would be one under a name that models use."""
    if isinstance(path, UrlPath):
        return False
    if identity_of(path.parent) != identity_of(model):
        return path.is_file() and path.resolve().is_relative_to(model.resolve())
    return path.is_file() or path.name in _MODEL_FILES or path.name.endswith((".safetensors", ".index.json"))


def _is_image(path: Path) -> bool:
    with suppress(OSError):
        if path.is_file():
            with path.open("rb") as stream:
                head = stream.read(12)
            return head.startswith(_IMAGE_MAGICS) and (head[:4] != b"RIFF" or head[8:] == b"WEBP")
    return False


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
