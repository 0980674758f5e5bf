"""The real nvidia-ml-py against the simulated driver of tests/fake_nvml: every machine, and machines made up here."""

from __future__ import annotations

import configparser
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rerank_cli.machine import nvml_child as nvml
from rerank_cli.machine.detect import Machine, detect_machine
from rerank_cli.machine.fixture import machine_from_json
from rerank_cli.machine.gpu import Gpu
from rerank_cli.machine.nvml_driver import library_is_absent
from tests.machine_document import machine_to_json

FAKE = Path(__file__).parents[2] / "fake_nvml"
MACHINES = sorted(path.stem for path in (FAKE / "machines").glob("*.ini"))
MIB = 2**20
PATIENT = 60.0  # seconds: a slow test machine must not look like a hanging driver
H100 = (
    "name = NVIDIA H100 80GB HBM3\ncompute_capability = 9.0\nmemory_total_mib = 81559\nmig = disabled\necc = enabled\n"
)
L4 = "name = NVIDIA L4\ncompute_capability = 8.9\nmemory_total_mib = 23034\n"
MIG_H100 = H100.replace("disabled", "enabled")
Detect = Callable[..., Machine]


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the simulated libnvidia-ml.so.1."""
    if not shutil.which("make") or not shutil.which("cc"):
        pytest.skip("needs make and a C compiler to build the simulated NVIDIA driver")
    out = tmp_path_factory.mktemp("driver")
    subprocess.run(["make", "-C", FAKE, f"OUT={out}"], check=True, capture_output=True)
    return out


@pytest.fixture
def detect(driver: Path, tmp_path: Path) -> Detect:
    """Detects the machine of an INI text, or the named one of the folder, in an environment with these settings."""

    def detect(machine: str | bytes, timeout_seconds: float = PATIENT, **settings: str) -> Machine:
        ini = FAKE / "machines" / f"{machine}.ini" if machine in MACHINES else tmp_path / "machine.ini"
        if machine not in MACHINES:
            ini.write_bytes(machine if isinstance(machine, bytes) else machine.encode())
        return detect_machine(timeout_seconds=timeout_seconds, environment=environment(driver, ini, **settings))

    return detect


def environment(driver: Path | None, ini: Path | None = None, **settings: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("CUDA_", "FAKE_NVML", "LD_"))}
    if driver:
        kept["LD_LIBRARY_PATH"] = str(driver)
    if ini:
        kept["FAKE_NVML_MACHINE"] = str(ini)
    return kept | settings


def described(machine: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The [system] and the [gpu N] sections of a machine's INI file."""
    ini = configparser.ConfigParser(delimiters="=")
    ini.optionxform = str
    ini.read(FAKE / "machines" / f"{machine}.ini")
    system = dict(ini["system"]) if ini.has_section("system") else {}
    return system, [dict(ini[section]) for section in ini.sections() if section.startswith("gpu ")]


def why(gpu: Gpu, field: str) -> str:
    return dict(gpu.unread)[field]


def without_torch(machine: Machine) -> list[str]:
    return [warning for warning in machine.warnings if "torch" not in warning]


def test_the_folder_has_the_machines_that_are_promised() -> None:
    assert len(MACHINES) == 24


