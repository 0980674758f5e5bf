"""Upload a finished local file: whole, under its name, once.

The SHA-256 of the content and the job that made it are stored with the object. So a run that could not see its upload
succeed, or that resumes after its machine died, recognises its own object without reading it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from rerank_cli.storage.at_once import at_once
from rerank_cli.storage.hub_store import HubStore
from rerank_cli.storage.opened import open_store
from rerank_cli.storage.store import Stat
from rerank_cli.storage.url_path import JOB, SHA256, UrlPath, as_file

MayReplace = Callable[[Path, os.stat_result], bool]


def upload(
    work: Path,
    final: UrlPath,
    *,
    may_replace: MayReplace,
    job: str | None = None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Put the content of `work` at `final`; `FileExistsError` if another object is there that may not be replaced.

    Args:
        work: the local file.
        final: where it goes.
        may_replace: whether an object of something else may be replaced.
        job: the job whose output it is; its own earlier upload is replaced, or kept if it is the same.
        check: called between the parts.
    """
    if final.url.scheme == "hf":
        put_together({work: final}, may_replace)
        return
    with work.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    metadata = {SHA256: sha256, JOB: job or secrets.token_hex(8)}
    store, key = open_store(final.url), final.url.key
    # A job holds the lock of its output, so unfinished uploads are of runs that have died.
    there, _ = at_once([partial(_look, final), partial(store.drop_uploads, key) if job is not None else lambda: None])
    replace = False
    if isinstance(there, Stat):
        mine = job is not None and there.metadata.get(JOB) == job
        if (mine or job is None) and there.metadata.get(SHA256) == sha256:
            return
        replace = mine or may_replace(final, final.lstat())
        if not replace:
            raise FileExistsError(f"{final}: exists")
    store.put_file(key, work, metadata, replace=replace, check=check)


def _look(path: UrlPath) -> Stat | None:
    try:
        return path.look()
    except FileNotFoundError:
        return None


def refuse_unwritable(path: UrlPath) -> None:
    """`StoreError` for a data set that the user may not write to. A bucket refuses when a probe is put there."""
    store = open_store(path.url)
    if isinstance(store, HubStore):
        store.check_writable()


def put_together(works: Mapping[Path, UrlPath], may_replace: MayReplace) -> None:
    """Put files into data sets of the Hub, one commit per data set.

    `FileExistsError` if one of them exists and may not be replaced.
    """
    places = {final.url.container: final.url for final in works.values()}
    for container, url in places.items():
        store = open_store(url)
        assert isinstance(store, HubStore), "only data sets get here"
        paths = {final.url.key: final for final in works.values() if final.url.container == container}
        store.put_files(
            {final.url.key: work for work, final in works.items() if final.url.container == container},
            lambda key, there, paths=paths: may_replace(paths[key], as_file(paths[key].url, there)),  # type: ignore[misc]  # no type is inferred for a default of a lambda
        )
