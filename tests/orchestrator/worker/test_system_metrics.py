"""System metrics of a unit, and energy of its GPUs: from the driver's counters, or not at all."""

import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch

from orchestrator.worker.system_metrics import EnergyMeter, sampler
from ups_model.training.progress import append_row, read_rows


class NVMLError(Exception):
    """As pynvml's."""


@pytest.fixture
def counters(monkeypatch):
    """Two GPUs whose counters, in mJ, a test sets; it stands in for pynvml, which needs a driver."""
    millijoules = {"GPU-a": 5_000, "GPU-b": 7_000}

    def total(handle):
        if millijoules[handle] is None:
            raise NVMLError("not supported")
        return millijoules[handle]

    fake = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=total,
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu={"GPU-a": 91, "GPU-b": 92}[handle]),
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=3 * 2**20),
        nvmlDeviceGetPowerUsage=total,
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="ab"[index]))
    return millijoules


def test_energy_is_what_the_counters_of_all_gpus_gained(counters):
    meter = EnergyMeter.start(2)
    counters |= {"GPU-a": 6_500, "GPU-b": 9_000}
    assert meter.joules(train_seconds=0) == 3.5


def test_a_share_of_a_gpu_has_no_energy(counters):
    assert EnergyMeter.start(0.5).joules(0) is None


def test_a_training_that_began_in_an_earlier_try_has_no_energy(counters):
    assert EnergyMeter.start(1).joules(train_seconds=100) is None


def test_a_gpu_without_a_counter_has_no_energy(counters):
    counters["GPU-b"] = None
    assert EnergyMeter.start(2).joules(0) is None


def test_a_machine_without_nvidias_library_has_no_energy(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert EnergyMeter.start(1).joules(0) is None


def test_each_line_of_training_gets_one_of_the_machine_at_its_step(counters, tmp_path):
    file = tmp_path / "progress.jsonl"
    sample = sampler(file)
    counters["GPU-b"] = None
    for step in (10, 20):
        append_row(file, {"step": step, "train/loss": 1.0})
        sample(step, {"train/loss": 1.0})
    rows = read_rows(file)
    assert [row["step"] for row in rows] == [10, 10, 20, 20]
    values = {name.removeprefix("system/"): value for name, value in rows[-1].items()}
    assert values["gpu_0_utilization_percentage"] == 91 and values["gpu_1_utilization_percentage"] == 92
    assert values["gpu_1_memory_usage_megabytes"] == 3
    # In mW, and of the second one unknown.
    assert values["gpu_0_power_usage_watts"] == 5.0 and "gpu_1_power_usage_watts" not in values
    assert 0 <= values["cpu_utilization_percentage"] <= 100
    assert 0 < values["process_memory_usage_megabytes"] < values["system_memory_usage_megabytes"]


def test_memory_is_that_of_all_processes_of_the_unit(tmp_path):
    file, megabytes = tmp_path / "progress.jsonl", 100
    sample = sampler(file)
    sample(0, {})
    program = f"content = bytearray(b'x' * {megabytes * 2**20}); print('ready', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        sample(1, {})
        child.communicate(b"\n")
    sample(2, {})
    before, during, after = (row["system/process_memory_usage_megabytes"] for row in read_rows(file))
    assert during > before + megabytes and after < during - megabytes


def test_a_process_that_ends_while_it_is_measured_counts_for_nothing(tmp_path, monkeypatch):
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        ended = psutil.Process(child.pid)
    monkeypatch.setattr(psutil.Process, "children", lambda self, recursive: [ended])
    sampler(tmp_path / "progress.jsonl")(1, {})
    assert len(read_rows(tmp_path / "progress.jsonl")) == 1
