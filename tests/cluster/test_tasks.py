"""What a run on a cluster is cut into, and who may write into its folder; without a cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_cli.cluster import ClusterOptions, OutputFolder, Task, cut_tasks, find_files
from rerank_cli.cluster.actors import Resources, resources_for
from rerank_cli.cluster.ray_run import refuse_unusable_on_cluster
from rerank_cli.errors import DoesNotFitError, InputError, JobChangedError, LockedError, OutputError, UsageError
from rerank_cli.formats.shapes import Texts
from rerank_cli.job.options import JobOptions, Names
from rerank_cli.journal import Fingerprint
from rerank_cli.planning.choices import ProfileRequest
from tests.conftest import write_lines, write_table
from tests.stores import Bucket


def options(out_format: str = "auto", **more: object) -> JobOptions:
    return JobOptions(inputs=(), names=Names("out", out_format=out_format), **more)


def lines(path: Path, count: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lines(path, [{"query": "q", "passages": ["a"]} for _ in range(count)])
    return path


# --- find_files


def test_a_folder_gives_its_data_sorted_and_nothing_else(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl.gz", "deep/c.parquet", "d.ndjson"):
        lines(tmp_path / name, 1)
    for name in ("_SUCCESS", ".hidden.jsonl", "_manifest.json", "_old/e.jsonl", "notes.md"):
        lines(tmp_path / name, 1)
    found = find_files([str(tmp_path)])
    assert [name for _, name in found] == ["a", "b", "d", "deep.c"]
    assert [Path(path).relative_to(tmp_path).as_posix() for path, _ in found] == [
        "a.jsonl.gz", "b.jsonl", "d.ndjson", "deep/c.parquet"
    ]  # fmt: skip


def test_a_file_is_named_as_it_is_and_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines(tmp_path / "x.y.jsonl", 1)
    monkeypatch.chdir(tmp_path)
    assert find_files(["x.y.jsonl"]) == [(str(tmp_path / "x.y.jsonl"), "x.y")]


def test_two_inputs_of_one_name_are_refused(tmp_path: Path) -> None:
    paths = [str(lines(tmp_path / name, 1)) for name in ("1/a.jsonl", "2/a.parquet")]
    with pytest.raises(UsageError, match=r"1/a\.jsonl and .*2/a\.parquet: their outputs would have the same name"):
        find_files(paths)


def test_stdin_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a cluster cannot read stdin"):
        find_files(["-"])
    with pytest.raises(InputError, match="no file in it has the suffix of a format"):
        find_files([str(tmp_path)])


# --- cut_tasks


def test_few_large_files_are_cut_and_many_small_ones_are_not(tmp_path: Path) -> None:
    large = [(str(lines(tmp_path / "large.jsonl", 1000)), "large")]
    tasks = cut_tasks(large, options(), engines=2)
    assert [(task.name, task.shard, task.shards) for task in tasks[:2]] == [
        ("large.1-of-8.jsonl", 1, 8), ("large.2-of-8.jsonl", 2, 8)
    ]  # fmt: skip
    assert len(tasks) == 8
    small = [(str(lines(tmp_path / f"{n}.jsonl", 10)), str(n)) for n in range(8)]
    assert [task.name for task in cut_tasks(small, options(), engines=2)] == [f"{n}.jsonl" for n in range(8)]
    assert [task.shards for task in cut_tasks(small[:1], options(), engines=2)] == [1]  # parts of 10 rows bring nothing


def test_a_limit_counts_the_rows_of_all_files_in_their_order(tmp_path: Path) -> None:
    names = ("a.jsonl", "b.jsonl", "c.jsonl")
    files = [(str(lines(tmp_path / name, count)), name) for name, count in zip(names, (30, 200, 10), strict=True)]
    (tmp_path / "a.jsonl").write_text("\n" + (tmp_path / "a.jsonl").read_text())
    tasks = cut_tasks(files, options(limit=150), engines=1)
    assert [(Path(task.input).name, task.shards, task.limit) for task in tasks] == [
        ("a.jsonl", 1, 150), ("b.jsonl", 2, 120), ("b.jsonl", 2, 120)
    ]  # fmt: skip
    assert [task.limit for task in cut_tasks(files, options(limit=30), engines=1)] == [30]
    assert {task.limit for task in cut_tasks(files, options(), engines=1)} == {None}


@given(st.lists(st.integers(0, 400), min_size=1, max_size=6), st.integers(1, 9))
def test_the_parts_of_a_file_are_all_its_parts(tmp_path_factory: pytest.TempPathFactory, rows: list[int], engines: int):
    folder = tmp_path_factory.mktemp("parts")
    files = [(str(lines(folder / f"{n}.jsonl", count)), str(n)) for n, count in enumerate(rows)]
    tasks = cut_tasks(files, options(), engines=engines)
    for path, _ in files:
        own = [task for task in tasks if task.input == path]
        assert [task.shard for task in own] == list(range(1, own[0].shards + 1))
        assert {task.shards for task in own} == {len(own)}
    names = [task.name for task in tasks]
    assert len(set(names)) == len(names)
    for path, _ in files:
        own_names = [task.name for task in tasks if task.input == path]
        assert own_names == sorted(own_names)  # a reader that sorts names gets the rows in order


@pytest.mark.parametrize(
    ("out_format", "suffixes"),
    [("auto", [".jsonl", ".parquet"]), ("parquet", [".parquet"] * 2), ("nim", [".jsonl"] * 2), ("trec", [".trec"] * 2)],
)
def test_an_output_has_the_suffix_of_what_is_in_it(tmp_path: Path, out_format: str, suffixes: list[str]) -> None:
    files = [
        (str(lines(tmp_path / "a.jsonl", 1)), "a"),
        (str(write_table(tmp_path / "b.parquet", [{"query": "q", "passages": ["a"]}])), "b"),
    ]
    tasks = cut_tasks(files, options(out_format), engines=1)
    assert [Path(task.name).suffix for task in tasks] == suffixes


# --- OutputFolder

TASKS = (Task("/in/a.jsonl", "a.jsonl"), Task("/in/b.jsonl", "b.jsonl", 1, 2))


def fingerprint(top_n: int | None = None) -> Fingerprint:
    return Fingerprint(asked={"options": {"top_n": top_n}}, plan={}, files={})


def test_a_folder_remembers_what_was_begun_in_it(tmp_path: Path) -> None:
    with OutputFolder(str(tmp_path / "out")) as folder:
        assert folder.finished(fingerprint()) is None
        assert folder.tasks(fingerprint()) is None
        folder.begin(TASKS, fingerprint())
    with OutputFolder(str(tmp_path / "out")) as folder:
        assert folder.tasks(fingerprint()) == TASKS
        with pytest.raises(JobChangedError, match="top_n"):
            folder.tasks(fingerprint(5))


def test_a_finished_folder_is_finished_for_the_same_run_only(tmp_path: Path) -> None:
    with OutputFolder(str(tmp_path / "out")) as folder:
        folder.begin(TASKS, fingerprint())
        part = folder.path / "a.jsonl"
        part.write_bytes(b"{}\n")
        folder.finish(_manifest(part={"bytes": 3, "modified_ns": part.stat().st_mtime_ns}))
        assert folder.finished(fingerprint()) is not None
        with pytest.raises(OutputError, match="holds the output of another run"):
            folder.finished(fingerprint(5))
        with pytest.raises(OutputError, match="holds a finished run"):
            folder.clear(finished=False)
        part.write_bytes(b"{ }\n")
        with pytest.raises(OutputError, match=r"a\.jsonl: has changed since the run finished"):
            folder.finished(fingerprint())
        folder.clear(finished=True)
        assert sorted(path.name for path in folder.path.rglob("*")) == ["_rerank", "lock"]


def _manifest(part: dict[str, object] | None = None, **changes: object) -> dict[str, object]:
    facts = {
        "name": "a.jsonl", "input": "/in/a.jsonl", "shard": [1, 1], "bytes": 0, "sha256": "", "modified_ns": 0,
        "rows_in": 1, "rows_out": 1, "rows_error": 0, **(part or {}),
    }  # fmt: skip
    return {
        "schema": "rerank-cli/manifest/1", "version": "1", "model": {}, "plan": {}, "cluster": {"engines": 1},
        "counts": {"rows_in": 1}, "seconds": {"wall": 1.5}, "speed": {"pairs_per_second": 2}, "first_error": None,
        "job": fingerprint().document(), "parts": [facts], **changes,
    }  # fmt: skip


@pytest.mark.parametrize(
    "manifest",
    [
        _manifest(counts={"rows": 7}), _manifest(counts={"rows_in": "1"}), _manifest(evaluation={}),
        _manifest(evaluation={"metrics": [{}], "queries": 1, "unjudged": 0}), _manifest(first_error=["a"]),
        _manifest(parts=None), _manifest(part={"name": "../a.jsonl"}), _manifest(part={"bytes": True}),
        _manifest(job={"asked": {}, "plan": {}, "files": {"input 1": {}}}), _manifest(more=1),
    ],
)  # fmt: skip
def test_a_manifest_by_another_hand_is_refused(tmp_path: Path, manifest: dict[str, object]) -> None:
    with OutputFolder(str(tmp_path / "out")) as folder:
        folder.finish(manifest)
        with pytest.raises(OutputError, match=r"_manifest\.json: was not written by this version of the program"):
            folder.finished(fingerprint())


def test_starting_over_takes_away_what_the_run_has_left_and_nothing_else(tmp_path: Path) -> None:
    with OutputFolder(str(tmp_path / "out")) as folder:
        folder.begin(TASKS, fingerprint())
        names = folder.names(TASKS[0], "auto")
        for path in names.files.values():
            path.write_text("x")
        (folder.path / "b.jsonl.job").mkdir()
        (folder.path / "b.jsonl.job" / "journal").touch()
        (folder.path / "notes.txt").touch()
        folder.clear(finished=False)
        assert sorted(path.name for path in folder.path.rglob("*")) == ["_rerank", "lock", "notes.txt"]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").touch()
    with pytest.raises(OutputError, match="holds files of something else"), OutputFolder(str(tmp_path)):
        pass
    with pytest.raises(OutputError, match="is not a folder"), OutputFolder(str(tmp_path / "letter.txt")):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with OutputFolder(str(tmp_path / "out")), pytest.raises(LockedError), OutputFolder(str(tmp_path / "out")):
        pass


def test_a_folder_in_a_bucket_is_kept_as_one_on_a_disk(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with OutputFolder(bucket.url("out/")) as folder:
        assert folder.tasks(fingerprint()) is None
        folder.begin(TASKS, fingerprint())
        with pytest.raises(LockedError), OutputFolder(bucket.url("out")):
            pass
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
        with pytest.raises(LockedError), OutputFolder(bucket.url("out")):
            pass
    assert bucket.names() == ["out/_rerank/tasks.json"]
    bucket.put("out/b.jsonl.job/00000000", b"left")
    with OutputFolder(bucket.url("out")) as folder:
        assert folder.tasks(fingerprint()) == TASKS
        folder.clear(finished=False)
    assert bucket.names() == []
    bucket.put("other/letter.txt", b"")
    for name, says in (
        ("other", "holds files of something else"),
        ("other/letter.txt", "is not a folder"),
        ("", "bucket"),
    ):
        with pytest.raises(OutputError, match=says), OutputFolder(bucket.url(name)):
            pass
    assert bucket.names() == ["other/letter.txt"]


def test_a_broken_list_of_parts_is_told(tmp_path: Path) -> None:
    with OutputFolder(str(tmp_path / "out")) as folder:
        (folder.path / "_rerank" / "tasks.json").write_text("{")
        with pytest.raises(OutputError, match=r"tasks\.json: was not written"):
            folder.tasks(fingerprint())


def _begun(**changes: object) -> dict[str, object]:
    task = {"input": "/in/a.jsonl", "name": "a.jsonl", "shard": 1, "shards": 1, "limit": None}
    document = {"schema": "rerank-cli/tasks/1", "job": fingerprint().document(), "tasks": [task]}
    if "task" in changes:
        return {**document, "tasks": [{**task, **changes["task"]}]}
    return {**document, **changes}


@pytest.mark.parametrize(
    "document",
    [
        [], 7, {}, {"tasks": []}, _begun(schema="rerank-cli/tasks/9"), _begun(tasks=None), _begun(job={}),
        _begun(job={"asked": {}, "plan": {}, "files": {"input 1": {}}}), _begun(tasks=[{}]), _begun(tasks=["a"]),
        *(_begun(task={"name": name}) for name in ("../victim", "/victim", "..", "", "_rerank", "a\0", None, "a/b")),
        *(_begun(task={"shard": shard}) for shard in (0, 2, "1", True)), _begun(task={"more": 1}),
    ],
)  # fmt: skip
def test_a_list_of_parts_by_another_hand_is_refused_and_nothing_outside_is_removed(
    tmp_path: Path, document: object
) -> None:
    victim = tmp_path / "victim"
    victim.touch()
    with OutputFolder(str(tmp_path / "out")) as folder:
        (folder.path / "_rerank" / "tasks.json").write_text(json.dumps(document))
        for read in (lambda: folder.tasks(fingerprint()), lambda: folder.clear(finished=True)):
            with pytest.raises(OutputError, match=r"tasks\.json: was not written by this version of the program"):
                read()
        (folder.path / "_manifest.json").write_text(json.dumps(document))
        with pytest.raises(OutputError, match=r"_manifest\.json: was not written by this version of the program"):
            folder.finished(fingerprint())
    assert victim.exists()


def test_a_link_in_place_of_the_folder_beside_the_parts_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "_rerank").symlink_to(tmp_path / "victim")
    with pytest.raises(OutputError, match="_rerank: is a link"), OutputFolder(str(tmp_path / "out")):
        pass
    assert not list((tmp_path / "victim").iterdir())


def test_the_tasks_file_is_readable_json(tmp_path: Path) -> None:
    with OutputFolder(str(tmp_path / "out")) as folder:
        folder.begin(TASKS, fingerprint())
        document = json.loads((folder.path / "_rerank" / "tasks.json").read_text())
    assert document["schema"] == "rerank-cli/tasks/1"
    assert document["tasks"][1] == {"input": "/in/b.jsonl", "name": "b.jsonl", "shard": 1, "shards": 2, "limit": None}


# --- options


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"shard": (1, 2)}, "--shard"), ({"skip": 5}, "--skip"), ({"inputs": ("hf://datasets/a/b/",)}, "--engine ray"),
        ({"request": ProfileRequest(device="cuda", gpus=(0,))}, "--device cuda:N"),
        ({"names": Names("out", errors="e")}, "--errors"), ({"names": Names("out", report="r.html")}, "--report"),
        ({"names": Names("-")}, "--engine ray"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_on_a_cluster_is_refused(more: dict[str, object], named: str) -> None:
    refuse_unusable_on_cluster(options())
    with pytest.raises(UsageError, match=f"^{named}"):
        refuse_unusable_on_cluster(JobOptions(**{"inputs": (), "names": Names("out"), "texts": Texts(), **more}))


# --- the resources that engines take

CPUS, GPUS = {"CPU": 8.0}, {"CPU": 16.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("there", "device", "asked", "resources"),
    [
        (CPUS, "auto", {}, Resources(2, 4, 0.0)),
        (CPUS, "auto", {"engines": 1}, Resources(1, 4, 0.0)),
        (CPUS, "auto", {"cpus": 1}, Resources(8, 1, 0.0)),
        ({"CPU": 2.0}, "auto", {}, Resources(1, 2, 0.0)),
        (GPUS, "auto", {}, Resources(2, 1, 1.0)),
        (GPUS, "auto", {"gpus": 0.5}, Resources(4, 1, 0.5)),
        (GPUS, "cpu", {}, Resources(4, 4, 0.0)),
        (GPUS, "cuda", {"engines": 1, "cpus": 3}, Resources(1, 3, 1.0)),
    ],
)
def test_engines_fill_the_cluster_unless_fewer_are_asked_for(there, device, asked, resources) -> None:
    request = ProfileRequest(device=device)
    assert resources_for(there, options(request=request), ClusterOptions(**asked)) == resources


@pytest.mark.parametrize(
    ("there", "device", "asked", "told"),
    [
        (CPUS, "auto", {"engines": 3}, "3 engines of 4 CPUs need 12, and the cluster has 8"),
        (CPUS, "auto", {"cpus": 9}, "1 engine of 9 CPUs needs 9, and the cluster has 8"),
        (CPUS, "cuda", {}, "1 engine of 1 GPU needs 1, and the cluster has 0"),
        (GPUS, "auto", {"engines": 5, "gpus": 0.5}, "5 engines of 0.5 GPUs need 2.5, and the cluster has 2"),
        ({}, "auto", {}, "1 engine of 1 CPU needs 1, and the cluster has 0"),
    ],
)
def test_more_than_a_cluster_has_is_refused_in_a_sentence(there, device, asked, told) -> None:
    request = ProfileRequest(device=device)
    with pytest.raises(DoesNotFitError) as caught:
        resources_for(there, options(request=request), ClusterOptions(**asked))
    assert caught.value.message == f"--engine ray: {told}"
