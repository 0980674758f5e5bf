"""What is read from object stores is what is read from a disk: the same inputs, the same bytes out."""

from __future__ import annotations

import bz2
import gzip
import json
import random
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rerank_cli.cli import main
from rerank_cli.encoding.images.source import ImageProblem, read_source
from rerank_cli.errors import InputError
from rerank_cli.formats.inputs import resolve_inputs
from rerank_cli.records import ImageSource
from rerank_cli.storage import listing
from rerank_cli.storage.opened import forget
from rerank_cli.storage.store import StoreError
from tests.stores import KEY_ID, SECRET, Bucket, only_these

SAMPLES = Path(__file__).parents[2] / "samples"
NAMES = ["python-docs.jsonl", "python-docs.parquet", "python-docs-flat.jsonl", "python-docs-flat.parquet"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _rerank(*arguments: str, out: Path, model: str) -> bytes:
    assert main(["rerank-file", *arguments, "-o", str(out), "--model", model, "-q", "--overwrite"]) == 0
    return out.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_a_file(bucket: Bucket, tmp_path: Path, tiny_model: str, name: str) -> None:
    url = bucket.put(f"in/{name}", (SAMPLES / name).read_bytes())
    local = _rerank(str(SAMPLES / name), "--limit", "5", out=tmp_path / "local.jsonl", model=tiny_model)
    assert _rerank(url, "--limit", "5", out=tmp_path / "far.jsonl", model=tiny_model) == local


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_a_packed_file(bucket: Bucket, tmp_path: Path, tiny_model: str, suffix: str, pack: object) -> None:
    data = b"".join((SAMPLES / "python-docs.jsonl").read_bytes().splitlines(keepends=True)[:4])
    (tmp_path / "in.jsonl").write_bytes(data)
    url = bucket.put(f"in.jsonl{suffix}", pack(data))
    local = _rerank(str(tmp_path / "in.jsonl"), out=tmp_path / "local.jsonl", model=tiny_model)
    assert _rerank(url, out=tmp_path / "far.jsonl", model=tiny_model) == local


def test_folders_and_patterns_stand_for_the_same_files(bucket: Bucket, tmp_path: Path) -> None:
    names = [
        "day=1/part-10.jsonl", "day=1/part-9.jsonl", "day=2/part-1.jsonl", "day=2/_SUCCESS", "day=2/.hidden.jsonl",
        "notes.md",
    ]  # fmt: skip
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b'{"query": "a", "passages": ["b"]}\n')
        bucket.put(f"in/{name}", b'{"query": "a", "passages": ["b"]}\n')
    for pattern in ("in", "in/", "in/*/part-*.jsonl", "in/day=[2]/*.jsonl", "in/day=*", "in/**/*-1?.jsonl"):
        local = [
            (Path(item.path).relative_to(tmp_path).as_posix(), item.partition)
            for item in resolve_inputs([str(tmp_path / pattern) + "/" * pattern.endswith("/")])
        ]
        far = resolve_inputs([bucket.url(pattern)])
        assert [(item.path.removeprefix(bucket.url("")), item.partition) for item in far] == local, pattern


@pytest.mark.parametrize(
    ("key", "pattern"),
    [("br[a].jsonl", "br[a].jsonl"), ("br[a].jsonl", "br[[]a].jsonl"), ("a&&b.jsonl", "a[&&]*.jsonl"),
     ("a-b.jsonl", "[z-b]*.jsonl"), ("day1/1.jsonl", "day*/")],
)  # fmt: skip
def test_a_pattern_of_a_url_is_one_of_a_shell(bucket: Bucket, tmp_path: Path, key: str, pattern: str) -> None:
    row = b'{"query": "a", "passages": ["b"]}\n'
    (tmp_path / key).parent.mkdir(exist_ok=True)
    (tmp_path / key).write_bytes(row)
    bucket.put(key, row)
    found = []
    for place in (bucket.url(""), f"{tmp_path}/"):
        try:
            found.append([one.path.removeprefix(place) for one in resolve_inputs([place + pattern])])
        except InputError:
            found.append([])
    assert found[0] == found[1] == ([] if "z-b" in pattern else [key])


