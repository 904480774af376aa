"""Claims: tests by hand-worked numbers and by simulation, verdicts from invented records, words of the report."""

# ruff: noqa: RUF001 - a minus sign is meant where one stands.

import csv
import io
import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import claims as simulation
from orchestrator.planning.plan_file import PlanFile
from orchestrator.report import build, files
from orchestrator.report.claim_tests import (
    ALPHA,
    crossed_interval,
    decide,
    decide_with_looks,
    holm,
    seeds_needed,
)
from orchestrator.report.claims import looks_of, subject_means
from orchestrator.report.statistics import sd_with_rounding
from orchestrator.report.wording import digits_beside
from search_spaces.columns import AR3D, EAP, MPJPE
from search_spaces.study import Claim
from search_spaces.ups import paper_tables, tables_1_6, tables_7_9
from tests.support.report_cases import ABOUT, plan_file_of, plan_of, records_of
from ups_model.evaluation.health import TaskHealth

BETTER = Claim("Two layers beat one", "depth", "full", "thin", "ar3d/top1", "superior")
SHARP = {"thin": (80.0, 80.4, 79.8, 80.1, 80.2), "full": (83.0, 83.3, 82.9, 83.2, 83.0)}


def planned(*claims, seeds=5, **options):
    """A plan of two rows with claims."""
    plan = plan_of(seeds=seeds, **options)
    return replace(plan, study=replace(plan.study, claims=claims))


def judged(plan, records, outcomes=lambda key: None, **changes):
    return build(replace(plan_file_of(plan), **changes), records, outcomes).claims


# --- tests of one claim


def test_superior_is_the_two_sided_t_test_of_the_tables():
    # Mean 2, sd 1, n 3: t = 2 * sqrt(3) = 3.4641 with 2 degrees of freedom; two-sided p = 1 - t / sqrt(t^2 + 2).
    t = 2 * math.sqrt(3)
    decision = decide([1, 2, 3], "superior", 0)
    assert decision.direction == "supported"
    assert decision.p == pytest.approx(1 - t / math.sqrt(t**2 + 2))
    assert decide([-1, -2, -3], "superior", 0).direction == "contradicted"
    assert decide([-1, -2, -3], "superior", 0).p == pytest.approx(decision.p)


def test_not_better_turns_around_at_its_margin():
    assert decide([0.9, 1.0, 1.1], "not better", 2.0).direction == "supported"
    assert decide([2.9, 3.0, 3.1], "not better", 2.0).direction == "contradicted"
    # The distance to the margin decides: the same p as an effect of 1 has beside 0.
    assert decide([0.9, 1.0, 1.1], "not better", 2.0).p == pytest.approx(decide([0.9, 1.0, 1.1], "superior", 0).p)


def test_equivalence_takes_the_larger_of_two_one_sided_tests():
    # Mean 0, sd 1, n 3, margin 2: t = 2 sqrt(3) on both sides, one-sided p is half of the two-sided one.
    t = 2 * math.sqrt(3)
    decision = decide([-1, 0, 1], "equivalent", 2.0)
    assert (decision.direction, decision.p) == ("supported", pytest.approx((1 - t / math.sqrt(t**2 + 2)) / 2))
    assert decide([4.9, 5.0, 5.1], "equivalent", 2.0).direction == "contradicted"


def test_tied_effects_are_judged_with_the_rounding_of_their_step():
    # Mean 0.6, variance 0.05, step 0.5.
    assert sd_with_rounding([0.5, 0.5, 1.0, 0.5, 0.5]) == pytest.approx(math.sqrt(0.05 + 0.25 / 12))
    assert sd_with_rounding([0.1 + 0.2, 0.3, 0.8]) == pytest.approx(sd_with_rounding([0.3, 0.3, 0.8]))
    assert sd_with_rounding([1, 2, 4]) == pytest.approx(math.sqrt(7 / 3))
    assert sd_with_rounding([2.0, 2.0, 2.0]) == 0


