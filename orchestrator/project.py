"""What the orchestrator asks of a trainer: its settings, data, metrics, training runs. UPS is one project; a user's own
model is another (`orchestrator.simple_project`). Imports nothing else of the orchestrator, and no torch.

A study names its project by address, "package.module:NAME"; by default that is UPS.
"""

import difflib
import importlib
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, Self, runtime_checkable

from search_spaces.study import UPS, FineTuning
from ups_model.wording import count

CHECKPOINTS_PER_RUN = 10
MAX_STEPS_BETWEEN_CHECKPOINTS = 500
"""A kill loses at most a tenth of a run, and never more than so many steps."""
ITEM = "item:"
"""Arrays TASK/SOURCE/item:METRIC of `outcomes.npz` have the values of which a metric is the mean, TASK/SOURCE/subject
whose they are."""


@dataclass(frozen=True)
class DataFacts:
    """What a plan says of one data set."""

    fingerprint: str
    synthetic: bool
    description: str
    clips: int
    published_clips: int | None = None
    """As its authors, or those who published figures on it, counted them; None where nobody did."""
    classes: tuple[str, ...] = ()
    """Names of its classes by number; empty in plans of earlier versions."""


@dataclass(frozen=True)
class Sizes:
    """How large a configuration's model is."""

    parameters: int
    active_parameters: int
    """Those that one sample passes through: of a routed layer, one block's."""
    flops: Mapping[str, float]
    """Multiplications and additions of a forward pass, per sample of each trained task."""
    training_flops: Mapping[str, float] | None = None
    """The same in training, where that is another."""


@dataclass(frozen=True)
class Gpus:
    """The GPUs that a plan is for."""

    memory_bytes: float
    """Of each."""
    per_unit: int
    """Processes of a unit, each on a GPU."""
    micro_batch: int | Literal["auto"]
    """As `RunOptions.micro_batch`; 0 shows what "auto" would take."""
    activation_checkpointing: Literal["auto", "on", "off"]
    share: float = 1.0
    """Of a GPU for each process."""

    @property
    def room(self) -> float:
        """Bytes that a step may take."""
        from ups_model.training.fit import MARGIN  # It imports torch.

        return self.memory_bytes * self.share * (1 - MARGIN)

    @property
    def of_a_unit(self) -> str:
        """GPUs that a unit has, in words."""
        return count(self.per_unit, "GPU") if self.share == 1 else f"{self.share:g} of a GPU"


@dataclass(frozen=True)
class Fitting:
    """A training step of the task that takes the most memory."""

    task: str
    whole: float
    """Bytes for all clips that a GPU has of a batch."""
    clips: int
    at_once: int
    peak: float
    """Bytes of a part of so many clips."""
    activation_checkpointing: bool


@dataclass(frozen=True)
class Stage:
    """One training run of an arm, with one seed."""

    name: str
    """What a person sees, e.g. "joint"."""
    task: str
    """The task trained alone; empty where all are."""
    settings: "Settings"


@dataclass(frozen=True)
class Identity:
    """Digests of the code of a project: units that other code has trained are no part of a table unless the user says
    so, those that other code has measured are measured again where that is possible."""

    training: str
    evaluation: str


@dataclass(frozen=True)
class Objective:
    """A metric by which a search may judge its trials."""

    unit: str
    higher_is_better: bool


@dataclass(frozen=True)
class Objectives:
    """By what a search may judge its trials."""

    held_out: str
    """What they are measured on, in words, e.g. "2 validation subjects"."""
    by_name: Mapping[str, Objective]
    """Names as in records, "validation/..."; of each task first the one that stands for it in a table."""


class Settings(Protocol):
    """A configuration: frozen, checked where it is built, and all that can change a result."""

    @property
    def seed(self) -> int: ...
    def canonical(self) -> dict[str, Any]:
        """Plain JSON data, equal for equal configurations."""

    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the canonical form."""

    def field_path(self, name: str) -> str:
        """The dotted name of a field given by an unambiguous end of it. ValueError for any other name."""

    def with_fields(self, changes: Mapping[str, Any]) -> Self:
        """A copy with fields changed; values may be texts, as on a command line. ValueError for an unknown field, or a
        value out of its range."""


class Data(Protocol):
    """An opened data set."""

    @property
    def fingerprint(self) -> str:
        """Of its content."""


@dataclass(frozen=True)
class Request:
    """A training run that a worker asks for. Nothing but settings, data and parent may change its result."""

    settings: Any
    """As the project's `read` gives them."""
    key: str
    """Of the unit."""
    paths: Mapping[str, Path]
    """Folder or file of each data set."""
    folder: Path
    """The unit's own. What an earlier try saved lies in it: `checkpoints/step-00000100/`, `best/`, `progress.jsonl`."""
    parent: Path | None = None
    """Chosen weights of the run that it starts from."""
    test: bool = True
    """Measure the test split at the end; else leave it alone."""
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    threads: int = 1
    """Of all its processes together."""
    processes: int = 1
    cache: Path = Path()
    """Folder for what is made once a machine."""
    micro_batch: int | Literal["auto"] = 0
    activation_checkpointing: Literal["auto", "on", "off"] = "auto"
    memory_share: float = 1.0
    """Share of the device's memory that may be planned for."""
    should_stop: Callable[[], bool] = lambda: False
    """True: save a checkpoint and end, with the status "stopped"."""
    on_checkpoint: Callable[[], None] = lambda: None
    """To be called after each checkpoint, to bring it to the storage."""
    sample: Callable[[int, Any], None] = lambda step, values: None
    """To be called after each line of progress, for the machine's own measures, and to see whether the run pauses."""
    trunk: Path | None = None
    """Checkpoint of a shorter run that this one continues (`Project.trunk`), where its folder has none."""
    measure_at: tuple[int, ...] = ()
    """Steps after which a line of progress has to have the metrics on held-out data, named as in `Result.metrics`."""


