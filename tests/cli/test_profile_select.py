"""`rerank-cli profile-select` as a process: on every simulated machine, on described ones, and when it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rerank_cli.checkpoint import BUILTIN_MODEL
from rerank_cli.cli import main
from rerank_cli.cli.parsers import parse_count
from rerank_cli.machine.detect import describe_machine
from rerank_cli.machine.torch_build import TorchBuild
from tests.conftest import TINY_CHECKPOINT
from tests.machine_document import machine_to_json

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "samples"
FAKE = Path(__file__).parents[1] / "fake_nvml"
MACHINES = sorted(path.stem for path in (FAKE / "machines").glob("*.ini"))
ONE_B, VISION = "nvidia/llama-nemotron-rerank-1b-v2", "nvidia/llama-nemotron-rerank-vl-1b-v2"
SCHEMA = "rerank-cli/profile-select/1"
OWN = ("RERANK_", "NIM_", "CUDA_", "FAKE_NVML", "LD_")

CPU = ("cpu", [])
EXPECTED: dict[str, tuple[str, list[int]]] = {
    "1xH100": ("optimized", [0]),
    "2xH100": ("optimized", [0, 1]),
    "8xA100": ("optimized", list(range(8))),
    "A100-40GB": ("optimized", [0]),
    "A10G": ("optimized", [0]),
    "B200": ("optimized", [0]),
    "DGX-Spark": ("fallback", [0]),
    "H100-NVL": ("optimized", [0]),
    "H100-mig": ("fallback", [0]),
    "Jetson-Orin": ("fallback", [0]),
    "L4": ("optimized", [0]),
    "L40S": ("optimized", [0]),
    "RTX-5090": ("optimized", [0]),
    "RTX-PRO-6000": ("optimized", [0]),
    "T4": ("fallback", [0]),
    "driver-not-loaded": CPU,
    "gpu-lost": ("optimized", [0]),
    "hangs": CPU,
    "no-gpu": CPU,
    "no-permission": CPU,
    "old-driver": ("fallback", [0]),
    "unknown-error": CPU,
    "vGPU": ("optimized", [0]),
    "version-mismatch": CPU,
}


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the simulated libnvidia-ml.so.1."""
    if not shutil.which("make") or not shutil.which("cc"):
        pytest.skip("needs make and a C compiler to build the simulated NVIDIA driver")
    out = tmp_path_factory.mktemp("driver")
    subprocess.run(["make", "-C", FAKE, f"OUT={out}"], check=True, capture_output=True)
    return out


def environment(**settings: str) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(OWN)} | settings


def start(*arguments: str | bytes, **settings: str) -> subprocess.CompletedProcess[bytes]:
    """The command as a process of its own; the simulated hang is 30 s long, so 25 s tell whether it was waited for."""
    command: list[str | bytes] = [sys.executable, "-m", "rerank_cli", "profile-select", *arguments]
    return subprocess.run(command, capture_output=True, timeout=25, env=environment(**settings), check=False)


def on_machine(driver: Path, machine: str, *arguments: str, **settings: str) -> dict[str, Any]:
    ini = FAKE / "machines" / f"{machine}.ini"
    done = start(*arguments, LD_LIBRARY_PATH=str(driver), FAKE_NVML_MACHINE=str(ini), **settings)
    assert (done.returncode, done.stderr) == (0, b"")
    return checked(json.loads(done.stdout))


def checked(document: dict[str, Any]) -> dict[str, Any]:
    """A document of the published shape."""
    assert document["schema"] == SCHEMA
    assert {"driver", "gpus", "plan", "reasons", "rejected", "warnings"} <= set(document)
    for row in document["gpus"]:
        known = ("index", "uuid", "name", "compute_capability", "total_bytes", "free_bytes", "mig", "reason")
        assert set(known) <= set(row)
        gaps = [key for key in known if key not in ("mig", "reason") and row[key] is None]
        assert row["reason"] or not gaps or row["memory_source"] == "--gpu"
    plan = document["plan"]
    assert set(plan) >= {
        "profile", "kind", "precision", "max_tokens", "engine_count", "token_budget", "attention", "devices"
    }  # fmt: skip
    assert set(plan["devices"]) <= {row["index"] for row in document["gpus"]}
    assert document["reasons"]
    assert all(set(rejection) == {"profile", "reason"} and rejection["reason"] for rejection in document["rejected"])
    return document


