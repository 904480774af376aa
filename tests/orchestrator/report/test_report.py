"""The report's numbers and states: statistics by hand, cells from invented records."""

# ruff: noqa: RUF001 - a minus sign is meant where one stands.

import json
import math
import random
from collections import Counter
from dataclasses import replace

import pytest

from orchestrator.planning.plan_file import PlanFile
from orchestrator.record import Record
from orchestrator.report import build, files
from orchestrator.report.captions import budget_notes, health_lines, legend, summary, table_caption, table_warnings
from orchestrator.report.statistics import mean_and_sd, paired, proportion_se, seed_correlation, t_interval
from orchestrator.report.wording import difference_text, finding, number, published_texts, value_texts
from search_spaces.columns import AR3D, EAP, FLOOR, MPJPE
from search_spaces.study import Column, Reference, Row
from search_spaces.ups import paper_tables
from tests.support.report_cases import ABOUT, ROWS, finished, keys_of, plan_file_of, plan_of, records_of
from ups_model.evaluation.health import TaskHealth

THIN, FULL = (80.0, 82.0, 84.0), (81.0, 85.0, 86.0)
"""Means 82 and 84; standard deviations 2 and the root of (9 + 1 + 4) / 2; differences -1, -3, -2."""


def cell_of(plan, records, row="thin", column=0):
    table = build(plan_file_of(plan), records).tables[0]
    return next(line for line in table.rows if line.label == row).cells[column]


# --- statistics


def test_mean_and_sd_are_those_of_a_hand_worked_sample():
    assert mean_and_sd([80, 82, 84]) == (82, 2)
    mean, sd = mean_and_sd([81, 85, 86])
    assert (mean, round(sd, 6)) == (84, 2.645751)


def test_one_value_has_no_spread_and_none_has_no_mean():
    assert mean_and_sd([7]) == (7, None)
    assert mean_and_sd([]) == (None, None)


def test_the_t_interval_uses_the_tabulated_quantile():
    # t(0.975, 2) = 4.302653 in any table; half width 4.302653 * 1 / sqrt(3) = 2.484138.
    low, high = t_interval([-1, -3, -2])
    assert (round(low, 5), round(high, 5)) == (-4.48414, 0.48414)
    # t(0.975, 1) = 12.706205; sd of (0, 2) is sqrt(2), so the half width is 12.706205.
    assert [round(end, 5) for end in t_interval([0, 2])] == [-11.7062, 13.7062]


def test_seed_correlation_is_that_of_hand_worked_pairs():
    thin, full = ({seed: value for seed, value in enumerate(values)} for values in (THIN, FULL))
    # Covariance (-2 * -3 + 0 * 1 + 2 * 2) / 2 = 5, variances 4 and 7.
    assert seed_correlation([(thin, full)]) == pytest.approx(5 / math.sqrt(4 * 7))
    # The same row again doubles all three sums.
    assert seed_correlation([(thin, full), (thin, full)]) == pytest.approx(5 / math.sqrt(4 * 7))
    assert seed_correlation([(thin, {0: 86.0, 1: 85.0, 2: 81.0})]) == pytest.approx(-5 / math.sqrt(4 * 7))
    for few in ([], [({0: 1.0, 1: 2.0}, {0: 2.0, 1: 4.0})], [({0: 1.0, 1: 1.0, 2: 1.0}, full)]):
        assert seed_correlation(few) is None


@pytest.mark.slow
def test_a_column_names_its_seed_correlation():
    plan = plan_of()
    text = files(build(plan_file_of(plan), records_of(plan, {"thin": THIN, "full": FULL})))["report.md"]
    assert "not distinguishable from 0 (paper −1.3, same sign); seed correlation +0.94." in text
    assert "seed correlation: of a column's rows" in text
    few = files(build(plan_file_of(plan), records_of(plan, {"thin": THIN[:2], "full": FULL[:2]})))["report.md"]
    assert "seed correlation" not in few


def test_an_interval_of_one_value_is_refused():
    with pytest.raises(ValueError, match="at least 2 values, got 1"):
        t_interval([1.0])


