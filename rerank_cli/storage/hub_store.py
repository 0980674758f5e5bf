"""A data set of the Hugging Face Hub, through huggingface_hub.

The revision in a URL (`hf://datasets/USER/NAME@REVISION/FILE`; by default `main`) is resolved once to a commit, and
every read is of that commit: a push in the meantime cannot mix two versions.

The Hub has neither a conditional put nor an object that could serve as a lock. It has a conditional commit, which fails
if the branch has moved since. So all files are put in one commit (`put_files`): find the head of the branch, compare
the files with it, commit on that head, and start again if the branch has moved. If the answer to a commit was lost, the
next comparison finds its files. Nothing is written to the Hub before that: the journal of a run whose output is a data
set lies on the machine, and is lost with it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from rerank_cli.errors import UsageError
from rerank_cli.storage.store import Stat, StoreError
from rerank_cli.storage.url import Url

Result = TypeVar("Result")

PATIENCE_SECONDS = 120.0
"""How long a failed commit is retried."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 8.0
_PASSING = (408, 409, 412, 429)  # statuses worth a retry; 412: the branch has moved
_READ_BYTES = 2**20
_MESSAGE = "Add rows reranked with rerank-cli"


class HubStore:
    """The files of a data set at one commit; implements `Store`, but writes whole commits only."""

    def __init__(self, url: Url) -> None:
        self._url = url

    @cached_property
    def _open_file_system(self) -> tuple[Any, str]:
        """The Hub's file system, and the path in it of the data set at its commit."""
        from huggingface_hub import HfApi, HfFileSystem

        self._refuse_offline()
        repo, revision = self._repo_and_revision
        found = self._call(lambda: HfApi().dataset_info(repo, revision=revision))
        return HfFileSystem(), f"datasets/{repo}@{found.sha}"

    def stat(self, key: str) -> Stat:
        """See `Store`."""
        hub, place = self._open_file_system
        found = self._call(lambda: hub.info(f"{place}/{key}"))
        if found["type"] != "file":
            raise FileNotFoundError(errno.ENOENT, "no such file in the data set")
        return _stat(found)

    def read(self, key: str, begin: int, end: int, etag: str | None = None) -> bytes:
        """See `Store`. The etag is ignored, because all reads are of one commit."""
        hub, place = self._open_file_system

        def once() -> bytes:
            with hub.open(f"{place}/{key}", "rb", block_size=max(1, end - begin), cache_type="none") as stream:
                stream.seek(begin)
                return bytes(stream.read(end - begin))

        data = self._call(once)
        if len(data) != end - begin:
            raise StoreError(f"{self._url.scheme}://{self._url.container}/{key}: ends before byte {end}")
        return data

    def list(self, prefix: str) -> Iterator[tuple[str, Stat]]:
        """See `Store`."""
        hub, place = self._open_file_system
        folder = prefix.rpartition("/")[0]
        try:
            found = self._call(lambda: hub.find(f"{place}/{folder}".rstrip("/"), detail=True))
        except FileNotFoundError:
            return
        for path, facts in found.items():
            key = path[len(place) + 1 :]
            if key.startswith(prefix):
                yield key, _stat(facts)

    def put(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> None:
        """Refused."""
        self._refuse(key)

    def put_new(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> None:
        """Refused."""
        self._refuse(key)

    def put_file(
        self,
        key: str,
        path: Path,
        metadata: Mapping[str, str],
        *,
        replace: bool,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """See `Store`."""
        del metadata
        check()
        self.put_files({key: path}, lambda _key, _stat: replace)

    def delete(self, key: str) -> None:
        """Refused."""
        self._refuse(key)

    def get_ready(self) -> None:
        """See `Store`: nothing."""

    def drop_uploads(self, key: str) -> int:
        """See `Store`."""
        return 0

    def put_files(self, files: Mapping[str, Path], may_replace: Callable[[str, Stat], bool]) -> None:
        """Put files in one commit, or in none if the data set has them all.

        `FileExistsError` names a file that exists and may not be replaced.
        """
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.hf_api import RepoFile
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        repo, branch = self._repo_and_revision
        api, until, pause, is_done = HfApi(), time.monotonic() + PATIENCE_SECONDS, _FIRST_PAUSE, False
        while True:
            try:
                head = str(self._call(lambda: api.dataset_info(repo, revision=branch)).sha)
                call = partial(api.get_paths_info, repo, list(files), repo_type="dataset", revision=head)
                there: dict[str, Any] = {one.path: one for one in self._call(call) if isinstance(one, RepoFile)}
                missing = {key: path for key, path in files.items() if not _is_content(there.get(key), path)}
                if not missing:
                    return
                if is_done:
                    raise StoreError(f"{self._url}{min(missing)}: the data set ignores the file (see its .gitignore)")
                for key in missing:
                    if key in there and not may_replace(key, _stat_of(there[key])):
                        raise FileExistsError(errno.EEXIST, f"{key} exists")
                added = [CommitOperationAdd(key, str(path)) for key, path in missing.items()]
                self._call(
                    partial(
                        api.create_commit, repo, added,
                        commit_message=_MESSAGE, repo_type="dataset", revision=branch, parent_commit=head,
                    )
                )  # fmt: skip
                is_done = True
            except _PassingError:
                if time.monotonic() > until:
                    raise
                time.sleep(pause * (0.5 + random.random() / 2))
                pause = min(2 * pause, _LONGEST_PAUSE)

    def check_writable(self) -> None:
        """`StoreError` if the user may not write to the data set, or its revision is not a branch."""
        from huggingface_hub import HfApi

        repo, branch = self._repo_and_revision
        self._refuse_offline()
        try:
            self._call(lambda: HfApi().auth_check(repo, repo_type="dataset", write=True))
            branches = self._call(lambda: HfApi().list_repo_refs(repo, repo_type="dataset")).branches
        except FileNotFoundError as error:
            raise StoreError(f"{self._url}: no such data set, or you may not see it") from error
        if (branch or "main") not in {one.name for one in branches}:
            raise StoreError(f"{self._url}: {branch} is not a branch, and only a branch can be written to")

    def _refuse_offline(self) -> None:
        from huggingface_hub import constants

        # The library reads the variable once, at import; this process may have set it since.
        if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE") == "1":
            raise UsageError(
                f"{self._url}: the Hub is not used without `--online`", hint="add `--online`, and unset HF_HUB_OFFLINE"
            )

    @property
    def _repo_and_revision(self) -> tuple[str, str | None]:
        _, name = self._url.container.split("/", 1)
        repo, _, revision = name.partition("@")
        return repo, revision.replace("%2F", "/") or None

    def _refuse(self, key: str) -> NoReturn:
        raise StoreError(f"{self._url}{key}: a data set takes files in commits only")

    def _call(self, call: Callable[[], Result]) -> Result:
        """The result of `call`; its failures become those that `Store` promises."""
        from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

        try:
            return call()
        except (FileNotFoundError, RepositoryNotFoundError) as error:
            raise FileNotFoundError(errno.ENOENT, "no such file in the data set") from error
        except HfHubHTTPError as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status == 404:
                raise FileNotFoundError(errno.ENOENT, "no such file in the data set") from error
            text = f"{self._url}: the Hub refuses it ({status or type(error).__name__})"
            raise (_PassingError(text) if status in _PASSING or (status or 0) >= 500 else StoreError(text)) from error
        except OSError:
            raise
        except Exception as error:
            # A failed connection is no `OSError` in these libraries; huggingface_hub 2 uses httpx2.
            if not type(error).__module__.startswith(("httpx", "httpcore", "requests")):
                raise
            raise _PassingError(f"{self._url}: the Hub does not answer ({type(error).__name__})") from error


class _PassingError(StoreError):
    """A failure worth a retry."""


def _is_content(there: Any, path: Path) -> bool:
    """Whether a file of a commit has the bytes of a local file."""
    if there is None or there.size != path.stat().st_size:
        return False
    digest = hashlib.sha256() if there.lfs else hashlib.sha1(b"blob %d\0" % there.size, usedforsecurity=False)
    with path.open("rb") as stream:
        while data := stream.read(_READ_BYTES):
            digest.update(data)
    return bool(digest.hexdigest() == (there.lfs.sha256 if there.lfs else there.blob_id))


def _stat_of(there: Any) -> Stat:
    etag = there.lfs.sha256 if there.lfs else there.blob_id
    return Stat(int(there.size), str(etag), datetime.fromtimestamp(0, UTC))


def _stat(found: Mapping[str, Any]) -> Stat:
    lfs = found.get("lfs")
    etag = (lfs or {}).get("sha256") or (lfs or {}).get("oid") or found.get("blob_id") or ""
    return Stat(int(found["size"]), str(etag), datetime.fromtimestamp(0, UTC))