@pytest.mark.slow
def test_tied_effects_are_not_called_equivalent_too_often():
    # 5.7 % without the rounding's variance.
    assert simulation.false_equivalence(np.random.default_rng(5), simulation.discretised, 5, 20_000) < 0.05


@pytest.mark.parametrize("effects", [[], [1.0], [2.0, 2.0, 2.0]])
def test_effects_without_spread_decide_nothing(effects):
    assert decide(effects, "superior", 0).p == 1


def test_holm_is_that_of_a_hand_worked_family():
    # 0.01 * 4, 0.02 * 3, 0.03 * 2 and 0.04 * 1, each no smaller than the one before it.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([]) == []


def test_looks_multiply_the_smallest_p():
    effects = [1, 2, 3, -4, 5, -6]
    early = decide(effects[:3], "superior", 0)
    looked = decide_with_looks((effects[:3], effects), "superior", 0, (4, 4))
    assert (looked.p, looked.direction) == (pytest.approx(min(1, 4 * early.p)), early.direction)


def test_seeds_needed_are_those_of_published_power_tables():
    # A standardised effect of 1 needs 10 pairs, one of 0.5 needs 34, at 5 % and 80 % (Cohen's tables; G*Power).
    assert seeds_needed(1.0, 1.0, "superior", 0, 0.05) == 10
    assert seeds_needed(0.5, 1.0, "superior", 0, 0.05) == 34
    assert seeds_needed(0.0, 1.0, "superior", 0, 0.05) is None


def test_the_crossed_interval_is_that_of_a_hand_worked_table():
    # Seed means 1 and 3, subject means 0..4; MS_seed = 5 * 2 = 10, MS_subject = 2 * 2.5 = 5, v = 15 / 10.
    effect_SJ = np.array([[-1.0, 0, 1, 2, 3], [1, 2, 3, 4, 5]])
    mean, low, high = crossed_interval(effect_SJ)
    df = 15**2 / (10**2 / 1 + 5**2 / 4)
    assert mean == 2
    assert df == pytest.approx(2.1176, abs=1e-4)
    # t(0.975, 2.1176) lies between the table's 4.303 (2 degrees) and 3.182 (3 degrees).
    assert 3.182 * math.sqrt(1.5) < high - mean < 4.303 * math.sqrt(1.5)
    assert mean - low == pytest.approx(high - mean)


def test_four_subjects_say_nothing_of_new_ones():
    with pytest.raises(ValueError, match="5 test subjects, got 3 and 4"):
        crossed_interval(np.zeros((3, 4)))


# --- by simulation, with the functions of the benchmark


@pytest.mark.parametrize("draw", simulation.GENERATORS, ids=lambda draw: draw.__name__)
def test_a_family_without_effect_errs_in_five_of_a_hundred_studies_at_most(draw):
    studies = 400
    error = simulation.family_error(np.random.default_rng(1), draw, 5, studies)
    assert error <= ALPHA + 2.6 * math.sqrt(ALPHA * (1 - ALPHA) / studies)


def test_settings_a_margin_apart_are_called_equivalent_in_five_of_a_hundred_studies_at_most():
    studies = 2000
    error = simulation.false_equivalence(np.random.default_rng(2), simulation.normal, 6, studies)
    assert 0.03 < error <= ALPHA + 2.6 * math.sqrt(ALPHA * (1 - ALPHA) / studies)


def test_the_interval_covers_and_the_crossed_one_covers_new_subjects():
    random = np.random.default_rng(3)
    assert 0.93 <= simulation.coverage(random, simulation.normal, 5, 1500) <= 0.97
    crossed, alone = simulation.subject_coverage(random, 5, 10, 1000)
    assert 0.92 <= crossed <= 0.985
    assert alone < 0.85


@pytest.mark.slow
def test_looking_at_more_seeds_errs_no_more_and_never_undecides():
    error, reversals = simulation.sequential(np.random.default_rng(4), simulation.normal, 200)
    assert error <= ALPHA + 2.6 * math.sqrt(ALPHA * (1 - ALPHA) / 200)
    assert reversals == 0


