"""The promises of a store, kept by a folder and by real servers of S3 and, where it is installed, Azure."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from rerank_cli.storage import object_store
from rerank_cli.storage.object_store import PART_BYTES, ObjectStore
from rerank_cli.storage.store import ChangedError, Store, StoreError
from rerank_cli.storage.url import parse_url
from tests.fault_proxy import fault_proxy
from tests.local_store import LocalStore
from tests.stores import Bucket, new_container


@pytest.fixture(params=["local", "s3", "azure"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "local":
        return LocalStore(tmp_path / "store")
    if request.param == "azure":
        name, variables = new_container(request.getfixturevalue("azure"))
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)
        return ObjectStore(parse_url(f"az://{name}/"))
    found: Bucket = request.getfixturevalue("bucket")
    return ObjectStore(parse_url(found.url("")))


def test_what_was_put_is_read_by_ranges(store: Store) -> None:
    store.put("a/b.txt", b"0123456789", {"rerank_job": "one"})
    found = store.stat("a/b.txt")
    assert (found.size, found.metadata["rerank_job"]) == (10, "one")
    assert store.read("a/b.txt", 2, 5) == b"234"
    assert store.read("a/b.txt", 0, 10, found.etag) == b"0123456789"
    assert store.read("a/b.txt", 4, 4) == b""


def test_another_version_is_never_read_for_the_one_that_is_meant(store: Store) -> None:
    store.put("a", b"first")
    seen = store.stat("a").etag
    store.put("a", b"second")
    with pytest.raises(ChangedError):
        store.read("a", 0, 5, seen)


def test_one_of_many_puts_a_new_object(store: Store) -> None:
    won: list[int] = []

    def put(number: int) -> None:
        try:
            store.put_new("lock", b"%d" % number)
        except FileExistsError:
            return
        won.append(number)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read("lock", 0, 1) == b"%d" % won[0]


def test_the_same_bytes_are_the_same_object(store: Store) -> None:
    store.put_new("lock", b"mine")
    store.put_new("lock", b"mine")
    with pytest.raises(FileExistsError):
        store.put_new("lock", b"of another")


def test_a_list_has_what_begins_with_the_prefix(store: Store) -> None:
    for key in ("out.jsonl", "out.jsonl.job/1", "out.jsonl.job/2", "other"):
        store.put(key, b"x")
    assert sorted(key for key, _ in store.list("out.jsonl.job/")) == ["out.jsonl.job/1", "out.jsonl.job/2"]
    assert sorted(key for key, _ in store.list("out")) == ["out.jsonl", "out.jsonl.job/1", "out.jsonl.job/2"]
    assert not list(store.list("nothing/"))


def test_a_bucket_is_no_object(bucket: Bucket) -> None:
    with pytest.raises(FileNotFoundError):
        ObjectStore(parse_url(f"s3://{bucket.name}")).stat("")


def test_what_stands_for_a_folder_is_not_listed(bucket: Bucket) -> None:
    for key in ("day/", "day/part.parquet/", "day/empty.jsonl", "day/part.parquet/1"):
        bucket.put(key, b"x" if key[-1] == "1" else b"")
    store = ObjectStore(parse_url(bucket.url("day")))
    assert sorted(key for key, _ in store.list("day/")) == ["day/empty.jsonl", "day/part.parquet/1"]


@pytest.mark.parametrize("key", ["day//1.jsonl", "day/../1.jsonl", "day/\x011.jsonl"])
def test_a_key_that_cannot_be_named_is_told_at_once(bucket: Bucket, key: str) -> None:
    bucket.put(key, b"x")
    with pytest.raises(StoreError, match=r"cannot be listed: 'day/"):
        list(ObjectStore(parse_url(bucket.url("day"))).list("day/"))


def test_what_is_gone_is_missing_and_can_be_deleted_again(store: Store) -> None:
    store.put("a", b"x")
    store.delete("a")
    store.delete("a")
    with pytest.raises(FileNotFoundError):
        store.stat("a")
    with pytest.raises(FileNotFoundError):
        store.read("a", 0, 1)


@pytest.mark.parametrize("size", [10, PART_BYTES + 10])
def test_a_file_is_put_whole_and_replaces_only_when_told(store: Store, tmp_path: Path, size: int) -> None:
    work = tmp_path / "work"
    work.write_bytes(b"1" * size)
    store.put_file("out", work, {"rerank_job": "a"}, replace=False)
    work.write_bytes(b"2" * size)
    with pytest.raises(FileExistsError):
        store.put_file("out", work, {"rerank_job": "b"}, replace=False)
    assert store.read("out", 0, 1) == b"1"
    store.put_file("out", work, {"rerank_job": "b"}, replace=True)
    assert (store.read("out", size - 1, size), store.stat("out").metadata["rerank_job"]) == (b"2", "b")


class _StopError(Exception):
    pass


def test_an_upload_that_is_stopped_leaves_no_object_and_no_parts(bucket: Bucket, tmp_path: Path) -> None:
    store = ObjectStore(parse_url(bucket.url("")))
    work = tmp_path / "work"
    work.write_bytes(b"1" * (PART_BYTES * 2))
    calls = iter([None, _StopError()])

    def check() -> None:
        if error := next(calls):
            raise error

    with pytest.raises(_StopError):
        store.put_file("out", work, {"rerank_job": "a"}, replace=False, check=check)
    assert (bucket.names(), bucket.uploads()) == ([], [])


def test_the_parts_of_a_dead_upload_are_dropped(bucket: Bucket) -> None:
    for key in ("out.jsonl", "other"):
        begun = bucket.client.create_multipart_upload(Bucket=bucket.name, Key=key)
        bucket.client.upload_part(Bucket=bucket.name, Key=key, UploadId=begun["UploadId"], PartNumber=1, Body=b"x")
    store = ObjectStore(parse_url(bucket.url("")))
    assert store.drop_uploads("out.jsonl") == 1
    assert bucket.uploads() == ["other"]


def test_credentials_that_have_expired_are_said_in_words(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed read has a body that says why; a HEAD has none, and only its 400."""
    monkeypatch.setattr(object_store, "_FIRST_PAUSE", 0.001)
    with fault_proxy(bucket.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        monkeypatch.setattr(proxy, "draw", lambda _: "expired")
        with pytest.raises(StoreError, match="the credentials have expired") as caught:
            ObjectStore(parse_url(bucket.url("")), patience=0.0).read("a", 0, 1)
        assert "sign in again" in str(caught.value.hint)
        with pytest.raises(StoreError, match="400 Bad Request") as caught:
            ObjectStore(parse_url(bucket.url(""))).stat("a")
        assert "expired credentials" in str(caught.value.hint)


def test_refusals_name_the_bucket_and_no_secret(bucket: Bucket) -> None:
    store = ObjectStore(parse_url("s3://there-is-no-such-bucket/"))
    with pytest.raises(OSError, match="no such bucket"):
        store.put("a", b"x")
