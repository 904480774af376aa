"""A project around a training function."""

import functools
import importlib.metadata
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from orchestrator.project import (
    DataFacts,
    Fitting,
    Gpus,
    Identity,
    Objective,
    Objectives,
    Project,
    Request,
    Sizes,
    Stage,
    near_names,
)
from orchestrator.simple_project.run import FinishedRun, Run, keep_weights, newest_checkpoint
from orchestrator.simple_project.settings import DataSet, Metric, SimpleSettings
from orchestrator.simple_project.source import content_digest, source_files
from search_spaces.study import FineTuning
from ups_model.atomic import write_atomic
from ups_model.cli import assignments
from ups_model.config.schema import build, digest
from ups_model.evaluation.metric_names import OUTCOMES
from ups_model.source import files_digest
from ups_model.training.progress import forget_after

TRAINING = "trained"
"""The one way in which a row is trained."""

Train = Callable[[Any, Run], Mapping[str, float] | None]


@dataclass(frozen=True)
class SimpleProject:
    """See `simple_project`, which makes it, and `orchestrator.project.Project`, whose methods these are."""

    name: str
    task: str
    """What it does; metrics begin with it, so that projects of one task stand in one column."""
    title: str
    function: Train
    settings_type: type
    declared: tuple[Metric, ...]
    presets: Mapping[str, Mapping[str, Any]]
    data_of: Callable[[Any], Sequence[DataSet]]
    code: tuple[Path, ...]
    samples_of: Callable[[Any], int]
    sizes_of: Callable[[Any], Sizes] | None
    fingerprint: Callable[[Path], str]

    trainings = (TRAINING,)
    published_on: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def tasks(self) -> dict[str, str]:
        return {self.task: self.title}

    def base(self, preset: str) -> SimpleSettings:
        if self.presets and preset not in self.presets:
            raise ValueError(f"preset must be one that {self.name} has ({', '.join(self.presets)}), got {preset!r}")
        return SimpleSettings(self.settings_type()).with_fields({**self.presets.get(preset, {}), "seed": 0})

    def read(self, canonical: Mapping[str, Any]) -> SimpleSettings:
        return SimpleSettings(build(self.settings_type, canonical))

    def sources(self, settings: SimpleSettings) -> dict[str, tuple[str, ...]]:
        return {self.task: self.sets(settings)}

    def sets(self, settings: SimpleSettings) -> tuple[str, ...]:
        return tuple(one.name for one in self.data_of(settings.values))

    def locate(self, given: Sequence[str], names: Sequence[str]) -> dict[str, Path]:
        places = {name: Path(value).expanduser() for name, value in assignments(given, "--data", "NAME=PATH").items()}
        if unused := [name for name in places if name not in names]:
            raise ValueError(
                f"--data {unused[0]}: {self.name} reads no data set of this name; it reads {', '.join(names) or 'none'}"
            )
        made = {one.name for one in self._known if one.made}
        always_made = made - {one.name for one in self._known if not one.made}
        if useless := [name for name in places if name in always_made]:
            raise ValueError(f"--data {useless[0]}: {self.name} makes this data set itself; leave it out")
        if missing := [name for name in names if name not in places and name not in made]:
            raise ValueError(f"{self.name} reads the data set {missing[0]!r}: give --data {missing[0]}=PATH")
        return {name: places.get(name, Path()) for name in names}

    @cached_property
    def _known(self) -> tuple[DataSet, ...]:
        """The data sets of the presets."""
        every = [self.settings_type(), *(self.base(preset).values for preset in self.presets)]
        return tuple(dict.fromkeys(one for values in every for one in self.data_of(values)))

    def open(self, paths: Mapping[str, Path]) -> dict[str, "_Opened"]:
        made = {one.name for one in self._known if one.made}
        opened = {}
        for name, path in paths.items():
            is_made = name in made and path == Path()  # `locate` has found no place for it.
            if not is_made and not path.exists():
                raise ValueError(f"--data {name}={path}: there is no such file or folder")
            opened[name] = _Opened(name, digest(["made", name]) if is_made else self.fingerprint(path), is_made)
        return opened

    def facts(self, data: Mapping[str, "_Opened"]) -> dict[str, DataFacts]:
        known = {(one.name, one.made): one for one in self._known}
        told = {name: known.get((name, opened.made), DataSet(name)) for name, opened in data.items()}
        return {
            name: DataFacts(data[name].fingerprint, one.synthetic, one.description, one.examples)
            for name, one in told.items()
        }

    def check(self, settings: SimpleSettings, data: Mapping[str, "_Opened"]) -> None:
        """A data set of one name may be made with some settings and read from a file with others; ValueError where it
        isn't what these settings want. All else the settings check themselves."""
        for one in self.data_of(settings.values):
            if one.made and not data[one.name].made:
                raise ValueError(f"--data {one.name}: with these settings {self.name} makes it itself; leave it out")
            if data[one.name].made and not one.made:
                raise ValueError(f"{self.name} reads the data set {one.name!r}: give --data {one.name}=PATH")

    def check_cut(self, settings: SimpleSettings, processes: int, micro_batch: int | Literal["auto"]) -> None:
        if processes > 1 or micro_batch:
            raise ValueError(
                f"{self.name} cuts no batches: leave out --micro-batch, --processes-per-unit, and --gpus-per-unit "
                "above 1"
            )

    def metrics(self, settings: SimpleSettings, task: str, data: Mapping[str, Any]) -> list[str]:
        return [f"{self.task}/{metric.name}" for metric in self.declared]

    def check_metric(self, settings: SimpleSettings, metric: str, data: Mapping[str, Any]) -> None:
        names = self.metrics(settings, self.task, data)
        if metric not in names:
            raise ValueError(f"column {metric!r} is not measured by {self.name}; {near_names(metric, names)}")

    def objectives(self, settings: SimpleSettings, data: Mapping[str, Any]) -> Objectives:
        by_name = {
            f"validation/{self.task}/{metric.name}": Objective(metric.unit, metric.higher_is_better)
            for metric in self.declared
        }
        return Objectives("its own validation data", by_name)

    def stages(self, settings: SimpleSettings, training: str, task: str, fine_tuning: FineTuning) -> tuple[Stage, ...]:
        if task != self.task:
            raise ValueError(
                f"a column measures {task}, which {self.name} doesn't: its task is {self.task}; give projects that "
                "stand in one column one task: simple_project(..., task=...)"
            )
        return (Stage(self.name, "", settings),)

    def samples(self, settings: SimpleSettings) -> dict[str, int]:
        return {self.task: self.samples_of(settings.values)}

    def steps(self, settings: SimpleSettings) -> int:
        return int(getattr(settings.values, "steps", 0))

    def chosen_by(self, settings: SimpleSettings) -> str:
        return "last step"

    def inputs_identity(self, settings: SimpleSettings) -> str:
        return ""

    def key(self, settings: SimpleSettings, data: Mapping[str, str], inputs: str, parent: str) -> str:
        # Two functions under one name are two trainers.
        project = f"{self.name} {_address(self.function)}"
        plain = {"project": project, "config": settings.canonical(), "data": dict(data), "parent": parent}
        return digest(plain | ({"inputs": inputs} if inputs else {}))

    def training_key(self, settings: SimpleSettings, data: Mapping[str, str], inputs: str, parent: str) -> str:
        return ""

    def trunk(self, settings: SimpleSettings, data: Mapping[str, str], inputs: str, parent: str) -> tuple[str, int]:
        return "", 0

    def identity(self) -> Identity:
        # The same code trains and measures: what it measured otherwise it has trained otherwise.
        return Identity(files_digest(self.code), "")

    def sizes(self, settings: SimpleSettings, data: Mapping[str, Any]) -> Sizes | None:
        return self.sizes_of(settings.values) if self.sizes_of else None

    def fitting(self, settings: SimpleSettings, data: Mapping[str, Any], gpus: Gpus) -> Fitting | None:
        return None

    def try_batches(self, request: Request) -> None:
        raise ValueError(f"--gpus-per-unit auto can't measure {self.name}; give a number")

    def measure(
        self, request: Request, weights: Path, trained: Mapping[str, Any], health: Mapping[str, Any]
    ) -> FinishedRun:
        """The training function goes on from its last checkpoint, so that only measuring is left to it."""
        (request.folder / "result.json").unlink(missing_ok=True)
        return self.train(request)

    def train(self, request: Request) -> FinishedRun:
        if (done := _finished(request)) is not None:
            return done
        settings: SimpleSettings = request.settings
        checkpoint, state = newest_checkpoint(request.folder / "checkpoints")
        step = int(state["step"]) if checkpoint else 0
        forget_after(request.folder / "progress.jsonl", step)
        made = {one.name for one in self.data_of(settings.values) if one.made}
        run = Run(
            data={name: path for name, path in request.paths.items() if name not in made},
            device=request.device,
            precision=request.precision,
            threads=request.threads,
            test=request.test,
            checkpoint=checkpoint,
            step=step,
            _request=request,
            _seconds_before=float(state.get("train_seconds", 0.0)),
            _metrics=self.declared,
            _task=self.task,
            _name=self.name,
        )
        try:
            returned = self.function(settings.values, run)
        except SystemExit as error:  # Else it would look as if the machine had gone.
            raise ValueError(f"{self.name}: the training function ended its process ({error!r})") from error
        if run._was_told:  # Whatever it returns: it may have left its loop in the middle.
            return FinishedRun("stopped", request.key)
        if returned is None:
            raise ValueError(
                f"{self.name}: the training function returned None, as if it had been stopped; return a dictionary of "
                "metrics"
            )
        metrics = run._checked(returned)
        about = {
            "device": _device(request.device),
            "precision": "fp32",
            **run._facts,
            "config": settings.canonical(),
            "data": {name: path.fingerprint for name, path in self.open(request.paths).items()},
            "chosen_by": "last step",
            "train_seconds": run.seconds,
            "torch": _version("torch"),
        }
        (request.folder / OUTCOMES).unlink(missing_ok=True)
        result = FinishedRun(
            "finished",
            request.key,
            metrics,
            str(keep_weights(request)),
            about,
            run._health(),
            run._save_items(metrics, self.sets(settings)),
        )
        write_atomic(request.folder / "result.json", json.dumps(asdict(result), indent=1, allow_nan=False))
        return result


