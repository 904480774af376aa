"""Results against costs: which rows are on the front, and what the figure shows of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.report import build, files
from orchestrator.report.figures.pareto import Point, front
from tests.orchestrator.report.test_costs import case
from tests.orchestrator.report.test_figures import names_in, texts_in
from tests.orchestrator.report.test_result_figures import place_of
from tests.support.report_cases import finished


def points(*pairs):
    return [Point(row, cost, value) for row, (cost, value) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("pairs", "higher_is_better", "rows"),
    [
        # Dearer and worse is dominated; dearer and better isn't.
        ([(1, 50), (2, 40), (3, 60)], True, [0, 2]),
        ([(1, 50), (2, 40), (3, 60)], False, [0, 1]),
        # Equally dear and worse, equally good and dearer: both dominated.
        ([(1, 50), (1, 60), (2, 60)], True, [1]),
        # Equal in both: neither dominates the other.
        ([(2, 60), (1, 50), (1, 50)], True, [1, 2, 0]),
        ([], True, []),
    ],
)
def test_the_front_has_the_points_that_none_dominates(pairs, higher_is_better, rows):
    assert [point.row for point in front(points(*pairs), higher_is_better)] == rows


def figure_of(plan, records):
    texts = files(build(plan, records))
    (name,) = [name for name in texts if name.startswith("figures/pareto") and name.endswith(".svg")]
    return texts[name], texts["report.md"]


@pytest.mark.slow
def test_rows_are_drawn_against_the_operations_of_a_prediction_where_they_differ_in_them():
    svg, text = figure_of(*case())
    rows, columns = len(case()[0].tables[0].rows), len(case()[0].tables[0].columns)
    drawn = names_in(svg)
    assert (drawn["row"], drawn["front"], drawn["baseline"]) == (rows * columns, columns, columns)
    assert "MFLOPs a prediction" in texts_in(svg) and "counted from the configuration" in text
    # No formula's source where the reader's font has to write the numbers.
    assert not any("$" in (label or "") for label in texts_in(svg))
    # Two million and four million operations, on a logarithmic axis: to the right.
    assert place_of(svg, "row-0-0") != place_of(svg, "row-0-1")


@pytest.mark.slow
def test_without_sizes_they_are_drawn_against_the_time_of_training():
    plan, records = case()
    plan = replace(plan, units={key: replace(unit, size=None) for key, unit in plan.units.items()})
    assert not any(name.startswith("figures/pareto") for name in files(build(plan, records)))
    slow = {
        key: finished(
            key,
            {name.removeprefix("test/"): value for name, value in record.metrics.items()},
            {"train_seconds": 100.0 * (1 + ("1" in plan.units[key].arm))},
        )
        for key, record in records.items()
    }
    svg, text = figure_of(plan, slow)
    assert "minutes of training a seed" in texts_in(svg) and "as measured" in text


@pytest.mark.slow
def test_a_row_without_a_value_is_not_drawn_and_one_row_is_no_figure():
    plan, records = case()
    first = plan.tables[0].rows[0]
    gone = {key for keys in first.units.values() for key in keys}
    without = {key: replace(record, metrics={}) if key in gone else record for key, record in records.items()}
    assert not any(name.startswith("figures/pareto") for name in files(build(plan, without)))
    left = {key: record for key, record in records.items() if key not in gone}
    assert not any(name.startswith("figures/pareto") for name in files(build(plan, left)))
