"""What the units of all studies on a storage have taken, for estimates of units that no study has trained yet."""

from collections.abc import Collection, Iterator

from orchestrator.planning.estimate import Measured, is_of_cpu, seconds_of
from orchestrator.record import finished_of
from orchestrator.storage.ledger import Ledger, Place
from search_spaces.study import UPS

MAX_RECORDS = 500
"""That are read: a request each on an object store."""


def measured_units(ledger: Ledger, projects: Collection[str], gpus: bool) -> list[Measured]:
    """Finished units of these projects with their operations, of the kind of device that most were measured on.

    Args:
        gpus: leave out what was measured on processors.

    Raises:
        OSError: the storage doesn't answer.
    """
    units = {key: unit for plan in ledger.studies().values() for key, unit in plan.units.items() if unit.size}
    keys = list(units)[:MAX_RECORDS]
    records = finished_of(ledger.read([Place(key, units[key].folder) for key in keys]))

    def each() -> Iterator[tuple[str, Measured]]:
        for key, record in records.items():
            unit, about, seconds = units[key], record.about, seconds_of(record)
            project = str(about.get("project", UPS))
            if seconds and project in projects and unit.size and not (gpus and is_of_cpu(record)):
                yield (
                    str(about.get("device", "")),
                    Measured(project, unit.stage, unit.task, unit.size.operations, seconds),
                )

    by_device: dict[str, list[Measured]] = {}
    for device, one in each():
        by_device.setdefault(device, []).append(one)
    return max(by_device.values(), key=len, default=[])
