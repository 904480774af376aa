"""A report as numbers and the study's own words: tables, rows, cells."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from orchestrator.planning.plan_file import PlanFile, PlannedColumn
from orchestrator.project import DataFacts
from orchestrator.record import Record
from orchestrator.report.claim_tests import ALPHA, Decision
from orchestrator.report.statistics import Paired, is_possible, mean_and_sd, seed_correlation
from orchestrator.storage.source_check import evaluation_code, training_code
from search_spaces.study import PRIMARY, Claim, Reference

Verdict = Literal["supported", "contradicted", "undecided", "withheld"]
State = Literal["finished", "not measured", "not finite", "failed", "parent failed", "not run"]
UNKNOWN = "unknown"
PROVENANCE = ("commit", "device", "precision", "torch")
"""Entries of `Record.about` that all runs of one table should share."""
CODE = {"training code": training_code, "evaluation code": evaluation_code}
"""Digests of source that runs should share too."""
DIFFERING = CODE | {"choice of weights": lambda record: str(record.about.get("chosen_by") or UNKNOWN)}
"""What a table names only where its runs differ in it. Of runs that choose their weights otherwise, some have an
advantage."""

Records = Mapping[str, Record | None]


@dataclass(frozen=True)
class Cell:
    """One measure of one row."""

    column: PlannedColumn
    states: Mapping[int, State]
    """By seed, in ascending order."""
    values: Mapping[int, float]
    """By seed; of finished runs that measured it."""
    sampling_error: float | None
    """Standard error of one run's value because the test set is finite, mean over runs; None if any lacks it."""
    samples: int
    """Training samples of the column's task."""
    baseline_samples: int
    published: float | None
    published_difference: float | None
    """To the published value of the baseline row; None in that row."""
    difference: Paired | None
    """To the baseline row; None in that row."""
    health: Mapping[int, str] = field(default_factory=dict)
    """By seed, of finished runs that were judged: "converged", "not converged", "not learnt", "collapsed" ..."""
    baseline_health: Mapping[int, str] = field(default_factory=dict)
    """The same of the baseline row in this column; empty in that row."""
    baseline_states: Mapping[int, State] = field(default_factory=dict)
    """By seed; empty in that row."""
    arm: str = ""
    """Name of the arm that fills it, as runs, figures and MLflow have it."""
    decided: bool = False
    """Whether a claim about this cell and the baseline's is supported or contradicted."""

    @property
    def withheld(self) -> bool:
        """Whether the difference gets no verdict: a run that failed, collapsed or did not converge shows its training,
        not its setting, and those that are left are chosen by it; a value that its measure can't have shows a fault."""
        rows = ((self.states, self.health), (self.baseline_states, self.baseline_health))
        return self.impossible or not all(trained_out(*row) for row in rows)

    @property
    def impossible(self) -> bool:
        """Whether a value of this row or of the baseline row is none that the measure can have."""
        pairs = self.difference.by_seed if self.difference is not None else {}
        values = [*self.values.values(), *(self.values[seed] - pairs[seed] for seed in pairs)]
        return not all(is_possible(value, self.column.unit) for value in values)

    @property
    def n(self) -> int:
        """Runs that the mean is over."""
        return len(self.values)

    @property
    def mean(self) -> float | None:
        return mean_and_sd(list(self.values.values()))[0]

    @property
    def sd(self) -> float | None:
        return mean_and_sd(list(self.values.values()))[1]

    @property
    def unequal_budget(self) -> bool:
        """Whether this row saw another number of samples of the task than the baseline row."""
        return self.samples != self.baseline_samples


def failed(states: Mapping[int, State]) -> int:
    """Runs that ended without a value: none of those that have not been run."""
    return sum(state in ("failed", "parent failed", "not finite") for state in states.values())


def trained_out(states: Mapping[int, State], health: Mapping[int, str]) -> bool:
    """Whether no run failed, collapsed or did not converge."""
    return not failed(states) and not sum(unhealthy(health))


