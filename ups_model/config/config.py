"""Every choice that can change a result, as frozen dataclasses: checked where they are built, all faults at once.

A configuration has one canonical form (plain JSON) and one fingerprint. Paths, devices, precisions and intervals of
logging or saving are run options (`training.options.RunOptions`) and never stand here. This module imports no torch.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ups_model import RECIPE
from ups_model.config.data_config import TASK_NAMES, DataConfig, TaskName
from ups_model.config.model_config import ModelConfig
from ups_model.config.schema import NEUTRAL, RootSection, Section, above, at_least, between, next_multiple


@dataclass(frozen=True)
class OptimConfig(Section):
    """The trainer (paper section 4)."""

    cycle: tuple[TaskName, ...] = TASK_NAMES
    """Tasks in the order in which iterations rotate over them; a task may stand more than once, or alone."""
    update: Literal["iteration", "cycle"] = "iteration"
    """Update after each iteration (paper) or once a cycle, with the gradients of all its tasks."""
    steps: int = 20_000
    """Iterations, counted over all tasks."""
    learning_rate: float = 7e-4
    """Peak rate; the paper says 1e-2."""
    warmup_share: float = 0.05
    """Share of the steps over which the rate rises linearly."""
    warmup_steps: int = 100
    """Least number of steps over which it rises, at most half of the run; 0 leaves the share alone. Until AdamW's
    second moment has averaged 2 / (1 - beta2) gradients, its updates are those of a sign (Ma and Yarats, 2021). With
    `update="cycle"` it counts updates, each of a whole cycle of steps."""
    schedule: Literal["cosine", "constant"] = field(default="cosine", metadata=NEUTRAL)
    """The rate behind the warm-up: half a cosine, or constant and then 1 - sqrt(share) of it over the last
    `decay_share` of the steps (Hägele et al., 2024), so that a finished run can be trained longer, from before that."""
    decay_share: float = field(default=0.2, metadata=NEUTRAL)
    """Of schedule="constant"."""
    horizon: int = field(default=0, metadata=NEUTRAL)
    """With schedule="constant", the steps that warm-up, Gumbel temperature and exploration of routes are laid out for:
    runs that differ in `steps` alone are one run until the shorter one's rate decays. 0: `steps`."""
    weight_decay: float = 5e-4
    """AdamW's decoupled weight decay, on matrices alone."""
    beta2: float = 0.98
    """AdamW's second-moment decay."""
    clip_norm: float = 1.0
    """Largest gradient norm of an update."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which is then what is evaluated; 0 = none."""
    label_smoothing: float = 0.0
    """Mass spread over the classes of the clip's data set (class tokens only)."""
    bin_sigma: float = 0.0
    """Standard deviation, in bins, of the soft target around a coordinate's bin; 0 = one-hot (paper)."""
    expectation_weight: float = 0.0
    """Weight of the mean distance, in metres, of the expected to the true joint, beside the likelihood; 0 (paper)."""
    exits: Literal["last", "drawn"] = field(default="last", metadata=NEUTRAL)
    """Encoder layer after which a training step decodes: the last (paper), or one drawn anew for each step, so that one
    trained model answers after any layer (`evaluation.exit_layer`)."""
    mask_inputs: bool = False
    """Replace each decoder input of a training sequence by a mask token at a ratio drawn from U(0, 1) (pix2seq)."""
    evaluate_every: int = 0
    """Steps between validations; 0 = at the end only."""

    def faults(self) -> list[str]:
        faults = [] if self.cycle else ["cycle must name at least one task, got ()"]
        faults += at_least(self, 1, "steps") + at_least(self, 0, "evaluate_every", "warmup_steps")
        faults += above(self, 0, "learning_rate", "clip_norm")
        faults += between(self, 0, 1, "warmup_share") + between(self, 0, 0.9, "label_smoothing")
        faults += between(self, 0, 0.99999, "ema", "beta2")
        faults += at_least(self, 0, "weight_decay", "bin_sigma", "expectation_weight")
        faults += self._schedule_faults()
        if self.update == "cycle" and self.cycle and self.steps % len(self.cycle):
            faults.append(
                f"steps must be whole cycles when update='cycle', got {self.steps} steps of {len(self.cycle)}; "
                f"try {next_multiple(self.steps, len(self.cycle))}"
            )
        return faults

    def _schedule_faults(self) -> list[str]:
        if self.schedule == "cosine":
            set_fields = [
                name for name, usual in (("decay_share", 0.2), ("horizon", 0)) if getattr(self, name) != usual
            ]
            return [f"{name} needs schedule='constant', got 'cosine'" for name in set_fields]
        faults = above(self, 0, "decay_share") + between(self, 0, 0.9, "decay_share")
        if not 0 <= self.horizon <= self.steps:
            faults.append(
                f"horizon must be at most steps = {self.steps}, got {self.horizon}; give the steps of the shortest run "
                "that is to be trained longer"
            )
        return faults

    @property
    def layout_steps(self) -> int:
        """Steps that warm-up, temperature and exploration are laid out for."""
        return self.horizon or self.steps

    @property
    def trunk_steps(self) -> int:
        """Steps before the rate decays, which a longer run of the same horizon shares; 0 with a cosine."""
        return 0 if self.schedule == "cosine" else self.steps - max(1, round(self.decay_share * self.steps))

    @property
    def tasks(self) -> tuple[TaskName, ...]:
        """The tasks trained, once each, in the paper's order."""
        return tuple(task for task in TASK_NAMES if task in self.cycle)

    def turns_before(self, step: int) -> dict[TaskName, int]:
        """How often each task has its iteration before `step`."""
        rounds, rest = divmod(step, len(self.cycle))
        return {task: rounds * self.cycle.count(task) + self.cycle[:rest].count(task) for task in self.tasks}


