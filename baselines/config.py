"""Every choice that can change a baseline's result, as frozen dataclasses. Imports no torch.

Data settings are those of UPS, so that sources, protocols, validation subjects, clips and augmentation mean the same.
"""

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import ClassVar, Literal

from ups_model.config import Config, DataConfig, EvalConfig, OptimConfig, TaskData, TaskName
from ups_model.config.config import ratio_faults
from ups_model.config.presets import preset as ups_preset
from ups_model.config.schema import RootSection, Section, above, at_least, between
from ups_model.tasks import TASKS

RECIPE = 1
"""Number of the present training recipe: raise it with every change that makes earlier results another thing."""

System = Literal["residual_mlp", "videopose3d", "dd_net", "st_gcn"]
SYSTEMS: tuple[System, ...] = ("residual_mlp", "videopose3d", "dd_net", "st_gcn")
LIFTERS: tuple[System, ...] = ("residual_mlp", "videopose3d")
"""Systems of pose estimation; the others recognise actions."""
Stream = Literal["distance", "slow", "fast", "position"]
PRESETS = ("tiny", "small", "paper")


@dataclass(frozen=True)
class NetworkConfig(Section):
    """Which system, and its sizes."""

    system: System = "residual_mlp"
    width: int = 480
    """Hidden units (residual MLP), channels (VideoPose3D, ST-GCN's first units), filters of a stream (DD-Net)."""
    blocks: int = field(default=3, metadata={"of": ("residual_mlp", "dd_net", "st_gcn")})
    """Residual blocks (residual MLP), pairs of convolutions (DD-Net), units (ST-GCN); VideoPose3D's follow from
    `receptive_field`."""
    dropout: float = 0.25
    receptive_field: int = field(default=27, metadata={"of": LIFTERS})
    """Lifters: frames around a predicted one that are seen; of VideoPose3D a power of 3."""
    centred: bool = field(default=True, metadata={"of": LIFTERS})
    """Lifters: joints relative to the pelvis, beside the pelvis' own place in the image: the same numbers, but a
    body is small beside its distance from the middle of the image, and a network that has to find it there learns
    slowly. False is as published."""
    kernel: int = field(default=9, metadata={"of": ("st_gcn",)})
    """ST-GCN: frames of a temporal convolution."""
    streams: tuple[Stream, ...] = field(default=("distance", "slow", "fast"), metadata={"of": ("dd_net",)})
    """DD-Net: joint collection distances, motion over one and two frames; `position`, root-centred coordinates, is
    ours."""

    def faults(self) -> list[str]:
        faults = at_least(self, 1, "width", "blocks", "receptive_field", "kernel") + between(self, 0, 0.9, "dropout")
        for name in ("receptive_field", "kernel"):
            if getattr(self, name) % 2 == 0:
                faults.append(f"{name} must be odd, got {getattr(self, name)}")
        if self.system == "videopose3d" and 3 ** _power_of_3(self.receptive_field) != self.receptive_field:
            faults.append(f"receptive_field of videopose3d must be a power of 3, got {self.receptive_field}")
        if self.system == "dd_net" and (not self.streams or len(set(self.streams)) < len(self.streams)):
            faults.append(f"streams must name at least one stream and none twice, got {self.streams}")
        for item in fields(self):
            if self.system not in item.metadata.get("of", SYSTEMS) and getattr(self, item.name) != item.default:
                faults.append(
                    f"{item.name} means nothing to {self.system}, got {getattr(self, item.name)}; "
                    f"leave it at {item.default}"
                )
        return faults

    @property
    def filter_widths(self) -> tuple[int, ...]:
        """VideoPose3D: frames of the first convolution and of each residual block's, whose product is the receptive
        field. The single-frame network keeps two blocks of width 1, as its authors' does."""
        return (3,) * _power_of_3(self.receptive_field) if self.receptive_field > 1 else (1, 1, 1)