@pytest.mark.parametrize("name", [name for name in MACHINES if name != "hangs"])
def test_every_simulated_machine_is_reported_as_its_file_describes_it(name: str, detect: Detect) -> None:
    system, sections = described(name)
    machine = detect(name)
    document = json.loads(json.dumps(machine_to_json(machine), allow_nan=False))
    assert machine_from_json(document) == machine
    if "init_error" in system:
        assert machine.gpus == () and machine.reason
        return
    assert machine.driver == system["driver_version"]
    assert machine.cuda == system.get("cuda_version", "13.0")
    assert [gpu.index for gpu in machine.gpus] == list(range(len(sections)))
    assert (machine.reason is None) == bool(sections)
    for gpu, section in zip(machine.gpus, sections, strict=True):
        if "handle_error" in section or "error" in section:
            assert gpu.reason and gpu.cuda_index is None
            continue
        assert gpu.name == section["name"]
        assert gpu.sku == section["name"].replace(" ", "-")
        capability = section.get("compute_capability")
        assert gpu.compute_capability == (tuple(map(int, capability.split("."))) if capability else None)
        if "memory_total_mib" in section:
            reserved, used = (int(section.get(f"memory_{key}_mib", 0)) for key in ("reserved", "used"))
            assert gpu.memory_source == "nvml"
            assert gpu.total_bytes == int(section["memory_total_mib"]) * MIB
            assert gpu.free_bytes == gpu.total_bytes - (reserved + used) * MIB
        mode = section.get("mig", "unsupported")
        assert gpu.mig == (None if mode == "unsupported" else mode)
        assert gpu.ecc == section.get("ecc")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("driver-not-loaded", "modprobe nvidia"),
        ("version-mismatch", "reboot"),
        ("no-permission", "/dev/nvidia"),
        ("unknown-error", "unknown error"),
        ("no-gpu", "sees no GPU"),
    ],
)
def test_a_driver_that_shows_nothing_is_explained_with_a_remedy(name: str, wanted: str, detect: Detect) -> None:
    machine = detect(name)
    assert machine.reason is not None and wanted in machine.reason
    assert machine.devices == () and machine.warnings == ()


def test_a_machine_without_a_driver_library_says_so() -> None:
    machine = detect_machine(timeout_seconds=PATIENT, environment=environment(None))
    assert machine.reason is not None and "libnvidia-ml.so.1" in machine.reason
    assert (machine.gpus, machine.driver, machine.warnings) == ((), None, ())


def test_a_driver_library_that_is_no_library_says_so(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("not ELF")
    machine = detect_machine(timeout_seconds=PATIENT, environment=environment(tmp_path))
    assert machine.reason is not None and "libnvidia-ml.so.1" in machine.reason


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("abort();", "crashed (Aborted)"),
        ("_exit(3);", "exit status 3"),
        ('printf("hello"); fflush(stdout); return 9;', "modprobe"),
    ],
)
def test_a_library_that_crashes_or_prints_costs_an_answer_and_no_traceback(
    body: str, wanted: str, driver: Path, tmp_path: Path
) -> None:
    source = tmp_path / "bad.c"
    source.write_text(
        f"#include <stdio.h>\n#include <stdlib.h>\n#include <unistd.h>\n"
        f"int nvmlInitWithFlags(unsigned f) {{ (void)f; {body} }}\n"
        'const char *nvmlErrorString(int code) { (void)code; return "?"; }\n'
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "libnvidia-ml.so.1", source], check=True)
    machine = detect_machine(timeout_seconds=PATIENT, environment=environment(tmp_path))
    assert machine.reason is not None and wanted in machine.reason
    assert machine.gpus == ()


def children() -> set[str]:
    """The processes that this one has started and that were not reaped."""
    tasks = Path("/proc/self/task").iterdir()
    return {child for task in tasks for child in (task / "children").read_text().split()}


def test_a_driver_that_hangs_at_the_start_is_given_up_and_leaves_no_child(detect: Detect) -> None:
    others = children()
    machine = detect("hangs", timeout_seconds=1.0)
    assert machine.reason is not None
    assert "does not answer within 1 s (nvmlInit)" in machine.reason and "persistenced" in machine.reason
    assert children() <= others  # the child was killed and reaped


def test_what_a_driver_said_before_it_hung_is_kept(detect: Detect) -> None:
    # Every GPU is asked for itself: with one after the other, the second would have no name here.
    machine = detect(f"[gpu 0]\n{H100}[gpu 1]\n{L4}[hang]\nnvmlDeviceGetMemoryInfo = 30\n", timeout_seconds=1.2)
    assert [gpu.name for gpu in machine.gpus] == ["NVIDIA H100 80GB HBM3", "NVIDIA L4"]
    assert [gpu.compute_capability for gpu in machine.gpus] == [(9, 0), (8, 9)]
    for gpu in machine.gpus:
        assert gpu.total_bytes is None and gpu.cuda_index is None
        assert gpu.reason is not None and "nvmlDeviceGetMemoryInfo" in gpu.reason
        assert "does not answer" in why(gpu, "memory")
    assert machine.devices == ()
    assert any("does not answer" in warning and "GPU 1" in warning for warning in machine.warnings)


