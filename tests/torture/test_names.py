"""No output replaces what a run reads: every option that names a path to read beside every one that names one to write.

The options are those that the commands declare: one that is new and names a path must be put into a table here.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir
from pathlib import Path

import pytest

from rerank_cli.cli import evaluate, main, mem_estimate, profile_select, rerank_file, score
from tests.conftest import TINY_CHECKPOINT, write_lines
from tests.torture.conftest import EMBEDDER

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "score": score, "rerank-file": rerank_file, "evaluate": evaluate, "mem-estimate": mem_estimate,
    "profile-select": profile_select,
}  # fmt: skip
NAMES_A_MODEL = ("--model", "--first")
WRITTEN = {
    "--output": (".jsonl",), "--errors": (".jsonl",), "--report": (".json", ".html"), "--per-query": (".tsv",),
    "--embeddings": (".parquet",), "--calibrate-to": (".json",), "--plot": (".html",),
}  # fmt: skip
"""Options that name a file to write, each with the suffixes that it may need."""
EVALUATED = {"--output": (".json", ".html")}


def text(name: str, content: str) -> Callable[[Path], tuple[str, list[Path]]]:
    def make(here: Path) -> tuple[str, list[Path]]:
        (here / name).write_text(content)
        return str(here / name), [here / name]

    return make


def model(here: Path) -> tuple[str, list[Path]]:
    folder = here / f"model {len(list(here.iterdir()))}"
    shutil.copytree(TINY_CHECKPOINT, folder)
    return str(folder), [folder / name for name in ("config.json", "model.safetensors", "tokenizer.json")]


def profile(here: Path) -> tuple[str, list[Path]]:
    shutil.copy(next((ROOT / "profiles").glob("*.toml")), here / "profile.toml")
    return str(here / "profile.toml"), [here / "profile.toml"]


def store(here: Path) -> tuple[str, list[Path]]:
    (here / "store").mkdir()
    (here / "store" / "scores.db").touch()
    return str(here / "store"), [here / "store" / "scores.db"]


def images(here: Path) -> tuple[str, list[Path]]:
    (here / "images").mkdir()
    (here / "images" / "a").write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 20)
    return str(here / "images"), [here / "images" / "a"]


READ: dict[str, Callable[[Path], tuple[str, list[Path]]]] = {
    "--model": model, "--first": model, "--profile": profile, "--store": store, "--image-root": images,
    "--template": text("template", "{query} {passage}"), "--qrels": text("qrels", "q1 0 a 1\n"),
    "--queries": text("queries.jsonl", '{"_id": "q1", "text": "two roads"}\n'),
    "--corpus": text("corpus.jsonl", '{"_id": "a", "text": "a wood"}\n'),
    "--calibration": text("calibration.json", "{}"), "--baseline": text("base.jsonl", "{}\n"),
    "--run-report": text("run.report.json", "{}"),
}  # fmt: skip
"""What makes the value of an option that names something to read, and its files."""
NEVER_WITH_AN_OUTPUT = {"--fixture"}
INPUTS = ("a file", "a folder of partitions", "a glob")


def inputs(how: str, here: Path, command: str) -> tuple[str, list[Path]]:
    row = {"id": "q1", "query": "two roads", "passage": "a wood"}
    if command != "score":
        row |= {"passages": [{"id": "a", "text": "a wood", "score": 1.0}]}
    if how == "a file":
        return write_lines(here / "in.jsonl", [row]), [here / "in.jsonl"]
    folder = here / "in" / "k=1"
    folder.mkdir(parents=True)
    write_lines(folder / "b.jsonl", [row])
    return str(here / "in" if how.startswith("a folder") else folder / "*.jsonl"), [folder / "b.jsonl"]


SPELLINGS = ("same", "relative", "dots", "symlink", "hard link", "symlink to its folder", "descriptor")


def spelled(how: str, target: Path, name: Path, stack: ExitStack) -> str:
    """`target` in another spelling. name: of a link, with the suffix that is wanted; its folder is the current one."""
    match how:
        case "relative":
            return os.path.relpath(target, name.parent)
        case "dots":
            return str(target.parent / "." / ".." / target.parent.name / target.name)
        case "symlink":
            name.symlink_to(target)
        case "hard link":
            name.hardlink_to(target)
        case "symlink to its folder":
            name.symlink_to(target.parent)
            return str(name / target.name)
        case "descriptor":
            return f"/proc/self/fd/{stack.enter_context(target.open()).fileno()}"
        case _:
            return str(target)
    return str(name)


def of_paths(command: str) -> dict[str, set[str]]:
    """The options of a command that name a path, those to read and those to write."""
    declared = COMMANDS[command].OPTIONS
    named = {one.flag for one in declared if one.names_file or one.flag in NAMES_A_MODEL}
    return {"read": named - WRITTEN.keys(), "write": named & WRITTEN.keys() | {"--output"} & {o.flag for o in declared}}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_that_names_a_path_stands_in_a_table(command: str) -> None:
    named = of_paths(command)
    assert named["read"] <= READ.keys() | NEVER_WITH_AN_OUTPUT
    if named["read"] & NEVER_WITH_AN_OUTPUT:
        assert not named["write"]


def tries(command: str) -> Iterator[tuple[str, str, str, str]]:
    """What is read, the option that writes, the suffix it needs, and the spelling: each pair, and for a file all."""
    named = of_paths(command)
    read = [*INPUTS, *sorted(named["read"])] if command != "mem-estimate" else sorted(named["read"] & {*NAMES_A_MODEL})
    suffixes = {**WRITTEN, **(EVALUATED if command == "evaluate" else {})}
    for flag in sorted(named["write"]):
        turns = itertools.cycle(("hard link", "symlink") if flag in SUFFIXED[command] else SPELLINGS)
        for what, suffix in itertools.product(read, suffixes[flag]):
            for how in SPELLINGS if what == "a file" else [next(turns)]:
                yield what, flag, suffix, how


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "profile-select"])
def test_what_a_run_reads_is_never_written(  # noqa: C901 (a table, and what single options need)
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RERANK_ONLINE", "0")
    counted = 0
    for number, (what, flag, suffix, how) in enumerate(tries(command)):
        here = tmp_path / str(number)
        (here / "links").mkdir(parents=True)
        given: dict[str, str] = {}
        value, files = inputs(what if what in INPUTS else "a file", here, command)
        arguments = [] if command == "mem-estimate" else [value]
        if what not in INPUTS:
            given[what], files = READ[what](here)
        given.setdefault("--model", str(EMBEDDER if flag == "--embeddings" and what != "--first" else TINY_CHECKPOINT))
        if command == "evaluate":
            given.pop("--model")
        if flag in ("--per-query", "--calibrate-to") or what == "--run-report" or command == "evaluate":
            given.setdefault("--qrels", READ["--qrels"](here)[0])
        if what == "--run-report":
            given.setdefault("--calibrate-to", str(here / "calibration.json"))
        if what in ("--queries", "--corpus"):
            given |= {one: READ[one](here)[0] for one in ("--queries", "--corpus") if one not in given}
        with ExitStack() as stack, chdir(here / "links"):
            for place, target in enumerate(files):
                before = target.read_bytes()
                name = here / "links" / f"{place}{suffix}"
                written = spelled(how, target, name, stack)
                if how not in ("symlink", "hard link") and Path(written).suffix != suffix and flag in SUFFIXED[command]:
                    continue  # the suffix is refused
                more = {**given, flag: written}
                if command in ("score", "rerank-file"):
                    more.setdefault("--output", str(here / "out.jsonl"))
                    more.setdefault("--out-format", "jsonl")  # a name without a format is refused sooner
                options = [part for pair in more.items() for part in pair]
                code = main([command, *arguments, *options, *([] if command == "mem-estimate" else ["--overwrite"])])
                said = capsys.readouterr().err
                told = f"{command} {flag} on {what} ({target.name}), {how}: {code}\n{said}"
                assert code in (2, 4), told
                assert target.read_bytes() == before, told
                if how != "descriptor" and command != "evaluate":  # which looks at other things first
                    assert any(says in said for says in REFUSALS), told
                assert not list(here.glob("*.job")), told
                counted += 1
    assert counted >= (3 if command == "mem-estimate" else 30)


REFUSALS = ("would replace", "lies in", "is an input or another output", "is an image")
SUFFIXED = {
    "score": {"--report", "--embeddings"}, "rerank-file": {"--report", "--per-query"},
    "evaluate": {"--output", "--per-query"}, "mem-estimate": {"--plot"},
}  # fmt: skip
