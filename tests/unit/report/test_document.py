from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import rerank_cli
from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.evaluation.evaluator import Comparison, Evaluation
from rerank_cli.evaluation.significance import Significance
from rerank_cli.formats.jsonl import dump_document
from rerank_cli.machine.cpu import Cpu
from rerank_cli.machine.detect import Machine, describe_machine
from rerank_cli.machine.this_process import peak_rss_bytes
from rerank_cli.models import measure
from rerank_cli.models.int8_linear import int8_hindrance
from rerank_cli.planning.run_plan import Plan
from rerank_cli.records import Counts, Timing
from rerank_cli.report import document, utilisation
from rerank_cli.report.document import SCHEMA, build_report, evaluation_report, gpu_facts, memory_of, use_of_device
from rerank_cli.report.utilisation import forward_flops
from tests.conftest import TINY_CHECKPOINT

CPU = Cpu("a processor", 2, frozenset())
PLAN = Plan("cpu-fp32", "cpu", "cpu", "fp32", 512, 2048, 512, "runs", 2, ("no GPU",))


def report(counts: Counts, timing: Timing) -> dict[str, object]:
    return build_report(
        options={"inputs": ["in.jsonl"]},
        checkpoint=read_checkpoint(TINY_CHECKPOINT, name="tiny"),
        plan=PLAN,
        cpu=CPU,
        counts=counts,
        timing=timing,
        seconds=1.23456,
    )


def test_the_report_names_versions_model_plan_and_machine() -> None:
    document = report(Counts(rows_in=3), Timing())
    assert (document["schema"], document["version"]) == (SCHEMA, rerank_cli.__version__)
    assert document["options"] == {"inputs": ["in.jsonl"]}
    model = document["model"]
    assert isinstance(model, dict)
    assert (model["name"], model["path"]) == ("tiny", str(TINY_CHECKPOINT))
    assert (model["architecture"], len(model["sha256"])) == ("BertForSequenceClassification", 64)
    assert model["parameters"] > 100_000
    machine = document["machine"]
    assert isinstance(machine, dict)
    assert (machine["cpu"], machine["cores"]) == ("a processor", 2)
    assert {"platform", "python", "torch", "tokenizers", "safetensors", "numpy"} <= machine.keys()
    plan = document["plan"]
    assert isinstance(plan, dict)
    assert (plan["device"], plan["max_tokens"], plan["reasons"]) == ("cpu", 512, ("no GPU",))
    json.dumps(document, allow_nan=False)


def test_speed_is_over_the_wall_seconds_that_stand_beside_it() -> None:
    document = report(Counts(pairs=30, tokens=900), Timing(read=9.0, tokenise=1.00049, compute=1.5, write=0.1))
    speed, wall = document["speed"], document["seconds"]["wall"]
    assert speed == {
        "pairs_per_second": pytest.approx(30 / wall, rel=1e-3),
        "tokens_per_second": pytest.approx(900 / wall, rel=1e-3),
    }
    assert document["seconds"] == {
        "wall": 1.235,
        "load": 0.0,
        "wait": 0.0,
        "read": 9.0,
        "images": 0.0,
        "tokenise": 1.0,
        "compute": 1.5,
        "write": 0.1,
    }


def test_padding_is_told_where_it_was_counted() -> None:
    document = report(Counts(pairs=30, tokens=900, computed_tokens=1200), Timing(compute=1.5))
    assert document["speed"]["padding_share"] == 0.25


def test_a_run_without_pairs_has_no_speed() -> None:
    assert report(Counts(), Timing())["speed"] == {"pairs_per_second": 0.0, "tokens_per_second": 0.0}


def test_an_evaluation_stands_in_the_report_as_it_is() -> None:
    found = Comparison("nDCG@10", 0.5, 0.75, 0.25, 3, 1, 0, 0, Significance(0.125, 16, "exact"))
    document = evaluation_report(Evaluation((found,), 4, 1), None)["evaluation"]
    (metric,) = document.pop("metrics")
    assert document == {
        "queries": 4, "unjudged": 1, "repeated": 0, "given_order": "the order of the input",
        "met": None, "note": None, "problem": None, "repeated_passages": 0,
    }  # fmt: skip
    assert metric == {
        "metric": "nDCG@10", "given": 0.5, "reranked": 0.75, "difference": 0.25, "wins": 3, "losses": 1, "ties": 0,
        "undefined": 0,
        "significance": {"p_value": 0.125, "permutations": 16, "method": "exact", "seed": None},
    }  # fmt: skip