def test_pairs_are_of_common_seeds_alone():
    # Means of all seeds would give 82 - 90 = -8; the common seeds 1 and 2 give (82 - 85, 84 - 86).
    pairs = paired({0: 80, 1: 82, 2: 84}, {1: 85, 2: 86, 3: 99})
    assert dict(pairs.by_seed) == {1: -3, 2: -2}
    assert (pairs.n, pairs.mean) == (2, -2.5)
    assert round(pairs.sd, 6) == 0.707107


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ([80, 82, 84], "not distinguishable"),
        # Differences -1, -1.2, -1.1: half width 2.484138 * 0.1 = 0.25.
        ([80, 83.8, 84.9], "distinguishable"),
        ([79, 83, 84], "no spread"),
        ([80], "one pair"),
        ([], "no pair"),
    ],
)
def test_verdicts_of_paired_differences(ours, verdict):
    assert paired(dict(enumerate(ours)), dict(enumerate(FULL))).verdict == verdict


def test_differences_that_are_equal_in_every_pair_claim_nothing():
    # An interval of no width around -2 excludes 0, but equal differences on few clips happen by chance.
    plan = plan_of()
    cell = cell_of(plan, records_of(plan, {"thin": (79, 83, 84), "full": FULL}))
    assert "*" not in difference_text(cell)


def test_error_of_an_accuracy_is_hand_worked():
    # 90 of 100: (90 + 1.920729) / 103.841459 = 0.885203, sqrt(0.885203 * 0.114797 / 103.841459) = 0.031283.
    assert proportion_se(90, 100) == pytest.approx(3.1283, abs=1e-3)
    assert proportion_se(90, 10_000) == pytest.approx(0.3, abs=1e-3)


@pytest.mark.parametrize("percent", [0, 100])
def test_an_accuracy_without_or_with_errors_alone_keeps_a_sampling_error(percent):
    # 101.920729 / 103.841459 = 0.981503, sqrt(0.981503 * 0.018497 / 103.841459) = 0.013222.
    assert proportion_se(percent, 100) == pytest.approx(1.3222, abs=1e-3)


@pytest.mark.parametrize(("percent", "clips"), [(101, 10), (-1, 10), (50, 0)])
def test_an_impossible_accuracy_is_refused(percent, clips):
    with pytest.raises(ValueError, match="accuracy must lie in"):
        proportion_se(percent, clips)


# --- cells


def test_a_cell_is_the_mean_and_spread_over_seeds_and_the_paired_difference():
    plan = plan_of()
    cell = cell_of(plan, records_of(plan, {"thin": THIN, "full": FULL}))
    assert value_texts(cell) == ("82.00 ± 2.00 (n=3)",)
    assert difference_text(cell) == "Δ −2.00 ± 1.00"


def test_the_baseline_row_has_no_difference():
    plan = plan_of()
    cell = cell_of(plan, records_of(plan, {"thin": THIN, "full": FULL}), "full")
    assert value_texts(cell) == ("84.00 ± 2.65 (n=3)",)
    assert difference_text(cell) == "" and cell.published_difference is None


def test_millimetres_have_one_decimal():
    plan = plan_of()
    errors = {"thin": (50.0, 51.0, 52.0), "full": (50.0, 50.0, 50.0)}
    cell = cell_of(plan, records_of(plan, {"thin": THIN, "full": FULL}, errors), column=1)
    assert value_texts(cell) == ("51.0 ± 1.0 (n=3)",)
    assert difference_text(cell) == "Δ +1.0 ± 1.0"


def test_a_seed_that_failed_is_named_and_differences_leave_its_pair_out():
    plan = plan_of()
    records = records_of(plan, {"thin": THIN, "full": FULL})
    records[keys_of(plan, "thin")[1]] = Record(keys_of(plan, "thin")[1], "failed", error="Boom")
    cell = cell_of(plan, records)
    # 80 and 84; pairs -1 and -2.
    assert value_texts(cell) == ("82.00 ± 2.83 (n=2 of 3)", "1 failed")
    assert difference_text(cell) == "Δ −1.50 ± 0.71"


def test_the_number_of_pairs_is_said_where_the_baseline_row_lacks_seeds():
    plan = plan_of()
    cell = cell_of(plan, records_of(plan, {"thin": THIN, "full": (81, None, 86)}))
    assert value_texts(cell) == ("82.00 ± 2.00 (n=3)",)
    assert difference_text(cell) == "Δ −1.50 ± 0.71 (2 pairs)"


def test_a_cell_whose_seeds_are_not_the_baselines_has_no_difference_and_says_so():
    plan = plan_of()
    cell = cell_of(plan, records_of(plan, {"thin": (80, None, None), "full": (None, 85, 86)}))
    assert difference_text(cell) == "Δ — (no common seed)"