class Result(Protocol):
    """What a training run leaves."""

    @property
    def status(self) -> Literal["finished", "stopped"]: ...
    @property
    def key(self) -> str:
        """`Request.key`."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """`test/TASK/...` and `validation/TASK/...` of the chosen weights."""

    @property
    def routes(self) -> Mapping[str, list[int]]:
        """The block that each task takes in each layer; empty for a model without routes."""

    @property
    def checkpoint(self) -> str:
        """Folder of the chosen weights, below `best/` of the unit's folder."""

    @property
    def about(self) -> Mapping[str, Any]:
        """config (canonical settings), train_seconds, parameters, device, precision: what a caption needs."""

    @property
    def health(self) -> Mapping[str, Mapping[str, Any]]:
        """By task, as `TaskHealth.to_plain`; empty where nothing was held out to judge by."""

    @property
    def outcomes(self) -> str:
        """SHA-256 of `outcomes.npz` in the unit's folder; empty where there is none."""


@runtime_checkable
class Project(Protocol):
    """A trainer, and all that the orchestrator has to know of it."""

    @property
    def name(self) -> str:
        """Stands in keys: another name is another project."""

    @property
    def tasks(self) -> Mapping[str, str]:
        """Title of each task by its id, in the order of reports. Names of metrics begin with the id and a slash."""

    @property
    def trainings(self) -> Sequence[str]:
        """Ways to train a row, e.g. "joint"; the first is the one of rows that name none."""

    @property
    def published_on(self) -> Mapping[str, tuple[str, str]]:
        """Of tasks that studies have published values of: what data these are on, in words, and a pattern of the names
        of the same data sets."""

    def base(self, preset: str) -> Settings:
        """Settings of a preset (tiny, small or paper), with seed 0."""

    def read(self, canonical: Mapping[str, Any]) -> Settings:
        """The settings whose `canonical()` this is. ValueError where there are none."""

    def sources(self, settings: Any) -> Mapping[str, tuple[str, ...]]:
        """Of each task that is trained, what it is trained and measured on, the measured one first: a data set's name,
        or NAME:PROTOCOL."""

    def sets(self, settings: Any) -> tuple[str, ...]:
        """Names of all data sets that the settings need; their content is part of a unit's key."""

    def locate(self, given: Sequence[str], names: Sequence[str]) -> dict[str, Path]:
        """Place of each data set: as `--data NAME=PATH` texts name it, else a default. ValueError where there is
        none."""

    def open(self, paths: Mapping[str, Path]) -> Mapping[str, Data]:
        """The data sets. ValueError where a place holds none, or another one."""

    def facts(self, data: Mapping[str, Any]) -> dict[str, DataFacts]:
        """What a plan says of opened data sets."""

    def check(self, settings: Any, data: Mapping[str, Any]) -> None:
        """ValueError where settings and data don't go together, before anything is trained."""

    def check_cut(self, settings: Any, processes: int, micro_batch: int | Literal["auto"]) -> None:
        """ValueError where a batch can't be cut so."""

    def metrics(self, settings: Any, task: str, data: Mapping[str, Any]) -> Sequence[str]:
        """Names of all that is measured of a task, e.g. "ar3d/top1"."""

    def check_metric(self, settings: Any, metric: str, data: Mapping[str, Any]) -> None:
        """ValueError where no table can have a column of a metric with these settings; names near ones."""

    def objectives(self, settings: Any, data: Mapping[str, Any]) -> Objectives:
        """What is measured on data held out from training. ValueError where nothing is held out."""

    def stages(self, settings: Any, training: str, task: str, fine_tuning: FineTuning) -> Sequence[Stage]:
        """The runs of a row, each from the weights of the one before; on the last the task is measured. ValueError
        where it can't be trained so."""

    def samples(self, settings: Any) -> Mapping[str, int]:
        """Training samples of each task in one run."""

    def steps(self, settings: Any) -> int:
        """Iterations of one run, for progress."""

    def chosen_by(self, settings: Any) -> str:
        """How the weights that are measured are chosen, in words."""

    def inputs_identity(self, settings: Any) -> str:
        """Of what a run reads beside data sets, such as a language model; part of a unit's key."""

    def key(self, settings: Any, data: Mapping[str, str], inputs: str, parent: str) -> str:
        """16 hexadecimal digits that name a run: settings, fingerprints of its data sets, `inputs_identity`, key of the
        parent."""

    def training_key(self, settings: Any, data: Mapping[str, str], inputs: str, parent: str) -> str:
        """Equal for runs of equal weights that are measured in different ways; empty where that isn't known."""

    def trunk(self, settings: Any, data: Mapping[str, str], inputs: str, parent: str) -> tuple[str, int]:
        """Key of the part of a run that longer and shorter runs share, and its steps: a longer run begins from the
        checkpoint that a shorter one leaves at their end in `trunk/`. Empty and 0 where runs share nothing."""

    def identity(self) -> Identity:
        """Of the present code."""

    def sizes(self, settings: Any, data: Mapping[str, Any]) -> Sizes | None:
        """Of the model; None where they can't be counted before it is built."""

    def fitting(self, settings: Any, data: Mapping[str, Any], gpus: Gpus) -> Fitting | None:
        """How a training step fits a GPU; None where that isn't known."""

    def train(self, request: Request) -> Result:
        """Train a run to its end, go on with it from the newest checkpoint in its folder, or return the result that
        lies there. ValueError for what would fail again anywhere, such as a loss that isn't finite."""

    def measure(self, request: Request, weights: Path, trained: Mapping[str, Any], health: Mapping[str, Any]) -> Result:
        """Measure chosen weights as `train` does at its end, without training. Called where `identity().evaluation` has
        changed, or where the weights were trained under another key of equal `training_key`.

        Args:
            trained: `Result.about` of the run that trained them.
            health: `Result.health` of that run.
        """

    def try_batches(self, request: Request) -> None:
        """Train a few steps and evaluate a batch of each task, to see how much memory that takes."""