def test_a_bucket_is_a_folder_of_inputs(
    bucket: Bucket, capfd: pytest.CaptureFixture[str], tmp_path: Path, tiny_model: str
) -> None:
    bucket.put("lists.jsonl", (SAMPLES / "python-docs.jsonl").read_bytes())
    place = f"s3://{bucket.name}"
    _rerank(place, "--limit", "2", out=tmp_path / "far.jsonl", model=tiny_model)
    assert len((tmp_path / "far.jsonl").read_text().splitlines()) == 2
    assert "whose files are the input" in _refused(capfd, "rerank-file", place, "-o", f"{place}/out.jsonl")


def test_texts_and_judgements(bucket: Bucket, tmp_path: Path, tiny_model: str) -> None:
    given = {"": "bm25.trec", "--queries=": "queries.tsv", "--corpus=": "corpus.jsonl", "--qrels=": "qrels.txt"}
    local = [f"{flag}{SAMPLES / name}" for flag, name in given.items()]
    far = [f"{flag}{bucket.put(name, (SAMPLES / name).read_bytes())}" for flag, name in given.items()]
    assert _rerank(*far, "--limit", "20", out=tmp_path / "far.jsonl", model=tiny_model) == _rerank(
        *local, "--limit", "20", out=tmp_path / "local.jsonl", model=tiny_model
    )
    reports = [json.loads((tmp_path / f"{name}.jsonl.report.json").read_text()) for name in ("far", "local")]
    assert reports[0]["evaluation"] == reports[1]["evaluation"]


def test_a_model_is_fetched_once(bucket: Bucket, tmp_path: Path, tiny_model: str) -> None:
    for path in Path(tiny_model).iterdir():
        bucket.put(f"models/tiny/{path.name}", path.read_bytes())
    source = tmp_path / "in.jsonl"
    source.write_text('{"query": "a", "passages": ["b", "c"]}\n')
    local = _rerank(str(source), out=tmp_path / "local.jsonl", model=tiny_model)
    assert _rerank(str(source), out=tmp_path / "far.jsonl", model=bucket.url("models/tiny")) == local
    copies = list((tmp_path / "cache" / "rerank-cli" / "models").iterdir())
    assert len(copies) == 1
    weights = copies[0] / "model.safetensors"
    before = weights.stat()
    assert _rerank(str(source), out=tmp_path / "again.jsonl", model=bucket.url("models/tiny/")) == local
    assert (weights.stat().st_ino, weights.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    bucket.put("models/tiny/config.json", (Path(tiny_model) / "config.json").read_bytes() + b"\n")
    forget()
    assert _rerank(str(source), out=tmp_path / "new.jsonl", model=bucket.url("models/tiny")) == local
    assert len(list((tmp_path / "cache" / "rerank-cli" / "models").iterdir())) == 2


@pytest.mark.parametrize("rows_of_group", [1, 3])
def test_a_large_table_is_read_by_ranges(bucket: Bucket, tmp_path: Path, tiny_model: str, rows_of_group: int) -> None:
    """Its pieces are larger than what is kept of its start and its end, and cross them."""
    table = pq.read_table(SAMPLES / "python-docs.parquet").slice(0, 3)
    chance = random.Random(3)
    table = table.append_column("html", pa.array([chance.randbytes(250_000).hex() for _ in range(3)]))
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=rows_of_group, compression="none")
    url = bucket.put("in.parquet", (tmp_path / "in.parquet").read_bytes())
    local = _rerank(str(tmp_path / "in.parquet"), out=tmp_path / "local.parquet", model=tiny_model)
    assert _rerank(url, out=tmp_path / "far.parquet", model=tiny_model) == local


def _refused(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) in (2, 4, 5)
    return capfd.readouterr().err


@pytest.mark.parametrize(
    ("key", "says"),
    [("nothing.jsonl", "no such object"), ("none/*.jsonl", "no object matches"), ("empty/", "no such object")],
)
def test_what_is_not_there_is_said(bucket: Bucket, capfd: pytest.CaptureFixture[str], key: str, says: str) -> None:
    assert says in _refused(capfd, "rerank-file", bucket.url(key), "-o", "-")


def test_no_such_bucket(bucket: Bucket, capfd: pytest.CaptureFixture[str]) -> None:
    told = _refused(capfd, "rerank-file", "s3://there-is-no-such-bucket/a.jsonl", "-o", "-")
    assert "error: s3://there-is-no-such-bucket: no such bucket" in told