def unhealthy(health: Mapping[int, str]) -> tuple[int, int]:
    """Runs that collapsed, and runs that had not learnt or were still getting better (or worse) when they ended."""
    states = list(health.values())
    return states.count("collapsed"), states.count("not learnt") + states.count("not converged")


@dataclass(frozen=True)
class Cost:
    """What a row's runs take; shared joint training counts in full in each row that rests on it."""

    active_parameters: tuple[int, ...] = ()
    """Different numbers among the row's measured units, ascending: of a routed layer, one block counts."""
    flops: Mapping[str, float] = field(default_factory=dict)
    """By group of columns: multiplications and additions of one prediction."""
    operations: float | None = None
    """Multiplications and additions of training one seed, parents included."""
    seconds: float | None = None
    """Training time of one seed, parents included: mean over the seeds whose every unit is finished and timed."""
    slot_seconds: float | None = None
    """The same, times the GPUs of each unit; without GPUs a unit takes one slot."""
    joules: float | None = None
    """Energy that the GPUs took for one seed, over the same seeds; None where a run lacks it."""


@dataclass(frozen=True)
class RowOfCells:
    """A row of a table."""

    label: str
    baseline: bool
    training: str
    cells: tuple[Cell, ...]
    parameters: tuple[int, ...]
    """Different numbers of parameters among the row's measured runs, ascending; empty if none is known."""
    cost: Cost = Cost()


@dataclass(frozen=True)
class Origin:
    """One value of a provenance entry, and where in the table it occurs."""

    value: str
    units: int
    rows: tuple[str, ...]
    project: str = ""
    """Whose training code it is: rows of other projects have another."""


@dataclass(frozen=True, kw_only=True)
class Source(DataFacts):
    """A clip set, or one of its protocols."""

    name: str
    """As the configuration writes it: "ntu60", "ntu60:xview"."""


@dataclass(frozen=True)
class TableOfCells:
    """A table, ready for words."""

    name: str
    title: str
    varies: str
    baseline: str
    columns: tuple[PlannedColumn, ...]
    rows: tuple[RowOfCells, ...]
    references: tuple[Reference, ...]
    """Each with a value, or None, for every column."""
    notes: tuple[str, ...]
    sources: tuple[tuple[Source, ...], ...]
    """Of each column; the first is the one that it measures."""
    titles: Mapping[str, str]
    """Of the tasks that the table measures, in the order of reports."""
    origins: Mapping[str, tuple[Origin, ...]]
    """Of each entry of PROVENANCE and DIFFERING the values among the table's finished runs (their parents included)."""

    @property
    def seed_correlations(self) -> tuple[float | None, ...]:
        """Of each column: how the seeds of other rows go with those of the baseline row."""
        baseline = next(row for row in self.rows if row.baseline)
        others = [row for row in self.rows if not row.baseline]
        return tuple(
            seed_correlation([(row.cells[index].values, baseline.cells[index].values) for row in others])
            for index in range(len(self.columns))
        )


@dataclass(frozen=True)
class NewSubjects:
    """An effect for subjects that no run has seen, from per-subject means."""

    mean: float
    low: float
    high: float
    subjects: int


@dataclass(frozen=True)
class ClaimResult:
    """A claim and what the runs say of it."""

    claim: Claim
    column: PlannedColumn
    effects: Mapping[int, float]
    """By seed: the arm beside the baseline, above 0 where the arm is better, in the column's unit."""
    low: float | None
    """Ends of the 95 % t interval of the mean effect over seeds, on these test subjects, not corrected for the number
    of claims; None below two seeds."""
    high: float | None
    new_subjects: NewSubjects | str
    """Or why nothing can be said of new subjects."""
    published: float | None
    """Effect between the published values, signed alike."""
    decision: Decision
    """Corrected for the number of looks, not for the number of claims."""
    adjusted_p: float
    """Corrected for both."""
    withheld: tuple[str, ...]
    """Why there is no verdict; empty where there is one."""
    seeds_needed: int | None
    """With which an undecided claim would be decided at 80 % power, if the effect is as measured."""

    @property
    def mean(self) -> float | None:
        return mean_and_sd(list(self.effects.values()))[0]

    @property
    def verdict(self) -> Verdict:
        if self.withheld:
            return "withheld"
        return self.decision.direction if self.adjusted_p < ALPHA else "undecided"