def test_a_hang_in_what_only_informs_leaves_the_gpu_usable(detect: Detect) -> None:
    hang = "[hang]\nnvmlDeviceGetEccMode = 30\nnvmlSystemGetDriverVersion = 30\n"
    machine = detect(f"[gpu 0]\n{H100}{hang}", timeout_seconds=1.2)
    (device,) = machine.devices
    (gpu,) = machine.gpus
    assert device.total_bytes == 81559 * MIB and gpu.reason is None
    assert "nvmlDeviceGetEccMode" in why(gpu, "ecc")
    assert machine.driver is None
    (warning,) = [warning for warning in machine.warnings if "does not answer" in warning]
    assert "GPU 0 (nvmlDeviceGetEccMode), the driver (nvmlSystemGetDriverVersion)" in warning


def test_a_lost_gpu_does_not_hide_the_others(detect: Detect) -> None:
    machine = detect("gpu-lost")
    assert [gpu.reason for gpu in machine.gpus] == [
        None,
        "GPU is lost (nvmlDeviceGetHandleByIndex)",
        "GPU is lost (nvmlDeviceGetName)",
    ]
    assert [device.cuda_index for device in machine.devices] == [0]
    assert machine.order_certain
    assert why(machine.gpus[1], "memory") == "GPU is lost (nvmlDeviceGetHandleByIndex)"


def test_numbers_after_a_lost_gpu_are_uncertain(detect: Detect) -> None:
    machine = detect(f"[gpu 0]\nhandle_error = UNKNOWN\n[gpu 1]\n{H100}[gpu 2]\n{H100}", CUDA_DEVICE_ORDER="PCI_BUS_ID")
    assert [device.index for device in machine.devices] == [1, 2]
    assert not machine.order_certain
    assert any("does not work" in warning for warning in machine.warnings)


def test_a_gpu_that_is_lost_while_it_is_asked_is_not_used(detect: Detect) -> None:
    machine = detect(f"[gpu 0]\n{H100}error.nvmlDeviceGetEccMode = GPU_IS_LOST\n")
    assert machine.gpus[0].name == "NVIDIA H100 80GB HBM3"
    assert machine.gpus[0].reason == "GPU is lost (nvmlDeviceGetEccMode)"
    assert machine.devices == ()


def test_one_unreadable_field_costs_only_itself(detect: Detect) -> None:
    failing = {
        "nvmlDeviceGetUUID": "UNKNOWN",
        "nvmlDeviceGetPciInfo_v3": "NO_DATA",
        "nvmlDeviceGetTotalEccErrors": "777",
    }
    machine = detect(f"[gpu 0]\n{H100}" + "".join(f"error.{name} = {error}\n" for name, error in failing.items()))
    gpu = machine.gpus[0]
    assert (gpu.uuid, gpu.pci_bus_id) == (None, None)
    assert why(gpu, "uuid") == "Unknown Error (nvmlDeviceGetUUID)"
    assert "nvmlDeviceGetPciInfo" in why(gpu, "pci_bus_id")
    assert "nvmlDeviceGetTotalEccErrors" in why(gpu, "ecc_errors")
    assert "remapped_rows" not in dict(gpu.unread)  # not supported, which is no news
    assert (gpu.reason, gpu.cuda_index, gpu.total_bytes) == (None, 0, 81559 * MIB)