@pytest.mark.slow
@pytest.mark.parametrize("seeds", simulation.UNPLANNED, ids=lambda seeds: "-".join(map(str, seeds)))
def test_a_study_that_was_extended_after_looking_errs_in_five_of_a_hundred_reports_at_most(seeds):
    reports, studies = simulation.looks_of_extended(seeds), 150 if len(seeds) < 4 else 50
    assert [looks.factors for looks in reports][:3] == [(1,), (4, 4), (4, 4, 6)][: len(seeds)]
    assert [len(look) for look in reports[-1].seeds] == list(seeds) and not reports[-1].planned
    last, at_any = simulation.extended(np.random.default_rng(5), simulation.normal, reports, studies)
    for error, bound in ((last, ALPHA), (at_any, reports[-1].max_errors)):
        assert error <= bound + 2.6 * math.sqrt(bound * (1 - bound) / studies)
    # Each look at the full level would err more often than that.
    naive = [replace(looks, factors=(1.0,) * len(looks.factors)) for looks in reports]
    assert simulation.extended(np.random.default_rng(5), simulation.normal, naive, studies)[0] > last


# --- verdicts from records


def test_a_clear_effect_is_supported_and_its_opposite_contradicted():
    opposite = replace(BETTER, text="One layer beats two", arm="thin", baseline="full")
    plan = planned(BETTER, opposite)
    ours, other = judged(plan, records_of(plan, SHARP))
    assert (ours.verdict, other.verdict) == ("supported", "contradicted")
    assert ours.mean == pytest.approx(83.08 - 80.1)
    # The same test twice: Holm doubles the smaller, and the larger is no smaller than that.
    assert ours.adjusted_p == pytest.approx(2 * ours.decision.p)
    assert ours.published == pytest.approx(89.3 - 88.0)


def test_lower_errors_are_better():
    claim = Claim("Two layers lift better", "depth", "full", "thin", "pe/mpjpe_mm", "superior")
    plan = planned(claim)
    errors = {"thin": (50, 50.5, 49.9, 50.2, 50.1), "full": (45.1, 45.3, 44.8, 45.2, 45.0)}
    (result,) = judged(plan, records_of(plan, SHARP, errors))
    assert result.verdict == "supported"
    assert result.mean > 0
    assert result.published == pytest.approx(1.2)


@pytest.mark.slow
def test_an_undecided_claim_names_the_seeds_that_would_decide_it():
    plan = planned(BETTER)
    noisy = {"thin": (80.0, 84.0, 79.0, 83.0, 81.0), "full": (82.0, 81.0, 83.0, 82.5, 84.0)}
    (result,) = judged(plan, records_of(plan, noisy))
    assert result.verdict == "undecided"
    sd = np.std(list(result.effects.values()), ddof=1)
    assert result.seeds_needed == seeds_needed(result.mean, float(sd), "superior", 0, ALPHA / 4)
    assert "seeds would decide it" in files(build(plan_file_of(plan), records_of(plan, noisy)))["report.md"]


def test_a_seed_that_has_not_run_withholds_the_verdict():
    plan = planned(BETTER)
    (result,) = judged(plan, records_of(plan, {**SHARP, "thin": (*SHARP["thin"][:4], None)}))
    assert (result.verdict, result.withheld) == ("withheld", ("1 of 5 runs of “thin” not run",))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"device": "cuda"}, "paired runs differ in device"),
        ({"precision": "bf16"}, "paired runs differ in precision"),
        ({"commit": "b" * 40}, "paired runs differ in commit"),
        (
            {"source": {"training": "1" * 16, "evaluation": "2" * 16}},
            "paired runs differ in training code, evaluation code",
        ),
    ],
)
def test_pairs_that_ran_under_other_conditions_withhold_the_verdict(changed, reason):
    plan = planned(BETTER)
    records = records_of(plan, SHARP)
    key = next(key for key, record in records.items() if record.metrics["test/ar3d/top1"] == 80.0)
    records[key] = replace(records[key], about={**ABOUT, **changed})
    (result,) = judged(plan, records)
    assert result.verdict == "withheld"
    assert result.withheld[0].startswith(reason)


