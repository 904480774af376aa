"""Every choice that can change a result of the multi-task network, as frozen dataclasses. Imports no torch."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from baselines.config import PRESETS, BaselineEval, BaselineOptim, RunConfig
from ups_model.config import DataConfig, TaskData
from ups_model.config.presets import preset as ups_preset
from ups_model.config.schema import Section, above, at_least, between

RECIPE = 1
"""Number of the present training recipe: raise it with every change that makes earlier results another thing."""

Trained = Literal["both", "pose", "action"]
Phase = Trained
"""What an update is for; "action" with the weights of the poses fixed, unless actions are all that is trained."""


@dataclass(frozen=True)
class MultitaskNetwork(Section):
    """Sizes, and what the action heads see."""

    layers: int = 4
    """Each has a pose head and an action head: an exit."""
    joint_width: int = 24
    """Features of a joint in a frame."""
    action_width: int = 24
    """Action features of a joint in a frame."""
    grid: int = 8
    """Points on each side of a joint's probability map (the paper's W_h + 1 of Eq. 8)."""
    range_m: float = 3.0
    """Metres that coordinates in [0, 1] stand for, the root in the middle. The paper: 2, for depth alone."""
    centred: bool = True
    """As `baselines.config.NetworkConfig.centred`."""
    kernel: int = 5
    """Frames of a temporal convolution of the encoder."""
    dropout: float = 0.1
    action_input: Literal["poses", "features", "combined", "decoupled"] = "combined"
    """What the action heads see: the predicted poses, the joints' features, both, or both with poses of their own after
    `decouple_at` of the steps (the paper's Table 5)."""

    def faults(self) -> list[str]:
        faults = at_least(self, 1, "layers", "joint_width", "action_width", "kernel") + at_least(self, 2, "grid")
        faults += above(self, 0, "range_m") + between(self, 0, 0.9, "dropout")
        if self.kernel % 2 == 0:
            faults.append(f"kernel must be odd, got {self.kernel}")
        return faults


@dataclass(frozen=True)
class MultitaskTraining(Section):
    """Losses and stages."""

    tasks: Trained = "both"
    """What is trained, of one and the same network."""
    supervision: Literal["all", "last"] = "all"
    """Which exits have a loss (the paper's Table 4)."""
    action_weight: float = 0.01
    """Of the action loss beside the pose loss (the paper's section 4.2.3)."""
    confidence_weight: float = 0.01
    """Of the confidence loss beside the pose loss (the same)."""
    pose_share: float = 0.0
    """Share of the steps that train poses alone, first."""
    action_share: float = 0.0
    """Share of the steps that then train actions alone, the poses' weights fixed; all others train both."""
    decouple_at: float = 0.5
    """Share of the steps after which decoupled action poses leave their original ("about one half", section 3.3.4)."""

    def faults(self) -> list[str]:
        faults = at_least(self, 0, "action_weight", "confidence_weight")
        faults += between(self, 0, 1, "pose_share", "action_share", "decouple_at")
        staged = [name for name in ("pose_share", "action_share") if getattr(self, name)]
        if staged and self.tasks != "both":
            faults.append(f"{staged[0]} must be 0 where tasks is {self.tasks}: stages are for tasks both")
        if self.pose_share + self.action_share > 1:
            faults.append(
                f"pose_share and action_share must add up to at most 1, got {self.pose_share} and {self.action_share}"
            )
        if self.tasks == "action" and not self.action_weight:
            faults.append("action_weight must be above 0 where tasks is action")
        return faults


@dataclass(frozen=True)
class MultitaskConfig(RunConfig):
    """One training run: poses of the frames of a window and the class of its clip, from one clip set."""

    CODE_RECIPE: ClassVar[int] = RECIPE

    network: MultitaskNetwork = field(default_factory=MultitaskNetwork)
    training: MultitaskTraining = field(default_factory=MultitaskTraining)
    data: DataConfig = field(default_factory=DataConfig)
    optim: BaselineOptim = field(default_factory=BaselineOptim)
    evaluation: BaselineEval = field(default_factory=BaselineEval)
    seed: int = 0

    def faults(self) -> list[str]:
        faults = at_least(self, 0, "seed")
        if self.optim.task != "pe":
            faults.append(f"task must be pe, whose windows have poses and classes, got {self.optim.task}")
            return faults
        if len(self.data.pe.sources) != 1:
            faults.append(f"data.pe.sources must name one clip set, got {len(self.data.pe.sources)}")
        if self.network.action_input == "decoupled" and self.training.tasks != "both":
            faults.append(f"action_input decoupled needs tasks both, got {self.training.tasks}")
        return faults

    def phase(self, step: int) -> Phase:
        """What the update after `step` steps is for."""
        training, poses, actions = self.training, *self.stage_steps
        if training.tasks != "both":
            return training.tasks
        return "pose" if step < poses else "action" if step < poses + actions else "both"

    @property
    def stage_steps(self) -> tuple[int, int]:
        """Steps for poses alone, and then for actions alone, of staged training."""
        steps, training = self.optim.steps, self.training
        poses = round(training.pose_share * steps)
        return poses, min(round(training.action_share * steps), steps - poses)

    @property
    def decouple_step(self) -> int:
        """Steps after which decoupled action poses leave their original; never reached: `optim.steps`."""
        if self.network.action_input != "decoupled":
            return self.optim.steps
        return round(self.training.decouple_at * self.optim.steps)

    def trained_steps(self) -> dict[str, int]:
        """Steps that train each task, "pe" and "action"; those that train neither are not there."""
        steps, tasks, (poses, actions) = self.optim.steps, self.training.tasks, self.stage_steps
        if tasks != "both":
            return {"pe" if tasks == "pose" else "action": steps}
        return {"pe": steps - actions, "action": steps - poses}


def base(preset: str) -> MultitaskConfig:
    """The configuration of a preset: `tiny` on synthetic motion, `small` on UI-PRMD, `paper` on Human3.6M.

    Splits, augmentation and measured frames are those of UPS's pose estimation in the preset; every frame of a window
    is predicted.

    Raises:
        ValueError: another preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    ups = ups_preset(preset)
    frames, batch, steps = {"tiny": (16, 16, 300), "small": (16, 32, 1_000), "paper": (16, 64, 120_000)}[preset]
    poses = ups.data.pe.replace(
        frames=frames, frame_stride=4, batch_size=batch, targets_per_window=frames, evaluate_targets=frames
    )
    data = ups.data.replace(pe=poses, ar2d=TaskData(), eap=TaskData(), ar3d=TaskData())
    network = MultitaskNetwork()
    if preset == "tiny":
        network = network.replace(joint_width=16, action_width=16)
    if preset == "paper":
        network = network.replace(layers=8, joint_width=64, action_width=192)
    return MultitaskConfig(network, data=data, optim=BaselineOptim(steps=steps, learning_rate=2e-3, weight_decay=0.01))