@dataclass(frozen=True)
class BaselineOptim(Section):
    """The trainer: one task a run."""

    task: TaskName = "pe"
    steps: int = 2_000
    learning_rate: float = 1e-3
    """Peak rate."""
    schedule: Literal["cosine", "exponential"] = "cosine"
    """Half a cosine down to 0, or a factor `decay` after each pass over the training items (VideoPose3D)."""
    warmup_share: float = 0.05
    """Share of the steps over which the rate rises linearly."""
    decay: float = 0.95
    decay_samples: int = 0
    """Samples between two decays; 0 = a pass over the training items."""
    weight_decay: float = 0.0
    """Decoupled, on matrices alone."""
    beta2: float = 0.999
    amsgrad: bool = False
    clip_norm: float = 1e3
    """Largest gradient norm of an update."""
    norm_momentum: float = 0.1
    norm_momentum_end: float = 0.1
    """Share of a batch in batch normalisation's running statistics, geometric from start to end."""
    label_smoothing: float = 0.0
    evaluate_every: int = 0
    """Steps between validations, the best of which gives the weights; 0 = at the end only."""

    def faults(self) -> list[str]:
        faults = at_least(self, 1, "steps") + at_least(self, 0, "evaluate_every", "decay_samples", "weight_decay")
        faults += above(self, 0, "learning_rate", "clip_norm", "decay", "norm_momentum", "norm_momentum_end")
        faults += between(self, 0, 1, "warmup_share", "decay", "norm_momentum", "norm_momentum_end")
        return faults + between(self, 0, 0.9, "label_smoothing") + between(self, 0, 0.99999, "beta2")


@dataclass(frozen=True)
class BaselineEval(Section):
    """How a trained network is measured."""

    ratios: tuple[float, ...] = (0.2, 0.4, 0.6)
    """Shares of a clip observed in early action prediction."""
    flip: bool = False
    """Pose estimation: average with the prediction of the mirrored input."""

    def faults(self) -> list[str]:
        return ratio_faults(self.ratios)


class RunConfig(RootSection):
    """What every configuration of a run has, whichever network it trains."""

    data: DataConfig
    optim: BaselineOptim
    evaluation: BaselineEval
    seed: int

    @property
    def task_data(self) -> TaskData:
        """The data settings of the trained task."""
        data: TaskData = getattr(self.data, self.optim.task)
        return data

    @cached_property
    def as_ups(self) -> Config:
        """A UPS run of this task alone on the same clips, which loaders, splits, schedule and measures take."""
        optim, others = self.optim, set(TASKS) - {self.optim.task}
        return Config(
            data=self.data.replace(**{task: TaskData() for task in others}),
            optim=OptimConfig(
                cycle=(optim.task,),
                steps=optim.steps,
                learning_rate=optim.learning_rate,
                warmup_share=optim.warmup_share,
                warmup_steps=0,
                clip_norm=optim.clip_norm,
                evaluate_every=optim.evaluate_every,
            ),
            evaluation=EvalConfig(ratios=self.evaluation.ratios, flip=self.evaluation.flip),
            seed=self.seed,
        )

    @property
    def chooses(self) -> bool:
        """Whether there are several checkpoints of which validation subjects choose one."""
        return self.as_ups.chooses

    @property
    def chosen_by(self) -> str:
        """How the weights that are measured are chosen, in the words of records and plans."""
        return self.as_ups.chosen_by