@pytest.mark.slow
def test_rows_of_two_projects_are_compared_though_their_code_differs():
    plan = planned(BETTER)
    records = records_of(plan, SHARP)
    for key, record in records.items():
        if plan.units[key].arm == "thin":
            other = {"project": "baselines.project:DD_NET", "source": {"training": "1" * 16, "evaluation": "e" * 16}}
            records[key] = replace(record, about={**record.about, **other})
        else:
            ours = {"source": {"training": "2" * 16, "evaluation": "e" * 16}}
            records[key] = replace(record, about={**record.about, **ours})
    (result,) = judged(plan, records)
    assert result.verdict == "supported"
    warning = "The runs of this table differ in training code"
    assert warning not in files(build(plan_file_of(plan), records))["report.md"]
    key = next(iter(records))
    spoilt = {**records[key].about, "source": {"training": "3" * 16, "evaluation": "e" * 16}}
    records[key] = replace(records[key], about=spoilt)
    assert warning in files(build(plan_file_of(plan), records))["report.md"]


def test_a_collapsed_run_withholds_the_verdict_and_still_counts_in_its_family():
    other = replace(BETTER, text="Again", column="pe/mpjpe_mm")
    plan = planned(BETTER, other)
    errors = {"thin": (50, 50.5, 49.9, 50.2, 50.1), "full": (45.1, 45.3, 44.8, 45.2, 45.0)}
    records = records_of(plan, SHARP, errors)
    key = next(key for key, record in records.items() if record.metrics["test/ar3d/top1"] == 80.0)
    health = {"ar3d": TaskHealth("ar3d/top1", 4.0, ((10, 60.0), (20, 4.5))).to_plain()}
    records[key] = replace(records[key], health=health)
    withheld, decided = judged(plan, records)
    assert withheld.withheld == ("1 of 1 runs of “thin” collapsed",)
    assert decided.adjusted_p == pytest.approx(2 * decided.decision.p)


def test_an_impossible_accuracy_withholds_the_verdict():
    plan = planned(BETTER)
    (result,) = judged(plan, records_of(plan, {**SHARP, "full": (183.0, *SHARP["full"][1:])}))
    assert result.verdict == "withheld"
    assert "outside of what Action recognition can be" in result.withheld[0]


def test_equal_effects_in_every_seed_are_undecided_and_said_so():
    plan = planned(BETTER)
    report = build(plan_file_of(plan), records_of(plan, {"thin": (80.0,) * 5, "full": (81.0,) * 5}))
    assert report.claims[0].verdict == "undecided"
    assert "the same effect in every seed" in files(report)["report.md"]


@pytest.mark.slow
def test_rounding_never_hides_on_which_side_of_a_bound_a_number_lies():
    assert digits_beside((0.004, 1.5), (0,), 2) == 3
    assert digits_beside((-0.00004,), (0,), 2) == 5
    assert digits_beside((0.6996, 0.71), (0, 0.7), 2) == 4
    assert digits_beside((0.0, 0.7), (0, 0.7), 2) == 2
    assert digits_beside((0.05 - 1e-6,), (0.05,), 3) == 6
    assert digits_beside((0.1 + 0.2,), (0.3,), 2) == 2  # 0.30000000000000004.
    plan = planned(BETTER)
    # Effects 0.01, 0.02, ..., 0.05: mean 0.03, interval 0.03 +- 2.776 * 0.0158 / sqrt(5) = [0.0104, 0.0496].
    values = {"thin": (80.0,) * 5, "full": (80.01, 80.02, 80.03, 80.04, 80.05)}
    report = build(plan_file_of(plan), records_of(plan, values))
    assert report.claims[0].verdict == "supported"
    text = files(report)["report.md"]
    assert "+0.03 points \\[+0.01, +0.05\\]" in text
    values["full"] = (80.001, 80.002, 80.003, 80.004, 80.005)
    text = files(build(plan_file_of(plan), records_of(plan, values)))["report.md"]
    assert "+0.003 points \\[+0.001, +0.005\\]" in text and "supported" in text