@dataclass(frozen=True)
class Route:
    """The block that each task takes in each layer, of one joint training."""

    arm: str
    seed: int
    blocks: Mapping[str, tuple[int, ...]]
    blocks_per_layer: int
    """Those that no task takes too, where the record has the run's configuration."""


@dataclass(frozen=True)
class Curve:
    """How one run's validation metric of one task went."""

    arm: str
    stage: str
    task: str
    seed: int
    first_step: int
    """Steps of the run that it starts from."""
    metric: str
    trivial: float
    """The metric of the trivial answer."""
    points: tuple[tuple[int, float], ...]
    """(step, value) at each fifth of the run."""
    state: str
    """Its health, as in `Cell.health`."""


@dataclass(frozen=True)
class Confusion:
    """Predicted classes of the test clips of each true class, summed over a row's runs."""

    task: str
    title: str
    """Of the task."""
    source: str
    """As the configuration writes it."""
    row: str
    """Its label."""
    ratio: str
    """Share of each clip that was observed; empty where that is all of it."""
    seeds: int
    counts: tuple[tuple[int, ...], ...]
    """[true][predicted]"""
    classes: tuple[str, ...]
    """Their names; empty where the plan has none."""


@dataclass(frozen=True)
class ExamplePoses:
    """The poses of the smallest, the median and the largest error of one run, in this order."""

    source: str
    row: str
    """Its label."""
    seed: int
    frames: int
    """Test frames that they are chosen from."""
    bones: tuple[tuple[int, int], ...]
    """Joints at their ends."""
    places: tuple[tuple[int, int, int], ...]
    """Clip, camera and frame."""
    joints: tuple[tuple[tuple[float, float], ...], ...]
    """[3][J] on the screen as the model gets them, y downwards."""
    predicted: tuple[tuple[tuple[float, float, float], ...], ...]
    """[3][J] mm from the root, in camera axes: x right, y down, z away."""
    truth: tuple[tuple[tuple[float, float, float], ...], ...]


@dataclass(frozen=True)
class Failure:
    """A unit that failed, and the last line of what it raised: the lines above it hold paths of the machine."""

    unit: str
    key: str
    error: str


@dataclass(frozen=True)
class Progress:
    """How much of the study there is; units that several rows share count once."""

    units: int
    finished: int
    failed: int
    parent_failed: int
    not_run: int
    train_seconds: float
    untimed: int
    """Finished units whose training time is unknown."""
    borrowed: int
    """Finished units that were not trained but measured with the weights of a unit of another plan."""
    health: Mapping[str, int] = field(default_factory=dict)
    """How many of the measured runs are in each state of health; "not judged" where none was recorded."""


@dataclass(frozen=True)
class RunSettings:
    """What the finished runs were trained with, as their records have it; values are JSON."""

    shared: tuple[tuple[str, str], ...] = ()
    """Field and value, of those that are the same in all runs."""
    kinds: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    """Of each kind of run, arm and stage, the fields that are not."""


@dataclass(frozen=True)
class Report:
    """All that a report shows, as numbers and the study's own words."""

    plan: PlanFile
    sources: Mapping[str, tuple[Source, ...]]
    """Of each task, where a column says nothing else; the first is the one that is measured."""
    tables: tuple[TableOfCells, ...]
    routes: tuple[Route, ...]
    failures: tuple[Failure, ...]
    progress: Progress
    claims: tuple[ClaimResult, ...] = ()
    """In the study's order."""
    curves: tuple[Curve, ...] = ()
    confusions: tuple[Confusion, ...] = ()
    poses: ExamplePoses | None = None
    settings: RunSettings = RunSettings()
    price_per_hour: float | None = None
    """Of a GPU, or of a slot without GPUs, in the reader's currency."""

    @property
    def primary_claims(self) -> tuple[ClaimResult, ...]:
        """Those of the primary family; all where there is none."""
        return tuple(result for result in self.claims if result.claim.family == PRIMARY) or self.claims
