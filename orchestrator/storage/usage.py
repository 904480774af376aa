"""What lies on a storage, and how much room each kind of it takes."""

import re
from collections import Counter
from dataclasses import dataclass, field

from orchestrator.storage.backends.local import CLAIM, TEMPORARY
from orchestrator.storage.backends.workspace import MANIFEST, RESULT, SOURCE
from orchestrator.storage.ledger import CLAIMED, FAILURE, IMPORTED, LOG, OWNER, PROGRESS, RECORD, Ledger
from ups_model.evaluation.metric_names import OUTCOMES
from ups_model.training.run_folder import TRUNK

RESUME, WEIGHTS, RECORDS, LOGS, REPORTS, SEARCHES, CLAIMS, MLFLOW, LEFT, OTHER = KINDS = (
    "checkpoints to resume from", "chosen weights", "records", "logs", "plans and reports", "searches", "claims",
    "MLflow", "leftovers", "other",
)  # fmt: skip
INDEX, TRUNKS = "trained", "trunks"
"""Folders of the indexes of trained weights and of trunks."""
NO_STUDY = "(no study)"
FILES = {
    **dict.fromkeys((RECORD, FAILURE, OUTCOMES, IMPORTED, RESULT, MANIFEST, SOURCE, "config.json"), RECORDS),
    **dict.fromkeys((LOG, PROGRESS), LOGS),
    **dict.fromkeys((CLAIM, OWNER), CLAIMS),
}
"""Kinds of what lies in a unit's folder."""
SET_ASIDE = re.compile(r"record-[^/]+\.json|outcomes-[^/]+\.npz")
"""Records of units that were trained again by other code."""
FOLDERS = {"checkpoints": RESUME, TRUNK: RESUME, "best": WEIGHTS, "claims": CLAIMS}
"""Kinds of what lies in folders of a unit's."""
TOP_FOLDERS = {
    "studies": REPORTS,
    "searches": SEARCHES,
    INDEX: RECORDS,
    TRUNKS: RECORDS,
    CLAIMED: CLAIMS,
    "mlartifacts": MLFLOW,
}


@dataclass
class Usage:
    """Bytes. A unit that several studies use counts in each of them, and once in `kinds`."""

    kinds: Counter[str] = field(default_factory=Counter)
    studies: dict[str, Counter[str]] = field(default_factory=dict)
    units: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """Of all kinds."""
        return sum(self.kinds.values())


def kind_of(name: str) -> str:
    """The kind of a content, by its name."""
    top, _, rest = name.partition("/")
    if any(TEMPORARY.fullmatch(part) or part.startswith(".probe-") for part in name.split("/")):
        return LEFT
    if top in TOP_FOLDERS:
        return TOP_FOLDERS[top]
    if re.fullmatch(r"mlflow\.db.*|\.mlflow\.lock.*", name):
        return MLFLOW
    if top != "units" or "/" not in rest:
        return OTHER
    inside = rest.split("/", 1)[1]
    if SET_ASIDE.fullmatch(inside):
        return RECORDS
    return FILES.get(inside) or (FOLDERS.get(inside.split("/")[0], OTHER) if "/" in inside else OTHER)


def usage(ledger: Ledger) -> Usage:
    """How much room everything takes. Uploads that never ended count as leftovers. OSError where it can't be read."""
    used = Usage()
    users: dict[str, list[str]] = {}
    for study, plan in ledger.studies().items():
        used.studies[study] = Counter()
        for unit in plan.units.values():
            users.setdefault(unit.folder, []).append(study)
    sizes = [(entry.name, entry.size) for entry in ledger.storage.entries("")]
    listed = {name for name, _ in sizes}
    if ledger.root is None:
        sizes += [(left.name, left.size) for left in ledger.storage.leftovers("units") if left.name not in listed]
    for name, size in sizes:
        kind = kind_of(name) if name in listed else LEFT
        used.kinds[kind] += size
        top, _, rest = name.partition("/")
        place = rest.split("/")[0]
        studies: list[str] = []
        if top == "units" and "/" in rest:
            used.units[place] += size
            studies = users.get(place, [NO_STUDY])
        elif top == "studies" and place in used.studies:
            studies = [place]
        elif top in (INDEX, CLAIMED):
            trained = ledger.storage.read_object(f"{INDEX}/{place.removesuffix('.json')}.json")
            studies = users.get(str(trained.get("folder", "")), [NO_STUDY])
        for study in studies:
            used.studies.setdefault(study, Counter())[kind] += size
    return used


def key_of(folder: str) -> str:
    """The key of the unit of a folder."""
    return folder.rsplit("-", 1)[-1]


def bytes_text(size: int) -> str:
    """Bytes for people."""
    number, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
