"""What MLflow shows of a plan, without MLflow."""

from orchestrator.tracking import schema as mirrored
from search_spaces import find_study
from tests.support.plans import plan_of


def test_run_names_are_short_and_differ_wherever_units_do():
    plan = plan_of(find_study("paper_tables"), seeds=2)
    names = [mirrored.run_name(plan, unit) for unit in plan.units.values()]
    assert len(set(names)) == len(names)
    assert {"Layers 1 pe s0", "base joint s1", "separate ar2d s0", "joint s0", "Setting UPS w/o DR eap s1"} < set(names)
    assert max(map(len, names)) <= 27


def test_only_names_that_mlflow_would_make_alike_get_a_digest():
    names = mirrored.clean_names(["wave (left)", "wave [left]", "bow (deep)", "x" * 300])
    assert len(set(names.values())) == 4 and max(map(len, names.values())) == mirrored.NAME_LENGTH
    assert names["bow (deep)"] == mirrored.clean("bow (deep)") == "bow _deep_"
    assert names["wave (left)"] == f"wave _left_-{mirrored.digest_of('wave (left)')}"
