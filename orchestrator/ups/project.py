"""UPS as a project of the orchestrator: the one place above `ups_model` that knows its tasks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from orchestrator.project import (
    DataFacts,
    Fitting,
    Gpus,
    Identity,
    Objective,
    Objectives,
    Project,
    Request,
    Result,
    Sizes,
    Stage,
    checkpoint_interval,
    near_names,
)
from orchestrator.ups import sizes
from search_spaces.space import SCORE
from search_spaces.study import FineTuning
from ups_model.cli import data_paths
from ups_model.config import Config, OptimConfig, TaskName, set_of
from ups_model.config.identity import configured_sets, run_key, training_key, trunk_key
from ups_model.config.presets import preset
from ups_model.data.batching.configured import split_sets
from ups_model.data.batching.suitability import check_suitable
from ups_model.data.format.clip_set import ClipSet
from ups_model.data.prepare.catalog import SOURCES
from ups_model.evaluation.metric_names import headline_metric, is_headline, metric_names
from ups_model.model.text_features import text_identity
from ups_model.source import source_digest
from ups_model.tasks import TASKS
from ups_model.wording import count

if TYPE_CHECKING:
    from ups_model.training.options import RunOptions

MIN_CLASSES_FOR_TOP5 = 5
CYCLES = 2
"""Turns of every task: the first allocates gradients and the optimizer's state, the second shows what both take."""

Sets = Mapping[str, ClipSet]