def test_several_fates_of_seeds_are_all_named():
    plan = plan_of(seeds=4)
    records = records_of(plan, {"thin": (80, None, None, 84), "full": FULL})
    failing, quiet = keys_of(plan, "thin")[1], keys_of(plan, "thin")[3]
    records[failing] = Record(failing, "failed", error="Boom")
    records[quiet] = finished(quiet, {"pe/mpjpe_mm": 50.0})
    cell = cell_of(plan, records)
    # 80 of 100: (80 + 1.920729) / 103.841459 = 0.788902, sqrt(0.788902 * 0.211098 / 103.841459) = 0.040047.
    assert value_texts(cell) == ("80.00 †± 4.00 (n=1 of 4)", "1 failed, 1 not run, 1 not measured")


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (lambda key: Record(key, "failed", error="Boom"), "failed"),
        (lambda key: None, "not run"),
        (lambda key: finished(key, {"pe/mpjpe_mm": 50.0}), "not measured"),
        (lambda key: finished(key, {"ar3d/top1": float("nan")}), "not finite"),
    ],
)
def test_a_cell_without_any_value_says_why(record, text):
    plan = plan_of()
    records = records_of(plan, {"full": FULL}) | {key: record(key) for key in keys_of(plan, "thin")}
    cell = cell_of(plan, records)
    assert value_texts(cell) == (text,)
    assert difference_text(cell) == "Δ —"


@pytest.mark.parametrize("child_record", [False, True])
def test_a_unit_whose_parent_failed_is_told_from_one_that_failed_itself(child_record):
    plan = plan_of((Row("thin", {"encoder_layers": 1}), ROWS[1]), seeds=1)
    (child,) = keys_of(plan, "thin")
    records = {(parent := plan.units[child].parent): Record(parent, "failed", error="Boom")}
    if child_record:
        records[child] = Record(child, "failed", error="no weights to start from")
    report = build(plan_file_of(plan), records)
    assert value_texts(report.tables[0].rows[0].cells[0]) == ("parent failed",)
    # Joint, two fine-tunings, and the other row: the failure that is the cause is listed, its consequences are not.
    assert summary(report)[0] == "0 of 4 units finished, 1 failed, 3 not run (2 of them because the parent failed)."
    assert [failure.key for failure in report.failures] == [parent]


def test_one_seed_shows_the_sampling_error_marked_as_such():
    plan = plan_of(seeds=1)
    records = records_of(plan, {"thin": (90.0,), "full": (91.0,)})
    assert value_texts(cell_of(plan, records)) == ("90.00 †± 3.13 (n=1)",)
    assert value_texts(cell_of(plan, records, column=1)) == ("50.0 †± 1.2 (n=1)",)
    assert difference_text(cell_of(plan, records)) == "Δ −1.00 (1 pair)"
    assert any(
        line.startswith("†: one seed") and "lower bound" in line for line in legend(build(plan_file_of(plan), records))
    )


def test_a_sampling_error_that_no_record_has_is_unknown():
    plan = plan_of(columns=(AR3D, FLOOR), rows=ROWS, seeds=1)
    key = keys_of(plan, "thin")[0]
    cells = [cell_of(plan, {key: finished(key, {"ar3d/top1": 90.0, "pe/floor_mm": 2.31})}, column=i) for i in (0, 1)]
    assert value_texts(cells[0]) == ("90.00 †± unknown (n=1)",)
    assert value_texts(cells[1]) == ("2.3 †± unknown (n=1)",)


def test_the_test_clips_of_early_prediction_are_those_of_its_task():
    plan = plan_of(
        columns=(EAP[0],), rows=(Row("thin", {"encoder_layers": 1}, "joint"), Row("full", {}, "joint")), seeds=1
    )
    key = keys_of(plan, "thin", "eap")[0]
    cell = cell_of(plan, {key: finished(key, {"eap/top1@0.2": 90.0, "eap/clips": 100.0, "ar3d/clips": 7.0})})
    assert cell.sampling_error == pytest.approx(3.1283, abs=1e-3)


# --- beside the paper


def test_published_values_keep_the_papers_decimals_and_zeros():
    plan = paper_tables.TABLE_8
    rows = tuple(Row(row.label, row.changes, "joint", row.published) for row in plan.rows)
    plan_file = plan_file_of(plan_of(rows, plan.columns, seeds=1, baseline="2"))
    table = build(plan_file, {}).tables[0]
    # Table 8, H = 1: 88.6, 41.7, 51.80, 73.26, 83.92 against 89.3, 40.8, 53.25, 75.06, 85.35.
    shown = [published_texts(table, index, cell) for index, cell in enumerate(table.rows[0].cells)]
    assert shown == [
        ("88.6", "Δ −0.7"),
        ("41.7", "Δ +0.9"),
        ("51.80", "Δ −1.45"),
        ("73.26", "Δ −1.80"),
        ("83.92", "Δ −1.43"),
    ]


