"""The output folder of a run on a cluster, from the first part to the manifest; a folder with other things is refused.

    OUT/NAME.jsonl               the part NAME, complete: it gets this name by one rename
    OUT/NAME.jsonl.job           an unfinished part
    OUT/_rerank/NAME.report.json, NAME.errors.jsonl; with `--qrels` also NAME.per-query.jsonl
    OUT/_rerank/tasks.json       the parts and the fingerprint of the run: written first
    OUT/_manifest.json           all parts with their SHA-256, and the counts: written last

At a URL it is the same, but a file gets its name by one put, each part has its log beside it, and the folder's lock
lies in `OUT.job/`, as for any output that is an object.

A folder with a manifest is finished, and nothing is added to it. Without a manifest it is not ready to be read, and the
same command resumes the run. A folder that holds anything else is refused, and so are documents with other fields than
this program writes (`documents.py`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from rerank_cli.cluster.documents import BEGUN, MANIFEST, TASKS_SCHEMA
from rerank_cli.cluster.tasks import Task
from rerank_cli.errors import JobChangedError, OutputError
from rerank_cli.formats.jsonl import dump_document
from rerank_cli.job.options import Names
from rerank_cli.journal import (
    Files,
    Fingerprint,
    naming,
    place_file,
    remove_file,
    same_output,
    store_log,
    write_file,
    write_whole,
)
from rerank_cli.journal.lock import Lock, take_lock
from rerank_cli.journal.store_log import StoreLog
from rerank_cli.storage import UrlPath, is_url
from rerank_cli.storage.copies import work_folder_of
from rerank_cli.storage.opened import open_store

_TASKS, _MANIFEST = "_rerank/tasks.json", "_manifest.json"
_VALUES = ".per-query.jsonl"
Document = TypeVar("Document")
_LEASES = 1.5  # after one, the lock of a dead machine can be taken
_ORPHAN_SECONDS = 60.0  # an actor ends soon after its driver, but holds the lock of its part until then
_AGAIN = "start over with `--restart --overwrite`"


class OutputFolder:
    """The folder `path` of one run; a context manager that holds its lock."""

    def __init__(self, path: str, *, lock_wait: float = 0.0) -> None:
        self.path: Path = UrlPath(path.rstrip("/")) if is_url(path) else Path(path).absolute()
        self._beside = self.path / "_rerank"
        self._lock_wait = lock_wait
        self._files = Files()
        self._lock: Lock
        self._log = StoreLog(self.path) if isinstance(self.path, UrlPath) else None
        self.lock_wait_of_parts = max(lock_wait, _LEASES * store_log.LEASE_SECONDS if self._log else _ORPHAN_SECONDS)
        """How long to wait for the lock of a part whose driver or machine may be dead."""

    def __enter__(self) -> OutputFolder:
        if isinstance(self.path, UrlPath):
            self._enter_url(self.path)
            return self
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"{self.path}: is not a folder", hint="a cluster writes a folder of files")
        if self._beside.is_symlink():
            raise OutputError(f"{self._beside}: is a link, and is not followed", hint="name a new folder")
        with naming(self.path):
            if self.path.is_dir() and not (self._beside / "lock").exists() and any(self.path.iterdir()):
                raise OutputError(f"{self.path}: holds files of something else", hint="name a new folder")
            is_new = not self.path.exists()
            self._beside.mkdir(parents=True, exist_ok=True)
            try:
                self._lock = take_lock(self._beside / "lock", out=self.path, wait=self._lock_wait, files=self._files)
            except OutputError:
                if is_new:
                    with suppress(OSError):  # fails if something is in it by now
                        self.path.rmdir()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._log:
                with suppress(OSError):  # a lock left behind is free for this machine, and for all after its lease
                    self._log.remove()
        finally:
            self._lock.release()

    def check(self, *, ask: bool = False) -> None:
        """`LockedError` if another run has taken the folder at a URL. ask: ask the store."""
        if self._log:
            self._log.ask() if ask else self._log.check()

    def _enter_url(self, path: UrlPath) -> None:
        """Take the lock on this machine, then the one in the store."""
        if path.url.scheme == "hf":
            raise OutputError(f"{path}: a cluster cannot write to the Hub", hint="write to an object store")
        if not path.url.key:
            raise OutputError(f"{path}: is a whole bucket", hint=f"name a folder in it, for example {path}reranked/")
        with naming(path):
            if path.is_file():
                raise OutputError(f"{path}: is not a folder", hint="a cluster writes a folder of files")
            names = [key.removeprefix(f"{path.url.key}/") for key, _ in open_store(path.url).list(f"{path.url.key}/")]
            if names and not any(name.startswith("_rerank/") or name == _MANIFEST for name in names):
                raise OutputError(f"{path}: holds files of something else", hint="name a new folder")
            here = work_folder_of(str(path))
            here.mkdir(parents=True, exist_ok=True)
            self._lock = take_lock(here / "lock", out=path, wait=self._lock_wait, files=self._files)
            assert self._log is not None, "made with the path"
            try:
                self._log.take(self._lock_wait)
            except BaseException:
                self._lock.release()
                raise

    def names(self, task: Task, out_format: str, *, judged: bool = False) -> Names:
        """The names of a part's files. judged: it is measured on judgements (`--qrels`)."""
        beside = str(self._beside / task.name)
        values = f"{beside}{_VALUES}" if judged else None
        return Names(
            str(self.path / task.name), f"{beside}.errors.jsonl", f"{beside}.report.json", out_format, per_query=values
        )

    def values(self, task: Task) -> bytes:
        """The measures of each query of a finished part, as written."""
        path = self._beside / f"{task.name}{_VALUES}"
        with naming(path):
            return path.read_bytes()

    def finished(self, fingerprint: Fingerprint) -> dict[str, Any] | None:
        """The manifest if this run has finished; `OutputError` if the folder holds another finished run."""
        data = self._read(_MANIFEST)
        if data is None:
            return None
        manifest = self._parse(_MANIFEST, data, MANIFEST)
        if fingerprint.differs_in_request(asdict(manifest.job)):
            raise OutputError(f"{self.path}: holds the output of another run", hint=_AGAIN)
        changed = next(
            (part.name for part in manifest.parts if not same_output(self.path / part.name, asdict(part))), None
        )
        if changed is not None:
            raise OutputError(f"{self.path / changed}: has changed since the run finished", hint=_AGAIN)
        found: dict[str, Any] = json.loads(data)
        return found

    def tasks(self, fingerprint: Fingerprint) -> tuple[Task, ...] | None:
        """The parts of the unfinished run in the folder, if any; `JobChangedError` if it differs from this run."""
        if (data := self._read(_TASKS)) is None:
            return None
        begun = self._parse(_TASKS, data, BEGUN)
        if differences := fingerprint.differences(asdict(begun.job)):
            raise JobChangedError(
                f"{self.path}: the unfinished run in it differs from this run: " + "; ".join(differences),
                hint="resume with the command and input of before, or start over with `--restart`",
            )
        return begun.tasks

    def begin(self, tasks: Sequence[Task], fingerprint: Fingerprint) -> None:
        """Write which parts there will be."""
        document = {"schema": TASKS_SCHEMA, "job": fingerprint.document(), "tasks": [asdict(task) for task in tasks]}
        self._write(_TASKS, document)

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest."""
        self._write(_MANIFEST, manifest)

    def clear(self, *, finished: bool) -> None:
        """Remove the files of the run in the folder; `OutputError` if it has finished, unless `finished`."""
        if (self.path / _MANIFEST).exists() and not finished:
            raise OutputError(f"{self.path}: holds a finished run", hint=_AGAIN)
        data = self._read(_TASKS)
        tasks = () if data is None else self._parse(_TASKS, data, BEGUN).tasks
        with naming(self.path):
            remove_file(self.path / _MANIFEST, self._files)  # first: without it nothing counts as complete
            for task in tasks:
                names = self.names(task, "auto", judged=True)
                for path in names.files.values():
                    remove_file(path, self._files)
                if not is_url(names.output):  # what is left of an unfinished part
                    shutil.rmtree(f"{names.output}.job", ignore_errors=True)
                    continue
                url = UrlPath(f"{names.output}.job").url
                store = open_store(url)
                for key in sorted(key for key, _ in store.list(f"{url.key}/")):
                    store.delete(key)
            remove_file(self.path / _TASKS, self._files)

    def _read(self, name: str) -> bytes | None:
        path = self.path / name
        with naming(path):
            return path.read_bytes() if path.exists() else None

    def _parse(self, name: str, data: bytes, kind: TypeAdapter[Document]) -> Document:
        """A document of the folder; `OutputError` if this version of the program has not written it."""
        try:
            return kind.validate_json(data)
        except ValidationError as error:
            raise OutputError(
                f"{self.path / name}: was not written by this version of the program", hint="name a new folder"
            ) from error

    def _write(self, name: str, document: Mapping[str, Any]) -> None:
        path = self.path / name
        self.check(ask=True)
        if self._log:
            write_file(path, dump_document(document), self._files)
            return
        work = path.with_name(f"{path.name}.part")
        with naming(path):
            write_whole(work, dump_document(document), self._files)
            place_file(work, path, self._files)
            self._files.sync_folder(path.parent)
