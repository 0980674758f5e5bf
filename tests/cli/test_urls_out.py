"""A run whose output is an object leaves what it would leave on a disk, whole or not at all, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rerank_cli.cli import main
from rerank_cli.errors import LockedError
from rerank_cli.journal import store_log
from rerank_cli.storage import UrlPath
from rerank_cli.storage.object_store import ObjectStore
from rerank_cli.storage.opened import open_store
from rerank_cli.storage.url import parse_url
from tests.stores import KEY_ID, SECRET, Bucket, new_container

SAMPLES = Path(__file__).parents[2] / "samples"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    with path.open("w") as out:
        for number in range(40):
            passages = [f"passage {place} of {number}" for place in range(30)]
            out.write(json.dumps({"query": f"number {number}", "passages": passages}) + "\n")
        out.write('{"query": "bad"}\n')
    return path


def _run(source: Path, out: str, model: str, *more: str) -> int:
    return main(["rerank-file", str(source), "-o", out, "--model", model, "-q", *more])


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".jsonl.gz", ".csv"])
def test_the_same_bytes_as_on_a_disk(
    bucket: Bucket, tmp_path: Path, source: Path, tiny_model: str, own_cache: Path, suffix: str
) -> None:
    assert _run(source, str(tmp_path / f"out{suffix}"), tiny_model) == 3
    assert _run(source, bucket.url(f"a/out{suffix}"), tiny_model) == 3
    assert bucket.names() == [f"a/out{suffix}", f"a/out{suffix}.errors.jsonl", f"a/out{suffix}.report.json"]
    for name in (f"out{suffix}", f"out{suffix}.errors.jsonl"):
        assert bucket.get(f"a/{name}") == (tmp_path / name).read_bytes()
    report = json.loads(bucket.get(f"a/out{suffix}.report.json"))
    assert report["output"]["path"] == bucket.url(f"a/out{suffix}")
    assert report["errors_file"] == bucket.url(f"a/out{suffix}.errors.jsonl")
    assert not list(own_cache.rglob("*.job"))
    assert not bucket.uploads()


def test_azure_has_the_same_bytes_after_a_kill_too(
    azure: str, tmp_path: Path, source: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit is cut short, and another machine goes on."""
    container, variables = new_container(azure)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert _run(source, str(tmp_path / "out.jsonl"), tiny_model) == 3
    put, puts = ObjectStore.put_new, list[str]()

    class KilledError(BaseException):
        pass

    def killed(store: ObjectStore, key: str, *given: Any) -> Any:
        puts.append(key)
        if len(puts) > 2:
            raise KilledError
        return put(store, key, *given)

    out = f"az://{container}/a/out.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "put_new", killed)
        with pytest.raises(KilledError):
            _run(source, out, tiny_model, "--checkpoint-every", "0s")
    monkeypatch.setattr(store_log, "LEASE_SECONDS", 0.5)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    assert _run(source, out, tiny_model, "--lock-wait", "60s") == 3
    store = open_store(parse_url(out))
    names = ["a/out.jsonl", "a/out.jsonl.errors.jsonl", "a/out.jsonl.report.json"]
    assert sorted(key for key, _ in store.list("a/")) == names
    for name in names[:2]:
        assert store.read(name, 0, store.stat(name).size) == (tmp_path / Path(name).name).read_bytes()
    assert _run(source, out, tiny_model) == 0
    assert _run(source, out, tiny_model, "--top-n", "3") == 4


