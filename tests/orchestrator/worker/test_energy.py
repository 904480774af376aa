"""Energy of a unit's GPUs: from the driver's counters, or not at all."""

import sys
from types import SimpleNamespace

import pytest
import torch

from orchestrator.worker.energy import EnergyMeter


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