@pytest.fixture
def select(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command within this process: its exit code, what it printed, and what it said."""
    for name in os.environ:
        if name.startswith(OWN):
            monkeypatch.delenv(name)

    def select(*arguments: str, variables: Mapping[str, str] | None = None) -> tuple[int, str, str]:
        with monkeypatch.context() as scope:
            for name, value in (variables or {}).items():
                scope.setenv(name, value)
            code = main(["profile-select", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return select


def document(answer: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = answer
    assert (code, err) == (0, "")
    return checked(json.loads(out))


# Machines.


def test_a_plan_is_written_down_for_every_machine_of_the_folder() -> None:
    assert set(EXPECTED) == set(MACHINES)


@pytest.mark.parametrize("machine", MACHINES)
def test_every_simulated_machine_gets_its_plan_or_its_reason(machine: str, driver: Path) -> None:
    answer = on_machine(driver, machine, "--model", ONE_B)
    plan, (kind, devices) = answer["plan"], EXPECTED[machine]
    assert (plan["kind"], plan["devices"]) == (kind, devices)
    assert plan["device"] == ("cuda:" + ",".join(map(str, range(len(devices)))) if devices else "cpu")
    assert plan["max_tokens"] == (4096 if kind == "fallback" else 8192)
    if kind == "cpu":
        assert any("driver" in reason for reason in answer["reasons"])
    else:
        assert answer["driver"]
        assert plan["precision"] == "fp16"
        assert any(f"`{plan['profile']}`" in reason for reason in answer["reasons"])


def test_without_a_driver_library_the_plan_is_for_the_cpu_and_says_why(tmp_path: Path) -> None:
    # A library that is none stands before any real one.
    (tmp_path / "libnvidia-ml.so.1").write_text("no library")
    done = start("--format", "json", LD_LIBRARY_PATH=str(tmp_path))
    answer = checked(json.loads(done.stdout))
    assert (done.returncode, answer["plan"]["kind"], answer["gpus"]) == (0, "cpu", [])
    assert any("libnvidia-ml.so.1" in reason for reason in answer["reasons"])


def test_the_vision_model_goes_by_sku(driver: Path) -> None:
    kinds = {
        name: on_machine(driver, name, "--model", VISION)["plan"]["kind"] for name in ("1xH100", "H100-NVL", "L40S")
    }
    assert kinds == {"1xH100": "optimized", "H100-NVL": "optimized", "L40S": "fallback"}


def test_a_hidden_gpu_is_listed_with_its_reason_and_the_other_is_called_cuda_0(driver: Path) -> None:
    answer = on_machine(driver, "2xH100", "--model", ONE_B, CUDA_VISIBLE_DEVICES="1")
    assert (answer["plan"]["devices"], answer["plan"]["device"]) == ([1], "cuda:0")
    assert "CUDA_VISIBLE_DEVICES" in answer["gpus"][0]["reason"]
    assert [row["cuda_index"] for row in answer["gpus"]] == [None, 0]


@pytest.mark.parametrize("value", ["", "-1", "0,0", "GPU-nothing", "9", "\N{SNOWMAN}"])
def test_an_environment_that_hides_all_gpus_gives_the_cpu_plan(value: str, driver: Path) -> None:
    answer = on_machine(driver, "2xH100", "--model", ONE_B, CUDA_VISIBLE_DEVICES=value)
    assert answer["plan"]["kind"] == "cpu"
    assert any("CUDA_VISIBLE_DEVICES" in text for text in answer["warnings"])


def test_nothing_heavy_is_imported_for_the_json(driver: Path) -> None:
    heavy = ["torch", "transformers", "numpy", "pandas", "pyarrow", "rich", "tokenizers", "pydantic", "pynvml"]
    program = (
        "import sys; from rerank_cli.cli import main\n"
        f"for arguments in (['--format', 'json'], ['--model', '{ONE_B}', '--env']):\n"
        "    assert main(['profile-select', *arguments]) == 0\n"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    ini = FAKE / "machines" / "no-gpu.ini"
    settings = environment(LD_LIBRARY_PATH=str(driver), FAKE_NVML_MACHINE=str(ini))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=settings, check=True)
    assert done.stderr == "[]\n"


# Descriptions of machines.


def test_equal_gpus_are_one_group_and_a_mixed_machine_takes_the_larger(select: Any) -> None:
    described = ["--gpu", "8.9:24GB:NVIDIA-L4", "--gpu", "9.0:80GB:NVIDIA-H100", "--gpu", "8.9:24GB:NVIDIA-L4"]
    answer = document(select("--model", ONE_B, *described))
    assert answer["plan"]["devices"] == [0, 2]
    assert any("GPU 1" in rejection["reason"] for rejection in answer["rejected"])
    assert [row["memory_source"] for row in answer["gpus"]] == ["--gpu"] * 3


def test_performance_adds_an_engine_from_80_gb_on(select: Any) -> None:
    plans = [
        document(select("--model", ONE_B, "--performance", "--gpu", f"9.0:{size}"))["plan"] for size in ("80GB", "79GB")
    ]
    assert [plan["engine_count"] for plan in plans] == [2, 1]


def test_a_machine_from_a_file_gives_the_plan_of_that_machine(tmp_path: Path, select: Any) -> None:
    short = tmp_path / "machine.json"
    short.write_text(
        '{"cpu": {"name": "a CPU", "cores": 8, "flags": [], "architecture": "x86_64"}, "driver": "580.1",\n'
        ' "gpus": [{"index": 0, "name": "NVIDIA L4", "uuid": "GPU-1", "compute_capability": "8.9",'
        ' "total_bytes": 24000000000, "free_bytes": 24000000000}]}'
    )
    answer = document(select("--model", ONE_B, "--fixture", str(short)))
    assert (answer["driver"], answer["plan"]["device"], answer["plan"]["kind"]) == ("580.1", "cuda:0", "optimized")


def test_a_checkpoint_without_a_profile_file_gets_the_generic_profile(tiny_model: str, select: Any) -> None:
    on_gpu = document(select("--model", tiny_model, "--gpu", "8.0:24GB:GPU"))["plan"]
    on_cpu = document(select("--model", tiny_model, "--gpu", "8.0:24GB:GPU", "--device", "cpu"))["plan"]
    assert (on_gpu["kind"], on_gpu["precision"], on_gpu["max_tokens"]) == ("generic", "fp16", 512)
    assert (on_cpu["kind"], on_cpu["precision"], on_cpu["max_tokens"]) == ("cpu", "fp32", 512)


# What decides.


@pytest.mark.parametrize(
    ("arguments", "variables", "precision", "decided"),
    [
        ([], {}, "fp16", "policy nim-2x"),
        (["--policy", "nim-1x"], {}, "fp8", "policy nim-1x"),
        (["--precision", "fp8"], {}, "fp8", "--precision"),
        ([], {"RERANK_PRECISION": "fp8"}, "fp8", "RERANK_PRECISION"),
        ([], {"NIM_PRECISION": "FP8"}, "fp8", "NIM_PRECISION"),
        ([], {"NIM_ENGINE_PRECISION": "fp8"}, "fp8", "NIM_ENGINE_PRECISION"),
        ([], {"NIM_ENGINE_PRECISION": "fp8", "NIM_PRECISION": "fp16"}, "fp16", "NIM_PRECISION"),
        ([], {"NIM_PRECISION": "fp8", "RERANK_PRECISION": "fp16"}, "fp16", "RERANK_PRECISION"),
        (["--precision", "auto"], {"NIM_PRECISION": "fp8"}, "fp16", "policy nim-2x"),
        (["--precision", "fp16"], {"RERANK_PRECISION": "fp8", "NIM_PRECISION": "fp8"}, "fp16", "--precision"),
        (["--require", "fp8"], {}, "fp8", "--require"),
    ],
)
def test_a_flag_comes_before_our_variable_and_that_before_nvidias(
    arguments: Sequence[str], variables: Mapping[str, str], precision: str, decided: str, select: Any
) -> None:
    answer = document(select("--model", ONE_B, "--gpu", "9.0:80GB:H100", *arguments, variables=variables))
    assert answer["plan"]["precision"] == precision
    assert any(f"{precision} by {decided}" in reason for reason in answer["reasons"])
    lost = [name for name in variables if name.startswith("NIM_") and name != decided]
    assert [
        name for name in lost if any(f"{name}=" in reason and "not used" in reason for reason in answer["reasons"])
    ] == lost


@pytest.mark.parametrize(
    ("arguments", "variables", "engines", "decided"),
    [
        ([], {"NIM_ENGINE_COUNT": "3"}, 3, "engines 3: NIM_ENGINE_COUNT"),
        ([], {"NIM_ENGINE_COUNT": "3", "RERANK_ENGINES": "2"}, 2, "engines 2: RERANK_ENGINES"),
        (["--engines", "4"], {"NIM_ENGINE_COUNT": "3", "RERANK_ENGINES": "2"}, 4, "engines 4: --engines"),
    ],
)
def test_the_number_of_engines_has_the_same_order(
    arguments: Sequence[str], variables: Mapping[str, str], engines: int, decided: str, select: Any
) -> None:
    answer = document(select("--model", ONE_B, "--gpu", "9.0:80GB:H100", *arguments, variables=variables))
    assert answer["plan"]["engine_count"] == engines
    assert decided in answer["reasons"]


def test_limits_and_profile_are_asked_for_by_option(select: Any) -> None:
    asked = ["--max-tokens", "1024", "--token-budget", "4096", "--profile", "fallback-fp16"]
    plan = document(select("--model", ONE_B, "--gpu", "9.0:80GB:H100", *asked))["plan"]
    assert (plan["max_tokens"], plan["token_budget"], plan["profile"]) == (1024, 4096, "fallback-fp16")


def test_a_precision_that_is_not_there_is_a_warning_unless_it_is_required(select: Any) -> None:
    on_a100 = ("--model", ONE_B, "--gpu", "8.0:80GB:A100", "--precision", "fp8")
    answer = document(select(*on_a100))
    assert (answer["plan"]["precision"], len(answer["warnings"])) == ("fp16", 1)
    code, out, err = select(*on_a100, "--require", "fp8")
    assert code == 6
    assert err.startswith("error: --require fp8")
    assert json.loads(out)["error"]["exit_code"] == 6


# Refusals.


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "said"),
    [
        (["--model", "/nowhere"], {}, 5, "/nowhere: no such directory"),
        (["--gpu", "9.0"], {}, 2, "the memory is missing"),
        (["--gpu", "9.0:80GB", "--fixture", "x.json"], {}, 2, "--gpu and --fixture"),
        (["--fixture", "/nowhere.json"], {}, 4, "/nowhere.json"),
        (["--gpu", "9.0:80GB", "--precision", "fp4"], {}, 2, "--precision fp4: not known"),
        (["--gpu", "9.0:80GB"], {"RERANK_PRECISION": "fp4"}, 2, "RERANK_PRECISION fp4: not known"),
        (["--gpu", "9.0:80GB"], {"NIM_PRECISION": "fp4"}, 2, "NIM_PRECISION fp4: not known"),
        (["--gpu", "9.0:80GB"], {"NIM_ENGINE_COUNT": "many"}, 2, "NIM_ENGINE_COUNT many"),
        (["--gpu", "9.0:80GB", "--device", "cuda:1"], {}, 6, "CUDA shows 1 device"),
        (["--gpu", "9.0:80GB", "--device", "cuda:x"], {}, 2, "cuda:0,1"),
        (["--gpu", "9.0:80GB", "--device", "tpu"], {}, 2, "--device tpu"),
        (["--gpu", "9.0:80GB", "--policy", "nim-3x"], {}, 2, "nim-1x"),
        (["--gpu", "9.0:80GB", "--profile", "optimised"], {}, 2, "generic-fp16"),
        (["--gpu", "9.0:80GB", "--profile", "/nowhere.toml"], {}, 2, "/nowhere.toml"),
        (["--gpu", "9.0:80GB", "--model", ONE_B, "--max-tokens", "9000"], {}, 2, "at most 8192"),
        (["--gpu", "7.5:1GB:T4", "--model", ONE_B], {}, 6, "it needs 3.6 GB"),
        (["--gpu", "9.0:80GB", "--env", "--list"], {}, 2, "--env and --list"),
    ],
)
def test_a_refusal_is_a_document_too(
    arguments: Sequence[str], variables: Mapping[str, str], code: int, said: str, select: Any
) -> None:
    got, out, err = select(*arguments, variables=variables)
    assert got == code
    assert err.startswith("error: ")
    assert said in err
    if "--env" in arguments:
        assert out == ""
        return
    answer = json.loads(out)
    assert (answer["schema"], answer["plan"], answer["error"]["exit_code"]) == (SCHEMA, None, code)
    assert answer["error"]["message"] in err


@pytest.mark.parametrize(("option", "value"), [("--engines", "x"), ("--engines", "0"), ("--max-tokens", "7")])
def test_a_number_that_is_none_is_refused(option: str, value: str, select: Any) -> None:
    code, out, err = select(option, value)
    assert code == 2
    assert option in err
    answer = json.loads(out)
    assert (answer["schema"], answer["plan"], answer["error"]["exit_code"]) == (SCHEMA, None, code)


# Ways to print.


def test_env_is_read_by_a_shell_and_leads_to_the_same_plan(tiny_model: str, tmp_path: Path) -> None:
    folder = tmp_path / "a b'$(touch oops)"
    folder.symlink_to(tiny_model)
    command = f"{sys.executable} -m rerank_cli profile-select --gpu 8.9:24GB:L4"
    script = f'set -eu; lines=$({command} --env --token-budget 1000); eval "$lines"; cd /; {command} --explain'
    settings = environment(RERANK_MODEL=folder.name)
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=settings, capture_output=True, text=True, check=True
    )
    answer = checked(json.loads(done.stdout))
    assert answer["model"]["name"] == str(folder)
    assert (answer["plan"]["token_budget"], answer["plan"]["device"]) == (1000, "cuda:0")
    assert "token budget 1000: RERANK_TOKEN_BUDGET" in answer["reasons"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name]


@pytest.mark.skipif(torch.version.cuda is not None, reason="needs a torch that cannot use a GPU")
@pytest.mark.parametrize(
    ("machine", "model"),
    [
        ("L4", []),
        ("8xA100", ["--model", str(TINY_CHECKPOINT)]),
        ("H100-mig", ["--model", str(TINY_CHECKPOINT)]),
        ("no-gpu", []),
    ],
)
def test_what_env_exports_runs_in_the_same_shell(driver: Path, machine: str, model: list[str], tmp_path: Path) -> None:
    """README's own line, where torch is for a CPU: with GPUs that it cannot use, and without any."""
    program = f"{sys.executable} -m rerank_cli"
    script = (
        f'set -eu; lines=$({program} profile-select --env "$@"); eval "$lines"; '
        f"{program} rerank-file {SAMPLES / 'python-docs.jsonl'} -o out.jsonl --limit 2"
    )
    settings = environment(
        LD_LIBRARY_PATH=str(driver), FAKE_NVML_MACHINE=str(FAKE / "machines" / f"{machine}.ini"), PYTHONPATH=str(ROOT)
    )
    done = subprocess.run(
        ["sh", "-c", script, "sh", *model], cwd=tmp_path, env=settings, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert len((tmp_path / "out.jsonl").read_text("utf-8").splitlines()) == 2
    report = json.loads((tmp_path / "out.jsonl.report.json").read_text("utf-8"))
    assert report["plan"]["device"] == "cpu"
    assert report["model"]["name"] == (str(TINY_CHECKPOINT) if model else BUILTIN_MODEL)


def test_list_has_every_profile_and_one_is_chosen(select: Any) -> None:
    rows = document(select("--model", ONE_B, "--gpu", "9.0:80GB:H100", "--list"))["profiles"]
    assert [row["name"] for row in rows if row["chosen"]] == ["optimized-fp16"]
    assert {"optimized-fp8", "fallback-fp16"} <= {row["name"] for row in rows}
    assert "profiles" not in document(select("--model", ONE_B, "--gpu", "9.0:80GB:H100"))


def test_the_text_has_machine_and_plan_and_on_request_the_reasons(select: Any) -> None:
    asked = ("--model", ONE_B, "--gpu", "9.0:80GB:H100", "--gpu", "9.0:80GB:H100", "--format", "text")
    code, short, err = select(*asked)
    assert (code, err) == (0, "")
    lines = ["GPUs 0, 1     H100, 9.0, 74.5 of 74.5 GiB free", "engines       1 on each device"]
    for line in (f"model         {ONE_B}", "profile       optimized-fp16", "device        cuda:0,1", *lines):
        assert line in short.splitlines()
    assert "reasons" not in short
    long = select(*asked, "--explain")[1]
    plan, _, last = short.rpartition("\nnext: ")
    assert long.startswith(plan)
    assert last == f"rerank-cli rerank-file YOUR-FILE.jsonl -o OUT.jsonl --model {ONE_B}\n"
    assert long.endswith(last)
    assert "token budget: the tokens that one batch may hold" in long
    assert "varlen: pairs of different lengths" in long
    assert "rejected\n  optimized-fp8" in long
    listed = select(*asked, "--list")[1]
    assert "* optimized-fp16" in listed
    assert "  optimized-fp8" in listed


def test_the_text_says_warnings_and_errors_beside_the_data(select: Any) -> None:
    code, out, err = select("--model", ONE_B, "--gpu", "8.0:80GB:A100", "--precision", "fp8", "--format", "text")
    assert (code, "warning" in out) == (0, False)
    assert err.startswith("warning: ")
    code, out, err = select("--model", ONE_B, "--gpu", "8.0:1GB:A100", "--require", "fp8", "--format", "text")
    assert (code, "profile " in out) == (6, False)
    assert "A100" in out and "error: --require fp8" in err


def test_control_bytes_of_a_name_do_not_reach_the_terminal(select: Any) -> None:
    name = "evil\x1b]0;owned\x07 \u202ename"
    for how in ("text", "json"):
        out = select("--gpu", f"9.0:80GB:{name}", "--format", how, "--explain")[1]
        assert "\x1b" not in out
    assert "\u202e" not in select("--gpu", f"9.0:80GB:{name}", "--format", "text")[1]


def test_a_name_that_is_no_text_gives_a_document() -> None:
    done = start("--gpu", b"9.0:80GB:\xff\xfe", "--format", "json")
    assert (done.returncode, done.stderr) == (0, b"")
    assert checked(json.loads(done.stdout.decode("utf-8", "strict")))["gpus"][0]["name"]


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = [sys.executable, "-m", "rerank_cli", "profile-select", "--gpu", "9.0:80GB"]
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, env=environment(), check=False)
    assert (done.returncode, done.stderr) == (141, b"")


def test_env_exports_what_runs_here_and_not_what_another_torch_could(select: Any, tmp_path: Path) -> None:
    fixture = tmp_path / "machine.json"
    machine = replace(describe_machine(["L4"]), driver="570.86", torch=TorchBuild("2.13.0+cpu", "cpu"))
    fixture.write_text(json.dumps(machine_to_json(machine)))
    asked = ("--model", ONE_B, "--fixture", str(fixture))
    code, out, err = select(*asked, "--env")
    assert (code, "export RERANK_DEVICE=cpu" in out) == (0, True), (out, err)
    assert json.loads(select(*asked, "--format", "json")[1])["plan"]["devices"] == [0]


def test_cards_are_known_by_name_and_compared(select: Any) -> None:
    code, out, _ = select("--model", ONE_B, "--gpu", "all", "--format", "json")
    cards = {card["name"]: card for card in json.loads(out)["cards"]}
    assert code == 0
    assert cards["H100"]["fits"]
    assert cards["H100"]["profile"] == "optimized-fp16"
    assert cards["T4"]["max_tokens"] < cards["L4"]["max_tokens"]
    assert "RTX-4090" in select("--model", ONE_B, "--gpu", "all", "--format", "text")[1]


@pytest.mark.parametrize(
    ("text", "number"), [("10M", 10**7), ("1e7", 10**7), ("10,000,000", 10**7), ("1.5k", 1500), ("2B", 2 * 10**9)]
)
def test_pairs_are_counted_as_people_write_them(text: str, number: int) -> None:
    assert parse_count(text) == number


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "10MM", "1e99", "", "٣"])
def test_what_is_no_number_of_pairs_is_refused_with_one_that_is(text: str, select: Any) -> None:
    code, _, err = select("--gpu", "all", f"--pairs={text}")
    assert code == 2
    assert "not a whole number above 0" in err
    assert "10M" in err
