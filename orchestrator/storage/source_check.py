"""Which finished units the present code would not have made: trained by other code, or measured by other code.

A record names the digests of the source that trained its weights and that measured them (`ups_model.source`):

    "source": {"training": "<digest>", "evaluation": "<digest>"}

"training" is "<digest> then <digest>" where a run was continued by other code, or began from weights of other code.
Records from before there were digests have none: their code is "unknown". A unit's folder has the same of a run that
hasn't finished, in `source.json`.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from orchestrator.planning.plan import Unit
from orchestrator.project import Identity, load_project
from orchestrator.record import Record, finished_of
from orchestrator.storage.backends.base import as_object
from orchestrator.storage.backends.workspace import RESULT, SOURCE
from orchestrator.storage.ledger import Ledger
from ups_model.source import present_form
from ups_model.wording import count

logger = logging.getLogger(__name__)

Policy = Literal["refuse", "accept", "retrain"]
"""What becomes of units that other code has trained."""
UNKNOWN = "unknown"
THEN = " then "
MAX_NAMED = 4
"""Commits that a message names."""


def training_code(record: Record) -> str:
    """The source that trained a record's weights."""
    return THEN.join(chain([str(_source(record).get("training", UNKNOWN))]))


def evaluation_code(record: Record) -> str:
    """The source that measured a record's metrics."""
    return present_form(str(_source(record).get("evaluation", UNKNOWN)))


def _source(record: Record) -> Mapping[str, Any]:
    source = record.about.get("source")
    return source if isinstance(source, Mapping) else {}


def is_trained_otherwise(record: Record) -> bool:
    """Whether other code than the present one has trained the weights, or a part of their training."""
    return training_code(record) != _present(record).training


def is_measured_now(record: Record) -> bool:
    """Whether the present code has measured a record's weights, or code that measures the same."""
    return evaluation_code(record) == _present(record).evaluation


def _present(record: Record) -> Identity:
    """The present code of the project that a record is of."""
    return load_project(record.project).identity()


def needs_measuring(record: Record, wanted: Iterable[str] = ()) -> bool:
    """Whether measuring a record's weights again would give other results than it has.

    Of a unit that the present code would train so again: where other code has measured it. Of others, which are kept as
    they are, only where a metric is wanted that they lack, or where they have no results by clip.
    """
    if is_measured_now(record):
        return False
    if is_trained_otherwise(record):
        return record.tested and (not record.outcomes or any(f"test/{name}" not in record.metrics for name in wanted))
    return bool(record.metrics)


def chain(codes: Iterable[str]) -> list[str]:
    """Digests in the order in which their code trained, each once; an entry may itself be such a chain."""
    return list(dict.fromkeys(present_form(code) for entry in codes for code in entry.split(THEN)))


@dataclass(frozen=True)
class Begun:
    """Which code has trained what lies in a unit's folder."""

    training: tuple[str, ...] = ()
    """Empty where there is nothing to go on with."""
    evaluation: str = ""

    @classmethod
    def read(cls, folder: Path) -> "Begun":
        """Of a folder on this machine."""
        if not any(folder.glob("checkpoints/step-*")) and not (folder / RESULT).exists():
            return cls()
        try:
            return cls._from(as_object((folder / SOURCE).read_bytes()))
        except FileNotFoundError:
            return cls((UNKNOWN,))

    @classmethod
    def on_storage(cls, ledger: Ledger, unit: Unit) -> "Begun":
        """Of a unit on storage. OSError where it doesn't answer."""
        place = f"units/{unit.folder}"
        begun = cls._from(ledger.storage.read_object(f"{place}/{SOURCE}"))
        if begun.training == (unit.trainer.identity().training,):
            return begun  # Whether there is anything makes no difference.
        is_there = ledger.storage.children(f"{place}/checkpoints") or ledger.storage.look(f"{place}/{RESULT}")
        return begun if is_there else cls()

    @classmethod
    def _from(cls, plain: Mapping[str, Any]) -> "Begun":
        training = plain.get("training")
        if not isinstance(training, list) or not training:
            return cls((UNKNOWN,))
        return cls(tuple(chain(map(str, training))), present_form(str(plain.get("evaluation", ""))))

    def write(self, folder: Path) -> None:
        """Before the first step of a run."""
        content = {"training": list(self.training), "evaluation": self.evaluation}
        (folder / SOURCE).write_text(json.dumps(content) + "\n", "utf-8")


@dataclass(frozen=True)
class Standing:
    """How the units of a study stand to the present code."""

    trained_otherwise: Mapping[str, Record] = field(default_factory=dict)
    """Records of finished units that other code has trained, by key."""
    begun_otherwise: Mapping[str, str] = field(default_factory=dict)
    """Code of units that have checkpoints of other code and haven't finished, by key."""
    to_measure: tuple[str, ...] = ()
    """Keys of finished units that are measured again from their weights."""
    without_weights: tuple[str, ...] = ()
    """Keys of finished units that would be measured again if their weights were there."""
    present: tuple[str, ...] = ()
    """Training code of the projects of all units."""

    @property
    def is_mixed(self) -> bool:
        """Whether other code has trained any of the units."""
        return bool(self.trained_otherwise or self.begun_otherwise)

    def describe(self) -> str:
        """What other code has trained, and which code that was. One line."""
        parts = []
        if self.trained_otherwise:
            commits = (str(record.about.get("commit") or UNKNOWN) for record in self.trained_otherwise.values())
            units = count(len(self.trained_otherwise), "finished unit")
            parts.append(f"{units} (commit {_listed(dict.fromkeys(commits))})")
        if self.begun_otherwise:
            parts.append(f"{count(len(self.begun_otherwise), 'unfinished unit')} with checkpoints")
        codes_of = [*map(training_code, self.trained_otherwise.values()), *self.begun_otherwise.values()]
        verb = "was" if len(codes_of) == 1 else "were"
        return (
            f"{' and '.join(parts)} {verb} trained by other code: training code "
            f"{_listed(dict.fromkeys(codes_of))}, the present one is {_listed(self.present)}"
        )


