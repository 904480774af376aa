"""How many units share a GPU."""

from __future__ import annotations

import pytest

from orchestrator.worker.gpu_memory import (
    MARGIN,
    MAX_UNITS_PER_GPU,
    Footprint,
    described,
    fraction_for_tensors,
    smallest_gpu,
)

GIB, MIB = 2**30, 2**20


@pytest.mark.parametrize(
    ("peak_gib", "total_gib", "units"),
    [
        (3.5, 16, 4),  # 14.4 GiB to give away, of which four take 14
        (3.61, 16, 3),  # four would take 14.44
        (14.4, 16, 1),
        (20, 16, 1),  # it has been measured on a whole one, so it did run there
        (0.1, 16, MAX_UNITS_PER_GPU),
    ],
)
def test_as_many_fit_as_leave_the_margin(peak_gib, total_gib, units):
    footprint = Footprint(int(peak_gib * GIB), total_gib * GIB, "a GPU")
    assert MARGIN == 0.1
    assert footprint.fit == units


@pytest.mark.parametrize("total", [16160, 32510, 81559])
@pytest.mark.parametrize("beside", [250, 420, 700, 1100])
@pytest.mark.parametrize("tensors", [50, 600, 1500, 4000, 12000])
def test_a_share_holds_the_tensors_that_were_measured_whatever_the_libraries_take(tensors, beside, total):
    """Of a V100 with 16 and 32 GB and an H100, in MiB as nvidia-smi shows them."""
    footprint = Footprint.measured(tensors * MIB, beside * MIB, total * MIB, "a GPU")
    assert fraction_for_tensors(footprint.share, total * MIB) * total >= tensors
    assert footprint.fit * (tensors + beside) <= total


@pytest.mark.parametrize("units", range(1, MAX_UNITS_PER_GPU + 1))
def test_shares_of_a_gpu_add_up_to_no_more_than_one_in_rays_ten_thousandths(units):
    total = 1000 * GIB
    footprint = Footprint(int(total * 0.9 / units), total, "a GPU")
    assert footprint.fit == units
    assert round(footprint.share * 10_000) == int(footprint.share * 10_000 + 1e-6)
    assert units * footprint.share <= 1 < (units + 1) * footprint.share


def test_a_mixed_cluster_packs_for_its_smallest_gpu():
    footprints = smallest_gpu(
        {"one": Footprint(3 * GIB, 16 * GIB, "V100"), "other": Footprint(3 * GIB, 80 * GIB, "A100")}
    )
    assert [one.fit for one in footprints.values()] == [4, 4]


def test_footprints_are_told_in_words():
    text = described([("base", Footprint(3 * GIB, 16 * GIB, "V100"))])
    assert text == "  base: 3.00 of 16.0 GiB (V100), 4 on a GPU"