@pytest.mark.parametrize("seed", range(6))
def test_any_mixture_of_errors_gives_valid_json_and_a_reason_for_every_gap(seed: int, detect: Detect) -> None:
    chance = random.Random(seed)
    functions = [
        "nvmlDeviceGetName", "nvmlDeviceGetUUID", "nvmlDeviceGetCudaComputeCapability", "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetMigMode", "nvmlDeviceGetPciInfo_v3", "nvmlDeviceGetVirtualizationMode", "nvmlDeviceGetEccMode",
        "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetComputeRunningProcesses_v3",
    ]  # fmt: skip
    errors = ["NOT_SUPPORTED", "NO_PERMISSION", "UNKNOWN", "FUNCTION_NOT_FOUND", "NO_DATA", "777", "IN_USE"]
    text, broken = "", []
    for index in range(6):
        failing = chance.sample(functions, chance.randint(0, len(functions)))
        broken.append(set(failing))
        lines = [f"error.{function} = {chance.choice(errors)}" for function in failing]
        text += f"[gpu {index}]\n{H100}virtualization_mode = 0\n" + "\n".join(lines) + "\n"
    machine = detect(text)
    assert machine_from_json(json.loads(json.dumps(machine_to_json(machine)))) == machine
    for gpu, failing in zip(machine.gpus, broken, strict=True):
        assert gpu.name == (None if "nvmlDeviceGetName" in failing else "NVIDIA H100 80GB HBM3")
        assert gpu.total_bytes == (None if "nvmlDeviceGetMemoryInfo" in failing else 81559 * MIB)
        gaps = {
            "name": gpu.name, "uuid": gpu.uuid, "compute_capability": gpu.compute_capability, "ecc": gpu.ecc,
            "memory": gpu.total_bytes, "mig": gpu.mig, "virtualization": gpu.virtualization,
            "pci_bus_id": gpu.pci_bus_id,
        }  # fmt: skip
        assert {field for field, value in gaps.items() if value is None} <= set(dict(gpu.unread))


def test_a_gpu_count_that_fails_is_the_reason(detect: Detect) -> None:
    machine = detect(f"[system]\nerror.nvmlDeviceGetCount_v2 = NO_PERMISSION\n[gpu 0]\n{L4}")
    assert machine.gpus == ()
    assert machine.reason is not None and "Insufficient Permissions (nvmlDeviceGetCount)" in machine.reason


UNKNOWN_MEMORY = ("", "memory_total_mib = 0\n", "error.nvmlDeviceGetMemoryInfo = FUNCTION_NOT_FOUND\n")


def gpus_of(cards: list[tuple[str, str]], lines: tuple[str, ...]) -> str:
    """A machine with each of these (name, compute capability) once for each of the lines."""
    sections = [f"name = {name}\ncompute_capability = {cc}\n{line}" for name, cc in cards for line in lines]
    return "".join(f"[gpu {index}]\n{section}" for index, section in enumerate(sections))


def test_shared_memory_is_the_hosts_where_it_is_known_to_be_shared(driver: Path, tmp_path: Path) -> None:
    cards = [("NVIDIA GB10", "12.1"), ("NVIDIA Thor", "11.0"), ("Orin (nvgpu)", "8.7"), ("A Tegra", "9.9")]
    cards.append(("a name that tells nothing", "12.1"))
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 125000000 kB\nMemFree: 1 kB\nMemAvailable: 100000000 kB\n")
    ini = tmp_path / "machine.ini"
    ini.write_text(gpus_of(cards, UNKNOWN_MEMORY))
    machine = detect_machine(timeout_seconds=PATIENT, environment=environment(driver, ini), root=tmp_path)
    assert len(machine.gpus) == len(cards) * len(UNKNOWN_MEMORY)
    for gpu in machine.gpus:
        assert gpu.memory_source == "host MemAvailable"
        assert (gpu.total_bytes, gpu.free_bytes) == (125_000_000 * 1024, 100_000_000 * 1024)
        assert "nvmlDeviceGetMemoryInfo" in why(gpu, "memory")


def test_a_discrete_gpu_without_a_memory_size_is_not_given_the_hosts(detect: Detect) -> None:
    names = ["NVIDIA H100 80GB HBM3", "NVIDIA GB100", "NVIDIA GB200", "GRID A100-10C", "AGB10", "Authority"]
    for gpu in detect(gpus_of([(name, "9.0") for name in names], UNKNOWN_MEMORY)).gpus:
        assert (gpu.total_bytes, gpu.free_bytes, gpu.memory_source) == (None, None, None)
        assert "nvmlDeviceGetMemoryInfo" in why(gpu, "memory")


