"""The program as a process and its help: what starts quickly, what is documented, what becomes which exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rerank_cli import __version__
from rerank_cli.cli import app, main
from rerank_cli.errors import EXIT_CODES

COMMANDS = ["score", "rerank-file"]


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


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rerank-cli {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_first_and_exit_codes_last(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    example, options, codes = text.index("\nrerank-cli "), text.index("Model:"), text.index("Exit codes:")
    assert example < options < codes
    for code, meaning in EXIT_CODES.items():
        assert f"{code}" in text[codes:]
        assert meaning.split()[0] in text[codes:]


def _options(command: str) -> list:
    import typer.main

    group = typer.main.get_command(app)
    return [parameter for parameter in group.commands[command].params if parameter.param_type_name == "option"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_help_a_group_and_its_environment_variable(command: str) -> None:
    for parameter in _options(command):
        if parameter.name == "help":
            continue
        assert parameter.help, parameter.name
        assert parameter.rich_help_panel, parameter.name
        long_name = next(name for name in parameter.opts if name.startswith("--"))
        assert parameter.envvar == "RERANK_" + long_name.lstrip("-").upper().replace("-", "_")


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
        (["score", "-", "--max-errors", "some"], 2, "0.5%"),
        (["score", "missing.jsonl"], 4, "missing.jsonl: no such file"),
        (["score", "{rows}", "--model", "/nowhere/at/all"], 5, "/nowhere/at/all"),
        (["score", "{rows}", "--model", "someone/not-cached"], 5, "--online"),
        (["score", "{rows}", "--device", "cuda:7"], 6, "CUDA shows 0 devices"),
        (["score", "{rows}", "--device", "mps"], 2, "`--device cpu`"),
        (["score", "{rows}", "--device", "tpu"], 2, "auto, cpu"),
        (["score", "{rows}", "--precision", "fp4"], 2, "fp32"),
        (["score", "{rows}", "--max-tokens", "100000"], 2, "at most 512"),
        (["score", "{rows}", "-o", "{rows}"], 2, "would replace an input"),
        (["score", "{rows}", "-o", "out.txt"], 2, ".jsonl or .parquet"),
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


@pytest.mark.parametrize(
    ("words", "completed"), [("rerank-cli rer", "rerank-file"), ("rerank-cli score --thr", "--threshold")]
)
def test_the_shell_can_complete_commands_and_options(words: str, completed: str) -> None:
    asked = {"_RERANK_CLI_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    command = [str(Path(sys.executable).parent / "rerank-cli")]
    done = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [completed]


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
