"""The baselines as projects of the orchestrator: rows of a study name one by its address."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from baselines.config import LIFTERS, SYSTEMS, BaselineConfig, RunConfig, System, base
from orchestrator.project import (
    DataFacts,
    Fitting,
    Gpus,
    Identity,
    Objectives,
    Project,
    Request,
    Sizes,
    Stage,
    checkpoint_interval,
    near_names,
)
from orchestrator.ups.project import UPS, objectives_of
from search_spaces.study import FineTuning
from ups_model.config import TaskData, TaskName, digest, set_of
from ups_model.data.format.clip_set import ClipSet
from ups_model.evaluation.metric_names import metric_names
from ups_model.source import files_digest, present_form, source_digest
from ups_model.tasks import TASKS

if TYPE_CHECKING:
    from baselines.learner import Learner
    from ups_model.training.result import Result

OF_TOKENS = ("free_top1", "ended", "clip_rate", "floor_mm", "in_grammar")
"""Measures of UPS's tokens, which no baseline has."""
NOT_TRAINING = ("__main__.py", "project.py")
"""Files that change neither weights nor metrics. Nor do those of the other systems, which bear their names."""

Sets = Mapping[str, ClipSet]


class TrainerProject(ABC):
    """What projects of `baselines.train` have in common; their data are clip sets of UPS."""

    trainings = ("separate",)

    @property
    @abstractmethod
    def name(self) -> str: ...

    @abstractmethod
    def sources(self, settings: Any) -> dict[str, tuple[str, ...]]: ...

    @abstractmethod
    def metrics(self, settings: Any, task: str, data: Sets) -> list[str]: ...

    @abstractmethod
    def _learner(self) -> "type[Learner]":
        """What is trained."""

    def _folders(self) -> tuple[Path, ...]:
        """Of the code that results depend on, beside that of UPS."""
        return (Path(__file__).parent,)

    def sets(self, settings: RunConfig) -> tuple[str, ...]:
        return tuple(dict.fromkeys(set_of(name) for names in self.sources(settings).values() for name in names))

    def locate(self, given: Sequence[str], names: Sequence[str]) -> dict[str, Path]:
        return UPS.locate(given, names)

    def open(self, paths: Mapping[str, Path]) -> dict[str, ClipSet]:
        return UPS.open(paths)

    def facts(self, data: Sets) -> dict[str, DataFacts]:
        return UPS.facts(data)

    def objectives(self, settings: RunConfig, data: Sets) -> Objectives:
        measured = {task: self.metrics(settings, task, data) for task in self.sources(settings)}
        return objectives_of(measured, settings.data.validation_subjects)

    def check_cut(self, settings: RunConfig, processes: int, micro_batch: int | Literal["auto"]) -> None:
        if processes > 1 or micro_batch:
            raise ValueError(
                f"{self.name} trains in one process with whole batches: leave out --micro-batch, --processes-per-unit, "
                "and --gpus-per-unit above 1"
            )

    def steps(self, settings: RunConfig) -> int:
        return settings.optim.steps

    def chosen_by(self, settings: RunConfig) -> str:
        return settings.chosen_by

    def inputs_identity(self, settings: RunConfig) -> str:
        return ""

    def key(self, settings: RunConfig, data: Mapping[str, str], inputs: str, parent: str) -> str:
        return digest({"baseline": settings.canonical(), "data": dict(data)})

    def training_key(self, settings: RunConfig, data: Mapping[str, str], inputs: str, parent: str) -> str:
        return ""

    def trunk(self, settings: RunConfig, data: Mapping[str, str], inputs: str, parent: str) -> tuple[str, int]:
        return "", 0

    def identity(self) -> Identity:
        others = {f"{system}.py" for system in SYSTEMS if system != self.name}
        files = [file for folder in self._folders() for file in folder.glob("*.py")]
        own = sorted(file for file in files if file.name not in others.union(NOT_TRAINING))
        # UPS's code of batches, splits and schedules is theirs too.
        training = present_form(f"{files_digest(own)}+{source_digest('training')}")
        return Identity(training, source_digest("evaluation"))

    def fitting(self, settings: RunConfig, data: Sets, gpus: Gpus) -> Fitting | None:
        return None

    def train(self, request: Request) -> "Result":
        from baselines.train import train

        settings: RunConfig = request.settings
        return train(
            settings,
            request.paths,
            folder=request.folder,
            learner=self._learner(),
            device=request.device,
            precision=request.precision,
            test=request.test,
            should_stop=request.should_stop,
            on_checkpoint=request.on_checkpoint,
            log=request.sample,
            checkpoint_every=checkpoint_interval(settings.optim.steps),
            measure_at=request.measure_at,
        )

    def measure(
        self, request: Request, weights: Path, trained: Mapping[str, Any], health: Mapping[str, Any]
    ) -> "Result":
        from baselines.train import measure

        return measure(
            request.settings,
            request.paths,
            weights,
            trained,
            health,
            folder=request.folder,
            learner=self._learner(),
            device=request.device,
            precision=request.precision,
            test=request.test,
        )

    def try_batches(self, request: Request) -> None:
        raise ValueError(f"--gpus-per-unit auto can't measure {self.name}; give a number")


