"""Which texts are URLs of a store, and their parts.

A URL is `SCHEME://CONTAINER/KEY`. Everything after the container's slash is the key, as it stands: nothing is unquoted,
and `?` and `#` are characters of the name (or of a pattern). A text with an unknown scheme is a URL too: it is refused
by name, never taken for a local path.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from rerank_cli.errors import UsageError

SCHEMES = {"s3": "s3", "gs": "gs", "az": "az", "abfs": "az", "abfss": "az", "hf": "hf"}
"""The schemes that can be opened, each with its kind of store."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_CONTAINER = re.compile(
    r"\$?[A-Za-z0-9_-][A-Za-z0-9._-]*(@[A-Za-z0-9._-]+)?", re.ASCII
)  # Azure has `$web`, and abfs:// an account
_SHOWN = "s3://BUCKET/KEY, gs://BUCKET/KEY, az://CONTAINER/KEY and hf://datasets/USER/NAME/FILE"


@dataclass(frozen=True, slots=True)
class Url:
    """The parts of a URL."""

    scheme: str
    container: str
    """A bucket, a container, or `datasets/USER/NAME@REVISION`."""
    key: str
    """The name of the object in its container."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.container}/{self.key}"


def is_url(text: object) -> bool:
    """Whether a text begins with `SCHEME://`, whatever the scheme."""
    return _SCHEME.match(str(text)) is not None


def parse_url(text: str) -> Url:
    """Split a URL into its parts; `UsageError` if it cannot be opened."""
    found = _SCHEME.match(text)
    if found is None:
        raise UsageError(f"{text}: is not a URL")
    scheme, rest = found[1].lower(), text[found.end() :]
    if scheme not in SCHEMES:
        raise UsageError(f"{_without_secrets(text)}: URLs of {scheme}:// cannot be opened", hint=f"known are {_SHOWN}")
    if "@" in rest.partition("/")[0] and scheme not in ("abfs", "abfss"):
        raise UsageError(
            f"{_without_secrets(text)}: a URL with credentials in it is not opened",
            hint="leave them to the usual chain: environment variables, a profile, the role of the machine",
        )
    if any(not char.isprintable() for char in text):
        raise UsageError(f"{text!r}: a URL has no control characters")
    parts = 3 if scheme == "hf" else 1
    pieces = rest.split("/", parts)
    container, key = "/".join(pieces[:parts]), pieces[parts] if len(pieces) > parts else ""
    if len(pieces) < parts or not all(pieces[:parts]):
        raise UsageError(f"{text}: names no {'data set' if scheme == 'hf' else 'bucket'}", hint=f"for example {_SHOWN}")
    if scheme != "hf" and not _CONTAINER.fullmatch(container):
        raise UsageError(f"{_without_secrets(text)}: a bucket has no such name", hint=f"for example {_SHOWN}")
    if scheme == "hf" and pieces[0] != "datasets":
        raise UsageError(f"{text}: only data sets of the Hub are opened", hint="hf://datasets/USER/NAME/FILE")
    if key.startswith("/") or "//" in key or any(piece in (".", "..") for piece in key.split("/")):
        raise UsageError(f"{text}: a key with an empty piece, `.` or `..` in it is not opened")
    return Url(scheme, container, key)


def local_name(file: str) -> str:
    """The name of a file that a command can open: of a URL its last piece, which is fetched first; of stdin `IN`."""
    if file == "-":
        return "IN"
    return file.rstrip("/").rpartition("/")[2] if is_url(file) else file


def shell_name(file: str) -> str:
    """`local_name`, quoted for a shell."""
    return shlex.quote(local_name(file))


def refuse_url(what: str, value: object) -> None:
    """`UsageError` if `value` is a URL, where only a local path works. what: the option, or what the value is."""
    if value is not None and is_url(value):
        raise UsageError(f"{what} {_without_secrets(str(value))}: a URL is not read here", hint="name a local path")


def _without_secrets(text: str) -> str:
    """A URL without the text before `@` and after `?`: either may be secret."""
    scheme, _, rest = text.partition("://")
    place, slash, key = rest.partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{key.partition('?')[0]}"
