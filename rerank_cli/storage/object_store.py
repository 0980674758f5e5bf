"""S3, GCS and Azure through obstore; for S3 also botocore, whose multipart uploads can be listed and aborted.

A failure that may pass (a 5xx of the server, a broken connection, a credential that has just expired) is retried for
`PATIENCE_SECONDS`, with growing pauses. A message quotes only the error code of a server's answer: the body may hold
key ids and signatures.

obstore reads environment variables and the machine's role, but not the profiles in `~/.aws`. So credentials for S3 come
from botocore, which finds them like AWS's own tools.

Over 400 lines: what each failure of the two libraries means stands beside the calls that can fail.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from rerank_cli.errors import UsageError
from rerank_cli.storage.own_host import endpoint_of, only_own_hosts, sends_elsewhere
from rerank_cli.storage.store import ChangedError, Stat, StoreError
from rerank_cli.storage.url import SCHEMES, Url

PATIENCE_SECONDS = 120.0
"""How long a failed call is retried."""

PART_BYTES = 8 * 2**20
"""The size of a part of an upload; larger if a file would have more parts than a store takes."""

_MOST_PARTS = 9000  # S3 takes 10,000
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 8.0
_EXPIRED = ("ExpiredToken", "TokenRefreshRequired", "RequestTimeTooSkewed", "ExpiredTokenException")
_EXPIRED_ATTEMPTS = 4  # after a 400 without a body: the answer to a HEAD cannot say that a token has expired
_SIGN_IN = "sign in again, then run the same command: it resumes"
_NO_REASON = (
    "the store gives no reason; it answers this to expired credentials, and to a request in the wrong region: "
    "sign in again, or set AWS_REGION to the bucket's region"
)
_NEVER = ("400 Bad Request", "405 Method", "InvalidBucketName")
_REDIRECTS = (
    "301 Moved", "302 Found", "303 See", "307 Temp", "308 Perm", "PermanentRedirect", "TemporaryRedirect",
    "occurred (301)", "occurred (302)", "occurred (303)", "occurred (307)", "occurred (308)",
)  # fmt: skip
_REFUSED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403")
_CREDENTIALS_LAST = timedelta(minutes=5)  # obstore asks for them again after that
_INVALID_PATH = re.compile(r"Path \"(.*?)\"(?: contained|: )")
_CODE = re.compile(r"<Code>\s*([A-Za-z0-9_.-]+)\s*</Code>")
_STATUS = re.compile(r"\b([1-5]\d\d) [A-Z][A-Za-z]+(?: [A-Z][a-z]+)*")

Result = TypeVar("Result")


class ObjectStore:
    """A bucket or a container; implements `Store`."""

    def __init__(self, url: Url, *, patience: float = PATIENCE_SECONDS) -> None:
        try:
            obstore = importlib.import_module("obstore")
        except ImportError as error:
            raise UsageError(
                f"{url}: object stores are read and written with obstore, which is not installed",
                hint="pip install 'rerank-cli[cloud]'",
            ) from error
        self._obstore: Any = obstore
        self._place = f"{url.scheme}://{url.container}"
        self._container = url.container
        self._patience = patience
        self._kind = SCHEMES[url.scheme]
        self._is_s3 = self._kind == "s3"
        self._open()

    def _open(self) -> None:
        stores: Any = importlib.import_module("obstore.store")
        options: Any = {"timeout": timedelta(seconds=60), "connect_timeout": timedelta(seconds=10), "allow_http": True}
        options |= only_own_hosts(self._kind)
        retries: Any = {"max_retries": 1, "retry_timeout": timedelta(seconds=20)}
        try:
            if self._is_s3:
                settings = self._s3_settings()
                self._store: Any = stores.S3Store(
                    self._container, client_options=options, retry_config=retries, **settings
                )
            else:
                self._store = stores.from_url(self._place, client_options=options, retry_config=retries)
        except self._obstore.exceptions.BaseError as error:
            raise StoreError(f"{self._place}: cannot be opened: {_reason_of(error)}") from error
        except Exception as error:
            if self._is_s3 and (reason := _settings_fault(error)):
                raise UsageError(f"{self._place}: the settings for AWS cannot be used: {reason}") from error
            raise

    def _s3_settings(self) -> dict[str, Any]:
        region = os.environ.get("AWS_REGION") or self._session.get_config_variable("region") or "us-east-1"
        settings: dict[str, Any] = {"region": region}
        if endpoint := endpoint_of("s3"):
            settings["endpoint"] = endpoint
        if os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true"):
            return settings | {"skip_signature": True}
        if self._session.get_credentials() is None:
            raise UsageError(
                f"{self._place}: no credentials were found",
                hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or sign in (~/.aws); for a "
                "public bucket set AWS_SKIP_SIGNATURE=true",
            )
        return settings | {"credential_provider": self._credentials}

    @cached_property
    def _session(self) -> Any:
        try:
            import botocore.session
        except ImportError as error:
            raise UsageError(
                f"{self._place}: S3 is opened with botocore, which is not installed",
                hint="pip install 'rerank-cli[cloud]'",
            ) from error
        return botocore.session.get_session()

    def _credentials(self) -> Any:
        """Credentials as obstore wants them."""
        found = self._session.get_credentials().get_frozen_credentials()
        return {
            "access_key_id": found.access_key, "secret_access_key": found.secret_key, "token": found.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_LAST,
        }  # fmt: skip

    @cached_property
    def _client(self) -> Any:
        """Botocore's client for S3."""
        from botocore import UNSIGNED
        from botocore.config import Config

        settings = self._s3_settings()
        how: dict[str, Any] = {"retries": {"total_max_attempts": 2}, "connect_timeout": 10, "read_timeout": 60}
        if "endpoint" in settings:
            how["s3"] = {"addressing_style": "path"}
        if "skip_signature" in settings:
            how["signature_version"] = UNSIGNED
        client = self._session.create_client(
            "s3", region_name=settings["region"], endpoint_url=settings.get("endpoint"), config=Config(**how)
        )
        client.meta.events.register("before-call.s3", _stay_here)
        return client

    # Objects

    def stat(self, key: str) -> Stat:
        """See `Store`."""
        if not key:  # a HEAD of no key is answered, for the bucket
            raise FileNotFoundError(errno.ENOENT, "is a bucket, and no object")
        found = self._try_again(key, lambda: self._obstore.get(self._store, key, options={"head": True}))
        known = {str(name).lower(): value for name, value in found.attributes.items()}
        return _stat(found.meta, known)

    def read(self, key: str, begin: int, end: int, etag: str | None = None) -> bytes:
        """See `Store`."""
        if end <= begin:
            return b""
        options: dict[str, Any] = {"range": (begin, end)} | ({"if_match": f'"{etag.strip(chr(34))}"'} if etag else {})

        def once() -> bytes:
            data = bytes(self._obstore.get(self._store, key, options=options).bytes())
            if len(data) != end - begin:
                raise ConnectionError(f"{len(data)} of {end - begin} bytes came")
            return data

        return self._try_again(key, once)

    def list(self, prefix: str) -> Iterator[tuple[str, Stat]]:
        """See `Store`."""
        # obstore lists whole folders; the rest of the prefix is compared here.
        folder = prefix.rpartition("/")[0]
        found: list[tuple[str, Stat]] = self._try_again(
            prefix,
            lambda: [
                (one["path"], _stat(one, {}))
                for batch in self._obstore.list(self._store, folder or None)
                for one in batch
                if one["path"].startswith(prefix)
            ],
        )
        # The empty object `KEY/`, which some tools put to stand for a folder, is listed as `KEY`.
        return ((key, stat) for key, stat in found if stat.size or self._is_there(key))

    def put(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> None:
        """See `Store`."""
        self._put(key, data, metadata or {}, "overwrite")

    def put_new(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> None:
        """See `Store`."""
        self._put(
            key, data, metadata or {}, "create", lambda: bytes(self._obstore.get(self._store, key).bytes()) == data
        )

    def delete(self, key: str) -> None:
        """See `Store`."""
        try:
            self._try_again(key, lambda: self._obstore.delete(self._store, key))
        except FileNotFoundError:
            return

    def _put(
        self,
        key: str,
        data: bytes,
        metadata: Mapping[str, str],
        mode: str,
        is_ours: Callable[[], bool] = lambda: False,
    ) -> None:
        """Put an object at once.

        is_ours: whether the object that has the name already is this one, because an earlier attempt succeeded and its
        answer was lost.
        """

        def once() -> None:
            try:
                self._obstore.put(self._store, key, data, attributes=dict(metadata), mode=mode, use_multipart=False)
            except (self._obstore.exceptions.AlreadyExistsError, self._obstore.exceptions.PreconditionError) as error:
                if not is_ours():
                    raise FileExistsError(errno.EEXIST, "another object has its name") from error

        self._try_again(key, once)

    # Files

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
        size = path.stat().st_size
        if size <= PART_BYTES:
            mode = "overwrite" if replace else "create"
            self._put(key, path.read_bytes(), metadata, mode, lambda: self._is_this(key, metadata))
        elif self._is_s3:
            self._put_parts(key, path, metadata, replace=replace, check=check)
        else:
            # Azure and GCS: obstore's upload in parts, which cannot refuse a name that is taken.
            if not replace:
                with suppress(FileNotFoundError):
                    self.stat(key)
                    raise FileExistsError(errno.EEXIST, "another object has its name")
            check()
            self._try_again(
                key,
                lambda: self._obstore.put(
                    self._store, key, path, attributes=dict(metadata), chunk_size=_part_bytes(size), max_concurrency=2
                ),
            )

    def _put_parts(
        self, key: str, path: Path, metadata: Mapping[str, str], *, replace: bool, check: Callable[[], None]
    ) -> None:
        where = {"Bucket": self._container, "Key": key}
        begun = self._try_again(key, lambda: self._client.create_multipart_upload(**where, Metadata=dict(metadata)))
        upload = where | {"UploadId": begun["UploadId"]}
        try:
            parts: list[dict[str, Any]] = []
            with path.open("rb") as stream:
                while data := stream.read(_part_bytes(path.stat().st_size)):
                    check()
                    number = len(parts) + 1
                    put = partial(self._client.upload_part, **upload, PartNumber=number, Body=data)
                    done = self._try_again(key, put)
                    parts.append({"PartNumber": number, "ETag": done["ETag"]})
            check()
            condition: dict[str, Any] = {} if replace else {"IfNoneMatch": "*"}

            def complete() -> None:
                try:
                    self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}, **condition)
                except self._client.exceptions.ClientError as error:
                    code = error.response["Error"]["Code"]
                    if code in ("NoSuchUpload", "PreconditionFailed") and self._is_this(key, metadata):
                        return  # an earlier attempt completed it, and its answer was lost
                    raise

            self._try_again(key, complete)
        except BaseException:
            import botocore.exceptions as boto

            # The first failure counts; the next run on this name aborts the upload.
            with suppress(boto.BotoCoreError, boto.ClientError):
                self._client.abort_multipart_upload(**upload)
            raise

    def get_ready(self) -> None:
        """See `Store`: botocore takes half a second to read its description of S3."""
        if self._is_s3:
            _ = self._client

    def drop_uploads(self, key: str) -> int:
        """See `Store`."""
        if not self._is_s3:  # Azure drops blocks after a week; obstore cannot ask GCS
            return 0
        dropped = 0
        found = self._try_again(
            key,
            lambda: [
                one
                for page in self._client.get_paginator("list_multipart_uploads").paginate(
                    Bucket=self._container, Prefix=key
                )
                for one in page.get("Uploads", ())
                if one["Key"] == key
            ],
        )
        for one in found:
            which = {"Bucket": self._container, "Key": one["Key"], "UploadId": one["UploadId"]}
            try:
                self._try_again(key, partial(self._client.abort_multipart_upload, **which))
            except FileNotFoundError:
                continue
            dropped += 1
        return dropped

    # Inside

    def _is_there(self, key: str) -> bool:
        try:
            self.stat(key)
        except FileNotFoundError:
            return False
        return True

    def _is_this(self, key: str, metadata: Mapping[str, str]) -> bool:
        """Whether the object at `key` has this metadata; no two uploads have the same."""
        try:
            return bool(metadata) and all(self.stat(key).metadata.get(name) == is_ for name, is_ in metadata.items())
        except FileNotFoundError:
            return False

    def _is_sent_elsewhere(self, key: str, text: str) -> bool:
        """Whether a call failed because the server redirected it. text: what the failure says."""
        if any(word in text for word in _REDIRECTS):
            return True
        if "error sending request" not in text:
            return False
        endpoint = endpoint_of(self._kind)
        return endpoint is not None and sends_elsewhere(endpoint, self._container, key)

    def _try_again(self, key: str, call: Callable[[], Result]) -> Result:
        """The result of `call`, retried while its failure may pass."""
        until = time.monotonic() + self._patience
        pause, expired = _FIRST_PAUSE, 0
        while True:
            try:
                return call()
            except Exception as error:
                if type(error) in (FileExistsError, ChangedError):
                    raise
                failure = self._failure(key, error)
                may_be_expired = "400 Bad Request" in _error_text(error) and _CODE.search(_error_text(error)) is None
                if may_be_expired and expired < _EXPIRED_ATTEMPTS:
                    expired += 1
                elif failure is not None:
                    raise failure from error
                if time.monotonic() > until and any(word in _error_text(error) for word in _EXPIRED):
                    reason = f"the credentials have expired, or this machine's clock is wrong ({_reason_of(error)})"
                    raise StoreError(f"{self._place}/{key}: {reason}", hint=_SIGN_IN) from error
                if time.monotonic() > until:
                    raise StoreError(f"{self._place}/{key}: the store does not answer: {_reason_of(error)}") from error
                if may_be_expired or any(word in _error_text(error) for word in _EXPIRED):
                    self.__dict__.pop("_client", None)
                    self.__dict__.pop("_session", None)
                    self._open()
            time.sleep(pause * (0.5 + random.random() / 2))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _failure(self, key: str, error: Exception) -> BaseException | None:
        """The lasting failure that an error means; None if it may pass."""
        import botocore.exceptions as boto

        text = _error_text(error)
        code = error.response["Error"]["Code"] if isinstance(error, boto.ClientError) else ""
        kinds = self._obstore.exceptions
        lasting: BaseException | None = None
        if any(word in text for word in _EXPIRED):
            pass
        elif "NoSuchBucket" in text:
            lasting = StoreError(f"{self._place}: no such bucket")
        elif isinstance(error, FileNotFoundError) or code in ("NoSuchKey", "404", "NoSuchUpload"):
            lasting = FileNotFoundError(errno.ENOENT, "no such object")
        elif code == "PreconditionFailed":
            lasting = FileExistsError(errno.EEXIST, "another object has its name")
        elif isinstance(error, kinds.PreconditionError):
            lasting = ChangedError("it was changed while it was read")
        elif (
            isinstance(error, (kinds.PermissionDeniedError, kinds.UnauthenticatedError))
            or code in _REFUSED
            or code in _NEVER
            or any(word in text for word in _NEVER)
        ):
            refused = f"{self._place}/{key}: the store refuses it ({_reason_of(error)})"
            no_reason = "400 Bad Request" in text and _CODE.search(text) is None
            lasting = StoreError(refused, hint=_NO_REASON) if no_reason else StoreError(refused)
        elif isinstance(error, kinds.InvalidPathError):
            found = _INVALID_PATH.search(text)
            lasting = StoreError(
                f"{self._place}/{key}: holds a key with an empty piece, `.`, `..` or a control character, so what "
                f"lies there cannot be listed{f': {found[1]!r}' if found else ''}",
                hint="name the objects one by one, or rename that one",
            )
        elif self._is_sent_elsewhere(key, text):
            lasting = StoreError(
                f"{self._place}/{key}: the store redirects to another address, which is not followed",
                hint="set AWS_ENDPOINT_URL to the server, or AWS_REGION to the region of the bucket",
            )
        elif not isinstance(error, (kinds.BaseError, boto.BotoCoreError, boto.ClientError, OSError)):
            lasting = error
        return lasting