@dataclass(frozen=True)
class BaselineProject(TrainerProject):
    """See `orchestrator.project.Project`, whose methods these are. A row's runs train one task each."""

    system: System

    published_on = UPS.published_on

    @property
    def name(self) -> str:
        return self.system

    def _learner(self) -> "type[Learner]":
        from baselines.learner import SingleTask

        return SingleTask

    @property
    def tasks(self) -> dict[str, str]:
        kind = "pose" if self.system in LIFTERS else "class"
        return {name: task.title for name, task in TASKS.items() if task.kind == kind}

    def base(self, preset: str) -> BaselineConfig:
        return base(preset, self.system)

    def read(self, canonical: Mapping[str, Any]) -> BaselineConfig:
        return BaselineConfig.from_canonical(canonical)

    def sources(self, settings: BaselineConfig) -> dict[str, tuple[str, ...]]:
        by_task = {task: getattr(settings.data, task).sources for task in self.tasks}
        return {task: sources for task, sources in by_task.items() if sources}

    def check(self, settings: BaselineConfig, data: Sets) -> None:
        for task in self.sources(settings):
            UPS.check(self.alone(settings, cast(TaskName, task)).as_ups, data)

    def metrics(self, settings: BaselineConfig, task: str, data: Sets) -> list[str]:
        of_task: TaskData = getattr(settings.data, task)
        classes = data[set_of(of_task.sources[0])].info.classes
        names = metric_names(
            cast(TaskName, task), of_task, self.alone(settings, cast(TaskName, task)).as_ups.evaluation, classes
        )
        return [name for name in names if not name.partition("/")[2].startswith(OF_TOKENS)]

    def check_metric(self, settings: BaselineConfig, metric: str, data: Sets) -> None:
        task = metric.partition("/")[0]
        if metric.partition("/")[2].startswith(OF_TOKENS):
            return  # The table has "not measured" there.
        names = self.metrics(settings, task, data)
        if metric not in names and not metric.startswith(f"{task}/top5"):
            raise ValueError(f"column {metric!r} is not measured by {self.name}; {near_names(metric, names)}")

    def alone(self, settings: BaselineConfig, task: TaskName) -> BaselineConfig:
        """The run of one task of a row."""
        data = settings.data.replace(**{other: TaskData() for other in TASKS if other != task})
        return settings.replace(data=data, optim=settings.optim.replace(task=task))

    def stages(self, settings: BaselineConfig, training: str, task: str, fine_tuning: FineTuning) -> tuple[Stage, ...]:
        if task not in self.sources(settings):
            raise ValueError(
                f"a column measures {task}, which {self.name} doesn't train: it trains "
                f"{', '.join(self.sources(settings)) or 'nothing'}; name a clip set in data.{task}.sources"
            )
        return (Stage(self.name, task, self.alone(settings, cast(TaskName, task))),)

    def samples(self, settings: BaselineConfig) -> dict[str, int]:
        return {settings.optim.task: settings.optim.steps * settings.task_data.batch_size}

    def sizes(self, settings: BaselineConfig, data: Sets) -> Sizes:
        import torch

        from baselines.build import network_size

        with torch.device("meta"):
            parameters, flops = network_size(settings, data[set_of(settings.task_data.sources[0])])
        return Sizes(parameters, parameters, {settings.optim.task: float(flops)})


RESIDUAL_MLP, VIDEOPOSE3D = BaselineProject("residual_mlp"), BaselineProject("videopose3d")
DD_NET, ST_GCN = BaselineProject("dd_net"), BaselineProject("st_gcn")
_: Project = RESIDUAL_MLP