def test_without_credentials_the_usual_places_are_named(
    bucket: Bucket, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    only_these(monkeypatch, {"AWS_ENDPOINT_URL": bucket.endpoint, "AWS_EC2_METADATA_DISABLED": "true"})
    monkeypatch.setenv("HOME", str(tmp_path))
    told = _refused(capfd, "rerank-file", bucket.url("a.jsonl"), "-o", "-")
    assert "no credentials were found" in told
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text(f"[mine]\naws_access_key_id={KEY_ID}\naws_secret_access_key={SECRET}\n")
    only_these(monkeypatch, {"AWS_ENDPOINT_URL": bucket.endpoint, "AWS_PROFILE": "mine"})
    assert "no such object" in _refused(capfd, "rerank-file", bucket.url("a.jsonl"), "-o", "-")


@pytest.mark.parametrize(
    ("variables", "config", "says"),
    [
        ({"AWS_PROFILE": "nobody"}, "", "The config profile (nobody) could not be found"),
        ({"AWS_ACCESS_KEY_ID": KEY_ID}, "", "missing: AWS_SECRET_ACCESS_KEY"),
        ({}, "[[[ x\n= =\n", "Unable to parse config file"),
        ({}, f"[default]\ncredential_process = sh -c 'echo {SECRET} >&2; exit 3'\n", "CredentialRetrievalError"),
    ],
)
def test_settings_of_aws_that_cannot_be_used_are_told(
    bucket: Bucket, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    variables: dict[str, str], config: str, says: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/config").write_text(config)
    only_these(monkeypatch, {"AWS_ENDPOINT_URL": bucket.endpoint, "AWS_EC2_METADATA_DISABLED": "true"} | variables)
    told = _refused(capfd, "rerank-file", bucket.url("a.jsonl"), "-o", "-")
    assert f"s3://{bucket.name}: the settings for AWS cannot be used: " in told
    assert says in told
    assert SECRET not in told


def test_a_store_that_fails_is_asked_once(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fail(text: str) -> None:
        asked.append(text)
        raise StoreError(f"{text}: the store does not answer: timeout")

    monkeypatch.setattr(listing, "first_seen", fail)
    with pytest.raises(InputError, match=r"^s3://[^ ]*/a\.jsonl: the store does not answer: timeout$"):
        resolve_inputs([bucket.url("a.jsonl")])
    assert asked == [bucket.url("a.jsonl")]


@pytest.mark.parametrize("flag", ["--template", "--image-root"])
def test_where_no_url_is_read_it_is_refused_by_name(
    bucket: Bucket, capfd: pytest.CaptureFixture[str], flag: str
) -> None:
    url = bucket.put("a.jsonl", b'{"query": "a", "passages": ["b"]}\n')
    assert f"{flag} {url}: a URL is not read here" in _refused(capfd, "rerank-file", url, "-o", "-", flag, url)


def test_a_url_in_a_row_is_never_opened(bucket: Bucket) -> None:
    """The object that a row names as its image is there, and is not looked for."""
    url = bucket.put("in/page.png", b"\x89PNG\r\n\x1a\n")
    for value, root in ((url, bucket.url("in")), ("page.png", bucket.url("in")), (url, ".")):
        with pytest.raises(ImageProblem, match=r"are not read|nothing is fetched"):
            read_source(ImageSource(value, root), max_bytes=1000)


@pytest.mark.parametrize("library", ["obstore", "botocore.session"])
@pytest.mark.parametrize("place", ["input", "output", "model", "corpus", "qrels"])
def test_without_the_extra_one_sentence_names_it(
    bucket: Bucket, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, library: str,
    place: str,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, library, None)
    local = str(SAMPLES / "python-docs.jsonl")
    given = {
        "input": [bucket.url("a.jsonl"), "-o", "-"],
        "output": [local, "-o", bucket.url("out.jsonl")],
        "model": [local, "-o", "-", "--model", bucket.url("model")],
        "corpus": [str(SAMPLES / "bm25.trec"), "-o", "-", "--queries", str(SAMPLES / "queries.tsv"), "--corpus"],
        "qrels": [local, "-o", str(tmp_path / "out.jsonl"), "--qrels", bucket.url("qrels.txt")],
    }[place]
    given += [bucket.url("corpus.jsonl")] * (place == "corpus")
    told = _refused(capfd, "rerank-file", *given)
    assert "which is not installed" in told
    assert "pip install 'rerank-cli[cloud]'" in told
    assert "Traceback" not in told
    assert len(told.strip().splitlines()) == 2  # the sentence, and what mends it