class SourceCheck:
    """Compares units on storage with the present code."""

    def __init__(
        self, ledger: Ledger, policy: Policy = "refuse", wanted: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """
        Args:
            policy: what becomes of units that other code has trained.
            wanted: metrics that tables have columns of, by key of the unit; none that such a unit can't have.
        """
        self.policy = policy
        self._ledger = ledger
        self.wanted_by_key = wanted or {}
        self._has_weights: dict[str, bool] = {}

    def wanted(self, unit: Unit) -> tuple[str, ...]:
        """Metrics that tables want of a unit."""
        return tuple(self.wanted_by_key.get(unit.key, ()))

    def is_current(self, unit: Unit, record: Record) -> bool:
        """Whether a finished record stays as it is."""
        return self._is_kept(record) and not (
            needs_measuring(record, self.wanted(unit)) and (self._weights(unit, record) or self.policy == "retrain")
        )

    def is_to_measure(self, unit: Unit, record: Record) -> bool:
        """Whether a finished unit is measured again and not trained."""
        return self._is_outdated(unit, record) and self._weights(unit, record)

    def _is_kept(self, record: Record) -> bool:
        """Whether the weights that a record names stay those of its unit."""
        return self.policy == "accept" or not is_trained_otherwise(record)

    def _is_outdated(self, unit: Unit, record: Record) -> bool:
        """Whether a unit would be measured again if its weights are there."""
        return self._is_kept(record) and needs_measuring(record, self.wanted(unit))

    def _weights(self, unit: Unit, record: Record) -> bool:
        if unit.key not in self._has_weights:
            self._has_weights[unit.key] = self._ledger.has_weights(unit, record)
        return self._has_weights[unit.key]

    def standing(self, units: Iterable[Unit]) -> Standing:
        """How units stand to the present code. OSError where the storage doesn't answer."""
        every = list(units)
        finished = finished_of(self._ledger.read(every))
        rest = [unit for unit in every if unit.key not in finished]
        begun = self._ledger.storage.each(lambda unit: Begun.on_storage(self._ledger, unit).training, rest)
        outdated = [unit for unit in every if unit.key in finished and self._is_outdated(unit, finished[unit.key])]
        kept = self._ledger.storage.each(lambda unit: self._weights(unit, finished[unit.key]), outdated)
        to_measure = tuple(unit.key for unit, is_there in zip(outdated, kept, strict=True) if is_there)
        return Standing(
            {key: record for key, record in finished.items() if is_trained_otherwise(record)},
            {
                unit.key: THEN.join(codes)
                for unit, codes in zip(rest, begun, strict=True)
                if codes not in ((), (unit.trainer.identity().training,))
            },
            to_measure=to_measure,
            without_weights=tuple(unit.key for unit in outdated if unit.key not in to_measure),
            present=tuple(dict.fromkeys(unit.trainer.identity().training for unit in every)),
        )

    def check(self, units: Iterable[Unit]) -> Standing:
        """`standing`, and what of it has to be said.

        Raises:
            ValueError: other code has trained some units, and nothing was said of what is to become of them.
        """
        standing = self.standing(units)
        if standing.is_mixed:
            if self.policy == "refuse":
                raise ValueError(
                    f"{standing.describe()}; --accept-other-code keeps them, --retrain trains them and what starts "
                    "from them again, and another --storage leaves them alone"
                )
            what = "they are kept" if self.policy == "accept" else "they are trained again, their records are kept"
            logger.warning("%s; %s", standing.describe(), what)
        if standing.to_measure:
            logger.info("%s", measured_again(len(standing.to_measure), "are"))
        if standing.without_weights and self.policy != "retrain":
            logger.warning("%s", not_measured_again(len(standing.without_weights)))
        return standing


def measured_again(units: int, verb: Literal["are", "were"]) -> str:
    """For a log and for the end of a call."""
    verb_of_one = "is" if verb == "are" else "was"
    return (
        f"{count(units, 'unit')} {verb_of_one if units == 1 else verb} measured again from kept weights, without "
        "training: other code has measured them before"
    )


def not_measured_again(units: int) -> str:
    """For a log and for the end of a call."""
    return (
        f"{count(units, 'unit')} keep{'s' * (units == 1)} metrics that other code has measured, since the "
        "weights are gone; --retrain trains again"
    )


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - MAX_NAMED} more" if len(every) > MAX_NAMED else ""
    return ", ".join(every[:MAX_NAMED]) + more
