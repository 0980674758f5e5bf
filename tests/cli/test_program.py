"""The program as a process and its help: what starts quickly, what is documented, what becomes which exit code."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import rerank_cli
from rerank_cli import __version__
from rerank_cli.cli import app, main
from rerank_cli.cli.console import command_to_paste, wrapped
from rerank_cli.cli.declare import GROUPS, Option
from rerank_cli.errors import EXIT_CODES
from rerank_cli.job.options import JobOptions, Names
from tests.conftest import TINY_CHECKPOINT

SCORES = ["score", "rerank-file"]
SAMPLE = str(Path(__file__).parents[2] / "samples" / "python-docs.jsonl")
COMMANDS = [*SCORES, "profile-select", "mem-estimate"]


def declared(command: str) -> dict[str, Option]:
    import typer.main

    found: dict[str, Option] = typer.main.get_command(app).commands[command].callback.declared
    return found


def test_help_and_version_import_neither_torch_nor_any_other_heavy_library() -> None:
    script = (
        "import sys\n"
        "from rerank_cli.cli import main\n"
        "for arguments in (['--help'], ['--version'], ['score', '--help'], ['rerank-file', '--help']):\n"
        "    assert main(arguments) == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pandas', 'pyarrow', 'ray', 'tokenizers', 'PIL', 'pynvml'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout


@pytest.mark.parametrize(
    ("code", "wrong", "more"),
    [
        (4, "none.jsonl", ["-o", "out.jsonl"]),
        (2, "out.docx", [SAMPLE, "-o"]),
        (5, "nowhere", [SAMPLE, "-o", "out.jsonl", "--model"]),
        (4, "none.txt", [SAMPLE, "-o", "out.jsonl", "--qrels"]),
    ],
)
@pytest.mark.parametrize("kind", [[], ["--dry-run"]], ids=["run", "dry-run"])
def test_a_slip_of_the_keyboard_is_refused_before_the_libraries_of_a_run_are_loaded(
    code: int, wrong: str, more: list[str], kind: list[str], tmp_path: Path
) -> None:
    script = (
        "import sys\n"
        "from rerank_cli.cli import main\n"
        f"code = main({['rerank-file', *kind, *more, wrong]!r})\n"
        "print(code, sorted({'torch', 'transformers', 'pyarrow', 'tokenizers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"{code} []\n", done.stderr
    assert wrong in done.stderr
    assert not [*tmp_path.iterdir()]


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rerank-cli {__version__}\n"


def _typed(command: str) -> dict:
    import typer.main

    return {one.name: one for one in typer.main.get_command(app).commands[command].params}


def _shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_screen_with_examples_arguments_and_options_in_this_order(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = _shown(capsys, command, "-h")
    lines = text.splitlines()
    assert len(lines) <= (25 if command == "rerank-file" else 36)
    assert all(len(line) < 80 for line in lines)
    options = (
        "\nArguments and options:\n  " if any(not one.flag for one in declared(command).values()) else "\nOptions:\n  -"
    )
    places = [text.index(part) for part in ("Usage: ", "\n  rerank-cli ", options, "\n  --help-all ")]
    assert places == sorted(places)
    assert text == _shown(capsys, command, "--help")
    assert text == _shown(capsys, "help", command)


def test_what_most_people_need_of_rerank_file_is_in_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    text = _shown(capsys, "rerank-file", "-h")
    needed = ["IN...", "-o, --output", "--model", "--top-n", "--query-field", "--passages-field", "--text-field"]
    for name in [*needed, "--precision", "--dry-run", "--qrels", "--report", "--help-all"]:
        assert f"\n  {name}" in text
    assert "Default: query\n" in text and "Default: the built-in one\n" in text  # where a line has room for it
    assert 12 <= len(re.findall(r"^  (?:-.|--)", text, flags=re.MULTILINE)) <= 14


@pytest.mark.parametrize("columns", ["60", "80", "110"])
@pytest.mark.parametrize("command", COMMANDS)
def test_all_help_has_every_option_in_groups_of_one_order_and_breaks_no_word(
    command: str, columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    text = _shown(capsys, command, "--help-all")
    words = set(text.split())
    for one in declared(command).values():
        if one.hidden:
            assert one.flag not in text
            continue
        if one.flag:
            assert re.search(rf"^  (-\w, )?{one.flag}\b", text, flags=re.MULTILINE), one.flag
        assert set(_typed(command)[one.name].help.split()) <= words
        assert not any(re.search(rf"{alias}\b", text) for alias in one.aliases)
    titles = [title.lower() for title in re.findall(r"^(\w[\w ]*):$", text, flags=re.MULTILINE)]
    groups = [title for title in titles if title in GROUPS]
    assert groups == sorted(groups, key=GROUPS.index)
    assert titles[-2:] == ["help", "exit codes"]
    codes = {int(code) for code in re.findall(r"^  (\d+) ", text, flags=re.MULTILINE)}
    assert codes == set(EXIT_CODES) - (set() if command in SCORES else {3, 7, 8, 9, 10, 11})


@pytest.mark.parametrize("arguments", [[], ["help"], ["--help"], ["-h"]])
def test_the_program_alone_shows_its_help_as_lines(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code = main(arguments)
    captured = capsys.readouterr()
    assert code == (0 if arguments else 2)
    text = captured.out if arguments else captured.err
    assert text.startswith("Usage: rerank-cli COMMAND")
    assert "\\n" not in text
    assert "error" not in text
    for command in COMMANDS:
        assert f"\n  {command} " in text


def test_verbose_version_says_what_a_bug_report_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RERANK_TOP_N", "3")
    assert _shown(capsys, "version") == f"rerank-cli {__version__}\n" == _shown(capsys, "-V")
    text = _shown(capsys, "version", "--verbose")
    facts = dict(line.split(maxsplit=1) for line in text.splitlines())
    assert facts["torch"] == metadata.version("torch")
    assert facts["transformers"] == metadata.version("transformers")
    assert facts["RERANK_TOP_N"] == "3"
    assert {"python", "cpu", "gpus", "package", "profiles", "model", "cache"} <= facts.keys()
    assert Path(facts["package"]) == Path(rerank_cli.__file__).parent


@pytest.mark.parametrize("command", [*COMMANDS, "version"])
def test_every_option_has_help_a_group_and_its_environment_variable(command: str) -> None:
    for one in declared(command).values():
        parameter = _typed(command)[one.name]
        assert parameter.help, one.name
        if one.flag:
            assert one.group in GROUPS
            variables = [parameter.envvar] if isinstance(parameter.envvar, str) else parameter.envvar
            assert variables[0] == "RERANK_" + one.flag.lstrip("-").upper().replace("-", "_")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_value_of_a_choice_is_in_its_help(command: str) -> None:
    for name, parameter in _typed(command).items():
        for value in parameter.type_descriptor.choices or ():
            assert re.search(rf"\b{value}\b", parameter.help), name


@pytest.mark.parametrize("command", SCORES)
def test_a_default_is_that_of_the_job_and_stands_in_the_help(command: str) -> None:
    job = JobOptions(inputs=(), names=Names("out.jsonl"))
    for one in declared(command).values():
        if one.into and one.flag != "--output":
            value: Any = job
            for name in one.into.split("."):
                value = getattr(value, name)
            assert one.default == value, one.flag
            if value not in (None, False, 0, (), "-") and not isinstance(value, float):
                shown = " ".join(value) if isinstance(value, tuple) else value
                shown = "10GB" if one.flag == "--store-limit" else shown  # a size has its unit
                assert f"Default: {shown}." in _typed(command)[one.name].help


@pytest.mark.parametrize("command", COMMANDS)
def test_one_name_is_one_thing_in_every_command(command: str) -> None:
    names = {"--engines", "--precision", "--model", "--revision", "--online", "--device", "--format"}
    assert names <= {one.flag for one in declared(command).values()}


def test_an_environment_variable_is_a_default_and_a_flag_wins_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: str
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"query": "a", "passages": ["b", "c", "d"]}\n')
    monkeypatch.setenv("RERANK_TOP_N", "2")
    monkeypatch.setenv("RERANK_MODEL", tiny_model)
    for more, kept in ([], 2), (["--top-n", "1"], 1):
        out = tmp_path / f"{kept}.jsonl"
        assert main(["rerank-file", str(rows), "-o", str(out), "-q", *more]) == 0
        assert len(json.loads(out.read_text())["passages"]) == kept


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["score", "--bogus"], 2, "--bogus"),
        (["nothing"], 2, "nothing"),
        (["rerank-file", "in.jsonl"], 2, "--output"),
        (["score", "--lines"], 2, "--query"),
        (["score", "-", "--truncate", "middle"], 2, "end, error, chunk, reference"),
        (["score", "-", "--max-errors", "some"], 2, "--max-errors some: neither a number of rows nor a percentage"),
        (["score", "-", "--max-errors", "101%"], 2, "0.5%"),
        (["score", "-", "--deadline", "5x"], 2, "--deadline 5x: not a time"),
        (["score", "-", "--shard", "3/2"], 2, "--shard 3/2: not a part"),
        (["score", "-", "--top-n", "0"], 2, "--top-n 0: must be at least 1"),
        (["score", "-", "--top-n", "many"], 2, "--top-n many: not a whole number"),
        (["score", "-", "--threshold", "a"], 2, "--threshold a: not a number"),
        (["score", "-", "--in-format", "xml"], 2, "jsonl, parquet"),
        (["score", "-", "--out-format", "xml"], 2, "openai-batch"),
        (["score", "-", "--pool", "sum"], 2, "max, mean, first"),
        (["score", "-", "--format", "yaml"], 2, "auto, text, json"),
        (["rerank-file", "{rows}", "--shape", "tree"], 2, "flat"),
        (["rerank-file", "{rows}", "--engine", "spark"], 2, "local, ray"),
        (["rerank-file", "{rows}", "--batch-size", "8"], 2, "`--token-budget N`"),
        (["rerank-file", "{rows}", "--query", "q"], 2, "rerank-cli score --query Q"),
        (["rerank-file", "{rows}", "--top-k", "5"], 2, "here it is `--top-n`"),
        (["rerank-file", "{rows}", "--treshold", "5"], 2, "did you mean `--threshold`"),
        (["score", "--qrels", "q.txt"], 2, "it is an option of `rerank-file`"),
        (["scroe"], 2, "Did you mean 'score'"),
        (["score", "missing.jsonl"], 4, "missing.jsonl: no such file"),
        (["score", "{rows}", "--model", "/nowhere/at/all"], 5, "/nowhere/at/all"),
        (["score", "{rows}", "--model", "someone/not-cached"], 5, "--online"),
        (["score", "{rows}", "--device", "cuda:7"], 6, "CUDA shows 0 devices"),
        (["score", "{rows}", "--device", "mps"], 2, "`--device cpu`"),
        (["score", "{rows}", "--device", "tpu"], 2, "auto, cpu"),
        (["score", "{rows}", "--precision", "fp4"], 2, "fp32"),
        (["score", "{rows}", "--max-tokens", "100000"], 2, "at most 512"),
        (["score", "{rows}", "-o", "{rows}"], 2, "would replace an input"),
        (["score", "{rows}", "-o", "out.txt"], 2, ".jsonl, .csv, .tsv or .parquet"),
        (["score", "{rows}", "-o", "-", "--out-format", "parquet"], 2, "pipe"),
        (["score", "{rows}", "-o", "{existing}"], 4, "--overwrite"),
        (["score", "{rows}", "-o", "/nowhere/out.jsonl"], 4, "/nowhere/out.jsonl"),
        (["rerank-file", "{rows}", "-o", "x.jsonl", "--qrels", "no.txt"], 4, "no.txt"),
        (["rerank-file", "{rows}", "-o", "x.jsonl", "--qrels", "{rows}", "--metric", "BLEU"], 2, "nDCG@10"),
    ],
)
def test_what_is_refused_says_what_where_and_what_to_do(
    arguments: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "rows.jsonl").write_text('{"query": "a", "passage": "b"}\n')
    (tmp_path / "existing.jsonl").write_text("kept\n")
    filled = [part.format(rows="rows.jsonl", existing="existing.jsonl") for part in arguments]
    assert main(filled) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert said in captured.err
    assert "Traceback" not in captured.err
    assert (tmp_path / "existing.jsonl").read_text() == "kept\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["existing.jsonl", "rows.jsonl"]


def test_control_bytes_in_file_names_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "evil\x1b]0;owned\x07.jsonl"]) == 4
    shown = capsys.readouterr().err
    assert "\x1b" not in shown
    assert "\\x1b]0;owned" in shown


def test_rich_markup_in_a_table_cell_is_printed_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    from rerank_cli.cli.console import print_table

    print_table(["a"], [["[bold]x[/bold]\x1b[31m"]])
    shown = capsys.readouterr().out
    assert "[bold]x[/bold]" in shown
    assert "\x1b" not in shown


def _completed(shell: str, words: str) -> list[str]:
    """What a shell's own script is answered, as it calls the program."""
    count = str(len(words.split()) - (not words.endswith(" ")))
    asked = {
        "bash": {"COMP_WORDS": words, "COMP_CWORD": count},
        "zsh": {"_TYPER_COMPLETE_ARGS": words},
        "fish": {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    environment = {**os.environ, **asked, "_RERANK_CLI_COMPLETE": f"complete_{shell}"}
    command = [str(Path(sys.executable).parent / "rerank-cli")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    if shell == "zsh":
        return [value.replace("\\\\:", ":") for value in re.findall(r'"([^"]*)"(?::"[^"]*")?', done.stdout)]
    return [line.partition("\t")[0] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("rerank-cli rer", {"rerank-file"}),
        ("rerank-cli score --thr", {"--threshold"}),
        ("rerank-cli mem-estimate --engine", {"--engines"}),
        ("rerank-cli score --truncate ", {"end", "error", "chunk", "reference"}),
        ("rerank-cli score --pool m", {"max", "mean"}),
        ("rerank-cli rerank-file in.jsonl --precision f", {"fp32", "fp16", "fp8"}),
        ("rerank-cli rerank-file --out-format p", {"parquet"}),
        ("rerank-cli rerank-file --shape n", {"nim"}),
        ("rerank-cli score --device c", {"cpu", "cuda", "cuda:0"}),
        ("rerank-cli score --deadline 5x --on-error ", {"collect", "fail"}),
        ("rerank-cli profile-select --policy ", {"nim-2x", "nim-1x"}),
        ("rerank-cli mem-estimate --solve ", {"batch-size", "max-tokens"}),
    ],
)
def test_the_shell_completes_commands_options_and_values(shell: str, words: str, completed: set[str]) -> None:
    assert set(_completed(shell, words)) == completed


def test_completion_can_be_shown_without_being_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    # Tests run below no shell; typer has this variable so that the shell can be named instead.
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    script = subprocess.run(
        [str(Path(sys.executable).parent / "rerank-cli"), "--show-completion", "bash"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "_RERANK_CLI_COMPLETE=complete_bash" in script
    assert script.rstrip().endswith("rerank-cli")


ENDING = """
import atexit, sys
from rerank_cli.cli import entry_point

class Held:
    def __del__(self):  # called when the interpreter takes its modules apart
        sys.__stderr__.write("taken apart\\n")

class Library:  # registers an exit handler while the program runs
    def find_spec(self, *_):
        sys.meta_path.remove(self)
        atexit.register(sys.stderr.write, "exit handler\\n")

held = Held()
sys.meta_path.insert(0, Library())
entry_point()
"""


@pytest.mark.parametrize(("arguments", "code"), [(["--version"], 0), (["score", "no-such-file.jsonl"], 4)])
def test_the_process_ends_with_its_exit_code_after_all_exit_handlers(arguments: list[str], code: int) -> None:
    done = subprocess.run([sys.executable, "-c", ENDING, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert (f"rerank-cli {__version__}\n" == done.stdout) == (code == 0)
    assert "exit handler" in done.stderr
    assert "taken apart" not in done.stderr


def test_what_no_disk_takes_at_the_end_is_no_success() -> None:
    command = [sys.executable, "-m", "rerank_cli", "--version"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode != 0
    assert "No space left on device" in done.stderr


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_long_line_breaks_no_word_on_a_terminal_and_is_one_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "  note: " + "some words of a long sentence " * 8 + "`--check-precision 200`"
    assert wrapped(text, io.StringIO()) == text
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = wrapped(text, _Terminal()).split("\n")
        assert all(len(line) < columns and line.startswith("  ") for line in lines)
        assert " ".join(lines).split() == text.split()
    path = "model  " + "/folder" * 30
    assert wrapped(path, _Terminal()) == path


def test_a_long_command_is_pasted_as_one_from_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    command = "rerank-cli rerank-file mine.jsonl -o out.jsonl --query-field question --text-field title,body"
    monkeypatch.setenv("COLUMNS", "60")
    shown = command_to_paste(command, _Terminal(), head="    ")
    assert len(shown.splitlines()) > 1
    assert all(len(line) < 60 for line in shown.splitlines())
    assert shlex.split(shown.replace("\\\n", " ")) == shlex.split(command)
    assert command_to_paste(command, io.StringIO(), head="    ") == f"    {command}"
    quoted = f"{command} --query-field 'two  blanks'"
    assert command_to_paste(quoted, _Terminal(), head="") == quoted


def _in_shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What a line of bash prints and its exit code; $RUN is the program with a small model."""
    run = f"{shlex.quote(sys.executable)} -m rerank_cli"
    surroundings = {**os.environ, "RERANK_MODEL": str(TINY_CHECKPOINT), "PYTHONPATH": str(Path(SAMPLE).parents[1])}
    script = f"RUN={shlex.quote(run)}\n{line}"
    return subprocess.run(["bash", "-c", script], cwd=folder, env=surroundings, capture_output=True, text=True)


def test_a_closed_stdout_is_told_where_something_is_written_to_it(tmp_path: Path) -> None:
    done = _in_shell("$RUN --version >&-", tmp_path)
    assert (done.returncode, done.stderr) == (4, "error: standard output: Bad file descriptor\n")


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_a_file_is_written_whatever_streams_are_closed(tmp_path: Path, closed: str) -> None:
    done = _in_shell(f"$RUN rerank-file {SAMPLE} -o out.jsonl -q --limit 1 {closed}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 1


def test_a_current_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    done = _in_shell(f"cd gone; rmdir ../gone; $RUN rerank-file {SAMPLE} -o out.jsonl --limit 1", tmp_path)
    assert done.returncode == 4
    assert "error: the current folder does not exist any more" in done.stderr


def test_a_report_goes_into_a_pipe_of_the_shell_and_an_output_does_not(tmp_path: Path) -> None:
    run = f"$RUN rerank-file {SAMPLE} -q --limit 1"
    done = _in_shell(f"{run} -o out.jsonl --report >(cat > seen); code=$?; wait $!; exit $code", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "seen").read_text())["output"]["path"] == "out.jsonl"
    done = _in_shell(f"{run} -o >(cat) --out-format jsonl", tmp_path)
    assert done.returncode == 4
    assert re.search(r"error: /dev/fd/\d+: is not a regular file\n", done.stderr)
