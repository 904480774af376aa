"""The planner: counts from the paper's tables, budgets worked by hand, keys that hold what they must."""

import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.planning.plan import Unit, make_plan
from orchestrator.planning.plan_file import PlanFile
from orchestrator.planning.resolve import resolve
from orchestrator.project import DataFacts
from orchestrator.ups.project import alone, two_stages
from search_spaces import find_study
from search_spaces.columns import ABLATION, AR2D
from search_spaces.study import FineTuning, Row, Study, Table
from tests.support.plans import DATA, TEXT, plan_of, small_study
from ups_model.config import TASK_NAMES
from ups_model.config.identity import trunk_key
from ups_model.config.presets import preset


def test_tables_7_to_9_have_8_rows_6_arms_and_24_units_a_seed():
    plan = plan_of(find_study("tables_7_9"))
    assert (plan.rows, len(plan.arms)) == (8, 6)
    # An arm is joint training and three fine-tunings: the tables have columns of three tasks.
    assert len(plan.units) == 6 * 4
    assert plan.unshared_units == 8 * 4
    assert len(plan_of(find_study("tables_7_9"), seeds=3).units) == 3 * 24


def test_the_paper_study_shares_units_across_tables_and_with_tables_7_to_9():
    plan = plan_of(find_study("paper_tables"), changes={"n_bins": 500})
    # 6 arms of Tables 7-9; four more bins (500 is the base's); separate, joint; and the base's fine-tuning of AR2D.
    assert len(plan.arms) == 6 + 4 + 2
    assert len(plan.units) == 6 * 4 + 4 * 4 + 4 + 1 + 1
    assert set(plan_of(find_study("tables_7_9"), changes={"n_bins": 500}).units) < set(plan.units)
    # Of a preset with another number of bins, 500 is a fifth arm.
    assert len(plan_of(find_study("paper_tables")).arms) == len(plan.arms) + 1


def test_parents_stand_before_children_and_children_take_their_routes():
    plan = plan_of(find_study("paper_tables"), seeds=2)
    seen = set()
    for unit in plan.units.values():
        assert not unit.parent or unit.parent in seen
        assert (unit.stage == "finetune") == bool(unit.parent) == unit.config.freeze_routes
        if unit.parent:
            parent = plan.units[unit.parent]
            assert parent.stage == "joint" and parent.seed == unit.seed
            assert parent.config.model == unit.config.model and parent.config.data == unit.config.data
        seen.add(unit.key)


@given(
    steps=st.integers(8, 5000),
    share=st.floats(0.05, 0.9),
    cycle=st.lists(st.sampled_from(TASK_NAMES), min_size=1, max_size=7).map(tuple),
)
def test_all_kinds_of_training_spend_the_same_iterations_on_each_task(steps, share, cycle):
    config = preset("tiny").with_fields({"steps": steps, "cycle": cycle})
    total = config.optim.turns_before(steps)
    try:
        joint, tuned = two_stages(config, FineTuning(share))
    except ValueError as error:
        assert "steps must be enough" in str(error)
        return
    before = joint.optim.turns_before(joint.optim.steps)
    for task in config.optim.tasks:
        assert before[task] + tuned[task].optim.steps == total[task]
        assert alone(config, task).optim.steps == total[task]
        assert tuned[task].optim.cycle == alone(config, task).optim.cycle == (task,)


def test_stages_by_hand():
    config = preset("tiny").with_fields({"steps": 480, "learning_rate": 0.002})
    joint, tuned = two_stages(config, FineTuning(share=0.25, rate=0.3))
    assert joint.optim.steps == 360 and joint.optim.learning_rate == 0.002
    assert {task: one.optim.steps for task, one in tuned.items()} == dict.fromkeys(TASK_NAMES, 30)
    assert tuned["pe"].optim.learning_rate == pytest.approx(0.0006)
    assert alone(config, "pe").optim.steps == 120


def test_stages_of_a_constant_rate_are_laid_out_for_the_same_share_of_the_horizon():
    def stages(steps):
        config = preset("tiny").with_fields({"steps": steps, "schedule": "constant", "horizon": 480})
        return (config, *two_stages(config, FineTuning(share=0.25)))

    (short, joint, tuned), (long, longer, _) = stages(480), stages(960)
    assert (joint.optim.horizon, longer.optim.horizon) == (360, 360)
    assert (alone(short, "pe").optim.horizon, alone(long, "pe").optim.horizon) == (120, 120)
    assert {(one.optim.schedule, one.optim.horizon) for one in tuned.values()} == {("cosine", 0)}
    keys = {trunk_key(one, {}, "") for one in (joint, longer)}
    assert len(keys) == 1 and keys != {""} and trunk_key(tuned["pe"], {}, "") == ""
    assert trunk_key(joint.replace(seed=1), {}, "") not in keys
    assert trunk_key(joint.with_fields({"evaluate_every": 40, "validation_subjects": 1}), {}, "") == ""


def test_every_row_of_every_study_has_the_same_samples_for_a_task():
    for name in ("tables_7_9", "paper_tables", "smoke"):
        plan = plan_of(find_study(name))
        for _, lines in plan.tables:
            for task in lines[0].units:
                samples = {plan.samples(key, task) for line in lines for key in line.units[task]}
                assert len(samples) == 1, (name, task)


def test_a_row_with_another_batch_has_another_budget():
    rows = (Row("16"), Row("32", {"ar3d.batch_size": 32}))
    plan = plan_of(small_study(tables=(Table("t", "T", "x", ABLATION[:1], rows, "16"),)))
    first, second = (plan.samples(line.units["ar3d"][0], "ar3d") for line in plan.tables[0][1])
    assert second == 2 * first == 2 * 120 * 16


