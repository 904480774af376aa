"""Every choice that can change a result, as frozen dataclasses: checked where they are built, all faults at once.

A configuration has one canonical form (plain JSON) and one fingerprint. Paths, devices, precisions and intervals of
logging or saving are run options (`training.loop.RunOptions`) and never stand here. This module imports no torch.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from ups_model import RECIPE
from ups_model.config.schema import (
    NEUTRAL,
    Section,
    above,
    apply,
    at_least,
    between,
    build,
    canonical,
    digest,
    leaf_fields,
    next_multiple,
    parse,
)

TaskName = Literal["pe", "ar2d", "eap", "ar3d"]
TASK_NAMES: tuple[TaskName, ...] = ("pe", "ar2d", "eap", "ar3d")
"""Pose estimation, 2D action recognition, early action prediction, 3D action recognition: the paper's rotation."""


def set_of(source: str) -> str:
    """The clip set of a source as `TaskData.sources` names it: "ntu60:xview" -> "ntu60"."""
    return source.partition(":")[0]


def protocol_of(source: str) -> str:
    """The protocol of a source: "ntu60:xview" -> "xview"; "default" where none is named."""
    return source.partition(":")[2] or "default"


@dataclass(frozen=True)
class ModelConfig(Section):
    """The network (paper section 3.3 and 3.4; what the paper leaves open is in docs/paper-differences.md)."""

    token_width: int = 64
    """d, the width of a joint token."""
    tokenizer_layers: int = 3
    """TCN-GCN layers of the joint tokenizer."""
    encoder_layers: int = 3
    """SEM-TEM layers, L_encoder in the paper (Table 7)."""
    blocks_per_layer: int = 2
    """H, parallel SEM-TEM blocks of a layer (Table 8)."""
    routing: bool = True
    """Per-task choice of one block a layer (Table 9). Off: all blocks run and their outputs are averaged."""
    routing_execution: Literal["sparse", "dense"] = "sparse"
    """In training: run the chosen block alone, or all H of them weighted by the Gumbel-Softmax sample."""
    router_width: int = 256
    """q, the width of task and block embeddings."""
    router_scaled: bool = True
    """Divide the scores of Eq. 1 by sqrt(q); false is the paper's equation as printed, whose routes hardly move."""
    gumbel_start: float = 5.0
    """Gumbel-Softmax temperature at the first step."""
    gumbel_end: float = 0.5
    """Gumbel-Softmax temperature that the run ends at (geometric decay)."""
    gumbel_fades: bool = True
    """Whether the Gumbel noise of Eq. 2 fades; false keeps it at full strength to the end."""
    routing_explore_share: float = 0.5
    """Share of training over which the Gumbel noise fades to 0. Temperature shapes gradients, not choices: with full
    noise to the end a task would still be trained on routes that inference never takes."""
    tem_width: int = 0
    """Width of the frame tokens inside a TEM; 0 is the paper's J*d without a bottleneck."""
    tem_heads: int = 8
    """Heads of a TEM's attention over frames."""
    tem_mlp_ratio: int = 4
    """Hidden width of a TEM's MLP over its frame-token width."""
    decoder_layers: int = 3
    """Transformer blocks of the decoder, L_decoder in the paper."""
    decoder_width: int = 256
    """Width of the decoder's tokens and of the projected vocabulary."""
    decoder_heads: int = 8
    """Heads of the decoder's self- and cross-attention."""
    decoder_mlp_ratio: int = 2
    """Hidden width of the decoder's MLP over its token width."""
    decoder_memory: Literal["joints", "frames", "frames+joints"] = "joints"
    """What the decoder attends to: all N*J tokens; N frame tokens; or N frame tokens and J joint tokens, the latter
    taken at the target frame (pose estimation) or averaged over time (class tasks)."""
    decoder_alignment: bool = False
    """Pose estimation: add the encoded token of a step's own joint at the target frame to the decoder's input of that
    step, beside attention to the memory; the paper has attention alone."""
    input_features: tuple[Literal["position", "relative", "velocity", "bone"], ...] = ("position",)
    """What a joint's input vector holds; the paper gives positions alone."""
    normalisation: Literal["layer", "task_batch"] = "layer"
    """Inside GCN and TCN-GCN units: LayerNorm, or BatchNorm with running statistics of each task's own."""
    n_bins: int = 500
    """Coordinate bins an axis."""
    text_model: str = "roberta-base"
    """Frozen language model of the vocabulary: roberta-base (paper), minilm (packaged) or a local folder."""
    vocabulary_whitening: bool = True
    """Whiten the frozen text features before projecting them: prompts that differ in one number are nearly parallel."""
    vocabulary_residual: bool = False
    """Add a learned vector to each token's projected text feature; the paper's vocabulary is the frozen text alone."""
    vocabulary_ordinal: bool = False
    """Add to each coordinate token a learned smooth function of its bin's place on the axis. Text features of bins know
    next to nothing of their order, so that each bin would have to be learned by itself."""
    dropout: float = 0.1
    """Dropout in the TEM and after the tokenizer."""
    decoder_dropout: float = 0.1
    """Dropout in the decoder."""

    def faults(self) -> list[str]:
        found = []
        for name in ("token_width", "encoder_layers", "blocks_per_layer", "decoder_layers", "tokenizer_layers"):
            found += at_least(self, name, 1)
        found += at_least(self, "router_width", 1)
        if self.n_bins < 2:
            found.append(f"n_bins must be at least 2, got {self.n_bins}; the paper's order is 500")
        if self.token_width >= 1 and self.token_width % 4:
            found.append(
                f"token_width must be divisible by the 4 branches of a temporal convolution, got {self.token_width}; "
                f"try {next_multiple(self.token_width, 4)}"
            )
        tem_width = self.tem_width or 25 * self.token_width
        for width_name, width, heads_name in (
            ("tem_width" if self.tem_width else "25 * token_width", tem_width, "tem_heads"),
            ("decoder_width", self.decoder_width, "decoder_heads"),
        ):
            heads = getattr(self, heads_name)
            if heads < 1 or width < 1 or width % heads:
                hint = f"; try {next_multiple(max(width, 1), heads)}" if heads >= 1 else ""
                found.append(f"{width_name} must be divisible by {heads_name}, got {width} and {heads}{hint}")
        for name in ("tem_mlp_ratio", "decoder_mlp_ratio"):
            found += at_least(self, name, 1)
        for name in ("gumbel_start", "gumbel_end"):
            found += above(self, name, 0)
        found += between(self, "dropout", 0, 0.99)
        found += between(self, "decoder_dropout", 0, 0.99)
        found += between(self, "routing_explore_share", 0, 1)
        if "position" not in self.input_features or len(set(self.input_features)) < len(self.input_features):
            found.append(f"input_features must hold 'position' and no feature twice, got {self.input_features}")
        return found