def test_shared_memory_that_nvml_tells_is_nvmls(detect: Detect) -> None:
    gpu = detect("[gpu 0]\nname = NVIDIA Thor\ncompute_capability = 11.0\nmemory_total_mib = 125772\n").gpus[0]
    assert (gpu.total_bytes, gpu.memory_source) == (125772 * MIB, "nvml")


def test_more_free_memory_than_there_is_is_not_believed(detect: Detect) -> None:
    gpu = detect(f"[gpu 0]\n{L4}memory_used_mib = 23000\nmemory_reserved_mib = 600\n").gpus[0]
    assert (gpu.total_bytes, gpu.free_bytes) == (23034 * MIB, None)
    assert "bytes free of" in why(gpu, "free_bytes")


def test_the_jetson_says_what_its_thin_nvml_cannot_tell(detect: Detect) -> None:
    gpu = detect("Jetson-Orin").gpus[0]
    assert (gpu.reason, gpu.cuda_index, gpu.memory_source) == (None, 0, "host MemAvailable")
    assert why(gpu, "compute_capability") == "Not Supported (nvmlDeviceGetCudaComputeCapability)"


def test_a_vgpu_is_known_as_one(detect: Detect) -> None:
    assert detect("vGPU").gpus[0].virtualization == "vgpu"
    assert detect("1xH100").gpus[0].virtualization != "vgpu"


def test_an_old_driver_is_asked_by_the_old_names(detect: Detect, tmp_path: Path) -> None:
    text = (FAKE / "machines/old-driver.ini").read_text().replace("throttle = 1", "throttle = 0x44")
    machine = detect(text, FAKE_NVML_LOG=str(tmp_path / "log"))
    assert machine.gpus[0].throttling == ("power cap", "hardware thermal slowdown")
    assert "nvmlDeviceGetCurrentClocksThrottleReasons 0" in (tmp_path / "log").read_text()


def test_every_gpu_is_asked_each_thing_once(detect: Detect, tmp_path: Path) -> None:
    detect("8xA100", FAKE_NVML_LOG=str(tmp_path / "log"))
    calls = [line.split()[1] for line in (tmp_path / "log").read_text().splitlines()]
    assert calls.count("nvmlInitWithFlags") == 1
    assert calls.count("nvmlDeviceGetMemoryInfo") == calls.count("nvmlDeviceGetName") == 8
    assert "nvmlDeviceGetMigDeviceHandleByIndex" not in calls  # MIG is off


def test_memory_of_other_processes_is_counted(detect: Detect) -> None:
    gpus = detect("8xA100").gpus
    assert [(process.pid, process.used_bytes) for process in gpus[3].processes] == [(4242, 70000 * MIB)]
    assert [gpu.other_processes_bytes for gpu in gpus] == [0, 0, 0, 70000 * MIB, 0, 0, 0, 0]


def test_a_process_whose_memory_the_driver_hides_makes_the_sum_unknown(detect: Detect) -> None:
    gpu = detect(f"[gpu 0]\n{L4}process.0 = 10 500\nprocess.1 = 11 na\nprocess.2 = 0 7\n").gpus[0]
    assert [(process.pid, process.used_bytes) for process in gpu.processes] == [(10, 500 * MIB), (11, None)]
    assert gpu.other_processes_bytes is None


SICK = [
    ("throttle = 0x8", "hardware slowdown"),
    ("throttle = 0x20", "software thermal slowdown"),
    ("throttle = 0x40", "hardware thermal slowdown"),
    ("throttle = 0x80", "power brake"),
    ("ecc_uncorrected = 3", "3 uncorrected memory errors"),
    ("remapped_pending = 1", "reset the GPU"),
    ("remapped_failed = 1", "should be replaced"),
    ("mig_pending = enabled", "MIG will be enabled after the next reset"),
]


def test_a_sick_gpu_gives_a_warning_that_names_it(detect: Detect) -> None:
    machine = detect("".join(f"[gpu {index}]\n{H100}{line}\n" for index, (line, _) in enumerate(SICK)))
    warnings = without_torch(machine)
    assert len(warnings) == len(SICK)
    for index, (warning, (_, wanted)) in enumerate(zip(warnings, SICK, strict=True)):
        assert warning.startswith(f"GPU {index} (NVIDIA H100 80GB HBM3): ") and wanted in warning
        assert machine.gpus[index].warnings == (warning.partition("): ")[2],)


