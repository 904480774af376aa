"""When a joint run is as good as another network, by hand."""

from benchmarks.time_to_quality import compare, table

MINE = ("joint", "pe/mpjpe_mm")


def test_a_row_is_compared_on_common_seeds_at_its_first_point_that_is_as_good():
    ours = {
        MINE: {0: [(10, 90.0), (20, 60.0), (30, 50.0)], 1: [(12, 70.0), (22, 60.0), (32, 40.0)], 2: [(9, 9.0)] * 3},
        ("joint", "ar3d/top1"): {0: [(10, 50.0), (20, 80.0), (30, 70.0)]},
        ("separate", "ar3d/top1"): {0: [(1, 100.0)]},
    }
    theirs = {
        ("MLP", "pe/mpjpe_mm"): {0: [(1, 99.0), (5, 65.0)], 1: [(1, 99.0), (7, 55.0)], 5: [(1, 1.0)]},
        ("VideoPose3D", "pe/mpjpe_mm"): {0: [(9, 39.0)], 1: [(9, 39.0)]},
        ("DD-Net", "ar3d/top1"): {0: [(1, 75.0)]},
        ("another set", "ar3d/top1"): {7: [(1, 75.0)]},
    }
    mlp, lifter, recogniser = compare("joint", ours, theirs)
    assert (mlp.value, mlp.minutes, mlp.reached, mlp.seeds) == (60.0, 6.0, 21.0, 2)
    assert (lifter.reached, lifter.end) == (None, (31.0, 45.0))
    assert (recogniser.network, recogniser.reached, recogniser.seeds) == ("DD-Net", 20, 1)
    assert "never: 45.0 after 31" in table([mlp, lifter, recogniser])