def test_a_study_extended_after_looking_pays_for_its_looks():
    plan = planned(BETTER)
    records = records_of(plan, SHARP)
    (fixed,), (extended,), (auto,) = (
        judged(plan, records),
        judged(plan, records, looks=((0, 1, 2),)),
        judged(plan, records, planned_looks=(5, 8, 12, 20)),
    )
    first = decide(list(fixed.effects.values())[:3], "superior", 0).p
    assert extended.decision.p == pytest.approx(4 * min(first, fixed.decision.p))
    assert auto.decision.p == pytest.approx(4 * fixed.decision.p)
    text = files(build(replace(plan_file_of(plan), looks=((0, 1, 2),)), records))["report.md"]
    assert "to be looked at, with 3 seeds; 5 seeds, which was not planned" in text


def test_a_look_at_one_seed_tests_nothing_and_costs_nothing():
    plan = planned(BETTER)
    records = records_of(plan, SHARP)
    (fixed,), (begun,), (looked,) = (
        judged(plan, records),
        judged(plan, records, looks=((0,),)),
        judged(plan, records, looks=((0,), (0, 1, 2))),
    )
    assert begun.decision == fixed.decision
    assert looked.decision == judged(plan, records, looks=((0, 1, 2),))[0].decision
    text = files(build(replace(plan_file_of(plan), looks=((0,),)), records))["report.md"]
    assert "not planned" not in text and "right together in 95 of 100 studies" in text


def test_the_order_of_a_list_of_seeds_changes_no_verdict():
    values = {"thin": (80.0,) * 5, "full": (81.0, 79.0, 81.01, 80.99, 78.0)}
    plan = planned(BETTER)
    records = records_of(plan, values)
    file = replace(plan_file_of(plan), looks=((0, 1, 2),))
    table = file.tables[0]
    turned = replace(
        file,
        tables=(
            replace(
                table,
                rows=tuple(
                    replace(row, units={group: (*keys[2:], *keys[:2]) for group, keys in row.units.items()})
                    for row in table.rows
                ),
            ),
        ),
    )
    assert turned.seed_numbers == (2, 3, 4, 0, 1)
    (straight,), (other) = build(file, records).claims, build(turned, records).claims
    assert other[0].verdict == straight.verdict == "undecided"
    assert other[0].decision == straight.decision


@pytest.mark.slow
def test_factors_of_unplanned_looks_stay_within_the_level_however_many_there_are():
    file = plan_file_of(planned(BETTER))
    lists = tuple((10 * index, 10 * index + 1, 10 * index + 2) for index in range(1, 50))
    looks = looks_of(replace(file, looks=lists))
    assert looks.factors[:5] == (4, 4, 6, 12, 20) and len(looks.factors) == 50
    assert sum(1 / factor for factor in looks.factors) <= 1
    assert ALPHA < looks.max_errors < 1.75 * ALPHA
    # The first look was taken for the only one: 5 % and a quarter of it.
    text = files(build(replace(file, looks=lists[:1]), records_of(planned(BETTER), SHARP)))["report.md"]
    assert "right together in 93 of 100 studies" in text
    assert "right together in 95 of 100 studies" in files(build(file, records_of(planned(BETTER), SHARP)))["report.md"]


def test_an_effect_that_turned_around_after_an_earlier_look_has_no_verdict():
    plan = planned(BETTER)
    values = {"thin": (80.0,) * 5, "full": (81.0, 81.01, 80.99, 50.0, 50.0)}
    (result,) = judged(plan, records_of(plan, values), looks=((0, 1, 2),))
    assert result.decision.direction == "supported" and result.decision.p < ALPHA and result.mean < 0
    assert result.withheld == ("the effect of all seeds is on the other side than that of an earlier look",)