def test_what_is_normal_is_no_warning(detect: Detect) -> None:
    lines = ["throttle = 0x1", "throttle = 0x4", "ecc_corrected = 5", "remapped_pending = 0"]
    machine = detect("".join(f"[gpu {index}]\n{H100}{line}\n" for index, line in enumerate(lines)))
    assert without_torch(machine) == []
    assert [gpu.throttling for gpu in machine.gpus] == [(), ("power cap",), (), ()]


def test_a_name_that_is_not_utf8_or_not_printable_is_still_a_name(detect: Detect) -> None:
    text = b"[gpu 0]\nname = NVIDIA\xae L\xff4\ncompute_capability = 8.9\nmemory_total_mib = 1\n"
    text += b"[gpu 1]\nname = \x1b[31mRed\x07\nuuid = GPU-\xc3\xa9\ncompute_capability = 8.9\nmemory_total_mib = 1\n"
    machine = detect(text)
    assert [gpu.name for gpu in machine.gpus] == ["NVIDIA\ufffd L\ufffd4", "\ufffd[31mRed\ufffd"]
    assert machine.gpus[1].uuid == "GPU-é"
    assert all(gpu.reason is None for gpu in machine.gpus)


def test_mig_instances_carry_their_own_memory_and_the_first_is_the_device(detect: Detect) -> None:
    machine = detect("H100-mig")
    gpu = machine.gpus[0]
    assert [mig.profile for mig in gpu.mig_instances] == ["3g.40gb", "1g.10gb", "1g.10gb"]
    assert [(mig.gpu_instance, mig.compute_instance) for mig in gpu.mig_instances] == [(1, 0), (2, 0), (3, 0)]
    (device,) = machine.devices
    assert (device.cuda_index, device.total_bytes, device.compute_capability) == (0, 40448 * MIB, (9, 0))
    assert device.uuid == "MIG-22222220-aaaa-bbbb-cccc-000000000000"
    assert device.sku == "NVIDIA-H100-80GB-HBM3-MIG-3g.40gb"
    assert gpu.reason == "MIG is enabled: work runs on its instances"
    assert all("one MIG instance" in str(mig.reason) for mig in gpu.mig_instances[1:])


@pytest.mark.parametrize(
    ("setting", "instance"),
    [
        ("MIG-22222221-aaaa-bbbb-cccc-000000000001", 1),
        ("MIG-22222222", 2),
        ("MIG-22222222,MIG-22222220", 2),
        ("MIG-GPU-00000000-0000-4000-8000-000000000000/3/0", 2),
        ("0", 0),
        ("GPU-0000", 0),
        ("MIG-2222222", None),
        ("MIG-9", None),
        ("-1", None),
    ],
)
def test_a_mig_instance_is_chosen_by_its_uuid(setting: str, instance: int | None, detect: Detect) -> None:
    machine = detect("H100-mig", CUDA_VISIBLE_DEVICES=setting)
    assert [device.mig.index for device in machine.devices if device.mig] == ([] if instance is None else [instance])
    assert machine.cuda_visible_devices == setting
    hidden = [mig.reason for mig in machine.gpus[0].mig_instances if mig.cuda_index is None]
    assert len(hidden) == (3 if instance is None else 2) and all(hidden)


def test_gaps_between_mig_instances_are_no_instances(detect: Detect) -> None:
    text = f"[gpu 0]\n{MIG_H100}[mig 0 2]\nname = A MIG 1c.3g.40gb\nmemory_total_mib = 40448\n[mig 0 6]\nname = B\n"
    gpu = detect(text).gpus[0]
    assert [(mig.index, mig.profile, mig.cuda_index) for mig in gpu.mig_instances] == [
        (2, "1c.3g.40gb", 0),
        (6, None, None),
    ]
    assert gpu.mig_instances[1].total_bytes is None