@dataclass(frozen=True)
class BaselineConfig(RunConfig):
    """One training run of one baseline on one task."""

    CODE_RECIPE: ClassVar[int] = RECIPE

    network: NetworkConfig = field(default_factory=NetworkConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: BaselineOptim = field(default_factory=BaselineOptim)
    evaluation: BaselineEval = field(default_factory=BaselineEval)
    seed: int = 0

    def faults(self) -> list[str]:
        task, system = self.optim.task, self.network.system
        faults = at_least(self, 0, "seed")
        if (TASKS[task].kind == "pose") != (system in LIFTERS):
            fitting = [name for name in SYSTEMS if (name in LIFTERS) == (TASKS[task].kind == "pose")]
            faults.append(f"system for task {task} must be one of {', '.join(fitting)}, got {system}")
        data, network = self.task_data, self.network
        if len(data.sources) != 1:
            faults.append(
                f"data.{task}.sources must name one clip set, got {len(data.sources)}; a baseline trains on one"
            )
        needed = network.receptive_field + data.evaluate_targets - 1
        if system in LIFTERS and data.frames != needed:
            faults.append(
                f"data.pe.frames must be receptive_field + evaluate_targets - 1 = {needed}, a window for each target, "
                f"got {data.frames}"
            )
        return faults


def _power_of_3(value: int) -> int:
    """Exponent of the largest power of 3 that is at most `value`."""
    power = 0
    while 3 ** (power + 1) <= value:
        power += 1
    return power


def base(preset: str, system: System = "residual_mlp") -> BaselineConfig:
    """A system's configuration in a preset: `tiny` on the synthetic sets, `small` on the open ones, `paper` with
    published sizes on Human3.6M, Kinetics-400 and NTU RGB+D 120.

    Clips, splits, augmentation and measured frames are those of UPS's preset; batches are the systems' own.

    Raises:
        ValueError: another preset or system.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    if system not in SYSTEMS:
        raise ValueError(f"system must be one of {', '.join(SYSTEMS)}, got {system!r}")
    ups = ups_preset(preset)
    network = NETWORKS[system]
    changes: dict[str, object] = {"flip": ups.evaluation.flip}
    if system in LIFTERS:
        receptive = {"tiny": 9, "small": 27, "paper": 243}[preset] if system == "videopose3d" else ups.data.pe.frames
        width = {"tiny": 64, "small": network.width, "paper": 1024}[preset]
        network = network.replace(receptive_field=receptive | 1, width=width)
        frames = network.receptive_field + ups.data.pe.evaluate_targets - 1
        data = ups.data.replace(pe=ups.data.pe.replace(frames=frames, **LIFTER_BATCHES[preset]))
        data = data.replace(ar2d=TaskData(), eap=TaskData(), ar3d=TaskData())
        changes = {"flip": True}
    else:
        network = network.replace(**({"width": 8} if preset == "tiny" else {}))
        data = ups.data.replace(pe=TaskData())
    optim = OPTIMS[system]
    if preset == "tiny":
        optim = optim.replace(steps=200)
    if preset == "paper":
        optim = optim.replace(steps=PAPER_STEPS["lifting" if system in LIFTERS else "recognition"])
        if system == "videopose3d":
            # As published; on fewer data and steps another rate and less dropout are better.
            network = network.replace(dropout=0.25, centred=False)
            optim = optim.replace(learning_rate=1e-3, schedule="exponential", warmup_share=0.0, norm_momentum_end=0.001)
    return BaselineConfig(network, data, optim, BaselineEval(ups.evaluation.ratios, **changes))  # type: ignore[arg-type]


LIFTER_BATCHES = {
    "tiny": {"batch_size": 32},
    "small": {"batch_size": 128, "targets_per_window": 2},
    "paper": {"batch_size": 1024},
}
"""Windows a step, and targets of each, by preset."""

PAPER_STEPS = {"lifting": 122_000, "recognition": 5_000}
"""80 passes over 1,559,752 frames of Human3.6M (Pavllo et al.) and over NTU120's 63,026 clips (as ST-GCN's on NTU60),
in batches of 1,024."""

NETWORKS = {
    "residual_mlp": NetworkConfig(dropout=0.1),
    "videopose3d": NetworkConfig("videopose3d", width=512, dropout=0.1),
    "dd_net": NetworkConfig("dd_net", width=48, blocks=3, dropout=0.1),
    "st_gcn": NetworkConfig("st_gcn", width=32, blocks=6, dropout=0.1),
}
"""Sizes of each system in preset `small`."""

OPTIMS = {
    "residual_mlp": BaselineOptim("pe", 6_000),
    "videopose3d": BaselineOptim("pe", 8_000, 2e-3, amsgrad=True, norm_momentum_end=0.01),
    "dd_net": BaselineOptim("ar3d", 900, 3e-3, weight_decay=0.01, label_smoothing=0.1),
    "st_gcn": BaselineOptim("ar3d", 500, 3e-3, weight_decay=0.01, label_smoothing=0.1),
}
"""How each system is trained in preset `small`."""