def test_what_a_table_shows_is_said_in_words():
    plan = plan_of()
    records = records_of(plan, {"thin": (80, 83.8, 84.9), "full": FULL}, {"thin": (51, 51, 54), "full": (50, 52, 50)})
    table = build(plan_file_of(plan), records).tables[0]
    texts = [finding(table, index, "thin", cell) for index, cell in enumerate(table.rows[0].cells)]
    # Accuracy: -1, -1.2, -1.1. Error: +1, -1, +4: mean 4/3, sd 2.516611, half width 6.25.
    assert texts == [
        "“thin”: −1.10 [−1.35, −0.85], n=3, worse (paper −1.3, same sign)",
        "“thin”: +1.3 [−4.9, +7.6], n=3, not distinguishable from 0 (paper +1.2, same sign)",
    ]
    # An interval that excludes 0 is no verdict: stars are for declared claims.
    assert not difference_text(table.rows[0].cells[0]).endswith("*")
    assert not difference_text(table.rows[0].cells[1]).endswith("*")


def test_less_error_is_better_and_an_opposite_sign_is_said():
    plan = plan_of()
    records = records_of(plan, {"thin": THIN, "full": FULL}, {"thin": (40, 41.2, 41.1), "full": (41, 42, 42)})
    table = build(plan_file_of(plan), records).tables[0]
    assert finding(table, 1, "thin", table.rows[0].cells[1]).endswith("n=3, better (paper +1.2, opposite sign)")


def test_one_pair_allows_no_statement():
    plan = plan_of(seeds=1)
    report = build(plan_file_of(plan), records_of(plan, {"thin": (80,), "full": (90,)}))
    table = report.tables[0]
    assert "one pair: no statement" in finding(table, 0, "thin", table.rows[0].cells[0])
    assert "nothing can be told from chance" in summary(report)[2]


def test_the_summary_counts_comparisons_and_signs():
    plan = plan_of()
    records = records_of(plan, {"thin": (80, 83.8, 84.9), "full": FULL}, {"thin": (49, 49, 54), "full": (50, 52, 51)})
    # Accuracy down as in the paper and distinguishable; error -1, -3, +3 down where the paper's goes up.
    assert summary(build(plan_file_of(plan), records))[2] == (
        "Of 2 differences to a baseline row over two seeds or more, 1 can be told from 0 (0.1 would be by chance "
        "alone); of 2 that the paper prints too, 1 with its sign."
    )


def test_numbers_read_with_a_real_minus_and_no_sign_on_zero():
    assert number(-1.25, 1) == "−1.2"
    assert number(-0.004, 2, signed=True) == "0.00"
    assert number(0.006, 2, signed=True) == "+0.01"


# --- fairness and provenance


def test_an_unequal_budget_is_marked_with_both_numbers():
    rows = (Row("short", {"steps": 240}, "joint"), Row("full", {"steps": 480}, "joint"))
    plan = plan_of(rows)
    table = build(plan_file_of(plan), records_of(plan, {"short": THIN, "full": FULL})).tables[0]
    # 240 and 480 iterations rotate over 4 tasks, 16 clips each.
    assert value_texts(table.rows[0].cells[0]) == ("82.00‡ ± 2.00 (n=3)",)
    assert budget_notes(table) == [
        f"‡ Unequal budget: row “short” saw 960 training samples of {task}, the baseline row “full” 1,920."
        for task in ("3D action recognition", "3D pose estimation")
    ]


def test_equal_budgets_have_no_mark():
    plan = plan_of((Row("separate", {}, "separate"), Row("full", {}, "joint"), Row("tuned")), baseline="full")
    table = build(plan_file_of(plan), {}).tables[0]
    assert budget_notes(table) == []
    assert [cell.samples for row in table.rows for cell in row.cells] == 6 * [1920]


def test_mixed_commits_devices_and_a_dirty_tree_are_named_with_their_rows():
    plan = plan_of()
    records = records_of(plan, {"thin": THIN, "full": FULL})
    odd, metrics = keys_of(plan, "thin")[0], {"ar3d/top1": 80.0}
    records[odd] = finished(odd, metrics, ABOUT | {"commit": 40 * "b" + "-dirty", "device": "Tesla V100"})
    table = build(plan_file_of(plan), records).tables[0]
    assert table_warnings(table) == [
        "The runs of this table differ in commit: aaaaaaaaaaaa (5 units, in rows “thin”, “full”); bbbbbbbbbbbb-dirty "
        "(1 unit, in row “thin”).",
        "The runs of this table differ in device: Tesla V100 (1 unit, in row “thin”); cpu (5 units, in rows “thin”, "
        "“full”).",
        "Trained from a working tree with uncommitted changes: bbbbbbbbbbbb-dirty.",
    ]