def test_mig_mode_without_an_instance_is_no_device(detect: Detect) -> None:
    machine = detect(f"[gpu 0]\n{MIG_H100}[gpu 1]\n{H100}")
    assert "nvidia-smi mig -cgi" in str(machine.gpus[0].reason)
    assert [device.index for device in machine.devices] == [1]


def test_no_whole_gpu_is_shown_beside_a_mig_instance(detect: Detect) -> None:
    text = f"[gpu 0]\n{H100}[gpu 1]\n{MIG_H100}[mig 1 0]\nname = C MIG 1g.10gb\nmemory_total_mib = 9984\n"
    both = detect(text)
    assert [(device.index, device.total_bytes) for device in both.devices] == [(1, 9984 * MIB)]
    assert "beside a MIG instance" in str(both.gpus[0].reason)
    assert any("GPU 0 is left out" in warning for warning in both.warnings)
    whole = detect(text, CUDA_VISIBLE_DEVICES="0")
    assert [(device.index, device.mig) for device in whole.devices] == [(0, None)]
    assert all("hidden by" in str(mig.reason) for mig in whole.gpus[1].mig_instances)


def test_in_a_mig_container_the_size_of_an_instance_comes_from_its_attributes(detect: Detect) -> None:
    # NVIDIA/nvidia-container-toolkit#842, #1363: NO_PERMISSION from nvmlDeviceGetMemoryInfo in a MIG container.
    refused = "error.nvmlDeviceGetMemoryInfo = NO_PERMISSION\n"
    text = f"[gpu 0]\n{MIG_H100}{refused}[mig 0 0]\nname = D MIG 2g.20gb\nmemory_total_mib = 20096\n{refused}"
    machine = detect(text)
    (device,) = machine.devices
    assert (device.total_bytes, device.free_bytes) == (20096 * MIB, None)
    assert device.mig is not None
    assert dict(device.mig.unread)["memory"] == "Insufficient Permissions (nvmlDeviceGetMemoryInfo)"
    assert machine.gpus[0].total_bytes is None and "NO_PERM" not in str(machine.gpus[0].reason)


def test_mig_instances_that_cannot_be_listed_are_the_reason(detect: Detect) -> None:
    machine = detect(f"[gpu 0]\n{MIG_H100}error.nvmlDeviceGetMaxMigDeviceCount = NO_PERMISSION\n")
    assert machine.gpus[0].reason == "Insufficient Permissions (nvmlDeviceGetMaxMigDeviceCount)"


def test_different_gpus_are_numbered_with_doubt_unless_the_order_is_named(detect: Detect) -> None:
    text = f"[gpu 0]\n{L4}[gpu 1]\n{H100}"
    unsure = detect(text, CUDA_VISIBLE_DEVICES="1")
    assert not unsure.order_certain
    assert any("CUDA_DEVICE_ORDER=PCI_BUS_ID" in warning for warning in unsure.warnings)
    sure = detect(text, CUDA_VISIBLE_DEVICES="1", CUDA_DEVICE_ORDER="PCI_BUS_ID")
    by_uuid = detect(text, CUDA_VISIBLE_DEVICES="GPU-00000000-0000-4000-8000-000000000001")
    for machine in (sure, by_uuid):
        assert machine.order_certain and without_torch(machine) == []
        assert [device.name for device in machine.devices] == ["NVIDIA H100 80GB HBM3"]
        assert machine.gpus[0].reason is not None and "hidden by" in machine.gpus[0].reason


def test_devices_stand_in_the_order_of_the_environment(detect: Detect) -> None:
    machine = detect("8xA100", CUDA_VISIBLE_DEVICES="5,2,3")
    assert [(device.cuda_index, device.index) for device in machine.devices] == [(0, 5), (1, 2), (2, 3)]


def test_no_torch_warning_is_given_where_all_gpus_are_hidden(detect: Detect) -> None:
    assert not any("torch" in warning for warning in detect("2xH100", CUDA_VISIBLE_DEVICES="").warnings)