class UpsProject:
    """See `orchestrator.project.Project`, whose methods these are."""

    name = "ups"
    tasks: Mapping[str, str] = {name: task.title for name, task in TASKS.items()}
    trainings = ("fine-tuned", "joint", "separate")
    published_on: Mapping[str, tuple[str, str]] = {
        "pe": ("Human3.6M", r"h36m"),
        "ar2d": ("Kinetics-400", r"kinetics"),
        "eap": ("NTU RGB+D", r"ntu(60|120)(_\w+)?"),
        "ar3d": ("NTU RGB+D", r"ntu(60|120)(_\w+)?"),
    }

    def base(self, preset_name: str) -> Config:
        return preset(preset_name).replace(seed=0)

    def read(self, canonical: Mapping[str, Any]) -> Config:
        return Config.from_canonical(canonical)

    def sources(self, settings: Config) -> dict[str, tuple[str, ...]]:
        return {task: getattr(settings.data, task).sources for task in settings.optim.tasks}

    def sets(self, settings: Config) -> tuple[str, ...]:
        return configured_sets(settings)

    def locate(self, given: Sequence[str], names: Sequence[str]) -> dict[str, Path]:
        return data_paths(given, names)

    def open(self, paths: Mapping[str, Path]) -> dict[str, ClipSet]:
        opened = {name: ClipSet.open(path) for name, path in paths.items()}
        for name, clips in opened.items():
            if clips.name != name:
                raise ValueError(f"{paths[name]}: expected clip set {name!r}, got {clips.name!r}; check --data")
        return opened

    def facts(self, data: Sets) -> dict[str, DataFacts]:
        facts = {}
        for name, clips in data.items():
            counts = SOURCES[name].published.values() if name in SOURCES else ()
            published = next((train + test for train, test in counts), None)
            info = clips.info
            facts[name] = DataFacts(
                clips.fingerprint, info.synthetic, info.description, len(clips), published, info.classes
            )
        return facts

    def check(self, settings: Config, data: Sets) -> None:
        """ValueError where a clip set can't serve its task, or a clip is both trained on and evaluated."""
        for task in settings.optim.tasks:
            of_task = getattr(settings.data, task)
            for source in of_task.sources:
                check_suitable(task, of_task, data[set_of(source)])
        for fold in range(settings.data.validation_folds):
            split_sets(settings.replace(seed=fold), data)

    def check_cut(self, settings: Config, processes: int, micro_batch: int | Literal["auto"]) -> None:
        from ups_model.training.parallel.group import check_shares  # It imports torch.

        check_shares(settings, processes, micro_batch)

    def metrics(self, settings: Config, task: str, data: Sets) -> list[str]:
        of_task = getattr(settings.data, task)
        classes = data[set_of(of_task.sources[0])].info.classes
        return metric_names(cast(TaskName, task), of_task, settings.evaluation, classes)

    def check_metric(self, settings: Config, metric: str, data: Sets) -> None:
        task = metric.partition("/")[0]
        source = getattr(settings.data, task).sources[0]
        has_top5 = len(data[set_of(source)].info.classes) >= MIN_CLASSES_FOR_TOP5
        if not has_top5 and metric.startswith(f"{task}/top5"):
            return  # Of so few classes it says nothing: the table has "not measured" there, and all else.
        names = self.metrics(settings, task, data)
        if metric not in names:
            ratios = ",".join(f"{ratio:g}" for ratio in settings.evaluation.ratios)
            raise ValueError(
                f"column {metric!r} is not measured on {source} with evaluation.ratios={ratios}; "
                f"{near_names(metric, names)}"
            )

    def objectives(self, settings: Config, data: Sets) -> Objectives:
        measured: dict[str, list[str]] = {task: self.metrics(settings, task, data) for task in settings.optim.tasks}
        return objectives_of(measured, settings.data.validation_subjects)

    def stages(self, settings: Config, training: str, task: str, fine_tuning: FineTuning) -> tuple[Stage, ...]:
        if task not in settings.optim.cycle:
            raise ValueError(
                f"a column measures {task}, which is not trained: name its clip set in data.{task}.sources "
                f"and the task in optim.cycle, or leave the column out; trained are {', '.join(settings.optim.tasks)}"
            )
        if training == "joint":
            return (Stage("joint", "", settings),)
        if training == "separate":
            return (Stage("separate", task, alone(settings, task)),)
        joint, tuned = two_stages(settings, fine_tuning)
        return Stage("joint", "", joint), Stage("finetune", task, tuned[task])

    def samples(self, settings: Config) -> dict[str, int]:
        turns = settings.optim.turns_before(settings.optim.steps)
        return {task: count * getattr(settings.data, task).batch_size for task, count in turns.items()}

    def steps(self, settings: Config) -> int:
        return settings.optim.steps

    def chosen_by(self, settings: Config) -> str:
        return settings.chosen_by

    def inputs_identity(self, settings: Config) -> str:
        return text_identity(settings.model.text_model)

    def key(self, settings: Config, data: Mapping[str, str], inputs: str, parent: str) -> str:
        return run_key(settings, data, inputs, parent)

    def training_key(self, settings: Config, data: Mapping[str, str], inputs: str, parent: str) -> str:
        return training_key(settings, data, inputs, parent)

    def trunk(self, settings: Config, data: Mapping[str, str], inputs: str, parent: str) -> tuple[str, int]:
        return trunk_key(settings, data, inputs, parent), settings.optim.trunk_steps

    def identity(self) -> Identity:
        return Identity(source_digest("training"), source_digest("evaluation"))

    def sizes(self, settings: Config, data: Sets) -> Sizes:
        return sizes.sizes_of(settings, data)

    def fitting(self, settings: Config, data: Sets, gpus: Gpus) -> Fitting:
        return sizes.fitting(settings, data, gpus)

    def train(self, request: Request) -> Result:
        from ups_model.training.parallel.launch import train_in_processes
        from ups_model.training.run import train

        run = request.settings, request.paths, _options(request), request.parent
        callbacks = request.sample, request.should_stop, request.on_checkpoint
        if request.processes == 1:
            return train(*run, *callbacks)
        threads = max(1, request.threads // request.processes)
        return train_in_processes(request.processes, *run, *callbacks, threads)

    def measure(self, request: Request, weights: Path, trained: Mapping[str, Any], health: Mapping[str, Any]) -> Result:
        from ups_model.evaluation.remeasure import measure_weights

        return measure_weights(
            request.settings, request.paths, _options(request), weights, request.key, trained, health
        )

    def try_batches(self, request: Request) -> None:
        """As validation has them, or the test split where there is none; nothing is kept of it."""
        import torch

        from ups_model.device import pick_device
        from ups_model.evaluation.measure import predict_poses
        from ups_model.model.decoding import classify
        from ups_model.training.build import build
        from ups_model.training.run import train

        config: Config = request.settings
        short = config.with_fields({"optim.steps": CYCLES * len(config.optim.cycle), "data.validation_subjects": 0})
        train(short, request.paths, _options(request))
        parts = build(config, request.paths, pick_device(request.device), request.cache / "text")
        part = "validation" if config.data.validation_subjects else "test"
        parts.model.eval()
        with torch.no_grad():
            for task, feed in parts.feeds.items():
                for source in feed.sources:
                    batch = next(iter(feed.only(source).evaluate(part)))
                    if TASKS[task].kind == "pose":
                        predict_poses(parts.model, batch, source.skeleton, config.evaluation)
                    else:
                        classify(parts.model, batch.inputs, source.clips.name)


UPS = UpsProject()
_: Project = UPS


def _options(request: Request) -> "RunOptions":
    from ups_model.training.options import RunOptions

    steps = request.settings.optim.steps
    return RunOptions(
        out=request.folder,
        device=request.device,
        precision=request.precision,
        checkpoint_every=checkpoint_interval(steps),
        log_every=max(1, min(50, steps // 10)),
        cache=request.cache,
        test=request.test,
        micro_batch=request.micro_batch,
        activation_checkpointing=request.activation_checkpointing,
        memory_share=request.memory_share,
        measure_at=request.measure_at,
        trunk=request.trunk,
    )


def objectives_of(measured: Mapping[str, Sequence[str]], validation_subjects: int) -> Objectives:
    """The score, and each task's metrics that sum it up.

    Args:
        measured: names of all that is measured, by task.
    """
    if validation_subjects < 1:
        raise ValueError(
            f"data.validation_subjects must be at least 1 for a search, got {validation_subjects}: trials are judged "
            "by subjects held out from training, never by the test split; try --set validation_subjects=1"
        )
    by_name = {SCORE: Objective("%", higher_is_better=True)}
    for task, names in measured.items():
        main = headline_metric(cast(TaskName, task)) if task in TASKS else ""
        for name in sorted(filter(is_headline, names), key=lambda name: name != main):
            is_error = "_mm" in name
            by_name[f"validation/{name}"] = Objective("mm" if is_error else "%", not is_error)
    return Objectives(count(validation_subjects, "validation subject"), by_name)


def alone(config: Config, task: TaskName) -> Config:
    """One task from scratch, with as many iterations of it as joint training has."""
    return _one_task(config, task, config.optim.turns_before(config.optim.steps)[task])


def two_stages(config: Config, fine_tuning: FineTuning) -> tuple[Config, dict[TaskName, Config]]:
    """Joint training, and for each task the fine-tuning that follows; together as many iterations as `config` has.

    Raises:
        ValueError: too few steps for both stages.
    """
    optim = config.optim
    cycle = len(optim.cycle)

    def of_joint(steps: int) -> int:
        return round(steps * (1 - fine_tuning.share) / cycle) * cycle

    steps = of_joint(optim.steps)
    total, joint = optim.turns_before(optim.steps), optim.turns_before(steps)
    if steps < cycle or any(total[task] == joint[task] for task in optim.tasks):
        raise ValueError(
            f"steps must be enough for joint training and fine-tuning of every task, got {optim.steps} for a cycle of "
            f"{cycle} with a fine-tuning share of {fine_tuning.share}; try {2 * cycle * round(1 / fine_tuning.share)}"
        )
    usual, tuned = OptimConfig(), {}
    cosine = config.replace(
        optim=optim.replace(schedule=usual.schedule, decay_share=usual.decay_share, horizon=usual.horizon)
    )
    for task in optim.tasks:
        one = _one_task(cosine, task, total[task] - joint[task])
        one = one.replace(optim=one.optim.replace(learning_rate=optim.learning_rate * fine_tuning.rate))
        tuned[task] = one.replace(freeze_routes=True)
    return config.replace(optim=optim.replace(steps=steps, horizon=of_joint(optim.horizon))), tuned


def _one_task(config: Config, task: TaskName, steps: int) -> Config:
    optim = config.optim
    every = optim.evaluate_every
    if every:  # As many samples of the task between validations as in joint training.
        every = max(1, every * optim.cycle.count(task) // len(optim.cycle))
    horizon = optim.turns_before(optim.horizon)[task]
    optim = optim.replace(cycle=(task,), update="iteration", steps=steps, horizon=horizon, evaluate_every=every)
    return config.replace(optim=optim)
