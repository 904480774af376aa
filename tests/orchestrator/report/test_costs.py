"""What rows cost: counted sizes, and times of a seed's units with their parents."""

import csv
import io
import json
from dataclasses import replace

import pytest

from orchestrator.planning.plan import UnitSize
from orchestrator.planning.plan_file import PlanFile
from orchestrator.report import build, files
from orchestrator.report.__main__ import main
from orchestrator.report.wording import three_digits
from tests.support.plans import plan_of, small_study
from tests.support.report_cases import finished

TASKS = ("pe", "eap", "ar3d")


def case(seconds=100.0, tuned_seconds=10.0, seeds=2, **about):
    """A plan of joint, then fine-tuned rows of one and two layers, and finished records: parents take `seconds`, their
    three children (2D recognition has no column) `tuned_seconds` each."""
    plan = plan_of(small_study(), seeds)
    sizes = {
        key: UnitSize(
            active_parameters=1_000_000 * unit.config.model.encoder_layers,
            flops=dict.fromkeys(unit.config.optim.tasks, 2e6 * unit.config.model.encoder_layers),
            operations=4e12 if unit.stage == "joint" else 1e12,
        )
        for key, unit in plan.units.items()
    }
    metrics = {column.metric: 50.0 for column in small_study().tables[0].columns}
    records = {
        key: finished(key, metrics, {"train_seconds": seconds if unit.stage == "joint" else tuned_seconds, **about})
        for key, unit in plan.units.items()
    }
    return PlanFile.of(plan, "command", {}, sizes), records


def cost_of(plan, records, label="1"):
    return next(row.cost for row in build(plan, records).tables[0].rows if row.label == label)


def test_a_row_costs_its_joint_training_and_all_fine_tunings_of_one_seed():
    cost = cost_of(*case())
    assert cost.seconds == cost.slot_seconds == 100 + 3 * 10
    assert cost.operations == 4e12 + 3 * 1e12
    assert cost.active_parameters == (1_000_000,)
    assert cost.flops == dict.fromkeys(TASKS, 2e6)
    assert cost.joules is None


def test_time_is_the_mean_of_the_seeds_that_are_whole():
    plan, records = case()
    joint = {
        plan.units[key].seed: key for key in records if plan.units[key].stage == "joint" and "1" in plan.units[key].arm
    }
    records[joint[1]] = replace(records[joint[1]], about={"train_seconds": 200.0})
    assert cost_of(plan, records).seconds == (130 + 230) / 2
    child = next(key for key, unit in plan.units.items() if unit.parent == joint[1])
    assert cost_of(plan, records | {child: None}).seconds == 130


def test_weights_that_another_unit_trained_have_no_time():
    plan, records = case()
    joint = [key for key, unit in plan.units.items() if unit.stage == "joint" and "1" in unit.arm]
    for key in joint:
        records[key] = replace(records[key], about={"train_seconds": 0.0, "trained_by": "another"})
    assert cost_of(plan, records).seconds is None
    assert cost_of(plan, records, "2").seconds == 130


@pytest.mark.slow
def test_gpus_multiply_the_price_and_energy_is_summed():
    plan, records = case(gpus=4, energy_joules=720.0)
    cost = cost_of(plan, records)
    assert (cost.seconds, cost.slot_seconds, cost.joules) == (130, 520, 4 * 720)
    text = files(build(plan, records, price_per_hour=9.0))["report.md"]
    # 520 GPU seconds at 9 an hour are 1.30; 2880 J are 0.8 Wh.
    assert "| 1 | 1.00 M | 2.00 | 2.00 | 2.00 | 7.00 | 2.2 | 0.8 | 1.30 |" in text
    assert "Price a seed, at 9 an hour" in text


def test_one_run_without_energy_leaves_the_row_without():
    plan, records = case(energy_joules=720.0)
    key = next(iter(records))
    records[key] = replace(records[key], about={"train_seconds": 100.0})
    assert {row.cost.joules for row in build(plan, records).tables[0].rows} == {None, 4 * 720.0}


@pytest.mark.slow
def test_a_plan_of_an_earlier_version_shows_times_alone():
    plan, records = case()
    plain = plan.to_plain()
    for unit in plain["units"].values():
        del unit["size"]
    report = files(build(PlanFile.from_json(json.dumps(plain)), records))["report.md"]
    assert "MFLOPs" not in report and "Active parameters" not in report
    assert "| 1 | 2.2 |" in report


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.00"), (0.00123, "0.00123"), (0.58, "0.580"), (57.64, "57.6"), (1234.5, "1,234"), (250_000.0, "250,000")],
)
def test_costs_have_three_digits_and_are_never_in_powers_of_ten(value, text):
    assert three_digits(value) == text


def test_sizes_come_back_from_the_plans_file():
    plan, _ = case()
    assert PlanFile.from_json(plan.to_json()) == plan


@pytest.mark.slow
def test_cells_csv_has_counted_costs_and_no_times_which_differ_from_run_to_run():
    lines = csv.DictReader(io.StringIO(files(build(*case()))["cells.csv"]))
    names = ("flops", "row_operations")
    assert {tuple(line[name] for name in names) for line in lines if line["row"] == "2"} == {
        ("4000000.0", "7000000000000.0")
    }


@pytest.mark.parametrize("price", ["0", "-1", "nan", "inf"])
def test_a_price_that_is_none_is_refused(price, capsys):
    assert main(["--price-per-hour", price]) == 2
    assert "--price-per-hour must be above 0" in capsys.readouterr().err