def test_a_table_says_which_units_other_code_began():
    plan = plan_of()
    records = records_of(plan, {"thin": THIN, "full": FULL})
    odd = keys_of(plan, "thin")[0]
    begun = {"source": {"training": "aaaa then bbbb", "evaluation": "cccc"}}
    records[odd] = replace(records[odd], about={**records[odd].about, **begun})
    warnings = table_warnings(build(plan_file_of(plan), records).tables[0])
    assert (
        "Trained by more than one version of the code, one after the other, parents included: 1 unit (aaaa then bbbb), "
        "in row “thin”."
    ) in warnings


def test_the_provenance_of_a_parent_counts():
    plan = plan_of((Row("thin", {"encoder_layers": 1}), ROWS[1]), seeds=1)
    (child,) = keys_of(plan, "thin")
    parent = plan.units[child].parent
    records = {
        child: finished(child, {"ar3d/top1": 80.0}),
        parent: finished(parent, {}, ABOUT | {"commit": 40 * "c"}),
    }
    assert any(
        "cccccccccccc (1 unit, in row “thin”)" in line
        for line in table_warnings(build(plan_file_of(plan), records).tables[0])
    )


def test_runs_of_one_origin_give_no_warning_and_unknown_ones_do():
    plan = plan_of()
    records = records_of(plan, {"thin": THIN, "full": FULL})
    assert table_warnings(build(plan_file_of(plan), records).tables[0]) == []
    bare = {key: finished(key, {"ar3d/top1": 80.0}, {}) for key in records}
    assert table_warnings(build(plan_file_of(plan), bare).tables[0]) == ["The commit of some runs is unknown."]


def test_a_row_that_chooses_among_checkpoints_is_named():
    plan = plan_of()
    records = records_of(plan, {"full": FULL, "thin": WORSE})
    for label, how in (("full", "last step, validated"), ("thin", "validation subjects")):
        for key in keys_of(plan, label):
            records[key] = replace(records[key], about={**records[key].about, "chosen_by": how})
    (warning,) = table_warnings(build(plan_file_of(plan), records).tables[0])
    assert warning == (
        "The runs of this table differ in choice of weights: last step, validated (3 units, in row “full”); "
        "validation subjects (3 units, in row “thin”)."
    )


def healthy(values, trivial=4.0):
    """Health of 3D recognition with this curve."""
    points = tuple((step, value) for step, value in enumerate(values, start=1))
    return {"ar3d": TaskHealth("ar3d/top1", trivial, points).to_plain()}


def with_health(plan, records, label, curves):
    """The records, those of a row with the health of these curves."""
    judged = dict(records)
    for key, curve in zip(keys_of(plan, label), curves, strict=False):
        judged[key] = replace(records[key], health=healthy(curve))
    return judged


GOOD, POOR, GROWING = (50, 80, 81), (50, 80, 5), (30, 50, 80)
WORSE = tuple(value - gap for value, gap in zip(FULL, (9, 9.5, 10), strict=True))


def test_a_cell_counts_its_collapsed_runs_and_nothing_is_said_of_its_difference():
    plan = plan_of()
    records = records_of(plan, {"full": FULL, "thin": WORSE})
    assert not cell_of(plan, records).withheld
    records = with_health(plan, records, "thin", [GOOD, POOR, GROWING])
    records = with_health(plan, records, "full", [GOOD] * 3)
    assert value_texts(cell_of(plan, records))[-1] == "collapsed 1 of 3, not converged 1 of 3"
    assert len(value_texts(cell_of(plan, records, "full"))) == 1
    assert "*" not in difference_text(cell_of(plan, records))
    assert told(plan, records) == (
        "“thin”: −9.50, no statement: 1 run of this row collapsed, 1 run of this row did not converge (paper −1.3)"
    )
    lines = health_lines(build(plan_file_of(plan), records))
    assert "1 collapsed, 1 not converged, 4 converged, 6 not judged" in lines[-2]
    assert (
        lines[-1]
        == "Runs that were still improving when they ended show which setting learns faster, not which ends better."
    )


