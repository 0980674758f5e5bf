"""Which texts are URLs, and what is refused of them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from rerank_cli.errors import UsageError
from rerank_cli.storage import UrlPath, is_url, path_of, refuse_url
from rerank_cli.storage.url import parse_url


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("s3://bucket/a/b.jsonl", ("s3", "bucket", "a/b.jsonl")),
        ("S3://bucket/a b?c#d", ("s3", "bucket", "a b?c#d")),
        ("gs://bucket", ("gs", "bucket", "")),
        ("az://$web/a", ("az", "$web", "a")),
        ("abfss://box@account.dfs.core.windows.net/a", ("abfss", "box@account.dfs.core.windows.net", "a")),
        ("hf://datasets/USER/NAME@main/data/*.parquet", ("hf", "datasets/USER/NAME@main", "data/*.parquet")),
    ],
)
def test_parts(text: str, parts: tuple[str, str, str]) -> None:
    url = parse_url(text)
    assert (url.scheme, url.container, url.key) == parts


@pytest.mark.parametrize("text", ["a.jsonl", "./s3:/bucket/a", "-", "C:\\a", "", "s3:/bucket/a"])
def test_a_local_path_is_no_url(text: str) -> None:
    assert not is_url(text)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("http://host/a.jsonl", "http://"),
        ("ftp://host/a", "ftp://"),
        ("s3://", "names no bucket"),
        ("s3:///key", "names no bucket"),
        ("hf://models/USER/NAME/a", "only data sets"),
        ("hf://datasets/USER", "names no data set"),
        ("s3://my bucket/a", "no such name"),
        ("s3://${BUCKET}/a", "no such name"),
        ("s3://localhost:9000/bucket/a", "no such name"),
        ("s3://bücket/a", "no such name"),
        ("s3://../a", "no such name"),
        ("s3://bucket/a/../b", r"`\.\.`"),
        ("s3://bucket/a//b", "empty piece"),
        ("s3://bucket/a\nb", "control characters"),
    ],
)
def test_refused_by_name(text: str, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        path_of(text)


@pytest.mark.parametrize(
    "text", ["s3://KEY:SECRET@bucket/a", "https://u:SECRET@host/a?sig=SECRET", "s3://SECRET@b/a", "abfs://u:SECRET@b/a"]
)
def test_credentials_in_a_url_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        path_of(text)
    assert "SECRET" not in f"{caught.value.message} {caught.value.hint}"


def test_a_url_is_never_a_path_of_the_operating_system() -> None:
    url = path_of("s3://bucket/folder/out.jsonl.gz")
    assert isinstance(url, UrlPath)
    assert (url.name, url.suffix, str(url.parent), str(url.with_name("b"))) == (
        "out.jsonl.gz", ".gz", "s3://bucket/folder", "s3://bucket/folder/b"
    )  # fmt: skip
    assert str(url.parent / "c") == "s3://bucket/folder/c"
    assert pickle.loads(pickle.dumps(url)) == url
    assert url.is_relative_to(url.parent)
    assert not url.is_relative_to(path_of("s3://bucket/fold"))
    for call in (os.fspath, os.stat, open, Path.mkdir, Path.touch, Path.chmod):
        with pytest.raises((UsageError, TypeError)):
            call(url)
    with pytest.raises(UsageError):
        url.open("wb")


def test_where_only_a_local_path_will_do_a_url_is_refused() -> None:
    refuse_url("--template", "a.txt")
    with pytest.raises(UsageError, match="--template s3://bucket/a: a URL is not read here"):
        refuse_url("--template", "s3://bucket/a")
