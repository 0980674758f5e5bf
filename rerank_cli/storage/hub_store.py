"""A data set of the Hugging Face Hub, to read; through huggingface_hub's file system.

The revision that a URL names (`hf://datasets/USER/NAME@REVISION/FILE`; by default `main`) is looked up once and every
call then reads that commit, so a data set that is pushed to meanwhile does not mix with what was read before.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from rerank_cli.errors import UsageError
from rerank_cli.storage.store import Stat, StoreError
from rerank_cli.storage.url import Url

Result = TypeVar("Result")


class HubStore:
    """The files of a data set at one commit; satisfies `Store` as far as reading goes."""

    def __init__(self, url: Url) -> None:
        self._url = url

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system, and the data set with its commit."""
        from huggingface_hub import HfApi, HfFileSystem, constants

        if constants.HF_HUB_OFFLINE:
            raise UsageError(
                f"{self._url}: the Hub is not asked without `--online`", hint="add `--online`, and unset HF_HUB_OFFLINE"
            )
        _, name = self._url.container.split("/", 1)
        repo, _, revision = name.partition("@")
        found = self._call(lambda: HfApi().dataset_info(repo, revision=revision.replace("%2F", "/") or None))
        return HfFileSystem(), f"datasets/{repo}@{found.sha}"

    def stat(self, key: str) -> Stat:
        """See `Store`."""
        hub, place = self._opened
        found = self._call(lambda: hub.info(f"{place}/{key}"))
        if found["type"] != "file":
            raise FileNotFoundError(errno.ENOENT, "no such file in the data set")
        return _stat(found)

    def read(self, key: str, begin: int, end: int, etag: str | None = None) -> bytes:
        """See `Store`; the commit is the version."""
        hub, place = self._opened

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
        hub, place = self._opened
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
        """Not done."""
        self._refuse(key)

    def put_new(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> None:
        """Not done."""
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
        """Not done."""
        self._refuse(key)

    def delete(self, key: str) -> None:
        """Not done."""
        self._refuse(key)

    def drop_uploads(self, key: str) -> int:
        """See `Store`."""
        return 0

    def _refuse(self, key: str) -> NoReturn:
        raise StoreError(f"{self._url}{key}: data sets of the Hub are read here, and not written")

    def _call(self, call: Callable[[], Result]) -> Result:
        from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

        try:
            return call()
        except (FileNotFoundError, RepositoryNotFoundError) as error:
            raise FileNotFoundError(errno.ENOENT, "no such file in the data set") from error
        except HfHubHTTPError as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            raise StoreError(f"{self._url}: the Hub refuses it ({status or type(error).__name__})") from error
        except OSError:
            raise
        except Exception as error:
            # httpx's failures of a connection have no common kind with OSError.
            if type(error).__module__.partition(".")[0] not in ("httpx", "httpcore", "requests"):
                raise
            raise StoreError(f"{self._url}: the Hub does not answer ({type(error).__name__})") from error


def _stat(found: Mapping[str, Any]) -> Stat:
    lfs = found.get("lfs")
    etag = (lfs or {}).get("sha256") or (lfs or {}).get("oid") or found.get("blob_id") or ""
    return Stat(int(found["size"]), str(etag), datetime.fromtimestamp(0, UTC))