def test_runs_of_which_nothing_is_known_have_no_verdict():
    plan = planned(BETTER)
    records = {key: replace(record, about={}) for key, record in records_of(plan, SHARP).items()}
    (result,) = judged(plan, records)
    assert result.withheld == ("of paired runs is not known: device, precision, torch, commit",)


def test_claims_that_came_after_the_runs_say_so():
    plan = planned(BETTER)
    file = replace(plan_file_of(plan), ended_before=7)
    text = files(build(file, records_of(plan, SHARP)))["report.md"]
    assert "Not planned: 7 runs that the claims rest on had ended when they were first declared" in text


# --- new subjects


def test_means_of_subjects_are_those_of_their_clips():
    accuracy, early, error = (planned_column(column) for column in (AR3D, EAP[0], MPJPE))
    outcomes = {
        f"ar3d/{accuracy.sources[0]}/rank": np.array([0, 0, 3, 0]),
        f"ar3d/{accuracy.sources[0]}/subject": np.array([1, 1, 1, 2]),
        f"eap/{early.sources[0]}/rank@0.2": np.array([1, 0]),
        f"eap/{early.sources[0]}/subject": np.array([1, 1]),
        f"pe/{error.sources[0]}/error_sum_mm": np.array([100.0, 50.0, 30.0]),
        f"pe/{error.sources[0]}/frames": np.array([2, 1, 1]),
        f"pe/{error.sources[0]}/subject": np.array([7, 7, 8]),
    }
    assert subject_means(accuracy, outcomes) == {1: pytest.approx(200 / 3), 2: 100.0}
    assert subject_means(early, outcomes) == {1: 50.0}
    assert subject_means(error, outcomes) == {7: 50.0, 8: 30.0}
    assert subject_means(replace(error, metric="pe/floor_mm"), outcomes) is None


def test_means_of_one_action_are_those_of_its_clips():
    error = planned_column(MPJPE)
    squat = replace(error, metric="pe/mpjpe_mm/deep squat")
    place = f"pe/{error.sources[0]}/"
    outcomes = {
        f"{place}error_sum_mm": np.array([100.0, 50.0, 30.0]),
        f"{place}frames": np.array([2, 1, 1]),
        f"{place}subject": np.array([7, 7, 8]),
        f"{place}label": np.array([1, 0, 1]),
    }
    assert subject_means(squat, outcomes, ("lunge", "deep squat")) == {7: 50.0, 8: 30.0}
    assert subject_means(error, outcomes, ("lunge", "deep squat")) == {7: 50.0, 8: 30.0}
    assert subject_means(replace(error, metric="pe/mpjpe_mm/lunge"), outcomes, ("lunge", "deep squat")) == {7: 50.0}
    assert subject_means(squat, outcomes, ("lunge",)) is None
    del outcomes[f"{place}label"]
    assert subject_means(squat, outcomes, ("lunge", "deep squat")) is None


def test_means_of_subjects_average_actions_as_the_column_does():
    """A lunge of three frames at 40 mm and a squat of one at 80 mm: 60 mm, where frames alone give 50."""
    error = planned_column(MPJPE)
    place = f"pe/{error.sources[0]}/"
    outcomes = {
        f"{place}error_sum_mm": np.array([120.0, 80.0]),
        f"{place}frames": np.array([3, 1]),
        f"{place}subject": np.array([7, 7]),
        f"{place}label": np.array([0, 1]),
    }
    assert subject_means(error, outcomes, ("lunge", "deep squat")) == {7: 60.0}
    assert subject_means(error, outcomes) == {7: 50.0}


def planned_column(column):
    plan = plan_file_of(plan_of(columns=(column,), rows=paperless_rows()))
    return plan.tables[0].columns[0]


def paperless_rows():
    from search_spaces.study import Row

    return (Row("thin", {"encoder_layers": 1}, "joint"), Row("full", {"encoder_layers": 2}, "joint"))


