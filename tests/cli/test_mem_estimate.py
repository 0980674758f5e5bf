"""`rerank-cli mem-estimate` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rerank_cli.cli import main
from rerank_cli.planning.memory import KNOWN_PAIR_BYTES, KNOWN_PAIRS
from rerank_cli.planning.profiles import load_all_profiles, show_capability
from tests.conftest import TINY_CHECKPOINT

ROOT = Path(__file__).parents[2]
EMBEDDER, DEBERTA = (
    ROOT / "tests" / "parity" / name / "checkpoint" for name in ("nemotron-vl-embed-open", "deberta-ce-open")
)
TEXT, SMALL, VISION = (
    f"nvidia/llama-nemotron-rerank-{name}-v2" for name in ("1b", "500m", "vl-1b")
)  # `SMALL` has published values and no known shape
Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """Runs the command, checks its exit code, and gives its JSON document."""

    def run(*arguments: str, code: int = 0) -> dict[str, Any]:
        assert main(["mem-estimate", *arguments, "--format", "json"]) == code
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert document["schema"] == "rerank-cli/mem-estimate/1"
        return document

    return run


def test_it_imports_neither_torch_nor_any_other_heavy_library() -> None:
    script = (
        "import sys\n"
        "from rerank_cli.cli import main\n"
        f"for more in ([], ['--model', '{TEXT}', '--gpu', '8.9:24GB', '--compare', 'nim', '--fits'],\n"
        f"             ['--model', '{VISION}', '--vram', '24GiB', '--solve', 'max-tokens', '--images', '3']):\n"
        "    assert main(['mem-estimate', *more]) == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pandas', 'pyarrow', 'ray', 'tokenizers', 'PIL', 'pynvml'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "HEAVY []" in done.stdout


def test_auto_is_what_a_run_on_that_card_takes(ask: Ask) -> None:
    in_bf16 = ("--model", str(ROOT / "tests/parity/mxbai-v2-open/checkpoint"))
    assert ask(*in_bf16, "--gpu", "8.9:24GB")["precision"] == "bf16"
    assert ask(*in_bf16, "--gpu", "7.5:16GB")["precision"] == "fp16"
    assert ask(*in_bf16)["precision"] == "bf16"
    assert ask("--model", TEXT, "--gpu", "8.9:24GB")["precision"] == "fp16"


def test_a_row_for_each_point_of_which_the_parts_make_the_total(ask: Ask) -> None:
    document = ask("--model", TEXT, "--batch-size", "1,30", "--max-tokens", "1024,8192", "--engine-count", "2")
    points = [(row["batch_size"], row["max_tokens"]) for row in document["rows"]]
    assert points == [(1, 1024), (1, 8192), (30, 1024), (30, 8192)]
    for row in document["rows"]:
        parts = [size for name, size in row.items() if name.endswith("_bytes") and name != "total_bytes"]
        assert len(parts) == 12
        assert row["total_bytes"] == 2 * sum(parts)
    assert document["rows"][0]["weights_bytes"] == 2_471_772_160
    assert document["method"] == "closed form"
    assert document["constants"]["status"] == "default"


@pytest.mark.parametrize("first", [None, "bf16", str(EMBEDDER), f"{DEBERTA}:fp32"])
def test_a_run_takes_what_its_dry_run_says_and_every_point_is_that_of_both_scorers(
    ask: Ask, capsys: pytest.CaptureFixture[str], first: str | None
) -> None:
    model = ("--model", str(TINY_CHECKPOINT), "--device", "cpu", "--max-tokens", "64")
    before = () if first is None else ("--first", first)
    found = ask(*model, *before, "--batch-size", "1,8")
    pairs = str(ROOT / "samples" / "python-docs.jsonl")
    arguments = ["rerank-file", pairs, "-o", "-", *model, *before, "--dry-run", "--format", "json", "--limit", "1"]
    assert main(arguments) == 0
    dry = json.loads(capsys.readouterr().out)
    assert found["run"]["needed_bytes"] == (dry["first"] or dry["plan"])["needed_bytes"]
    assert {name: found["run"][name] for name in ("token_budget", "lanes", "max_tokens")} == {
        name: dry["plan"][name] for name in ("token_budget", "lanes", "max_tokens")
    }
    alone = [row["total_bytes"] for row in ask(*model, "--batch-size", "1,8")["rows"]]
    assert all(row["known_pairs_bytes"] == KNOWN_PAIRS * KNOWN_PAIR_BYTES for row in found["rows"])
    assert [row["total_bytes"] - row["first_bytes"] for row in found["rows"]] == alone
    if first is None:
        assert (found["first"], found["run"]["first_bytes"]) == (None, 0)
        return
    path, _, precision = first.rpartition(":") if first.endswith(":fp32") else (first, "", "fp32")
    own = ("--precision", first) if first == "bf16" else ("--precision", precision, "--model", path)
    cheap = ask(*model, *own, "--batch-size", "1,8")["rows"]
    assert [row["first_bytes"] for row in found["rows"]] == [row["total_bytes"] for row in cheap]


def test_a_capacity_is_that_of_both_scorers(ask: Ask) -> None:
    model = ("--device", "cpu", "--max-tokens", "512", "--batch-size", "1")
    one, both = ask(*model)["rows"][0]["total_bytes"], ask(*model, "--first", "int8")["rows"][0]["total_bytes"]
    room = ("--vram", f"{(one + both) // 2}B", "--fits")
    ask(*model, *room)
    ask(*model, *room, "--first", "int8", code=6)
    room = ("--vram", f"{both + 2**28}B", "--solve", "batch-size")
    pairs = [ask(*model[:4], *room, *first)["rows"][0]["batch_size"] for first in ((), ("--first", "int8"))]
    assert pairs[0] > pairs[1] >= 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--first", "fp32"), "not a lower precision than that of the run"),
        (("--first", "int8", "--measure"), "does not work with --measure"),
        (("--first", "int8", "--model", str(EMBEDDER)), "embeds each text once"),
        (("--first", "int8", "--compare", "nim"), "does not work with --compare"),
        (("--first", "./nowhere"), "./nowhere"),
    ],
)
def test_what_two_scorers_cannot_be_had_with_is_refused_as_a_run_does(
    ask: Ask, arguments: tuple[str, ...], said: str
) -> None:
    code = 5 if "./nowhere" in arguments else 2
    assert said in ask("--device", "cpu", *arguments, code=code)["error"]["message"]


def test_the_points_go_no_further_than_the_model_reads(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    assert {row["max_tokens"] for row in ask()["rows"]} == {512}
    document = ask("--max-tokens", "600", code=2)
    assert "reads at most 512 tokens" in document["error"]["message"]


def test_text_is_a_table_in_gib(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mem-estimate", "--model", TEXT, "--batch-size", "30", "--format", "text"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{TEXT}, fp16 on GPU")
    assert all(len(line) <= 80 for line in lines[1:])
    columns = next(line.split() for line in lines if "weights" in line)
    assert columns == ["pairs", "tokens", "weights", "activations", "runtime", "total"]
    row = dict(zip(columns, next(line.split() for line in lines if "8192" in line), strict=True))
    parts = [float(row[name]) for name in ("weights", "activations", "runtime")]
    assert float(row["total"]) == pytest.approx(sum(parts), abs=0.03)


@pytest.mark.parametrize(
    "table",
    [(found, table) for found in load_all_profiles() for table in found.memory],
    ids=lambda pair: (
        f"{pair[0].model.id[-9:]}-{pair[1].sku or show_capability(pair[1].compute_capability)}-{pair[1].precision}"
    ),
)
def test_published_values_stand_beside_the_rows_as_they_are_printed(table: Any, ask: Ask) -> None:
    profiles, table = table
    gpu = f"{show_capability(table.compute_capability)}:80GB:{table.sku or 'Some GPU'}"
    document = ask("--model", profiles.model.id, "--gpu", gpu, "--precision", table.precision, "--compare", "nim")
    shown = {(row["batch_size"], row["max_tokens"]): row["nim"] for row in document["rows"]}
    for row in table.rows:
        if row.max_batch_size is None:
            assert {(nim["kind"], nim["gib"]) for nim in shown.values()} == {("published-any", row.gib)}
        else:
            nim = shown[(row.max_batch_size, row.max_sequence_length)]
            assert (nim["kind"], nim["gib"], nim["headings"]) == ("published", row.gib, "inferred")
    (published,) = document["published"]
    assert [row["gib"] for row in published["rows"]] == [row.gib for row in table.rows]
    assert published["source"]["url"] == table.source.url


def test_a_published_value_is_never_part_of_the_estimate(ask: Ask) -> None:
    question = ("--model", TEXT, "--gpu", "8.9:24GB")
    plain, compared = ask(*question), ask(*question, "--compare", "nim")
    assert [row["total_bytes"] for row in plain["rows"]] == [row["total_bytes"] for row in compared["rows"]]
    assert all(row["nim"] is None for row in plain["rows"])


def test_values_between_published_ones_are_marked(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    point = ("--model", SMALL, "--gpu", "8.9:24GB:NVIDIA-L4", "--batch-size", "8", "--max-tokens", "4096")
    nim = ask(*point, "--compare", "nim")["rows"][0]["nim"]
    assert nim["kind"] == "interpolated"
    assert nim["worst_gib"] > 0
    assert main(["mem-estimate", *point, "--compare", "nim", "--format", "text"]) == 0
    captured = capsys.readouterr()
    assert f"~{nim['gib']:.2f}" in captured.out
    assert "interpolated" in captured.err


def test_without_a_gpu_all_published_tables_are_shown(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    document = ask("--model", SMALL, "--compare", "nim")
    assert len(document["published"]) == 7
    assert {row["nim"] for row in document["rows"]} == {row["total_bytes"] for row in document["rows"]} == {None}
    assert main(["mem-estimate", "--model", SMALL, "--compare", "nim", "--format", "text"]) == 0
    assert "NVIDIA-H100-NVL" in capsys.readouterr().out


def test_a_model_for_which_nothing_is_published_says_so(ask: Ask) -> None:
    document = ask("--compare", "nim")
    assert document["published"] == []
    assert any("nothing is published" in note for note in document["notes"])


def test_what_does_not_fit_exits_with_6_after_the_table(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    question = ("--model", TEXT, "--batch-size", "1,30", "--max-tokens", "8192", "--fits")
    document = ask(*question, "--vram", "4GiB", code=6)
    assert [row["fits"] for row in document["rows"]] == [True, False]
    assert [row["fits"] for row in ask(*question, "--vram", "24GiB")["rows"]] == [True, True]
    assert main(["mem-estimate", *question, "--vram", "4GiB", "--format", "text"]) == 6
    captured = capsys.readouterr()
    assert " no" in captured.out
    assert "1 of 2 points do not fit 4.00 GiB" in captured.err


def test_without_a_gpu_there_must_be_a_size_to_fit(monkeypatch: pytest.MonkeyPatch, ask: Ask) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "--vram" in ask("--fits", code=2)["error"]["hint"]


def test_the_cpu_is_a_device_too(ask: Ask) -> None:
    document = ask("--device", "cpu", "--fits", "--batch-size", "1")
    assert document["device"]["kind"] == "cpu"
    assert document["precision"] == "fp32"
    assert document["device"]["available_bytes"] > 0
    assert document["rows"][0]["cublas_workspace_bytes"] == 0


def test_solving_gives_the_largest_that_fits(ask: Ask) -> None:
    sizes = ask("--model", TEXT, "--vram", "8GiB", "--solve", "batch-size")["rows"]
    assert [row["max_tokens"] for row in sizes] == [1024, 2048, 4096, 8192]
    for row in sizes:
        one_more = str(row["batch_size"] + 1)
        ask("--model", TEXT, "--vram", "8GiB", "--fits", "--max-tokens", str(row["max_tokens"]),
            "--batch-size", one_more, code=6)  # fmt: skip
    (length,) = ask("--model", TEXT, "--vram", "4GiB", "--solve", "max-tokens", "--batch-size", "30")["rows"]
    assert 64 < length["max_tokens"] < 8192
    assert length["fits"] is True


def test_solving_for_a_card_that_is_too_small_exits_with_6(ask: Ask) -> None:
    assert "GiB" in ask("--model", TEXT, "--vram", "1GiB", "--solve", "batch-size", code=6)["error"]["message"]


def test_a_file_gives_the_real_lengths(tmp_path: Path, tiny_model: str, ask: Ask) -> None:
    rows = tmp_path / "rows.jsonl"
    passages = ["one", "one two three", "one " * 500]
    rows.write_text(json.dumps({"query": "a query", "passages": passages}) + "\nnot json\n")
    document = ask("--model", tiny_model, "--from-file", str(rows), "--batch-size", "1,2,3,50")
    assert document["file"]["pairs"] == 3
    lengths = document["file"]["tokens"]
    assert lengths["longest"] > lengths["p50"] > lengths["shortest"] > 3
    activations = [row["activations_bytes"] for row in document["rows"]]
    assert activations == sorted(activations)
    assert activations[2] == activations[3]
    (full,) = ask("--model", tiny_model, "--batch-size", "3", "--max-tokens", str(lengths["longest"]))["rows"]
    assert activations[2] < full["activations_bytes"]


def test_a_measurement_stands_beside_the_estimate(tiny_model: str, ask: Ask) -> None:
    arguments = ("--model", tiny_model, "--measure", "--device", "cpu", "--batch-size", "4", "--max-tokens", "48")
    (row,) = ask(*arguments)["rows"]
    measured = row["measured"]
    assert measured["device"] == "cpu"
    assert measured["forward_bytes"] > 0
    assert measured["estimated_forward_bytes"] < row["total_bytes"]


def test_only_one_point_is_measured(tiny_model: str, ask: Ask) -> None:
    document = ask("--model", tiny_model, "--measure", "--device", "cpu", "--batch-size", "1,2", code=2)
    assert "one point" in document["error"]["message"]


def test_images_make_the_larger_of_tower_and_language_model(ask: Ask) -> None:
    question = ("--model", VISION, "--batch-size", "30", "--max-tokens", "2048")
    (plain,), (images,) = ask(*question)["rows"], ask(*question, "--images", "30")["rows"]
    assert plain["vision_bytes"] == 0
    assert images["vision_bytes"] == 30 * 7 * 256 * 2048 * 2  # their vectors; the tower ran before the language model
    (fewer,) = ask(*question, "--images", "30", "--max-input-tiles", "1")["rows"]
    assert fewer["vision_bytes"] < images["vision_bytes"]
    assert any("reads none" in note for note in ask("--images", "3")["notes"])


def test_products_in_fp8_halve_their_weights_and_a_note_says_so(ask: Ask) -> None:
    fp8, fp16 = (ask("--model", TEXT, "--precision", precision) for precision in ("fp8", "fp16"))
    for half, full in zip(fp8["rows"], fp16["rows"], strict=True):
        assert 0.6 < half["weights_bytes"] / full["weights_bytes"] < 0.61
        assert half["total_bytes"] < full["total_bytes"]
    assert any("held in FP8, rounded when they are loaded" in note for note in fp8["notes"])
    old = ask("--model", TEXT, "--precision", "fp8", "--gpu", "8.6:24GB")
    assert [row["weights_bytes"] for row in old["rows"]] == [row["weights_bytes"] for row in fp16["rows"]]
    assert any("held in 16 bits" in note for note in old["notes"])


def test_a_checkpoint_in_fp8_is_counted_as_it_is_held(ask: Ask) -> None:
    checkpoint = str(Path(__file__).parents[1] / "parity" / "nemotron-vl-embed-fp8-open" / "checkpoint")
    new, old = (ask("--model", checkpoint, "--gpu", gpu) for gpu in ("9.0:80GB", "8.0:80GB"))
    assert new["rows"][0]["weights_bytes"] < old["rows"][0]["weights_bytes"]
    assert any("as the checkpoint stores them" in note for note in new["notes"])


def test_nvidias_variables_are_heard_below_ours(monkeypatch: pytest.MonkeyPatch, ask: Ask) -> None:
    monkeypatch.setenv("NIM_ENGINE_PRECISION", "FP8")
    monkeypatch.setenv("NIM_ENGINE_COUNT", "3")
    document = ask("--batch-size", "1")
    assert document["precision"] == "fp8"
    assert document["rows"][0]["engine_count"] == 3
    monkeypatch.setenv("RERANK_PRECISION", "bf16")
    assert ask("--batch-size", "1", "--engine-count", "1")["precision"] == "bf16"


@pytest.mark.parametrize(("name", "begin"), [("memory.png", b"\x89PNG"), ("memory.html", b"<!doctype html>")])
def test_a_plot_needs_matplotlib_or_is_drawn(
    name: str, begin: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from importlib.util import find_spec

    picture = tmp_path / name
    code = main(["mem-estimate", "--model", TEXT, "--vram", "24GiB", "--plot", str(picture)])
    if find_spec("matplotlib") is None:
        assert code == 2
        assert "rerank-cli[plot]" in capsys.readouterr().err
    else:
        assert code == 0
        assert picture.read_bytes().startswith(begin)
        assert b"<script" not in picture.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--batch-size", "0"], 2, "--batch-size 0"),
        (["--batch-size", "1,,2"], 2, "whole numbers"),
        (["--max-tokens", "9" * 30], 2, "whole numbers"),
        (["--vram", "24"], 2, "not a size"),
        (["--vram", "0GiB"], 2, "not a size"),
        (["--gpu", "9.0"], 2, "memory is missing"),
        (["--gpu", "9.0:80GiB", "--device", "cpu"], 2, "contradict"),
        (["--solve", "engines"], 2, "--solve engines"),
        (["--compare", "vllm"], 2, "--compare vllm"),
        (["--precision", "fp4"], 2, "--precision fp4"),
        (["--plot", "memory.pdf"], 2, ".png"),
        (["--model", SMALL], 5, "does not tell the shape"),
        (["--model", TEXT, "--from-file", "samples/pairs.jsonl"], 5, "tokenizer"),
        (["--model", SMALL, "--measure", "--device", "cpu"], 5, "does not tell the shape"),
        (["--model", "./nowhere"], 5, "no such directory"),
        (["--from-file", "nowhere.jsonl"], 4, "nowhere.jsonl"),
    ],
)
def test_what_cannot_be_answered_is_said_with_its_exit_code(
    arguments: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mem-estimate", *arguments]) == code
    assert told in capsys.readouterr().err
