"""The multi-task network as a project of the orchestrator."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baselines.multitask.config import MultitaskConfig, base
from baselines.project import OF_TOKENS, Sets, TrainerProject
from orchestrator.project import Project, Sizes, Stage, near_names
from orchestrator.ups.project import UPS
from search_spaces.study import FineTuning
from ups_model.config import set_of
from ups_model.evaluation.metric_names import metric_names

if TYPE_CHECKING:
    from baselines.learner import Learner


class MultitaskProject(TrainerProject):
    """See `orchestrator.project.Project`, whose methods these are. A row's run trains all that it trains at once."""

    name = "multitask"
    tasks: Mapping[str, str] = {"pe": "3D pose estimation", "action": "Action recognition"}
    trainings = ("joint",)
    published_on: Mapping[str, tuple[str, str]] = {
        "pe": UPS.published_on["pe"],
        "action": ("RGB videos of Penn Action and NTU RGB+D", r"(?!)"),
    }
    """Of actions, no clip set is what they were published on: ours are of joints."""

    def _learner(self) -> "type[Learner]":
        from baselines.multitask.learner import Multitask

        return Multitask

    def _folders(self) -> tuple[Path, ...]:
        return (*super()._folders(), Path(__file__).parent)

    def base(self, preset: str) -> MultitaskConfig:
        return base(preset)

    def read(self, canonical: Mapping[str, Any]) -> MultitaskConfig:
        return MultitaskConfig.from_canonical(canonical)

    def sources(self, settings: MultitaskConfig) -> dict[str, tuple[str, ...]]:
        return dict.fromkeys(settings.trained_steps(), settings.data.pe.sources)

    def check(self, settings: MultitaskConfig, data: Sets) -> None:
        from baselines.multitask.learner import shape_of

        UPS.check(settings.as_ups, data)
        shape_of(settings, data[set_of(settings.data.pe.sources[0])])

    def metrics(self, settings: MultitaskConfig, task: str, data: Sets) -> list[str]:
        classes = data[set_of(settings.data.pe.sources[0])].info.classes
        names = ["action/clips", "action/top1", "action/window_top1"]
        of_exits = ["action/top1", "action/window_top1"]
        if task == "pe":
            every = metric_names("pe", settings.data.pe, settings.as_ups.evaluation, classes)
            names = [name for name in every if not name.partition("/")[2].startswith(OF_TOKENS)]
            of_exits = ["pe/mpjpe_mm", "pe/p_mpjpe_mm"]
        exits, ends = range(1, settings.network.layers + 1), ("", "_se") if task == "pe" else ("",)
        return [*names, *(f"{name}@exit{number}{end}" for number in exits for name in of_exits for end in ends)]

    def check_metric(self, settings: MultitaskConfig, metric: str, data: Sets) -> None:
        names = self.metrics(settings, metric.partition("/")[0], data)
        if metric not in names:
            raise ValueError(
                f"column {metric!r} is not measured by multitask of {settings.network.layers} layers; "
                f"{near_names(metric, names)}"
            )

    def stages(self, settings: MultitaskConfig, training: str, task: str, fine_tuning: FineTuning) -> tuple[Stage, ...]:
        """One run for all columns; of a task that it doesn't train, the table has "not measured"."""
        return (Stage("multitask", "", settings),)

    def samples(self, settings: MultitaskConfig) -> dict[str, int]:
        return {task: steps * settings.data.pe.batch_size for task, steps in settings.trained_steps().items()}

    def sizes(self, settings: MultitaskConfig, data: Sets) -> Sizes:
        import torch

        from baselines.build import count_parameters
        from baselines.multitask.learner import MultitaskModel, shape_of, window_flops

        with torch.device("meta"):
            model = MultitaskModel(settings, shape_of(settings, data[set_of(settings.data.pe.sources[0])]))
        flops = {task: float(count) for task, count in window_flops(model).items()}
        if "pe" not in settings.trained_steps():
            flops["action"] += flops["pe"]  # Alone, action heads pay for the poses' layers that they need.
        parameters = count_parameters(model)
        return Sizes(parameters, parameters, flops)


MULTITASK = MultitaskProject()
_: Project = MULTITASK