def test_the_use_of_a_device_is_operations_over_the_time_they_took() -> None:
    checkpoint, counts = read_checkpoint(TINY_CHECKPOINT, name="tiny"), Counts(tokens=10**6)
    flops = forward_flops(checkpoint, tokens=10**6, squares=10**8)
    found = use_of_device(checkpoint, PLAN, counts, Timing(compute=2.0), squares=10**8, alone=True)
    assert found == {"gflops": round(flops / 2e9, 1)}
    found = use_of_device(checkpoint, PLAN, counts, Timing(compute=40.0), squares=10**8, alone=True)
    assert found["utilisation"] == pytest.approx(flops / 40e9 / found["matrix_gflops"], abs=0.001)
    assert use_of_device(checkpoint, PLAN, Counts(), Timing(), squares=0, alone=True) == {}
    found = use_of_device(checkpoint, PLAN, counts, Timing(compute=40.0), squares=0, alone=False)
    assert found.keys() == {"gflops"}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_speed_of_a_product_is_known_in_each_precision_of_a_cpu(precision: str) -> None:
    if precision == "int8" and (hindrance := int8_hindrance()):
        pytest.skip(hindrance)
    counts, timing = Counts(tokens=10**6), Timing(compute=40.0)
    checkpoint = read_checkpoint(TINY_CHECKPOINT, name="tiny")
    plan = replace(PLAN, precision=precision)
    assert use_of_device(checkpoint, plan, counts, timing, squares=0, alone=True)["matrix_gflops"] > 0


def test_the_product_of_a_gpu_is_large_and_waited_for_every_tenth_time(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def product(precision: str, device: str, *, rows: int, inputs: int, outputs: int) -> Callable[[], None]:
        assert (precision, device, rows, inputs, outputs) == ("fp16", "cuda:0", 8192, 8192, 8192)
        return lambda: said.append("product")

    monkeypatch.setattr(measure, "layer_product", product)
    monkeypatch.setattr(utilisation, "_settle", lambda device: said.append("wait"))
    monkeypatch.setattr(utilisation, "_MEASURED_SECONDS", 0.0)
    speed = utilisation.matrix_speed(replace(PLAN, device="cuda:0", precision="fp16"))
    assert said == ["product", "wait", *["product"] * 10, "wait"]
    assert speed > 0


def test_a_gpu_without_room_for_the_product_has_no_utilisation(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(plan: Plan) -> float:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(document, "matrix_speed", full)
    checkpoint, counts = read_checkpoint(TINY_CHECKPOINT, name="tiny"), Counts(tokens=10**6)
    plan = replace(PLAN, device="cuda:0")
    assert use_of_device(checkpoint, plan, counts, Timing(compute=40.0), squares=0, alone=True).keys() == {"gflops"}


@pytest.mark.parametrize("needed", [None, 700])
def test_memory_is_told_beside_its_estimate_where_there_is_one(needed: int | None) -> None:
    found = memory_of(replace(PLAN, needed_bytes=needed), peak_rss=500)
    assert (found.get("estimated_bytes"), found["measured_bytes"]) == (needed, 500)


def test_the_gpus_of_a_machine_are_named() -> None:
    assert gpu_facts(Machine(CPU)) == {}
    found = gpu_facts(describe_machine(["9.0:80GiB:NVIDIA H100"]))
    assert found["gpus"] == [{"cuda_index": 0, "name": "NVIDIA H100", "total_bytes": 80 * 2**30}]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak in a second way")
def test_the_peak_of_memory_is_in_bytes() -> None:
    status = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines())
    assert peak_rss_bytes() == pytest.approx(1024 * int(status["VmHWM"].split()[0]), rel=0.05)


def test_a_document_is_written_for_people_and_programs() -> None:
    data = dump_document({"name": "é\udcff", "n": 1})
    assert data.decode() == '{\n  "name": "é\\udcff",\n  "n": 1\n}\n'
    assert json.loads(data) == {"name": "é\udcff", "n": 1}
