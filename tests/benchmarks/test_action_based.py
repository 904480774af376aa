"""Error against time of specialists and generalists, by hand."""

import pytest

from benchmarks.action_based import draw, points_of, table
from orchestrator.planning.plan import make_plan
from orchestrator.planning.plan_file import PlanFile
from orchestrator.planning.resolve import resolve
from orchestrator.project import DataFacts
from orchestrator.record import Record
from search_spaces import find_study
from search_spaces.others.action_based import ACTIONS
from ups_model.evaluation.health import TaskHealth


@pytest.fixture(scope="module")
def plan():
    facts = {"uiprmd": DataFacts("0" * 64, False, "", 1907, None, tuple(ACTIONS))}
    return PlanFile.of(make_plan(resolve(find_study("action_based"), "small", {}), 2, facts), "", {})


def records_of(plan, leave_out=""):
    """Each run takes 100 s, that of equal total time 1,000; errors fall from 100 to 60, a specialist's to 50."""
    records = {}
    for key, unit in plan.units.items():
        last = 50.0 if "actions" in unit.arm else 60.0
        curve = tuple((120 * place, 100 - (100 - last) * place / 5 + unit.seed) for place in range(1, 6))
        health = {"pe": TaskHealth("pe/mpjpe_mm", 240.0, curve).to_plain()}
        about = {"train_seconds": 1000.0 if "steps" in unit.arm else 100.0}
        if unit.name != leave_out:
            records[key] = Record(key, "finished", about=about, health=health)
    return records


def test_specialists_cost_the_time_of_all_of_them(plan):
    points = points_of(plan, records_of(plan))
    ends = {point.row: point for point in points if point.share == 1}
    assert {row: point.seconds for row, point in ends.items()} == {
        "one for all actions": 100, "one for each action": 1000, "one for all, equal total time": 1000,
    }  # fmt: skip
    assert ends["one for each action"].error_mm == pytest.approx(50.5)
    assert ends["one for each action"].sd_mm == pytest.approx(0.5**0.5)
    assert ends["one for all actions"].rate == pytest.approx((240 - 60.5) / 100)
    assert [point.seconds for point in points[:5]] == [20, 40, 60, 80, 100]


def test_a_seed_that_lacks_a_specialist_counts_for_none(plan):
    lost = next(unit.name for unit in plan.units.values() if "actions" in unit.arm and unit.seed == 1)
    points = points_of(plan, records_of(plan, lost))
    seeds = {point.row: point.seeds for point in points}
    assert seeds["one for each action"] == 1 and seeds["one for all actions"] == 2
    assert "one for each action" in table(points)


def test_the_curves_are_drawn(plan, tmp_path):
    draw(points_of(plan, records_of(plan)), tmp_path / "curves.svg")
    drawn = (tmp_path / "curves.svg").read_text()
    assert drawn.count("<path") > 15 and "Date" not in drawn