def checkpoint_interval(steps: int) -> int:
    """Steps between the checkpoints of a run of so many steps."""
    return max(1, min(MAX_STEPS_BETWEEN_CHECKPOINTS, steps // CHECKPOINTS_PER_RUN))


def near_names(name: str, names: Sequence[str]) -> str:
    """For a message: those of the names that a wrong one may have meant."""
    return f"near: {', '.join(difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names) or 'none'}"


@cache
def load_project(address: str) -> Project:
    """The project of an address, "package.module:NAME".

    Raises:
        ValueError: there is no such module or name, or what is there is no project.
    """
    module, _, name = address.partition(":")
    if not module or not name:
        raise ValueError(f"project must be package.module:NAME, got {address!r}; UPS is {UPS}")
    try:
        project = getattr(loaded := importlib.import_module(module), name, None)
    except ImportError as error:
        raise ValueError(f"project {address}: cannot be imported ({error}); cd to its folder, or install it") from error
    except Exception as error:  # The user's module may fail in any way; the way out is in that module.
        frame, text = traceback.extract_tb(error.__traceback__)[-1], " ".join(str(error).split())
        where = f"{type(error).__name__}: {text}, {Path(frame.filename).name} line {frame.lineno}"
        raise ValueError(f"project {address}: {module} fails when it is imported ({where})") from error
    if project is None:
        near = near_names(name, [one for one, value in vars(loaded).items() if isinstance(value, Project)])
        raise ValueError(f"project {address}: {getattr(loaded, '__file__', module)} has no {name}; {near}")
    if not isinstance(project, Project):
        missing = sorted(name for name in vars(Project) if not name.startswith("_") and not hasattr(project, name))
        raise ValueError(
            f"project {address}: it lacks {', '.join(missing)}; orchestrator.project.Project says what a project has"
        )
    return project


def import_folders(addresses: Iterable[str]) -> tuple[str, ...]:
    """Folders from which the packages of loaded projects were imported, for other processes."""
    modules = (sys.modules[address.partition(":")[0]] for address in addresses)
    return tuple(dict.fromkeys(str(import_folder(module)) for module in modules))


def import_folder(module: ModuleType) -> Path:
    """Of a module a.b.c the folder that a lies in."""
    return Path(module.__file__ or "").resolve().parents[module.__name__.count(".") + hasattr(module, "__path__")]


def import_from(folders: Iterable[str]) -> None:
    """Let modules be imported from these folders too, after all others."""
    sys.path += [folder for folder in folders if folder not in sys.path]
