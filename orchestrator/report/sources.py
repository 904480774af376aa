"""Where plans and records come from: the ledger on storage, or MLflow. Both give the same pairs."""

import io
import logging
import zlib
from collections.abc import Callable, Mapping
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


@dataclass(frozen=True)
class OpenedStudy:
    """A plan with all that a report is made from."""

    plan: PlanFile
    records: Records
    outcomes: OutcomesOf
    folder: Path
    """That its report goes to, if nothing else is said."""


def open_study(study: str | None, ledger: Ledger | None, tracking_uri: str | None) -> OpenedStudy:
    """A study from a ledger, or where there is none from MLflow alone; then its report goes to the working folder.

    Raises:
        ValueError: no such study or several plans of it, not one record, or MLflow's store can't be read.
        OSError: the storage doesn't answer.
    """
    if ledger is not None:
        plans = ledger.studies(study)
        plan = plans[choose(plans, study, f"--storage {ledger.address}")]
        records: Records = ledger.read(Place(key, unit.folder) for key, unit in plan.units.items())
        opened = OpenedStudy(plan, records, outcomes_from(ledger, plan, records), ledger.report_folder(plan.name))
    else:
        assert tracking_uri is not None, "a ledger or an address of MLflow"
        from orchestrator.tracking import read  # MLflow takes seconds to import.

        fetched = {plan.name: (plan, records) for plan, records in read.fetch(tracking_uri, study)}
        # The address may hold a password: it stays out of messages.
        name = choose({name: plan for name, (plan, _) in fetched.items()}, study, "--tracking-uri")
        plan, records = fetched[name]
        opened = OpenedStudy(plan, records, outcomes_from_tracking(tracking_uri, records), Path(f"report-{name}"))
    if not any(records.values()):
        raise ValueError(
            f"nothing to report: no unit of {plan.name} has left a record; run its ablate command again: {plan.command}"
        )
    return opened


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


def choose(plans: Mapping[str, PlanFile], name: str | None, where: str) -> str:
    """Name of the plan that is meant.

    Args:
        plans: by name.
        name: of a plan, or of a study that has one plan; None where there is one plan at all.
        where: the option that says where was looked, for messages.

    Raises:
        ValueError: none or several are meant; names those that there are.
    """
    names = sorted(plans)
    if not names:
        raise ValueError(f"{where}: nothing to report, no study has been run there; run orchestrator.ablate first")
    if name in names:
        return name
    matching = names if name is None else [one for one in names if plans[one].study == name]
    if not matching:
        raise ValueError(f"{where}: no study {name!r}; there are {', '.join(names)}")
    if len(matching) > 1:
        raise ValueError(f"{where}: several plans are there; name one of {', '.join(matching)}")
    return matching[0]