@dataclass(frozen=True)
class EvalConfig(Section):
    """How a trained model is measured."""

    ratios: tuple[float, ...] = (0.2, 0.4, 0.6)
    """Shares of a clip observed in early action prediction."""
    coordinates: Literal["expectation", "argmax"] = "expectation"
    """A coordinate is the mean over its axis' bins, or the centre of the best bin (paper)."""
    decoding: Literal["autoregressive", "parallel"] = "autoregressive"
    """Token by token, or all at once from mask tokens (needs `mask_inputs` in training)."""
    flip: bool = False
    """Pose estimation: average with the prediction of the mirrored input (customary on Human3.6M)."""
    exit_layer: int = field(default=0, metadata=NEUTRAL)
    """Encoder layer after which the model answers; 0 = the last. Another needs `optim.exits="drawn"` in training."""

    def faults(self) -> list[str]:
        return at_least(self, 0, "exit_layer") + ratio_faults(self.ratios)


def ratio_faults(ratios: tuple[float, ...]) -> list[str]:
    """What is wrong with shares of a clip that are observed."""
    if not ratios or len(set(ratios)) < len(ratios) or not all(0 < ratio <= 1 for ratio in ratios):
        return [f"ratios must lie in (0, 1], got {ratios}; name each once"]
    return []


@dataclass(frozen=True)
class Config(RootSection):
    """One training run: everything that can change its result except the data's content and its parent."""

    CODE_RECIPE: ClassVar[int] = RECIPE

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    freeze_routes: bool = False
    """Take the parent's routes as they are (fine-tuning)."""
    seed: int = 0

    @property
    def held_out(self) -> tuple[int, int, int]:
        """What decides which training clips are validation clips: number of subjects, split seed, fold."""
        data = self.data
        return (data.validation_subjects, data.split_seed, self.seed % data.validation_folds)

    @property
    def chooses(self) -> bool:
        """Whether there are several checkpoints of which validation subjects choose one."""
        every = self.optim.evaluate_every
        return self.data.validation_subjects > 0 and 0 < every < self.optim.steps

    @property
    def chosen_by(self) -> str:
        """How the weights that are measured are chosen, in the words of records and plans."""
        if self.chooses:
            return "validation subjects"
        return "last step, validated" if self.data.validation_subjects else "last step"

    def faults(self) -> list[str]:
        faults = at_least(self, 0, "seed")
        for task in self.optim.tasks:
            if not getattr(self.data, task).sources:
                faults.append(
                    f"data.{task}.sources must name a clip set, got (); set it or leave {task} out of optim.cycle"
                )
        exit_layer, layers = self.evaluation.exit_layer, self.model.encoder_layers
        if exit_layer > layers:
            faults.append(f"evaluation.exit_layer must be at most model.encoder_layers = {layers}, got {exit_layer}")
        if exit_layer and self.optim.exits == "last":
            faults.append(f"evaluation.exit_layer={exit_layer} needs optim.exits='drawn', got 'last'")
        if self.evaluation.decoding == "parallel" and not self.optim.mask_inputs:
            faults.append("evaluation.decoding='parallel' needs optim.mask_inputs=True, got False")
        return faults