@dataclass(frozen=True)
class TaskData(Section):
    """What one task is fed: its clip sets, the shape of a clip, and the augmentation of training clips."""

    sources: tuple[str, ...] = ()
    """Prepared clip sets, each SET or SET:PROTOCOL ("ntu60:xview"), by default the set's first protocol. A batch comes
    from one of them, drawn in proportion to their sizes; metrics without a source's name are those of the first."""
    frames: int = 64
    """N, frames a clip is resized to (class tasks) or window length (pose estimation)."""
    frame_stride: int = 1
    """Pose estimation: take every n-th frame of the recording."""
    batch_size: int = 64
    """Clips a step; for pose estimation windows, of which `targets_per_window` poses each are predicted."""
    targets_per_window: int = 1
    """Pose estimation: frames predicted from one encoded window in training (1 = the centre frame)."""
    evaluate_targets: int = 1
    """Pose estimation: frames predicted from one encoded window in evaluation, around its centre."""
    evaluate_stride: int = 1
    """Pose estimation: predict every n-th frame of an evaluated sequence (1 = all)."""
    crop_min: float = 1.0
    """Training: least share of a clip that a random temporal crop keeps (EAP: least share observed)."""
    rotation_deg: float = 0.0
    """Training: rotation about the vertical axis, uniform in +-."""
    tilt_deg: float = 0.0
    """Training: rotation about the horizontal axes, uniform in +- (2D: rotation in the image plane)."""
    scale: float = 0.0
    """Training: body size, uniform in 1 +- this."""
    bone_scale: float = 0.0
    """Training, pose estimation: length of each limb pair, uniform in 1 +- this."""
    translation_m: float = 0.0
    """Training, pose estimation: displacement on the ground, uniform in +- metres."""
    jitter: float = 0.0
    """Training: standard deviation of noise on input coordinates: one displacement a joint and clip (class tasks, in
    units of the normalised clip), or one a joint and frame (pose estimation, in half image widths)."""
    joint_drop: float = 0.0
    """Training: chance that a joint's input is replaced by its parent's for the whole clip."""
    flip: bool = False
    """Training: mirror half of the clips, left and right swapped. Wrong where classes name a side."""
    detections: Literal["project", "stored"] = "project"
    """Pose estimation: 2D input as exact projection through the set's cameras, or the set's stored detections."""

    def faults(self) -> list[str]:
        found = []
        for name in (
            "frames",
            "frame_stride",
            "batch_size",
            "targets_per_window",
            "evaluate_targets",
            "evaluate_stride",
        ):
            found += at_least(self, name, 1)
        if self.evaluate_targets > self.frames:
            found.append(f"evaluate_targets must be at most frames, got {self.evaluate_targets} and {self.frames}")
        if self.targets_per_window > self.evaluate_targets:
            found.append(
                "targets_per_window must be at most evaluate_targets, whose frames they are drawn from, got "
                f"{self.targets_per_window} and {self.evaluate_targets}"
            )
        if len(set(self.sources)) < len(self.sources):
            found.append(f"sources must be named once each, got {', '.join(self.sources)}")
        for source in self.sources:
            if not re.fullmatch(r"[^:]+(:\w+)?", source):
                found.append(f"sources must be written SET or SET:PROTOCOL, got {source!r}")
        long, short = max(self.evaluate_stride, self.frame_stride), max(1, min(self.evaluate_stride, self.frame_stride))
        jump = max(1, self.evaluate_stride // max(1, self.frame_stride))
        if long % short:
            found.append(
                "of evaluate_stride and frame_stride one must be a multiple of the other, got "
                f"{self.evaluate_stride} and {self.frame_stride}"
            )
        elif self.evaluate_targets % jump:
            found.append(
                "evaluate_targets must be a multiple of evaluate_stride / frame_stride, got "
                f"{self.evaluate_targets} and {jump}; try {next_multiple(self.evaluate_targets, jump)}"
            )
        found += between(self, "crop_min", 0.01, 1)
        for name, high in (
            ("rotation_deg", 180),
            ("tilt_deg", 180),
            ("scale", 0.9),
            ("bone_scale", 0.9),
            ("joint_drop", 0.9),
        ):
            found += between(self, name, 0, high)
        found += between(self, "jitter", 0, 1)
        found += between(self, "translation_m", 0, 10)
        return found


@dataclass(frozen=True)
class DataConfig(Section):
    """The clips of each task, and which training subjects are held out."""

    pe: TaskData = field(default_factory=TaskData)
    """3D pose estimation."""
    ar2d: TaskData = field(default_factory=TaskData)
    """2D action recognition."""
    eap: TaskData = field(default_factory=TaskData)
    """3D early action prediction."""
    ar3d: TaskData = field(default_factory=TaskData)
    """3D action recognition."""
    validation_subjects: int = 1
    """Training subjects held out to choose the checkpoint; 0 trains on all of them and takes the last step."""
    validation_folds: int = 1
    """Folds that a study's seeds take turns in: the run of seed s holds out the (s mod folds)-th choice of validation
    subjects, in every row alike. One subject may be an outlier; the mean over seeds then speaks of several."""
    split_seed: int = 0
    """Order in which training subjects are held out; the same in every seed of a study, so that arms stay
    comparable."""
    leaks: Literal["refuse", "drop"] = field(default="refuse", metadata=NEUTRAL)
    """Training clips that another task validates or tests on, as clips of NTU60 xsub in NTU120 xset: an error, or left
    out of training."""

    def faults(self) -> list[str]:
        return at_least(self, "validation_subjects", 0) + at_least(self, "validation_folds", 1)


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
    mask_inputs: bool = False
    """Replace each decoder input of a training sequence by a mask token at a ratio drawn from U(0, 1) (pix2seq)."""
    evaluate_every: int = 0
    """Steps between validations; 0 = at the end only."""

    def faults(self) -> list[str]:
        found = []
        if not self.cycle:
            found.append("cycle must name at least one task, got ()")
        found += at_least(self, "steps", 1)
        for name in ("evaluate_every", "warmup_steps"):
            found += at_least(self, name, 0)
        for name in ("learning_rate", "clip_norm"):
            found += above(self, name, 0)
        for name, high in (("warmup_share", 1), ("ema", 0.99999), ("label_smoothing", 0.9), ("beta2", 0.99999)):
            found += between(self, name, 0, high)
        for name in ("weight_decay", "bin_sigma", "expectation_weight"):
            found += at_least(self, name, 0)
        if self.update == "cycle" and self.cycle and self.steps % len(self.cycle):
            found.append(
                f"steps must be whole cycles when update='cycle', got {self.steps} steps of {len(self.cycle)}; "
                f"try {next_multiple(self.steps, len(self.cycle))}"
            )
        return found

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

    def faults(self) -> list[str]:
        bad = [ratio for ratio in self.ratios if not 0 < ratio <= 1]
        if bad or not self.ratios or len(set(self.ratios)) < len(self.ratios):
            return [f"ratios must lie in (0, 1], got {self.ratios}; name each once"]
        return []


@dataclass(frozen=True)
class Config(Section):
    """One training run: everything that can change its result except the data's content and its parent."""

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
        found = at_least(self, "seed", 0)
        for task in self.optim.tasks:
            if not getattr(self.data, task).sources:
                found.append(
                    f"data.{task}.sources must name a clip set, got (); set it or leave {task} out of optim.cycle"
                )
        if self.evaluation.decoding == "parallel" and not self.optim.mask_inputs:
            found.append("evaluation.decoding='parallel' needs optim.mask_inputs=True, got False")
        return found

    @classmethod
    def field_path(cls, name: str) -> str:
        """The dotted name of a field given by it or by an unambiguous end of it: "steps" is "optim.steps".

        Raises:
            ValueError: no field has the name (near names are listed), or several have.
        """
        known = leaf_fields(cls)  # type: ignore[arg-type]  # mypy sees the instances' __hash__
        if name in known:
            return name
        matches = [path for path in known if path.endswith("." + name)]
        if not matches:
            near = difflib.get_close_matches(name, [*known, *(path.rsplit(".", 1)[-1] for path in known)], n=3)
            raise ValueError(f"unknown field {name!r}" + (f"; near: {', '.join(dict.fromkeys(near))}" if near else ""))
        if len(matches) > 1:
            raise ValueError(f"field {name!r} is ambiguous: write one of {', '.join(matches)}")
        return matches[0]

    def with_fields(self, changes: Mapping[str, Any]) -> Self:
        """A copy with dotted or unambiguous short field names changed, e.g. {"seed": 2, "data.pe.frames": 27}.

        Values may be strings, as on a command line: they are read as JSON where the field is not a string.

        Raises:
            ValueError: a name that no field has (near names are listed) or several have, or a value out of range.
        """
        known = leaf_fields(type(self))  # type: ignore[arg-type]  # mypy sees the instances' __hash__
        resolved = {}
        for name, value in changes.items():
            path = self.field_path(name)
            if path in resolved:
                raise ValueError(f"field {path} is given twice; keep one")
            resolved[path] = parse(path, known[path], value)
        tree: dict[str, Any] = {}
        for path, value in resolved.items():
            node = tree
            *parents, leaf = path.split(".")
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = value
        return apply(self, tree)

    def canonical(self) -> dict[str, Any]:
        """Plain JSON data that equal configurations share; raises ValueError where a value has no canonical form."""
        return {"recipe": RECIPE, **canonical(self)}

    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the canonical form."""
        return digest(self.canonical())

    @classmethod
    def from_canonical(cls, data: Mapping[str, Any]) -> Self:
        """The configuration whose `canonical()` is `data`; a recipe other than this code's is an error."""
        data = dict(data)
        recipe = data.pop("recipe", None)
        if recipe != RECIPE:
            raise ValueError(f"configuration was made with recipe {recipe}, this code trains recipe {RECIPE}; retrain")
        return build(cls, data)