def test_the_runs_of_a_row_are_judged_together_where_the_number_of_clips_is_known():
    plan = plan_of()
    rising, still = (50, 80, 84), (50, 84, 84)  # Of 50 clips, two more in the last fifth.

    def counted(curves):
        records = with_health(plan, records_of(plan, {"full": FULL, "thin": WORSE}), "thin", curves)
        for key in keys_of(plan, "thin"):
            metrics = {**records[key].metrics, "validation/ar3d/clips": 50.0}
            records[key] = replace(records[key], metrics=metrics)
        report = build(plan_file_of(plan), records)
        drawn = Counter(curve.state for curve in report.curves)
        assert drawn["not converged"] == report.progress.health.get("not converged", 0)
        return value_texts(cell_of(plan, records))[-1]

    assert counted([rising] * 3) == "not converged 3 of 3"
    assert "converged" not in counted([rising, rising, still])  # Four clips of 150.


def test_a_collapsed_baseline_run_withholds_the_statement_of_every_row():
    plan = plan_of()
    records = with_health(plan, records_of(plan, {"full": FULL, "thin": WORSE}), "full", [POOR, GOOD, GOOD])
    assert "no statement: 1 run of the baseline row collapsed" in told(plan, records)


@pytest.mark.parametrize(("row", "whose"), [("thin", "this row"), ("full", "the baseline row")])
def test_a_row_with_failed_runs_gets_no_statement_from_those_that_are_left(row, whose):
    plan = plan_of(seeds=5)
    better = [
        value + gap for value, gap in zip((80.0, 82.0, 84.0, 83.0, 81.0), (3.0, 2.9, 3.1, 3.0, 3.05), strict=True)
    ]
    records = records_of(plan, {"full": (80.0, 82.0, 84.0, 83.0, 81.0), "thin": better})
    assert "better" in told(plan, records)
    for key in keys_of(plan, row)[:3]:
        records[key] = Record(key, "failed", error="NonFiniteLoss: at step 7")
    assert f"no statement: 3 runs of {whose} failed" in told(plan, records)
    assert cell_of(plan, records).withheld


def test_a_row_whose_runs_are_not_all_run_yet_is_spoken_of():
    plan = plan_of(seeds=5)
    records = records_of(plan, {"full": (80.0, 82.0, 84.0), "thin": (83.0, 84.9, 87.1)})
    assert "n=3, better" in told(plan, records)


def test_a_mean_has_the_digits_of_its_interval():
    plan = plan_of()
    records = records_of(
        plan,
        {"full": FULL, "thin": tuple(value + gap for value, gap in zip(FULL, (0.004, 0.0045, 0.0035), strict=True))},
    )
    assert "“thin”: +0.004 [+0.003, +0.005], n=3, better" in told(plan, records)


def test_small_values_of_a_unit_of_ones_own_keep_their_spread():
    column = Column("ar3d/loss", "Loss", "nats", False)
    plan = plan_of([replace(row, published=(None,)) for row in ROWS], (column,))
    values = {"full": (4.2e-4, 4.5e-4, 3.9e-4), "thin": (4.1e-4, 4.4e-4, 3.8e-4)}
    records = {
        key: finished(key, {"ar3d/loss": value})
        for label, of_row in values.items()
        for key, value in zip(keys_of(plan, label), of_row, strict=True)
    }
    assert value_texts(cell_of(plan, records, "full"))[0] == "0.000420 ± 0.000030 (n=3)"


def test_one_clip_has_no_standard_error():
    plan = plan_of(seeds=1)
    records = records_of(plan, {"full": (80.0,)})
    for key, record in records.items():
        metrics = {**record.metrics, "test/pe/clips": 1.0}
        records[key] = replace(record, metrics=metrics)
    (row,) = (row for row in build(plan_file_of(plan), records).tables[0].rows if row.baseline)
    assert [cell.sampling_error for cell in row.cells][1] is None
    assert value_texts(row.cells[1])[0] == "50.0 †± unknown (n=1)"


def test_runs_without_held_out_subjects_are_called_not_judged():
    plan = plan_of()
    report = build(plan_file_of(plan), records_of(plan, {"full": FULL}))
    assert health_lines(report) == ["Health: not judged, for no run has held-out subjects to judge it by."]


@pytest.mark.slow
def test_a_report_opens_with_the_health_of_its_runs():
    plan = plan_of()
    report = build(plan_file_of(plan), records_of(plan, {"full": FULL}))
    for name in ("report.md", "report.html"):
        text = files(report)[name]
        assert text.index("Expected.") < text.index(health_lines(report)[0]) < text.index("units finished")


