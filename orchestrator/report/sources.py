"""Where plans and records come from: the ledger on storage, or MLflow. Both give the same pairs."""

import io
import logging
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from orchestrator.planning.plan_file import PlanFile
from orchestrator.report.claims import Outcomes, OutcomesOf
from orchestrator.report.clip_results import check_outcomes
from orchestrator.report.model import Records
from orchestrator.storage.ledger import Ledger, Place
from ups_model.evaluation.metric_names import OUTCOMES

logger = logging.getLogger(__name__)

PlanAndRecords = tuple[PlanFile, Records]
"""A plan, and the records of its units by key."""


@dataclass(frozen=True)
class OpenedStudy:
    """A plan with all that a report is made from."""

    plan: PlanFile
    records: Records
    outcomes: OutcomesOf
    folder: Path
    """That its report goes to, if nothing else is said."""


def open_study(study: str | None, ledger: Ledger | None, tracking_uri: str | None) -> OpenedStudy:
    """A study from a ledger, or where there is none from MLflow.

    Raises:
        ValueError, OSError: as `from_storage` and `from_tracking`.
    """
    if ledger is not None:
        (plan, records), folder = from_storage(ledger, study)
        return OpenedStudy(plan, records, outcomes_from(ledger, plan, records), folder)
    assert tracking_uri is not None, "a ledger or an address of MLflow"
    (plan, records), folder = from_tracking(tracking_uri, study)
    return OpenedStudy(plan, records, outcomes_from_tracking(tracking_uri, records), folder)


def from_storage(ledger: Ledger, study: str | None) -> tuple[PlanAndRecords, Path]:
    """The plan of a study on storage with its records, and the folder that its report goes to.

    Raises:
        ValueError: no such study or several plans of it, or not one record.
        OSError: the storage doesn't answer.
    """
    plans, storage = ledger.studies(study), ledger.address
    plan = plans[choose([(name, plan.study) for name, plan in plans.items()], study, f"--storage {storage}")]
    records = ledger.read(Place(key, unit.folder) for key, unit in plan.units.items())
    return _with_records(plan, records), ledger.report_folder(plan.name)


def from_tracking(tracking_uri: str, study: str | None) -> tuple[PlanAndRecords, Path]:
    """The same from MLflow alone; the report goes to the working folder.

    Raises:
        ValueError: as `from_storage`, and if the store can't be read.
    """
    from orchestrator.tracking import read  # MLflow takes seconds to import.

    plans = {plan.name: (plan, records) for plan, records in read.fetch(tracking_uri, study)}
    # The address may hold a password: it stays out of messages.
    name = choose([(name, plan.study) for name, (plan, _) in plans.items()], study, "--tracking-uri")
    return _with_records(*plans[name]), Path(f"report-{name}")


def outcomes_from(ledger: Ledger, plan: PlanFile, records: Records) -> OutcomesOf:
    """Outcomes of a plan's units on storage: those that their records have the digest of."""
    return _outcomes_of(lambda key: ledger.outcomes(Place(key, plan.units[key].folder)), records)


def outcomes_from_tracking(tracking_uri: str, records: Records) -> OutcomesOf:
    """The same from MLflow alone; what it returns raises ValueError if the store can't be read."""
    from orchestrator.tracking import read

    return _outcomes_of(read.outcomes_reader(tracking_uri), records)


def _outcomes_of(read: Callable[[str], bytes | None], records: Records) -> OutcomesOf:
    """Reads each unit's file once, though several claims may be about it."""

    @cache
    def outcomes_of(key: str) -> Outcomes | None:
        record = records.get(key)
        content = read(key) if record is not None and record.outcomes else None
        if record is None or content is None or not record.has_outcomes(content):
            return None
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            check_outcomes(arrays)
        except (ValueError, OSError, EOFError, BadZipFile, zlib.error) as error:
            logger.warning("%s of unit %s: not results by clip (%s); they are left out", OUTCOMES, key, error)
            return None
        return arrays

    return outcomes_of


def choose(plans: Sequence[tuple[str, str]], name: str | None, where: str) -> str:
    """Name of the plan that is meant.

    Args:
        plans: name of each plan and of its study.
        name: of a plan, or of a study that has one plan; None where there is one plan at all.
        where: the option that says where was looked, for messages.

    Raises:
        ValueError: none or several are meant; names those that there are.
    """
    names = sorted(plan for plan, _ in plans)
    if not names:
        raise ValueError(f"{where}: nothing to report, no study has been run there; run orchestrator.ablate first")
    if name in names:
        return name
    matching = names if name is None else sorted(plan for plan, study in plans if study == name)
    if not matching:
        raise ValueError(f"{where}: no study {name!r}; there are {', '.join(names)}")
    if len(matching) > 1:
        raise ValueError(f"{where}: several plans are there; name one of {', '.join(matching)}")
    return matching[0]


def _with_records(plan: PlanFile, records: Records) -> PlanAndRecords:
    if not any(records.values()):
        raise ValueError(
            f"nothing to report: no unit of {plan.name} has left a record; run its ablate command again: {plan.command}"
        )
    return plan, records