@pytest.mark.parametrize("setting", ["\udcff\udcfe", "\x1b]0;x\x07", "9" * 5000, ",", "GPU-", "NoDevFiles", "0x1", "é"])
def test_an_odd_environment_gives_a_document_that_can_be_written(setting: str, detect: Detect) -> None:
    machine = detect("2xH100", CUDA_VISIBLE_DEVICES=setting)
    text = json.dumps(machine_to_json(machine), ensure_ascii=False)
    assert text.encode("utf-8").isascii() or "\ufffd" in text or "é" in text
    assert not any(ord(character) < 32 for character in text)
    assert [device.index for device in machine.devices] == ([0] if setting == "0x1" else [])


@pytest.mark.parametrize(
    ("module", "wanted"),
    [
        ("def nvmlInit(): pass\n", "is not that of nvidia-ml-py"),
        ("def _nvmlGetFunctionPointer(name): pass\n", "older than nvidia-ml-py"),
        ("import no_such_module\n", "is not installed"),
        ("def broken(:\n", "ended early, with exit status 1"),
    ],
)
def test_a_pynvml_that_is_not_nvidias_is_named_with_the_remedy(
    module: str, wanted: str, driver: Path, tmp_path: Path
) -> None:
    (tmp_path / "pynvml.py").write_text(module)
    ini = FAKE / "machines/1xH100.ini"
    machine = detect_machine(
        timeout_seconds=PATIENT,
        environment=environment(driver, ini, PYTHONPATH=str(tmp_path), PYTHONDONTWRITEBYTECODE="1"),
    )
    assert machine.gpus == ()
    assert machine.reason is not None and wanted in machine.reason


def test_without_nvidia_ml_py_the_child_names_the_package() -> None:
    done = subprocess.run([sys.executable, "-I", "-S", nvml.__file__, "9"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["fault"][0] == nvml.PACKAGE_MISSING


def test_asking_imports_neither_pynvml_nor_torch_nor_modules_of_the_current_folder(
    driver: Path, tmp_path: Path
) -> None:
    (tmp_path / "pynvml.py").write_text("import pathlib; pathlib.Path('imported').touch()\n")
    (tmp_path / "json.py").write_text("import pathlib; pathlib.Path('imported').touch()\n")
    program = (
        "import sys; from rerank_cli.machine.detect import detect_machine\n"
        f"machine = detect_machine(timeout_seconds={PATIENT})\n"
        "assert not {'pynvml', 'torch', 'numpy', 'typer', 'rich'} & set(sys.modules), sorted(sys.modules)\n"
        "sys.stdout.write(str(len(machine.gpus)))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        env=environment(driver, FAKE / "machines/2xH100.ini"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("2", "", 0)
    assert not (tmp_path / "imported").exists()


# The library is looked for before a process is started.


def test_a_library_that_cannot_be_found_costs_no_process(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "ld.so.cache").write_bytes(b"glibc-ld.so.cache1.1 libc.so.6")
    assert library_is_absent({}, tmp_path)


@pytest.mark.parametrize(
    "place", ["usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1", "usr/lib64/libnvidia-ml.so.1", "etc/ld.so.preload"]
)
def test_a_library_that_the_loader_may_find_is_asked(place: str, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "ld.so.cache").write_bytes(b"glibc-ld.so.cache1.1 libc.so.6")
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).touch()
    assert not library_is_absent({}, tmp_path)


@pytest.mark.parametrize("cache", [b"libnvidia-ml.so.1", None])
def test_a_cache_that_names_it_or_is_not_there_leaves_the_question_open(cache: bytes | None, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    if cache is not None:
        (tmp_path / "etc" / "ld.so.cache").write_bytes(cache)
    assert not library_is_absent({}, tmp_path)


def test_variables_of_the_loader_are_looked_into(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "ld.so.cache").write_bytes(b"glibc-ld.so.cache1.1")
    (tmp_path / "libnvidia-ml.so.1").touch()
    assert not library_is_absent({"LD_LIBRARY_PATH": f"/nowhere:{tmp_path}"}, tmp_path)
    assert not library_is_absent({"LD_PRELOAD": "/some/other.so"}, tmp_path)
    assert library_is_absent({"LD_LIBRARY_PATH": "/nowhere"}, tmp_path)
    assert library_is_absent({"LD_LIBRARY_PATH": "x" * 300}, tmp_path)  # as a folder that may not be read: an error