def told(plan, records):
    table = build(plan_file_of(plan), records).tables[0]
    return finding(table, 0, "thin", cell_of(plan, records))


def test_captions_name_data_setting_and_synthetic_sets():
    plan = plan_of()
    report = build(plan_file_of(plan, {"b": "2", "a": "1"}), records_of(plan, {"full": FULL}))
    caption = " ".join(table_caption(report, report.tables[0]))
    for part in (
        "3D pose estimation on synthetic_h36m17 (SYNTHETIC, 1,907 clips, 01234567)",
        "3D action recognition on synthetic_ntu25 (SYNTHETIC, 1,907 clips, 21234567)",
        "The published values are on Human3.6M (3D pose estimation), NTU RGB+D (3D action recognition), ours are not",
        "Preset tiny with a=1, b=2; seeds 0, 1, 2; weights of the last step, no other candidates",
        "commit aaaaaaaaaaaa; device cpu; precision fp32; torch 2.13.0",
    ):
        assert part in caption
    for name, text in files(report).items():
        assert name.startswith(("tables/", "figures/", "cells")) or "SYNTHETIC DATA" in text


def test_the_papers_own_data_are_not_called_stand_ins():
    plan = plan_of(name="paper")
    report = build(plan_file_of(plan), {})
    assert "ours are not" not in " ".join(table_caption(report, report.tables[0]))
    assert "SYNTHETIC" not in files(report)["report.md"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"validation_subjects": 0}, "weights of the last step, nothing was chosen"),
        ({"validation_subjects": 1}, "no other candidates; held-out training subjects judge health alone"),
        ({"validation_subjects": 1, "evaluate_every": 500}, "checkpoint chosen on held-out training subjects"),
        ({"validation_subjects": 0, "evaluate_every": 500}, "weights of the last step, nothing was chosen"),
    ],
    ids=str,
)
def test_open_data_are_stand_ins_and_how_weights_were_chosen_is_said(changes, said):
    report = build(plan_file_of(plan_of(name="small", changes=changes)), {})
    caption = " ".join(table_caption(report, report.tables[0]))
    assert "ours are not" in caption and said in caption


# --- the whole


def test_parameters_and_training_time_count_shared_units_once():
    plan = plan_of((ROWS[1], Row("same", {"encoder_layers": 2}, "joint"), ROWS[0]))
    records = records_of(plan, {"thin": THIN, "full": FULL})
    records = {
        key: Record(key, "finished", record.metrics, about=ABOUT | {"train_seconds": 600.0})
        for key, record in records.items()
    }
    records[keys_of(plan, "thin")[0]] = finished(keys_of(plan, "thin")[0], {})
    report = build(plan_file_of(plan), records)
    # Three rows of three seeds, six units: five of ten minutes and one unknown.
    assert summary(report)[:2] == [
        "6 of 6 units finished, 0 failed, 0 not run.",
        "Training time 0:50:00 (h:mm:ss), shared units counted once; unknown for 1 finished unit.",
    ]
    assert "1.23 M" in files(report)["report.md"]


def test_units_with_weights_of_another_plan_are_counted_and_their_training_time_is_not_made_up():
    plan = plan_of()
    keys = keys_of(plan, "full")
    about = {"train_seconds": 0.0, "trained_by": "f" * 16}
    records = {key: finished(key, {"ar3d/top1": 80.0}, ABOUT | about) for key in keys[:2]}
    # Another unit of the same plan: its time counts there.
    records[keys[2]] = finished(keys[2], {"ar3d/top1": 80.0}, ABOUT | about | {"trained_by": keys[0]})
    (time,) = [line for line in summary(build(plan_file_of(plan), records)) if line.startswith("Training time")]
    assert time.endswith("once; 2 units measured with weights that another plan trained, not counted here.")


def test_a_failed_unit_is_listed_with_the_last_line_of_its_error():
    plan = plan_of()
    key = keys_of(plan, "thin")[2]
    error = 'Traceback (most recent call last):\n  File "/home/someone/train.py", line 3\nNonFiniteLoss: step 12\n'
    report = build(plan_file_of(plan), {key: Record(key, "failed", error=error)})
    assert [(f.unit, f.error) for f in report.failures] == [
        ("encoder_layers=1, joint · joint · seed 2", "NonFiniteLoss: step 12")
    ]
    assert all("/home/someone" not in str(content) for content in files(report).values())


