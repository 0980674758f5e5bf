"""What must lie on a local disk: copies of models, and the work folders of runs whose output is an object.

Both lie in `$XDG_CACHE_HOME/rerank-cli` (`~/.cache/rerank-cli`). The name of a model's copy is a hash of the names,
sizes and etags of its files, so a model is fetched once, and again when a file changes in the store. A copy whose files
were changed, cut or removed on the disk is thrown away.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from rerank_cli.errors import ModelError
from rerank_cli.storage.listing import objects_below
from rerank_cli.storage.opened import first_seen, open_store
from rerank_cli.storage.url import parse_url

MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""The files of a model; the rest of its folder is not fetched."""

_FETCHED = ".fetched"  # in each copy: size, time and SHA-256 of its files
_READ_BYTES = 16 * 2**20


def copies_folder() -> Path:
    """The folder of everything that this module puts on a disk."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rerank-cli"


def fetch_model(text: str) -> Path:
    """The folder with a copy of the model at a URL, which is fetched if need be."""
    folder = text.rstrip("/") + "/"
    try:
        names = sorted(
            name
            for url in objects_below(folder)
            if any(fnmatchcase((name := url[len(folder) :]).rpartition("/")[2], wanted) for wanted in MODEL_FILES)
        )
        if "config.json" not in names and "modules.json" not in names:
            raise ModelError(f"{text}: no config.json below it", hint="name the folder that holds config.json")
        seen = {name: first_seen(folder + name) for name in names}
        facts = "\n".join(f"{name} {found.size} {found.etag}" for name, found in seen.items())
        copy = copies_folder() / "models" / hashlib.sha256(facts.encode()).hexdigest()[:32]
        if copy.is_dir() and not _is_as_fetched(copy, names):
            shutil.rmtree(copy, ignore_errors=True)
        if not copy.is_dir():
            _fetch(folder, names, copy)
    except OSError as error:
        raise ModelError(f"{text}: cannot be fetched: {error.strerror or error}") from error
    return copy


def _fetch(folder: str, names: list[str], copy: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=copy.parent) as part:
        whole = Path(part) / "model"
        fetched = {}
        for name in names:
            url = parse_url(folder + name)
            store, found = open_store(url), first_seen(folder + name)
            (whole / name).parent.mkdir(parents=True, exist_ok=True)
            with (whole / name).open("wb") as stream:
                for begin in range(0, found.size, _READ_BYTES):
                    stream.write(store.read(url.key, begin, min(begin + _READ_BYTES, found.size), found.etag))
            fetched[name] = {"seen": _seen(whole / name), "sha256": _sha256(whole / name)}
        (whole / _FETCHED).write_text(json.dumps(fetched), encoding="utf-8")
        try:
            whole.rename(copy)
        except OSError:
            if not copy.is_dir():  # else another process was faster
                raise


def _is_as_fetched(copy: Path, names: Sequence[str]) -> bool:
    """Whether the files of a copy are those that were fetched. Only files whose size or time has changed are read."""
    try:
        fetched = json.loads((copy / _FETCHED).read_bytes())
        return all(
            _seen(copy / name) == fetched[name]["seen"] or _sha256(copy / name) == fetched[name]["sha256"]
            for name in names
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _seen(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def work_folder_of(text: str) -> Path:
    """The local work folder of a run whose output is at a URL."""
    return copies_folder() / "jobs" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.job"
