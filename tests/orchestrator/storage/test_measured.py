"""What units of all studies on a storage have taken."""

from dataclasses import replace

from orchestrator.planning.plan import UnitSize
from orchestrator.planning.plan_file import PlanFile
from orchestrator.storage.measured import measured_units
from search_spaces.study import UPS
from tests.support.plans import finish, new_ledger, plan_of, small_study


def test_units_of_the_same_project_and_of_the_commonest_device_are_taken(tmp_path):
    ledger, plan = new_ledger(tmp_path), plan_of(small_study())
    sizes = {key: UnitSize(1, {}, 1000.0, 1) for key in plan.units}
    ledger.save_plan(PlanFile.of(plan, "python -m orchestrator.ablate small", {}, sizes))
    devices = ["cpu", "cpu", "cpu", "V100"]
    projects = [{}, {}, {"project": "mine:PROJECT"}, {}]
    for unit, device, project in zip(plan.units.values(), devices, projects, strict=False):
        record = finish(ledger, unit)
        times = {"started": 100.0, "ended": 104.0, "train_seconds": 3.0}
        ledger.write(unit, replace(record, about={**record.about, **times, **project, "device": device}))
    units = list(plan.units.values())
    taken = measured_units(ledger, {UPS}, gpus=False)
    assert {(one.stage, one.task, one.operations, one.seconds) for one in taken} == {
        (unit.stage, unit.task, 1000.0, 4.0) for unit in units[:2]
    }
    assert len(measured_units(ledger, {UPS}, gpus=True)) == 1, "of GPUs alone"
    assert measured_units(ledger, {"another:PROJECT"}, gpus=False) == []