def test_routes_are_shown_for_joint_units_that_have_them():
    plan = plan_of(seeds=1)
    keys = {label: keys_of(plan, label)[0] for label in ("thin", "full")}
    routes = {"ar3d": [1, 0], "pe": [0, 1]}
    records = {keys["full"]: finished(keys["full"], {}, routes=routes), keys["thin"]: finished(keys["thin"], {})}
    text = files(build(plan_file_of(plan), records))["report.md"]
    assert (
        "| Arm | Seed | 3D pose estimation | 3D action recognition |\n|---|---:|---|---|\n| joint | 0 | 0-1 | 1-0 |\n"
        in text
    )


@pytest.mark.slow
def test_the_same_bytes_come_from_any_order_host_and_path():
    rows = (Row("separate", {}, "separate"), Row("full", {}, "joint"), Row("tuned"))
    plan = plan_of(rows, references=(Reference("elsewhere", (90.5, None)),))
    plan_file = plan_file_of(plan, {"b": "2", "a": "1"})
    records = {
        key: finished(
            key,
            {"ar3d/top1": 80.0 + index, "ar3d/clips": 100.0, "pe/mpjpe_mm": 50.0 - index},
            routes={"pe": [0], "ar3d": [1]},
        )
        for index, key in enumerate(plan.units)
    }
    records[next(iter(records))] = Record(next(iter(records)), "failed", error="Boom")

    def shuffled(tree, generator):
        if isinstance(tree, dict):
            items = [(name, shuffled(value, generator)) for name, value in tree.items()]
            generator.shuffle(items)
            return dict(items)
        return [shuffled(item, generator) for item in tree] if isinstance(tree, list | tuple) else tree

    expected = files(build(plan_file, records))
    generator = random.Random(1)
    for text in (plan_file.to_json(), json.dumps(shuffled(plan_file.to_plain(), generator))):
        moved = {
            key: Record.from_json(
                Record(key, r.status, r.metrics, r.routes, {**r.about, "host": "x"}, "/x", r.error).to_json()
            )
            for key, r in shuffled(records, generator).items()
        }
        assert files(build(PlanFile.from_json(text), moved)) == expected


def test_a_plan_of_another_format_is_refused():
    with pytest.raises(ValueError, match="format 99, this code reads 1"):
        build(PlanFile.from_json(json.dumps(plan_file_of(plan_of()).to_plain() | {"format": 99})), {})


@pytest.mark.slow
def test_every_study_of_the_project_has_a_report_before_anything_has_run():
    from search_spaces import find_study, study_names
    from tests.support.plans import plan_of as plan_of_study

    for name in study_names():
        report = build(plan_file_of(plan_of_study(find_study(name), seeds=2)), {})
        assert all(text for text in files(report).values())
        assert report.progress.finished == 0 and report.progress.not_run == report.progress.units > 0
    assert MPJPE.unit == "mm"


# --- settings


def test_the_report_has_every_field_of_every_run_and_what_sets_runs_apart():
    plan = plan_of()
    records = records_of(plan, {"thin": THIN, "full": FULL})
    records = {
        key: replace(record, about={**record.about, "config": plan.units[key].config.canonical()})
        for key, record in records.items()
    }
    report = build(plan_file_of(plan), records)
    shared, kinds = dict(report.settings.shared), {name: dict(fields) for name, fields in report.settings.kinds}
    config = plan.base.canonical()
    assert shared["optim.learning_rate"] == json.dumps(config["optim"]["learning_rate"])
    assert shared["optim.cycle"] == json.dumps(list(config["optim"]["cycle"]))
    assert "seed" not in shared and "model.encoder_layers" not in shared
    assert kinds == {
        "encoder_layers=1, joint · joint": {"model.encoder_layers": "1"},
        "joint · joint": {"model.encoder_layers": "2"},
    }
    leaves = sum(len(section) for name, section in config.items() if name in ("model", "optim", "evaluation"))
    leaves += sum(len(one) if isinstance(one, dict) else 1 for one in config["data"].values())
    leaves += sum(not isinstance(one, dict) and name != "seed" for name, one in config.items())
    assert len(shared) + 1 == leaves
    written = files(report)
    for name in ("report.md", "report.html"):
        text = written[name].decode() if isinstance(written[name], bytes) else written[name]
        assert "optim.learning_rate" in text and "encoder_layers=1, joint · joint" in text
    thin = next(row for row in report.plan.tables[0].rows if row.label == "thin")
    assert f"{thin.samples['ar3d']:,} of 3D action recognition" in written["report.md"]


def test_records_without_a_configuration_leave_the_section_out():
    plan = plan_of()
    written = files(build(plan_file_of(plan), records_of(plan, {"thin": THIN, "full": FULL})))
    assert "## Settings" not in written["report.md"]