def _settings_fault(error: Exception) -> str | None:
    """What botocore says of variables and files in `~/.aws`; None for another error. Some messages may hold secrets."""
    import botocore.exceptions as boto

    if isinstance(
        error, (boto.ProfileNotFound, boto.ConfigParseError, boto.ConfigNotFound, boto.PartialCredentialsError)
    ):
        return str(error)
    return type(error).__name__ if isinstance(error, boto.BotoCoreError) else None


def _stay_here(context: dict[str, Any], **_: Any) -> None:
    """Keep botocore from following a redirect: it would follow a server that always redirects without end."""
    context.setdefault("s3_redirect", {})["redirected"] = True


def _part_bytes(size: int) -> int:
    return max(PART_BYTES, -(-size // _MOST_PARTS))


def _stat(meta: Mapping[str, Any], metadata: Mapping[str, str]) -> Stat:
    etag = (meta.get("e_tag") or meta.get("version") or "").strip('"')
    if not etag:  # some stores have none
        etag = hashlib.sha256(f"{meta['size']} {meta['last_modified']}".encode()).hexdigest()
    return Stat(int(meta["size"]), etag, meta["last_modified"], metadata)


def _error_text(error: BaseException) -> str:
    return str(error).split("\n\nDebug source", 1)[0]


def _reason_of(error: BaseException) -> str:
    """What went wrong, without secrets: an error code, an HTTP status, or the kind of failure."""
    text = _error_text(error)
    found = _CODE.search(text) or re.search(r"An error occurred \((\w+)\)", text)
    if found:
        return found[1]
    if status := _STATUS.search(text):
        return status[0]
    for word in ("timed out", "timeout", "connection refused", "connection reset", "dns error"):
        if word in str(error).lower():
            return word
    return type(error).__name__