def test_effects_on_many_subjects_speak_of_new_ones():
    plan = planned(BETTER)
    records = records_of(plan, SHARP)
    source = plan_file_of(plan).tables[0].columns[0].sources[0]
    random = np.random.default_rng(0)

    def outcomes(key):
        share = records[key].metrics["test/ar3d/top1"] / 100
        subject = np.repeat(np.arange(6), 100)
        return {f"ar3d/{source}/rank": (random.random(600) > share).astype(int), f"ar3d/{source}/subject": subject}

    (result,) = judged(plan, records, outcomes)
    assert result.new_subjects.subjects == 6
    assert result.new_subjects.low < result.new_subjects.mean < result.new_subjects.high


# --- studies, plans, words


def test_the_papers_claims_are_about_rows_that_its_tables_have():
    assert len(tables_7_9.STUDY.claims) == 5
    assert len(paper_tables.STUDY.claims) == 6
    assert [claim.table for claim in tables_1_6.STUDY.claims] == [f"table_{number}" for number in range(1, 7)]
    assert all(claim.reason for claim in paper_tables.STUDY.claims if claim.margin)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "better"}, "kind must be one of superior, not better, equivalent, got 'better'"),
        ({"kind": "equivalent"}, "needs a margin above 0"),
        ({"margin": 1.0}, "reason must say why"),
        ({"margin": math.nan}, "margin must be a finite number"),
        ({"baseline": "full"}, "arm and baseline must differ"),
    ],
)
def test_a_faulty_claim_is_refused_with_its_rule(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(BETTER, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table": "none"}, "no table 'none'; there are depth"),
        ({"arm": "deep"}, "has no row 'deep'; there are thin, full"),
        ({"column": "pe/floor_mm"}, r"got 'pe/floor_mm'; there are ar3d/top1 \(Action recognition\), pe/mpjpe_mm"),
    ],
)
def test_a_claim_about_what_is_not_measured_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        planned(replace(BETTER, **changes))


def test_claims_are_part_of_the_plans_name_and_of_its_file():
    plain, claimed = plan_of(seeds=5), planned(BETTER)
    assert plain.name != claimed.name
    assert plain.units.keys() == claimed.units.keys()
    file = plan_file_of(claimed)
    assert PlanFile.from_json(replace(file, looks=((0, 1, 2),)).to_json()) == replace(file, looks=((0, 1, 2),))


@pytest.mark.parametrize(("margin", "text"), [(1.0, "1 point;"), (0.7, "0.7 points;"), (2.0, "2 points;")])
def test_a_margin_is_in_points(margin, text):
    claim = replace(BETTER, margin=margin, reason="so")
    plan = planned(claim)
    assert f"better by more than {text}" in files(build(plan_file_of(plan), records_of(plan, SHARP)))["report.md"]


@pytest.mark.slow
def test_a_star_stands_at_decided_claims_alone():
    claim = replace(BETTER, arm="thin", baseline="full")
    with_claim, without = planned(claim), plan_of(seeds=5)
    marked, plain = (
        files(build(plan_file_of(plan), records_of(plan, SHARP)))["report.md"] for plan in (with_claim, without)
    )
    # Differences -3, -2.9, -3.1, -3.1, -2.8: the squares around their mean -2.98 add up to 0.068, sd 0.13.
    assert "Δ −2.98 ± 0.13\\*" in marked
    assert "Δ −2.98 ± 0.13 |" in plain


def test_the_report_opens_with_its_claims():
    plan = planned(BETTER)
    texts = files(build(plan_file_of(plan), records_of(plan, SHARP)))
    assert texts["report.md"].index("## Claims") < texts["report.md"].index("units finished")
    assert "+2.98 points [" in texts["report.html"]
    (line,) = csv.DictReader(io.StringIO(texts["claims.csv"]))
    assert (line["verdict"], line["arm"], line["new_subjects"]) == (
        "supported",
        "full",
        "results by clip are not at hand",
    )
    assert float(line["effect"]) == pytest.approx(2.98)
    assert len(line["effects"].split(";")) == 5
    assert "supported (p &lt; 0.001)" in texts["report.html"]
