"""GPUs described by the user, numbered by CUDA_VISIBLE_DEVICES, and written to a document and back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.cuda import _parse_visible_devices, _transform_uuid_to_ordinals

from rerank_cli.errors import InputError, UsageError
from rerank_cli.machine.cpu import Cpu
from rerank_cli.machine.cuda_visible import VARIABLE, apply_visibility
from rerank_cli.machine.detect import Machine, describe_machine
from rerank_cli.machine.fixture import _FIELDS, load_machine_fixture, machine_from_json
from rerank_cli.machine.gpu import Gpu, GpuProcess, MigInstance, parse_gpu
from rerank_cli.machine.torch_build import TorchBuild
from tests.machine_document import machine_to_json


@pytest.mark.parametrize(
    ("text", "capability", "total_bytes", "name"),
    [
        ("9.0:80GiB:NVIDIA-H100-80GB-HBM3", (9, 0), 80 * 2**30, "NVIDIA-H100-80GB-HBM3"),
        ("9.0:80GB", (9, 0), 80 * 10**9, None),
        ("9.0:1.001GB", (9, 0), 1_001_000_000, None),
        ("8.9:22.5GiB", (8, 9), 24_159_191_040, None),
        ("12.0:97887MiB:NVIDIA RTX PRO 6000 Blackwell Server Edition", (12, 0), 97887 * 2**20, "x"),
        ("10.3:0.288TB:a:b", (10, 3), 288 * 10**9, "a:b"),
        (" 7.5 : 16 GB : Tesla T4 ", (7, 5), 16 * 10**9, "Tesla T4"),
        ("8.0:1TiB:", (8, 0), 2**40, None),
        ("8.0:85899345920B", (8, 0), 85899345920, None),
    ],
)
def test_a_described_gpu_is_empty_and_has_what_was_said(
    text: str, capability: tuple[int, int], total_bytes: int, name: str | None
) -> None:
    gpu = parse_gpu(text, index=3)
    assert (gpu.compute_capability, gpu.total_bytes, gpu.free_bytes) == (capability, total_bytes, total_bytes)
    assert gpu.name == ("NVIDIA RTX PRO 6000 Blackwell Server Edition" if name == "x" else name)
    assert (gpu.index, gpu.cuda_index, gpu.memory_source, gpu.reason) == (3, 3, "--gpu", None)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "compute capability"),
        ("90:80GiB", "compute capability"),
        ("9:80GiB", "compute capability"),
        ("sm_90:80GiB", "compute capability"),
        ("9.0", "memory is missing"),
        ("9.0:", "memory is missing"),
        ("9.0:80", "`80`"),
        ("9.0:80G", "`80G`"),
        ("9.0:80gib", "`80gib`"),
        ("9.0:-1GB", "`-1GB`"),
        ("9.0:nanGB", "`nanGB`"),
        ("9.0:1e9GB", "`1e9GB`"),
        ("9.0:0GB", "without memory"),
        ("9.0:NVIDIA-H100:80GiB", "`NVIDIA-H100`"),
        ("\u0669.\u0660:80GB", "compute capability"),
    ],
)
def test_a_description_that_is_not_clear_is_refused_with_an_example(text: str, wrong: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_gpu(text)
    assert caught.value.message.startswith(f"--gpu {text}: ") and wrong in caught.value.message
    assert "9.0:80GiB" in str(caught.value.hint)


def test_a_described_machine_numbers_its_gpus_and_keeps_this_cpu() -> None:
    machine = describe_machine(["9.0:80GiB:NVIDIA H100 NVL", "8.9:24GB"])
    assert [(device.cuda_index, device.sku) for device in machine.devices] == [(0, "NVIDIA-H100-NVL"), (1, None)]
    assert machine.cpu.cores >= 1
    assert (machine.torch, machine.driver, machine.warnings) == (None, None, ())


UUIDS = ["GPU-1a2b3c4d-0000-1111-2222-333344445555", "GPU-1a2b3c4e-0000-1111-2222-333344445555", "GPU-9f-x"]
ALIKE = [
    Gpu(index=index, name="NVIDIA L4", uuid=uuid, compute_capability=(8, 9), total_bytes=24 * 10**9)
    for index, uuid in enumerate(UUIDS)
]


def visible(setting: str | None, **more: str) -> list[int]:
    environment = more if setting is None else {VARIABLE: setting, **more}
    numbered = [gpu for gpu in apply_visibility(ALIKE, environment).gpus if gpu.cuda_index is not None]
    assert sorted(gpu.cuda_index or 0 for gpu in numbered) == list(range(len(numbered)))
    return [gpu.index for gpu in sorted(numbered, key=lambda gpu: gpu.cuda_index or 0)]


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("  ", []),
        ("-1", []),
        ("0,1,2", [0, 1, 2]),
        ("2,0", [2, 0]),
        (" 1 , 2 ", [1, 2]),
        ("+1", [1]),
        ("1gpu2,2ampere", [1, 2]),
        ("0,-1,1", [0]),
        ("0,7,1", [0]),
        ("7,0", []),
        ("0,x,1", [0]),
        ("0,,1", [0]),
        ("1,1", []),
        ("0,2,0", []),
        ("0,7,0", []),
        ("NoDevFiles", []),
        (UUIDS[1], [1]),
        (f"{UUIDS[2]},{UUIDS[0]}", [2, 0]),
        ("GPU-9", [2]),
        ("GPU-1a2b3c4e,GPU-9", [1, 2]),
        ("GPU-1a2b", []),
        ("GPU-9,GPU-1a2b", [2]),
        ("GPU-9,0", [2]),
        ("0,GPU-9", [0]),
        ("GPU-9,GPU-9", []),
        ("GPU-9,GPU-9f", []),
        ("GPU-9, GPU-1a2b3c4e", [2]),
        ("gpu-9", []),
        ("MIG-1", []),
    ],
)
def test_cuda_visible_devices_means_what_cuda_reads_in_it(setting: str | None, wanted: list[int]) -> None:
    assert visible(setting) == wanted


@given(
    st.lists(st.sampled_from([*"0123", "-1", "+2", " 1", "1x", "", "x", *UUIDS, "GPU-1", "GPU-9", "GPU-"]), max_size=4)
)
def test_the_reading_agrees_with_that_of_torch(entries: list[str]) -> None:
    setting = ",".join(entries)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, setting)
        parsed = _parse_visible_devices()
    if parsed and isinstance(parsed[0], str):
        ordinals = _transform_uuid_to_ordinals(parsed, UUIDS)
    else:
        known = [number < len(UUIDS) for number in parsed] + [False]
        ordinals = parsed[: known.index(False)]
    assert visible(setting) == ordinals


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        ("", "is empty"),
        ("0,7", "`7` is no GPU here"),
        ("GPU-1a2b", "`GPU-1a2b` is no GPU here"),
        ("1,1", "names `1` twice"),
        ("GPU-9,GPU-9f", "names GPU 2 twice"),
    ],
)
def test_what_cuda_ignores_silently_is_said(setting: str, wanted: str) -> None:
    found = apply_visibility(ALIKE, {VARIABLE: setting})
    (warning,) = found.warnings
    assert wanted in warning and f"{VARIABLE}={setting}" in warning
    hidden = [gpu for gpu in found.gpus if gpu.cuda_index is None]
    assert all(f"hidden by `{VARIABLE}={setting}`" == gpu.reason for gpu in hidden)
    assert found.certain


MIXED = [ALIKE[0], dataclasses.replace(ALIKE[1], name="NVIDIA H100 NVL", compute_capability=(9, 0))]
MORE_MEMORY = [ALIKE[0], dataclasses.replace(ALIKE[1], total_bytes=48 * 10**9)]
ONE_SICK = [dataclasses.replace(ALIKE[0], reason="lost"), *ALIKE[1:]]
LAST_SICK = [*ALIKE[:2], Gpu(index=2, reason="lost")]


@pytest.mark.parametrize(
    ("gpus", "environment", "certain"),
    [
        (ALIKE, {}, True),
        (ALIKE, {VARIABLE: "2"}, True),
        (MIXED, {}, False),
        (MIXED, {VARIABLE: "1"}, False),
        (MIXED, {VARIABLE: "1", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, False),
        (MIXED, {VARIABLE: "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, True),
        (MIXED, {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, True),
        (MIXED, {VARIABLE: "GPU-1a2b3c4e"}, True),
        (MIXED, {VARIABLE: ""}, True),
        (MIXED[:1], {}, True),
        (MORE_MEMORY, {VARIABLE: "0"}, False),
        (ONE_SICK, {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, False),
        (ONE_SICK, {VARIABLE: "GPU-9"}, True),
        (LAST_SICK, {}, True),
        ([], {VARIABLE: "0"}, True),
    ],
)
def test_numbers_are_certain_only_where_they_must_be_cudas(
    gpus: list[Gpu], environment: dict[str, str], certain: bool
) -> None:
    found = apply_visibility(gpus, environment)
    assert found.certain == certain
    assert certain or any("uncertain" in warning for warning in found.warnings)


FULL = Machine(
    cpu=Cpu("Grace", 72, frozenset({"bf16", "sve2"}), "aarch64", 500 * 10**9, 400 * 10**9),
    gpus=(
        Gpu(
            index=0,
            name="NVIDIA H100 80GB HBM3",
            uuid=UUIDS[0],
            pci_bus_id="00000000:18:00.0",
            compute_capability=(9, 0),
            total_bytes=80 * 2**30,
            free_bytes=70 * 2**30,
            memory_source="nvml",
            mig="enabled",
            mig_instances=(
                MigInstance(0, "MIG-1", "H100 MIG 1g.10gb", "1g.10gb", (9, 0), 10, 9, 7, 0, 0, None, ()),
                MigInstance(1, reason="lost", unread=(("name", "Unknown Error (nvmlDeviceGetName)"),)),
            ),
            ecc="enabled",
            throttling=("power cap",),
            processes=(GpuProcess(42, None), GpuProcess(43, 10**9)),
            virtualization="none",
            reason="MIG is enabled: work runs on its instances",
            warnings=("slowed down now: power brake",),
            unread=(("ecc", "Not Supported (nvmlDeviceGetEccMode)"),),
        ),
        Gpu(index=1, cuda_index=0),
    ),
    driver="580.95.05",
    cuda="13.0",
    reason=None,
    torch=TorchBuild("2.13.0+cu130", "cuda", "13.0"),
    cuda_visible_devices="MIG-1",
    order_certain=False,
    warnings=("a", "b"),
)


def test_a_machine_comes_back_from_its_document(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(machine_to_json(FULL), allow_nan=False), encoding="utf-8")
    assert load_machine_fixture(path) == FULL
    assert machine_to_json(FULL)["gpus"][0]["compute_capability"] == "9.0"


def test_three_lines_describe_a_machine() -> None:
    machine = machine_from_json(
        {"cpu": {"name": "x", "cores": 8, "flags": []}, "gpus": [{"index": 0, "cuda_index": 0, "total_bytes": 5}]}
    )
    assert machine.devices[0].total_bytes == 5
    assert machine.gpus[0].name is None


@pytest.mark.parametrize("kind", list(_FIELDS))
def test_every_field_of_a_machine_has_its_rule(kind: Any) -> None:
    assert set(_FIELDS[kind]) == {item.name for item in dataclasses.fields(kind)}


CPU = {"name": "x", "cores": 1, "flags": []}


@pytest.mark.parametrize(
    ("document", "wanted"),
    [
        ([], "f.json: a machine is a JSON object"),
        ({}, "f.json: missing `cpu`"),
        ({"schema": "rerank-cli/machine/9", "cpu": CPU}, "schema `rerank-cli/machine/9` is not known"),
        ({"cpu": CPU, "gpu": []}, "f.json: unknown key `gpu`"),
        ({"cpu": {**CPU, "cores": 0}}, "f.json.cpu.cores: a CPU has at least one core"),
        ({"cpu": {**CPU, "cores": True}}, "f.json.cpu.cores: a whole number"),
        ({"cpu": {**CPU, "flags": "avx2"}}, 'f.json.cpu.flags: a list is wanted, not `"avx2"`'),
        ({"cpu": CPU, "gpus": {}}, "f.json.gpus: a list is wanted"),
        ({"cpu": CPU, "gpus": [{}]}, "f.json.gpus[0]: missing `index`"),
        ({"cpu": CPU, "gpus": [{"index": 0}, 7]}, "f.json.gpus[1]: an object is wanted, not `7`"),
        ({"cpu": CPU, "gpus": [{"index": 0, "total_byte": 1}]}, "f.json.gpus[0]: unknown key `total_byte`"),
        ({"cpu": CPU, "gpus": [{"index": 0, "total_bytes": "80GiB"}]}, "f.json.gpus[0].total_bytes: a whole number"),
        ({"cpu": CPU, "gpus": [{"index": 0, "total_bytes": -1}]}, "f.json.gpus[0].total_bytes: a whole number"),
        ({"cpu": CPU, "gpus": [{"index": 0, "total_bytes": 1.5}]}, "f.json.gpus[0].total_bytes: a whole number"),
        ({"cpu": CPU, "gpus": [{"index": 0, "compute_capability": 9.0}]}, "f.json.gpus[0].compute_capability: "),
        ({"cpu": CPU, "gpus": [{"index": 0, "unread": []}]}, "f.json.gpus[0].unread: an object"),
        ({"cpu": CPU, "gpus": [{"index": 0, "mig_instances": [{"index": 0, "x": 1}]}]}, ".mig_instances[0]: unknown"),
        ({"cpu": CPU, "order_certain": 1}, "f.json.order_certain: true or false"),
        ({"cpu": CPU, "driver": 580}, "f.json.driver: a text is wanted, not `580`"),
    ],
)
def test_a_document_that_is_wrong_is_refused_by_place(document: Any, wanted: str) -> None:
    with pytest.raises(InputError) as caught:
        machine_from_json(document, "f.json")
    assert wanted in caught.value.message


@pytest.mark.parametrize(
    ("content", "wanted"),
    [(None, "No such file"), (b"{", "not JSON"), (b"\xff\xfe", "not UTF-8"), (b"[" * 100_000, "not JSON")],
)  # fmt: skip
def test_a_fixture_that_cannot_be_read_is_an_input_error(content: bytes | None, wanted: str, tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_machine_fixture(path)
    assert caught.value.message.startswith(f"{path}: ") and wanted in caught.value.message


@pytest.mark.parametrize("text", ["L4", "l4", "nvidia-l4", "NVIDIA L4", "RTX-4090", "rtx 4090", "H100", "A10G"])
def test_a_card_is_known_by_the_name_that_people_say(text: str) -> None:
    found = parse_gpu(text)
    assert found.name is not None
    assert text.casefold().replace("-", " ").removeprefix("nvidia ") in found.name.casefold()
    assert found.total_bytes
    assert found.compute_capability is not None
    assert found.compute_capability >= (8, 0)


def test_a_name_that_is_like_one_is_asked_back() -> None:
    with pytest.raises(UsageError, match="--gpu RTX-4091: no card of this name") as caught:
        parse_gpu("RTX-4091")
    assert "did you mean RTX-4090" in (caught.value.hint or "")