@dataclass(frozen=True)
class _Opened:
    name: str
    fingerprint: str
    made: bool
    """By the project itself; else read from a file."""


def simple_project(
    name: str,
    train: Train,
    settings: type,
    metrics: Sequence[Metric],
    *,
    task: str = "",
    title: str = "",
    code: Sequence[ModuleType] = (),
    data: Sequence[DataSet] | Callable[[Any], Sequence[DataSet]] = (),
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    samples: Callable[[Any], int] = lambda settings: 0,
    sizes: Callable[[Any], Sizes] | None = None,
    fingerprint: Callable[[Path], str] | None = None,
) -> SimpleProject:
    """A training function as a project of the orchestrator.

    Args:
        name: names the project in keys, and in metrics if there is no task, as in the column "my_model/accuracy".
        train: takes the settings and a `Run`; returns {"test/NAME": value, "validation/NAME": value}, or None where it
            was told to stop. Equal settings must give equal results: take all random numbers from `settings.seed`.
        settings: a frozen dataclass of numbers, texts, truth values, tuples of them and other such dataclasses. All
            have defaults; one is `seed: int = 0`.
        metrics: what is measured; the health of a run is judged by the first that has a `trivial` value.
        task: what the model does, in metrics: projects of one task can be rows of one table. The name if it is empty.
        title: of the task, in reports.
        code: modules whose source decides what is trained, beside that of `train` and the modules of its package that
            it imports anywhere: records tell when they have changed.
        data: what is read, or a function of the settings that says so.
        presets: changes to the settings for `--preset` tiny, small and paper, or for some of these, and then no other
            is taken; with none at all, each is the settings as they are.
        samples: training samples of a run, so that rows of unequal budgets are marked.
        sizes: parameters and operations, for plans and costs.
        fingerprint: of a data set's content, where reading all of it takes too long.

    Raises:
        ValueError: a name that isn't one, settings without seed or defaults, or two metrics of one name.
    """
    faults = []
    for what, text in (("name", name), ("task", task or name)):
        if not text.isidentifier():
            faults.append(f"{what} must be letters, digits and underscores, got {text!r}")
    if not is_dataclass(settings) or not settings.__dataclass_params__.frozen:  # type: ignore[attr-defined]  # it is one
        faults.append(f"settings must be a frozen dataclass, got {settings!r}; write @dataclass(frozen=True)")
    elif "seed" not in {one.name for one in fields(settings)}:
        faults.append(f"settings must have a field seed: int = 0; {settings.__name__} has none")
    else:
        try:
            hash(settings())
        except TypeError as error:
            faults.append(f"all fields of {settings.__name__} must have defaults, tuples in place of lists ({error})")
    names = [metric.name for metric in metrics]
    if not names or len(set(names)) < len(names):
        faults.append(f"metrics must be at least one, of different names, got {', '.join(names) or 'none'}")
    if unknown := set(presets or {}) - {"tiny", "small", "paper"}:
        faults.append(f"presets must be of tiny, small, paper, got {sorted(unknown)[0]!r}")
    if faults:
        raise ValueError(f"project {name!r}: " + "; ".join(faults))
    files = source_files(sys.modules[_unwrapped(train).__module__])
    sets = tuple(data) if not callable(data) else ()
    made = SimpleProject(
        name=name,
        task=task or name,
        title=title or (task or name).replace("_", " "),
        function=train,
        settings_type=settings,
        declared=tuple(metrics),
        presets=presets or {},
        data_of=data if callable(data) else lambda values: sets,
        code=tuple(sorted({*files, *(Path(module.__file__).resolve() for module in code if module.__file__)})),
        samples_of=samples,
        sizes_of=sizes,
        fingerprint=fingerprint or content_digest,
    )
    made.base(next(iter(made.presets), "tiny")).canonical()  # ValueError for settings that can't be in a key.
    return made


def _unwrapped(function: Train) -> Train:
    """The function itself, of one with arguments fixed by `functools.partial`."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _address(function: Train) -> str:
    function = _unwrapped(function)
    return f"{function.__module__}:{function.__qualname__}"


def _finished(request: Request) -> FinishedRun | None:
    """The result that lies in the folder, if it is this run's and nothing is missing."""
    try:
        result = FinishedRun(**json.loads((request.folder / "result.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    tested = any(name.startswith("test/") for name in result.metrics)
    is_whole = result.key == request.key and result.status == "finished" and (tested or not request.test)
    return result if is_whole else None


def _device(asked: str) -> str:
    """What "auto" is likely to have meant; a training function that chose otherwise says so with `Run.describe`."""
    if asked != "auto":
        return asked
    torch = sys.modules.get("torch")
    return "cuda" if torch is not None and torch.cuda.is_available() else "cpu"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


_: Callable[..., Project] = simple_project
