"""How many units share a GPU."""

from __future__ import annotations

import pytest

from orchestrator.packing import MARGIN, MOST_UNITS_PER_GPU, Footprint, described, smallest_gpu

GIB = 2**30


@pytest.mark.parametrize(
    ("peak_gib", "total_gib", "units"),
    [
        (3.5, 16, 4),  # 14.4 GiB to give away, of which four take 14
        (3.61, 16, 3),  # four would take 14.44
        (14.4, 16, 1),
        (20, 16, 1),  # it has been measured on a whole one, so it did run there
        (0.1, 16, MOST_UNITS_PER_GPU),
    ],
)
def test_as_many_fit_as_leave_the_margin(peak_gib, total_gib, units):
    found = Footprint(int(peak_gib * GIB), total_gib * GIB, "a GPU")
    assert MARGIN == 0.1
    assert found.fit == units


@pytest.mark.parametrize("units", range(1, MOST_UNITS_PER_GPU + 1))
def test_shares_of_a_gpu_add_up_to_no_more_than_one_in_rays_ten_thousandths(units):
    total = 1000 * GIB
    found = Footprint(int(total * 0.9 / units), total, "a GPU")
    assert found.fit == units
    assert round(found.share * 10_000) == int(found.share * 10_000 + 1e-6)
    assert units * found.share <= 1 < (units + 1) * found.share


def test_a_mixed_cluster_packs_for_its_smallest_gpu():
    found = smallest_gpu({"one": Footprint(3 * GIB, 16 * GIB, "V100"), "other": Footprint(3 * GIB, 80 * GIB, "A100")})
    assert [one.fit for one in found.values()] == [4, 4]


def test_footprints_are_told_in_words():
    text = described([("base", Footprint(3 * GIB, 16 * GIB, "V100"))])
    assert text == "  base: 3.00 of 16.0 GiB (V100), 4 on a GPU"
