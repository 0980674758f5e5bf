"""Attacks on a run by other hands, one by one: real processes, pipes, links, owners and mounts."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rerank_cli.cli import main
from rerank_cli.journal.lines import encode, read_journal
from tests.conftest import TINY_CHECKPOINT, write_lines
from tests.processes import Started, wait_until
from tests.torture.runs import ROOT, Asked, Runs

ROWS: list[object] = [{"query": "two roads", "passage": f"a yellow wood {number}"} for number in range(150)]
MANY: list[object] = [{"query": "two roads", "passage": f"a yellow wood {number} " * 20} for number in range(4000)]
ENDS_IN_SECONDS = 60  # 10 on a machine of its own; others may have it


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return Path(write_lines(tmp_path / "in.jsonl", ROWS))


def score(*arguments: object) -> int:
    return main(["score", *map(str, arguments), "--model", str(TINY_CHECKPOINT), "-q"])


def program(*arguments: object, **settings: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "from rerank_cli.cli import entry_point; entry_point()", *map(str, arguments)]
    return Started(command, cwd=ROOT, stderr=subprocess.PIPE, **settings)


# Names


def link(kind: str, target: Path, name: Path) -> Path:
    match kind:
        case "symlink":
            name.symlink_to(target)
        case "hard link":
            name.hardlink_to(target)
        case "dots":
            return target.parent / "." / ".." / target.parent.name / target.name
        case "same":
            return target
    return name


@pytest.mark.parametrize("flag", ["--errors", "--report"])
def test_a_file_that_is_there_is_not_replaced_unasked(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    kept = tmp_path / "kept"
    kept.write_text("mine")
    assert score(source, "-o", tmp_path / "out.jsonl", flag, kept) == 4
    assert f"{kept}: exists" in capsys.readouterr().err
    assert kept.read_text() == "mine"


def test_standard_output_is_no_file_that_is_read(source: Path) -> None:
    before = source.read_bytes()
    with source.open("ab") as stream, program("score", source, "--model", TINY_CHECKPOINT, stdout=stream) as process:
        assert process.stderr is not None
        assert b"standard output is appended to a file that is read" in process.stderr.read()
    assert process.returncode == 2
    assert source.read_bytes() == before


# The work folder


@pytest.mark.parametrize("kind", ["symlink", "hard link", "pipe"])
@pytest.mark.parametrize("name", ["rows", "errors", "journal", "lock"])
def test_what_was_prepared_in_the_work_folder_is_not_followed(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], kind: str, name: str
) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "out.jsonl.job"
    victim.write_text('{"pid": 1, "host": "h"}')
    folder.mkdir()
    (folder / "lock").write_text('{"pid": 1, "host": "h"}')
    (folder / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(folder / name)
    else:
        link(kind, victim, folder / name)
    assert score(source, "-o", tmp_path / "out.jsonl") == 4
    assert f"{folder}" in capsys.readouterr().err
    assert victim.read_text() == '{"pid": 1, "host": "h"}'


@pytest.mark.parametrize(
    "content", [{"rows": b"a diary"}, {"lock": b"of a door"}, {"journal": b"monday", "lock": b"x"}]
)
def test_a_folder_of_the_users_is_left_as_it_is(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], content: dict[str, bytes]
) -> None:
    folder = tmp_path / "out.jsonl.job"
    folder.mkdir()
    for name, data in content.items():
        (folder / name).write_bytes(data)
    for more in ([], ["--restart", "--overwrite"]):
        assert score(source, "-o", tmp_path / "out.jsonl", *more) == 4
        assert "is not a work folder of this program" in capsys.readouterr().err
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == content


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_folder_of_another_user_is_not_used(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out.jsonl.job"
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    assert score(source, "-o", tmp_path / "out.jsonl") == 4
    assert "belongs to another user (uid 12345)" in capsys.readouterr().err
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_an_output_that_is_replaced_keeps_owner_and_mode(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out.jsonl"
    for path in (out, tmp_path / "out.jsonl.report.json"):
        path.write_text("old")
        os.chown(path, 12345, 23456)
        path.chmod(0o640)
    assert score(source, "-o", out, "--overwrite") == 0
    for path in (out, tmp_path / "out.jsonl.report.json"):
        found = path.stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (12345, 23456, 0o640)
    assert len(out.read_bytes().splitlines()) == len(ROWS)


# Two runs


def test_two_runs_that_both_have_the_lock_never_double_a_row(tmp_path: Path, runs: Runs) -> None:
    """The lock is removed while the first run works, and a second one starts."""
    source, out = write_lines(tmp_path / "in.jsonl", MANY), tmp_path / "out.jsonl"
    assert runs.run(Asked((source,), str(tmp_path / "whole.jsonl"), {"pairs": True})).code == 0
    arguments = ["score", source, "-o", out, "--model", TINY_CHECKPOINT, "--checkpoint-every", "0s", "-q"]
    lock = tmp_path / "out.jsonl.job" / "lock"
    with program(*arguments) as first:
        wait_until(
            lambda: (lock.parent / "journal").exists() and (lock.parent / "journal").stat().st_size > 0, "no work"
        )
        lock.unlink()
        with program(*arguments) as second:
            assert second.stderr is not None
            assert first.stderr is not None
            said = [first.stderr.read(), second.stderr.read()]
    codes = first.returncode, second.returncode
    assert codes[0] == 4, said
    assert b"lock: was changed by something other than this run" in said[0]
    if codes[1] == 0:
        assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    else:
        assert codes[1] == 4, said
        assert runs.run(Asked((source,), str(out), {"pairs": True})).code == 0
        assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_run_whose_input_was_changed_and_restored_keeps_no_row_of_the_other(tmp_path: Path, runs: Runs) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_lines(source, MANY)
    assert runs.run(Asked((str(source),), str(tmp_path / "whole.jsonl"), {"pairs": True})).code == 0
    before, data = source.stat(), source.read_bytes()
    command = ["score", source, "-o", out, "--model", TINY_CHECKPOINT, "--checkpoint-every", "0s", "-q"]
    with program(*command) as process:
        journal = tmp_path / "out.jsonl.job" / "journal"
        wait_until(lambda: journal.exists() and journal.stat().st_size > 0, "no work")
        with source.open("r+b") as stream:
            stream.write(data.replace(b"wood", b"wool"))
        assert process.stderr is not None
        said = process.stderr.read().decode()
    assert process.returncode == 4, said
    assert f"{source}: was changed while it was read (input 1)" in said
    source.write_bytes(data)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert runs.run(Asked((str(source),), str(out), {"pairs": True})).code == 0
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


# Hangs


def broken_model(tmp_path: Path, change: Callable[[Path], None]) -> Path:
    shutil.copytree(TINY_CHECKPOINT, tmp_path / "model")
    change(tmp_path / "model")
    return tmp_path / "model"


def endless_layers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**9}))


def exploding(folder: Path) -> None:
    state = json.loads((folder / "tokenizer.json").read_text())
    doubling = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    state["normalizer"] = {"type": "Sequence", "normalizers": [doubling] * 50}
    (folder / "tokenizer.json").write_text(json.dumps(state))


def panicking_while_it_opens(folder: Path) -> None:
    state = json.loads((folder / "tokenizer.json").read_text())
    state["normalizer"] = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "a"}
    added = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)
    text = "a" * 30 + "b"
    state["added_tokens"].append({"id": len(state["model"]["vocab"]), "content": text, "normalized": True, **added})
    (folder / "tokenizer.json").write_text(json.dumps(state))


def panicking_on_a_text(folder: Path) -> None:
    state = json.loads((folder / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, state["pre_tokenizer"]]}
    (folder / "tokenizer.json").write_text(json.dumps(state))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # the file as it is
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def exploding_while_it_opens(folder: Path) -> None:
    """The library normalises added tokens when it opens the file, and nothing interrupts it."""
    exploding(folder)
    state = json.loads((folder / "tokenizer.json").read_text())
    number = len(state["model"]["vocab"])
    added = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)
    state["added_tokens"].append({"id": number, "content": "aaa", "normalized": True, **added})
    (folder / "tokenizer.json").write_text(json.dumps(state))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (endless_layers, "layers are built"),
        (exploding, "times longer"),
        (exploding_while_it_opens, "times longer"),
        (panicking_while_it_opens, "not a tokenizer: Onig: Regex search error"),
    ],
)
def test_a_model_that_would_never_end_is_refused(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], None], said: str
) -> None:
    model = broken_model(tmp_path, change)
    assert main(["score", str(source), "-o", str(tmp_path / "out.jsonl"), "--model", str(model)]) == 5
    assert said in capsys.readouterr().err


def test_a_text_that_a_tokenizer_cannot_take_is_one_bad_row(tmp_path: Path) -> None:
    model = broken_model(tmp_path, panicking_on_a_text)
    rows = [*ROWS[:70], {"query": "two roads", "passage": "a" * 30 + "b"}, *ROWS[70:]]
    source = write_lines(tmp_path / "in.jsonl", rows)
    out = tmp_path / "out.jsonl"
    assert main(["score", source, "-o", str(out), "--model", str(model), "-q"]) == 3
    assert len(out.read_bytes().splitlines()) == len(ROWS)
    (bad,) = map(json.loads, (tmp_path / "out.jsonl.errors.jsonl").read_bytes().splitlines())
    assert (bad["row"], bad["error"]["code"]) == (71, "tokenizer-failed")


@pytest.mark.parametrize("flag", ["--deadline", "--lock-wait", "--checkpoint-every", "--store-limit"])
def test_a_time_or_a_size_that_nothing_has_is_refused(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    for number in (2**63, 10**400):
        assert score(source, "-o", tmp_path / "out.jsonl", flag, number) == 2
        assert f"{flag}" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--top-n", "--limit", "--skip", "--max-line-bytes", "--max-tokens", "--token-budget"])
@pytest.mark.parametrize("number", [2**63, 2**64, 10**30])
def test_a_number_that_no_run_can_mean_is_refused(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], flag: str, number: int
) -> None:
    assert score(source, "-o", tmp_path / "out.jsonl", flag, number) == 2
    assert flag in capsys.readouterr().err


def in_other_digits(text: str) -> str:
    """Arabic ones, as Python's `int` and `\\d` take them too."""
    return text.translate({ord("0") + digit: 0x660 + digit for digit in range(10)})


