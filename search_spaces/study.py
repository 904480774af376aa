"""What a study is: tables whose rows are changes to one base configuration, as plain data that checks itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from search_spaces.common import NOTHING as NOTHING
from search_spaces.common import UPS as UPS
from search_spaces.common import text_faults
from search_spaces.space import SCORE, Choice, Range, Sampler, Space
from ups_model.config.schema import canonical, digest


@dataclass(frozen=True)
class Column:
    """One measure of one task."""

    metric: str
    """As the project names it, its task first, e.g. "eap/top1@0.2" (UPS: `ups_model.evaluation.metric_names`)."""
    title: str
    unit: str
    """"%", "mm", or any other; empty for a number without one."""
    higher_is_better: bool
    changes: Mapping[str, Any] = field(default_factory=lambda: NOTHING, hash=False)
    """Fields of the section `data`, where the column is measured on other clips than the study's base, such as another
    protocol: then it stands for trainings of its own. A row's changes override a column's."""

    def __post_init__(self) -> None:
        if faults := text_faults([("metric", self.metric), ("title", self.title), ("unit", self.unit)]):
            raise ValueError(f"column {self.title!a}: " + "; ".join(faults))

    @property
    def task(self) -> str:
        """The task that is measured."""
        return self.metric.split("/", 1)[0]

    @property
    def group(self) -> str:
        """Columns of one group are measured on the same training: its task, and what the column changes."""
        return self.task + (f"-{digest(canonical(self.changes))}" if self.changes else "")


@dataclass(frozen=True)
class Row:
    """One setting of what a table varies."""

    label: str
    changes: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    """Fields of the configuration by dotted or unambiguous short name, and their values in this row."""
    training: str = ""
    """How it is trained; empty for the first of the project's trainings. Of UPS: "fine-tuned", all tasks jointly, then
    each task from there (the paper's "UPS"); "joint", without the second stage; "separate", each task alone from
    scratch (the paper's "UPS_separate")."""
    published: tuple[float | None, ...] = ()
    """The paper's value for each column; empty where the paper has none at all."""
    project: str = ""
    """Address of the project that trains the row, where that isn't the study's. The study's base isn't its base then:
    its changes are those to its own project's preset."""


@dataclass(frozen=True)
class Reference:
    """A published line beside which nothing of ours is trained."""

    label: str
    published: tuple[float | None, ...]


@dataclass(frozen=True)
class Table:
    """Rows by columns."""

    name: str
    """For file names and addresses, e.g. "table_7"."""
    title: str
    varies: str
    """Heading of the first column."""
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    baseline: str
    """Label of the row that differences are taken to."""
    notes: tuple[str, ...] = ()
    """Footnotes: what a reader must know before comparing with the published values."""
    references: tuple[Reference, ...] = ()

    def __post_init__(self) -> None:
        lines: tuple[Row | Reference, ...] = (*self.rows, *self.references)
        faults = text_faults(
            [("name", self.name), ("title", self.title), ("varies", self.varies)]
            + [("the label of a row", line.label) for line in lines]
            + [("a note", note) for note in self.notes]
        )
        if faults:
            raise ValueError(f"table {self.name!a}: " + "; ".join(faults))
        labels = [row.label for row in self.rows]
        if not self.rows or not self.columns:
            faults.append("a table needs at least one row and one column")
        measures = [f"{column.metric} of {column.group}" for column in self.columns]
        for kind, names in (("row", labels), ("column", measures)):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                faults.append(f"{kind} {twice[0]!r} is there twice; name each once")
        if self.baseline not in labels:
            faults.append(f"baseline must be the label of a row, got {self.baseline!r}; rows are {', '.join(labels)}")
        for line in lines:
            if line.published and len(line.published) != len(self.columns):
                faults.append(
                    f"row {line.label!r} must have one published value for each of {len(self.columns)} columns "
                    f"(None for no value), got {len(line.published)}"
                )
        if faults:
            raise ValueError(f"table {self.name!r}: " + "; ".join(faults))


ClaimKind = Literal["superior", "not better", "equivalent"]
CLAIM_KINDS: tuple[ClaimKind, ...] = ("superior", "not better", "equivalent")
"""superior: the arm is better than the baseline by more than the margin; not better: it isn't better by more than the
margin; equivalent: it differs by less than the margin either way."""


PRIMARY = "primary"
"""The family of claims that a study is made for."""


@dataclass(frozen=True)
class Claim:
    """A statement about two rows of a table and one measure, fixed before the run."""

    text: str
    table: str
    """Name of the table that both rows are in."""
    arm: str
    """Label of the row that the statement is about."""
    baseline: str
    """Label of the row that it is compared with."""
    column: str
    """Metric of the column; its title where several columns of the table have that metric."""
    kind: ClaimKind
    margin: float = 0.0
    """In the column's unit; 0 for "superior" means better at all."""
    reason: str = ""
    """Why the margin is what it is; needed where it isn't 0."""
    family: str = PRIMARY
    """Verdicts are corrected for the number of claims of one family."""

    def __post_init__(self) -> None:
        faults = text_faults([("text", self.text), ("reason", self.reason), ("family", self.family)])
        if self.kind not in CLAIM_KINDS:
            faults.append(f"kind must be one of {', '.join(CLAIM_KINDS)}, got {self.kind!r}")
        if not 0 <= self.margin < float("inf"):
            faults.append(f"margin must be a finite number of at least 0, got {self.margin!r}")
        elif self.kind in ("not better", "equivalent") and not self.margin:
            faults.append(
                f"a claim of kind {self.kind!r} needs a margin above 0: no test shows a difference of exactly 0"
            )
        elif self.margin and not self.reason:
            faults.append("reason must say why the margin is what it is")
        if self.arm == self.baseline:
            faults.append(f"arm and baseline must differ, both are {self.arm!r}")
        if faults:
            raise ValueError(f"claim {self.text!a}: " + "; ".join(faults))

    def names(self, metric: str, title: str) -> bool:
        """Whether the claim is about a column of this metric and title."""
        return self.column in (metric, title)


@dataclass(frozen=True)
class FineTuning:
    """The second stage of "joint, then fine-tuned"; the paper gives no figures for it."""

    share: float = 0.25
    """Share of a task's iterations that are spent in fine-tuning. A row's samples per task are the same in every kind
    of training: what fine-tuning takes, joint training has less."""
    rate: float = 0.3
    """Peak learning rate, as a share of the configuration's."""

    def __post_init__(self) -> None:
        if not 0 < self.share < 1 or not 0 < self.rate <= 1:
            raise ValueError(f"fine-tuning needs 0 < share < 1 and 0 < rate <= 1, got {self.share} and {self.rate}")


def tuned_label(label: str) -> str:
    """Label of the row that stands below a row of a study with tuning and has its best values."""
    return f"{label}, tuned"


@dataclass(frozen=True)
class Tuning:
    """The same search for every arm of a study, since a row is only fair if its own hyper-parameters were looked for.

    Trials are judged on validation subjects. Each row of a table then stands there twice, as the study has it and with
    the best values of its own search, both trained with the study's seeds.
    """

    dimensions: Mapping[str, Range | Choice]
    """As of a `Space`; none that a row sets."""
    trials: int
    """Of each arm. The first is the arm as the study has it, where it lies in the dimensions."""
    seeds: int
    """Repetitions of each trial: seeds first_seed, first_seed + 1 ..., none of which is one of the study's."""
    first_seed: int = 100
    sampler: Sampler = "qmc"
    """As of a `Space`; "qmc" suggests the same points to every arm."""
    sampler_seed: int = 0
    objective: str | None = None
    """Metric of validation that decides. None: the score over tasks of an arm whose first run trains several jointly,
    the headline metric of the task of one that trains it alone."""

    def __post_init__(self) -> None:
        self.space("tuning", self.objective or SCORE)

    def space(
        self, name: str, objective: str, direction: Literal["maximize", "minimize"] = "maximize", project: str = UPS
    ) -> Space:
        """The search of one arm.

        Raises:
            ValueError: as `Space`.
        """
        return Space(
            name,
            "Which values are best for this arm?",
            self.dimensions,
            objective=objective,
            direction=direction,
            trials=self.trials,
            seeds=self.seeds,
            first_seed=self.first_seed,
            sampler=self.sampler,
            sampler_seed=self.sampler_seed,
            project=project,
        )

    def check_fresh(self, seeds: Sequence[int]) -> None:
        """ValueError where tables would be trained with seeds that values were chosen by."""
        used = range(self.first_seed, self.first_seed + self.seeds)
        if common := sorted(set(seeds) & set(used)):
            raise ValueError(
                f"seeds of the tables must not be those of tuning ({used[0]} to {used[-1]}), got {common[0]}: what was "
                "lucky in a search must not count again; give other seeds, or another first_seed of tuning"
            )


@dataclass(frozen=True)
class Study:
    """A question, and the tables that answer it."""

    name: str
    question: str
    expectation: str
    """The result that the paper, or the author of the study, expects; the report states it beside the outcome."""
    tables: tuple[Table, ...]
    base: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    """Changes to the preset that hold in every row."""
    seeds: int | tuple[int, ...] = 3
    """Repetitions of every row: their number N, for seeds 0 .. N-1, or the seeds themselves."""
    fine_tuning: FineTuning = field(default_factory=FineTuning)
    claims: tuple[Claim, ...] = ()
    """What the report judges; all other cells are descriptive."""
    project: str = UPS
    """Address of the trainer, "package.module:NAME" (`orchestrator.project.Project`)."""
    tuning: Tuning | None = None
    """How each arm's own values are looked for; None trains the rows as they are alone."""

    def __post_init__(self) -> None:
        names = [table.name for table in self.tables]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"study {self.name!r} needs tables of different names, got {names}")
        if not self.name.isidentifier():
            raise ValueError(f"study's name must be letters, digits and underscores, got {self.name!r}")
        if faults := text_faults([("question", self.question), ("expectation", self.expectation)]):
            raise ValueError(f"study {self.name!r}: " + "; ".join(faults))
        numbers = self.seeds if isinstance(self.seeds, tuple) else (self.seeds,)
        if not numbers or not all(isinstance(one, int) and not isinstance(one, bool) for one in numbers):
            raise ValueError(
                f"study {self.name!r}: seeds must be a number or seeds as in (0, 3, 7), got {self.seeds!r}"
            )
        if isinstance(self.seeds, int) and self.seeds < 1:
            raise ValueError(f"study {self.name!r} needs at least 1 seed, got {self.seeds}")
        if isinstance(self.seeds, tuple) and (min(numbers) < 0 or len(set(numbers)) < len(numbers)):
            raise ValueError(f"study {self.name!r}: seeds must be from 0 on, each there once, got {self.seeds}")
        if self.tuning is not None:
            self._check_tuning(self.tuning)
        for claim in self.claims:
            self._check_claim(claim)

    def _check_tuning(self, tuning: Tuning) -> None:
        """ValueError for seeds that tuning takes too, or labels that tuned rows will have."""
        try:
            tuning.check_fresh(range(self.seeds) if isinstance(self.seeds, int) else self.seeds)
        except ValueError as error:
            raise ValueError(f"study {self.name!r}: {error}") from error
        for table in self.tables:
            labels = {row.label for row in table.rows}
            if twice := sorted(label for label in labels if tuned_label(label) in labels):
                raise ValueError(
                    f"study {self.name!r}, table {table.name!r}: row {tuned_label(twice[0])!r} has the label that row "
                    f"{twice[0]!r} gets with tuned values; give it another"
                )

    def _check_claim(self, claim: Claim) -> None:
        """ValueError for a claim about what the study doesn't measure."""
        table = next((table for table in self.tables if table.name == claim.table), None)
        if table is None:
            raise ValueError(
                f"study {self.name!r}, claim {claim.text!r}: no table {claim.table!r}; there are "
                f"{', '.join(table.name for table in self.tables)}"
            )
        rows = [row.label for row in table.rows]
        rows += [tuned_label(label) for label in rows] if self.tuning is not None else []
        for label in (claim.arm, claim.baseline):
            if label not in rows:
                raise ValueError(
                    f"study {self.name!r}, claim {claim.text!r}: table {table.name!r} has no row {label!r}; there are "
                    f"{', '.join(rows)}"
                )
        if sum(claim.names(column.metric, column.title) for column in table.columns) != 1:
            raise ValueError(
                f"study {self.name!r}, claim {claim.text!r}: column must be the metric or title of one column of table "
                f"{table.name!r}, got {claim.column!r}; there are "
                f"{', '.join(f'{column.metric} ({column.title})' for column in table.columns)}"
            )