def test_each_checkpoint_is_one_put(
    bucket: Bucket, source: Path, tiny_model: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, puts = ObjectStore.put_new, list[str]()

    def counted(store: ObjectStore, key: str, *given: Any) -> Any:
        puts.append(key)
        return put(store, key, *given)

    monkeypatch.setattr(ObjectStore, "put_new", counted)
    assert _run(source, bucket.url("a/out.jsonl"), tiny_model, "--checkpoint-every", "1h") == 3
    assert puts == [f"a/out.jsonl.job/{number:08d}" for number in range(4)]  # the lock, the first, the last, the end
    puts.clear()
    assert _run(source, bucket.url("b/out.jsonl"), tiny_model, "--checkpoint-every", "0s") == 3
    windows = 3  # of 512 pairs
    assert len(puts) <= windows + 4


def test_what_is_done_is_not_done_again_and_not_replaced_unasked(
    bucket: Bucket, source: Path, tiny_model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    out = bucket.url("out.jsonl")
    assert _run(source, out, tiny_model) == 3
    before = bucket.get("out.jsonl.report.json")
    assert main(["rerank-file", str(source), "-o", out, "--model", tiny_model]) == 0
    assert "nothing to do" in capfd.readouterr().err
    assert bucket.get("out.jsonl.report.json") == before
    assert _run(source, out, tiny_model, "--top-n", "3") == 4
    assert f"{out}: exists" in capfd.readouterr().err
    assert _run(source, out, tiny_model, "--top-n", "3", "--overwrite") == 3
    assert len(json.loads(bucket.get("out.jsonl").splitlines()[0])["passages"]) == 3
    assert len(bucket.names()) == 3


def test_a_stopped_run_goes_on_on_another_machine(
    bucket: Bucket, tmp_path: Path, source: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = bucket.url("out.jsonl")
    assert _run(source, str(tmp_path / "out.jsonl"), tiny_model) == 3
    assert _run(source, out, tiny_model, "--checkpoint-every", "0s", "--max-errors", "0", "--skip", "0") == 7
    assert any(key.startswith("out.jsonl.job/") for key in bucket.names())
    assert "out.jsonl" not in bucket.names()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    assert _run(source, out, tiny_model, "--checkpoint-every", "0s") == 3
    assert bucket.get("out.jsonl") == (tmp_path / "out.jsonl").read_bytes()
    report = json.loads(bucket.get("out.jsonl.report.json"))
    assert report["continued"] == 1
    assert len(bucket.names()) == 3


def _fail(*_: object) -> None:
    raise OSError("the store does not answer")


def test_another_job_under_the_name_is_refused(
    bucket: Bucket, source: Path, tiny_model: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = bucket.url("out.jsonl")
    commit = store_log.StoreLog.commit

    def commit_once(log: store_log.StoreLog, *given: Any) -> None:
        monkeypatch.setattr(store_log.StoreLog, "commit", _fail)
        commit(log, *given)

    monkeypatch.setattr(store_log.StoreLog, "commit", commit_once)
    assert _run(source, out, tiny_model, "--checkpoint-every", "0s") == 4
    monkeypatch.setattr(store_log.StoreLog, "commit", commit)
    assert f"what is finished is kept in {out}.job" in capfd.readouterr().err
    assert _run(source, out, tiny_model, "--prob") == 8
    assert f"{out}.job: the unfinished job in it differs from this run" in capfd.readouterr().err
    assert _run(source, out, tiny_model, "--prob", "--restart") == 3
    assert len(bucket.names()) == 3


def test_a_run_that_lives_is_not_disturbed(
    bucket: Bucket, tmp_path: Path, source: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Another machine holds the lock; when it gives no sign of life for the lease, it has lost it."""
    out = bucket.url("out.jsonl")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    other = store_log.StoreLog(UrlPath(out))
    other.take(0)
    other.close()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert _run(source, out, tiny_model) == 11
    told = capfd.readouterr().err
    assert "another process works on this output: process " in told
    monkeypatch.setattr(store_log, "LEASE_SECONDS", 1.0)
    assert _run(source, out, tiny_model, "--lock-wait", "30s") == 3
    with pytest.raises(LockedError):
        other.commit({}, {})
    assert len(bucket.names()) == 3


def test_no_credentials_in_anything_that_is_left(
    bucket: Bucket, tmp_path: Path, source: Path, tiny_model: str, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    token = "dGhpcyBpcyBhIHRva2VuIG9mIHRoZSB0ZXN0cw"
    monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    url = bucket.put("in.jsonl", source.read_bytes())
    arguments = [
        "--model",
        tiny_model,
        "--verbose",
        "--report",
        str(tmp_path / "report.html"),
        "--checkpoint-every",
        "0s",
    ]
    assert main(["rerank-file", url, "-o", bucket.url("out.jsonl"), "--max-errors", "0", *arguments]) == 7
    kept = [bucket.get(key) for key in bucket.names()]
    assert main(["rerank-file", url, "-o", bucket.url("out.jsonl"), *arguments]) == 3
    assert main(["rerank-file", "s3://there-is-no-such-bucket/a.jsonl", "-o", bucket.url("b.jsonl"), *arguments]) == 4
    told = capfd.readouterr()
    left = [*kept, *(bucket.get(key) for key in bucket.names()), told.err.encode(), told.out.encode()]
    left += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(left) > 10
    for secret in (KEY_ID, SECRET, token):
        assert not any(secret.encode() in data for data in left)


def test_errors_and_report_go_where_they_are_told(
    bucket: Bucket, tmp_path: Path, source: Path, tiny_model: str
) -> None:
    given = ["--errors", bucket.url("bad/errors.jsonl"), "--report", bucket.url("report.html")]
    assert _run(source, str(tmp_path / "out.jsonl"), tiny_model, *given) == 3
    assert bucket.names() == ["bad/errors.jsonl", "report.html"]
    assert _run(source, bucket.url("out.jsonl"), tiny_model, "--report", str(tmp_path / "r.json")) == 3
    assert "out.jsonl" in bucket.names()
    assert json.loads((tmp_path / "r.json").read_text())["output"]["path"] == bucket.url("out.jsonl")


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("s3://there-is-no-such-bucket/out.jsonl", "no such bucket"),
        ("hf://datasets/USER/NAME/out.jsonl", "the Hub is not used without `--online`"),
        ("http://host/out.jsonl", "cannot be opened"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is_computed(
    bucket: Bucket, source: Path, tiny_model: str, capfd: pytest.CaptureFixture[str], out: str, says: str
) -> None:
    assert _run(source, out, tiny_model) in (2, 4)
    assert says in capfd.readouterr().err
    assert main(["rerank-file", str(source), "-o", out, "--model", tiny_model, "--dry-run"]) in (2, 4)
    assert says in capfd.readouterr().err


def test_what_is_refused_is_what_was_named(
    bucket: Bucket, source: Path, tiny_model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _run(source, f"s3://KEY:SECRET@{bucket.name}/out.jsonl", tiny_model) == 2
    assert f"s3://{bucket.name}/out.jsonl: a URL with credentials" in capfd.readouterr().err
    out = bucket.url("out.jsonl")
    assert _run(source, out, tiny_model, "--report", f"{out}.job/report.json") == 2
    assert f"--report {out}.job/report.json: lies in {out}.job, the work folder" in capfd.readouterr().err
    assert bucket.names() == []