def test_seeds_share_no_unit_and_differ_in_nothing_else():
    plan = plan_of(small_study(), seeds=3)
    by_seed = [[unit for unit in plan.units.values() if unit.seed == seed] for seed in range(3)]
    assert len({unit.key for units in by_seed for unit in units}) == 3 * 8
    for units in by_seed[1:]:
        for unit, first in zip(units, by_seed[0], strict=True):
            assert dataclasses.replace(unit.config, seed=0) == first.config


def test_a_key_holds_data_language_model_and_parent_and_no_path():
    plan = plan_of(small_study())
    other_data = {**DATA, "synthetic_ntu25": DataFacts("f" * 64, True, "", 1)}
    moved = {name: dataclasses.replace(facts, description="said otherwise") for name, facts in DATA.items()}
    resolved = resolve(small_study(), "tiny", {})
    assert set(make_plan(resolved, 1, moved, TEXT).units) == set(plan.units)
    assert not set(make_plan(resolved, 1, other_data, TEXT).units) & set(plan.units)
    assert not set(make_plan(resolved, 1, DATA, "another model").units) & set(plan.units)


def test_adding_a_row_a_seed_or_a_table_keeps_all_units_and_the_plan_s_name():
    plan = plan_of(small_study(), seeds=2)
    table = small_study().tables[0]
    more_rows = dataclasses.replace(table, rows=(*table.rows, Row("3", {"encoder_layers": 3})))
    more_tables = (table, dataclasses.replace(table, name="again", columns=AR2D))
    for extended in (
        plan_of(small_study(), seeds=3),
        plan_of(small_study(tables=(more_rows,)), seeds=2),
        plan_of(small_study(tables=more_tables), seeds=2),
    ):
        assert set(plan.units) < set(extended.units)
        assert extended.name == plan.name
    assert plan_of(small_study(), changes={"steps": 100}).name != plan.name


@pytest.mark.slow
def test_the_same_plan_is_made_in_another_process(repo_root):
    program = (
        "from tests.support.plans import *; from search_spaces import find_study; "
        "plan = plan_of(find_study('paper_tables'), seeds=2); print(plan.name, *plan.units)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=repo_root, capture_output=True, text=True, check=True)
    plan = plan_of(find_study("paper_tables"), seeds=2)
    assert done.stdout.split() == [plan.name, *plan.units]


def test_a_unit_comes_back_from_plain_data():
    for unit in plan_of(small_study()).units.values():
        assert Unit.from_plain(unit.to_plain()) == unit


def test_the_user_s_fields_replace_the_study_s_under_either_name():
    study = small_study(base={"optim.steps": 400})
    for name in ("steps", "optim.steps"):
        assert plan_of(study, changes={name: 80}).base.optim.steps == 80


def test_arms_are_named_by_what_differs_from_the_base():
    names = [arm.name for arm in plan_of(find_study("paper_tables")).arms]
    assert names[:3] == ["encoder_layers=1", "base", "encoder_layers=5"]
    assert {"routing=False", "n_bins=1000", "separate", "joint"} < set(names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Row("deep", {"encoder_layer": 5}), "row 'deep': unknown field 'encoder_layer'; near: .*encoder_layers"),
        (Row("none", {"encoder_layers": 0}), "row 'none': .*encoder_layers must be at least 1, got 0"),
        (Row("wide", {"dropout": "much"}), "row 'wide': .*dropout must be a number, got 'much'"),
        (Row("short", {"steps": 4}), "row 'short': steps must be enough .* got 4"),
        (Row("class", {"cycle": ("ar3d", "eap")}), "row 'class': a column measures pe, which is not trained"),
    ],
)
def test_a_bad_row_is_named_with_its_study_and_table(row, message):
    table = Table("t", "T", "x", ABLATION, (Row("good"), row), "good")
    with pytest.raises(ValueError, match=message) as caught:
        plan_of(Study("mine", "?", "!", (table,)))
    assert "study 'mine', table 't'" in str(caught.value)


def test_what_is_kept_of_a_plan_is_plain_and_whole():
    import json

    plan = plan_of(find_study("paper_tables"), seeds=2)
    plan_file = PlanFile.of(plan, "a command", {"steps": "8"})
    assert PlanFile.from_json(plan_file.to_json()) == plan_file
    content = json.loads(json.dumps(plan_file.to_plain(), allow_nan=False))
    assert content == plan_file.to_plain()
    keys = {
        key for table in content["tables"] for row in table["rows"] for keys in row["units"].values() for key in keys
    }
    assert keys <= set(content["units"]) == set(plan.units)
    assert content["tables"][0]["rows"][0]["samples"] == {"ar3d": 1920, "pe": 1920, "eap": 1920}


def test_joint_training_is_measured_where_a_row_means_it_and_nowhere_else():
    plan = plan_of(find_study("paper_tables"), changes={"n_bins": 500})
    measured = plan.measured()
    by_stage = {stage: [unit.key in measured for unit in plan.units.values() if unit.stage == stage]
                for stage in ("joint", "finetune", "separate")}  # fmt: skip
    # Of eleven joint trainings one is a row of its own; the others are where fine-tuning starts.
    assert sum(by_stage["joint"]) == 1 and len(by_stage["joint"]) == 11
    assert all(by_stage["finetune"]) and all(by_stage["separate"])