@pytest.mark.parametrize(
    "given",
    [
        "--deadline 3", "--lock-wait 3s", "--checkpoint-every 1.5m", "--max-errors 3", "--max-errors 3%",
        "--max-unknown 3%", "--store-limit 3GB", "--shard 1/3", "--top-n 3", "--threshold 3", "--engines 3",
        "--limit 3", "--max-tokens 128", "--first-keep 3%", "--first-keep 13", "--blend rrf:0.5", "--metric nDCG@10",
        "--device cuda:0",
    ],
)  # fmt: skip
def test_digits_of_a_number_are_those_of_ascii(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    qrels = tmp_path / "qrels"
    qrels.write_text("q 0 d 1\n")
    flag, _, value = given.partition(" ")
    value = in_other_digits(value)
    more = ["--first", str(TINY_CHECKPOINT)] if flag == "--first-keep" else []
    more += ["--qrels", str(qrels)] if flag == "--metric" else []
    arguments = [str(source), "-o", str(tmp_path / "out.jsonl"), "--model", str(TINY_CHECKPOINT), *more, flag, value]
    assert main(["rerank-file", *arguments]) == 2
    assert f"{flag} {value}: " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "model.safetensors", "vocab.txt"])
def test_a_pipe_in_a_model_is_refused_before_it_is_opened(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(TINY_CHECKPOINT, model)
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    assert main(["score", str(source), "-o", str(tmp_path / "out.jsonl"), "--model", str(model)]) == 5
    assert f"{model / name}: not a regular file" in capsys.readouterr().err


def test_what_has_no_end_is_no_judgement_and_no_machine(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["-o", str(tmp_path / "out.jsonl"), "--model", str(TINY_CHECKPOINT), "--qrels", "/dev/zero"]
    assert main(["rerank-file", str(source), *given]) == 4
    assert "/dev/zero:1: a line of more than" in capsys.readouterr().err
    assert main(["profile-select", "--fixture", "/dev/zero"]) == 4
    assert "/dev/zero: more than" in capsys.readouterr().err


def test_a_message_about_a_long_id_can_be_read(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(source, "-o", tmp_path / "out.jsonl", "--text-field", "d" * 100_000) == 4
    assert len(capsys.readouterr().err) < 30_000


def test_a_socket_is_no_pipe_that_waits_for_its_reader(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's name has room for 107 bytes
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("errors")
        assert score(source, "-o", "out.jsonl", "--errors", "errors") == 4
    assert "errors: cannot be written: is a socket" in capsys.readouterr().err


def test_a_template_without_end_and_engines_without_number_are_refused(tmp_path: Path, source: Path) -> None:
    assert score(source, "-o", tmp_path / "out.jsonl", "--template", "/dev/zero") == 4
    assert score(source, "-o", tmp_path / "out.jsonl", "--engines", 99999) == 6


def test_a_pipe_that_nobody_reads_is_refused_before_the_work(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert score(source, "-o", tmp_path / "out.jsonl", "--errors", tmp_path / "pipe") == 4
    assert "nobody reads this pipe" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl.job").exists()


def test_a_reader_that_does_not_read_does_not_keep_a_run_that_is_stopped(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [*ROWS, *(b"{" * 1000 for _ in range(500))])
    pipe, out = tmp_path / "pipe", tmp_path / "out.jsonl"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    command = ["score", source, "-o", out, "--errors", pipe, "--model", TINY_CHECKPOINT, "-q"]
    with program(*command) as process:
        journal = tmp_path / "out.jsonl.job" / "journal"
        wait_until(lambda: journal.exists() and b'"kind":"complete"' in journal.read_bytes(), "it does not get there")
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=ENDS_IN_SECONDS) == 143
    assert not out.exists()
    # A writer of our own, so that the pipe does not end before the second run has opened it.
    writer, taken = os.open(pipe, os.O_WRONLY), bytearray()
    with program(*command) as again:
        while again.poll() is None:
            if select.select([reader], [], [], 0.1)[0]:
                taken += os.read(reader, 2**16)
    os.close(writer)
    while data := os.read(reader, 2**16):
        taken += data
    os.close(reader)
    assert again.returncode == 0  # it only gives the names
    assert len(out.read_bytes().splitlines()) == len(ROWS)
    assert taken.count(b'"bad-json"') >= 500


@pytest.mark.parametrize("flag", ["in", "--template", "--qrels"])
def test_a_pipe_without_a_writer_does_not_keep_a_run_that_is_stopped(tmp_path: Path, source: Path, flag: str) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    read = [pipe] if flag == "in" else [source, flag, pipe]
    command = "rerank-file" if flag == "--qrels" else "score"
    with program(command, *read, "-o", tmp_path / "out.jsonl", "--model", TINY_CHECKPOINT) as process:
        time.sleep(5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=ENDS_IN_SECONDS) == 143


# Journals


def test_a_journal_by_another_hand_is_refused_by_name(
    tmp_path: Path, runs: Runs, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = Asked((str(source),), str(tmp_path / "out.jsonl"), {"pairs": True})
    assert runs.run(asked, at=30).code == -9
    journal = tmp_path / "out.jsonl.job" / "journal"
    good = [entry.record for entry in read_journal(journal)]
    assert len(good) > 2
    for change in (
        lambda records: records[0].pop("fingerprint"),
        lambda records: records[0]["fingerprint"].pop("files"),
        lambda records: [record.__setitem__("state", {}) for record in records[1:]],
        lambda records: [record.__setitem__("members", {}) for record in records[1:]],
        lambda records: [record.__setitem__("notes", [[0, 1]]) for record in records[1:]],
        lambda records: records.append({"kind": "complete", "run": {}}),
        lambda records: records.append({"kind": "complete", "run": {"errors": 1, "work": "rows", "report": {}}}),
    ):
        records = json.loads(json.dumps(good))
        change(records)
        journal.write_bytes(encode(records, after="")[0])
        code = score(source, "-o", tmp_path / "out.jsonl")
        assert code in (0, 8), capsys.readouterr().err
        if code == 0:
            (tmp_path / "out.jsonl").unlink()
            (tmp_path / "out.jsonl.report.json").unlink()
            assert runs.run(asked, at=30).code == -9
