"""How large UPS is: parameters, operations, and the memory of a training step."""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, lru_cache, wraps
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.project import Fitting, Gpus, Sizes
from ups_model.atomic import write_atomic
from ups_model.config import Config, ModelConfig, OptimConfig, TaskData, TaskName, set_of
from ups_model.config.identity import configured_tasks
from ups_model.data.format.clip_set import ClipSet
from ups_model.data.prepare.catalog import default_cache
from ups_model.source import ROOT, files_digest, source_digest
from ups_model.tasks import MAX_PERSONS, TASKS

if TYPE_CHECKING:  # Imported where needed: a plan without estimates needs no torch.
    from torch import Tensor
    from torch._subclasses.fake_tensor import FakeTensorMode

    from ups_model.model.inputs import Inputs
    from ups_model.model.ups import UPS
    from ups_model.training.fit import Peak

MOMENTS, BYTES = 2, 4
"""Of AdamW for each parameter, and bytes of a number in 32 bits."""
TEXT_WIDTHS = {"roberta-base": 768, "minilm": 384}


def _counted_once(count: Callable[..., Any]) -> Callable[..., Any]:
    """What a function counts, kept in the cache folder as JSON: seconds for each setting of a model, and the same as
    long as its arguments, this code, the model's and PyTorch are."""

    @cache
    @wraps(count)
    def kept(*of: Any) -> Any:
        key = hashlib.sha256(repr((count.__name__, of, _code())).encode()).hexdigest()[:16]
        file = default_cache() / "sizes" / f"{key}.json"
        with suppress(OSError, ValueError):
            return json.loads(file.read_text("utf-8"))
        value = count(*of)
        with suppress(OSError):  # A cache that can't be written to saves nothing.
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, json.dumps(value))
        return value

    return kept


@cache
def _code() -> tuple[str, str, str]:
    """What counts depend on beside their arguments."""
    counting = files_digest([Path(__file__), ROOT / "training" / "fit.py"])
    return version("torch"), source_digest("training"), counting


def sizes_of(config: Config, sets: Mapping[str, ClipSet]) -> Sizes:
    """Parameters, and operations of a forward pass, of the model that this configuration trains."""
    network = _network(config, sets)
    layers = config.model.encoder_layers
    answering = network.with_layers(config.evaluation.exit_layer or layers)
    # Each exit is drawn as often as any other.
    exits = [layers] if config.optim.exits == "last" else range(1, layers + 1)
    by_exit = [_flops(network.with_layers(exit_layer), config, sets) for exit_layer in exits]
    training = {str(task): sum(flops[task] for flops in by_exit) / len(by_exit) for task in config.optim.tasks}
    return Sizes(
        _parameters(network),
        _parameters(answering.with_one_route()),
        _flops(answering, config, sets),
        None if config.optim.exits == "last" else training,
    )


def _flops(network: "_Network", config: Config, sets: Mapping[str, ClipSet]) -> dict[str, float]:
    """Of a forward pass, per sample of each trained task."""
    flops: dict[str, float] = {}
    for task in config.optim.tasks:
        data: TaskData = getattr(config.data, task)
        clips = sets[set_of(data.sources[0])]
        each, batch = _forward_flops(network.with_one_route(), task, data, _joints(clips))
        # The vocabulary is projected once a batch, however many samples share it.
        flops[task] = each * persons(clips) + batch / data.batch_size
    return flops


def fitting(config: Config, sets: Mapping[str, ClipSet], gpus: Gpus) -> Fitting:
    """How a unit fits a GPU, as `training.fit` would choose it."""
    from ups_model.training.fit import MIN_USEFUL_PART

    shares = {task: -(-getattr(config.data, task).batch_size // gpus.per_unit) for task in config.optim.tasks}

    def of(twice: bool) -> list[Fitting]:
        peaks = peaks_of(config, sets, half=True, activation_checkpointing=twice)
        fits = []
        for task, clips in shares.items():
            auto = peaks[task].largest(gpus.room, clips)
            at_once = auto if gpus.micro_batch in (0, "auto") else min(int(gpus.micro_batch), clips)
            fits.append(Fitting(task, peaks[task].of(clips), clips, at_once, peaks[task].of(at_once), twice))
        return fits

    fits = of(gpus.activation_checkpointing == "on")
    may_choose = gpus.activation_checkpointing == "auto" and gpus.micro_batch in (0, "auto")
    if may_choose and any(fit.at_once < min(MIN_USEFUL_PART, fit.clips) for fit in fits):
        fits = of(True)
    return max(fits, key=lambda fit: fit.whole)


def peaks_of(
    config: Config, sets: Mapping[str, ClipSet], half: bool, activation_checkpointing: bool = False
) -> "dict[TaskName, Peak]":
    """Memory of a training step of each task, from passes over two and four clips in which every tensor that is alive
    counts; AdamW's moments included. The passes make tensors of real sizes, but without values.

    Args:
        half: in 16-bit precision, as on a GPU, else in 32 bits.
        activation_checkpointing: as `RunOptions.activation_checkpointing`.
    """
    from ups_model.training.fit import SMALL_PARTS, Peak

    low, high = SMALL_PARTS
    network = _network(config, sets)
    loss = OptimConfig(
        bin_sigma=config.optim.bin_sigma,
        expectation_weight=config.optim.expectation_weight,
        label_smoothing=config.optim.label_smoothing,
    )
    peaks: dict[TaskName, Peak] = {}
    for task in config.optim.tasks:
        data: TaskData = getattr(config.data, task)
        name = set_of(data.sources[0])
        route = network.with_one_route()
        joints = _joints(sets[name])
        at_low, at_high = _peak_bytes(route, task, data, joints, name, loss, half, activation_checkpointing)
        peak = Peak.through(low, at_low, high, at_high)
        moments = MOMENTS * BYTES * _parameters(network)
        # Weights and gradients of the blocks that the route of this task doesn't take are there too.
        others = 2 * BYTES * (_parameters(network) - _parameters(route))
        peaks[task] = Peak(peak.fixed + moments + others, peak.each * persons(sets[name]))
    return peaks


def _network(config: Config, sets: Mapping[str, ClipSet]) -> "_Network":
    names = dict.fromkeys(
        set_of(source)
        for task in configured_tasks(config)
        if TASKS[task].kind == "class"
        for source in getattr(config.data, task).sources
    )
    classes = tuple((name, tuple(sets[name].info.classes)) for name in names)
    pose = config.data.pe.sources
    return _Network(
        config.model,
        classes,
        tuple(map(int, sets[set_of(pose[0])].skeleton.native_slot)) if pose else (),
        max(getattr(config.data, task).frames for task in configured_tasks(config)),
    )


def _joints(clips: ClipSet) -> tuple[int, ...]:
    return tuple(map(int, clips.skeleton.slots_present))


def persons(clips: ClipSet) -> float:
    """Mean number of persons of a clip that a model sees."""
    import numpy as np

    counts = np.bincount(clips.track_clip, minlength=len(clips))
    return float(counts.clip(1, MAX_PERSONS).mean())


@dataclass(frozen=True)
class _Network:
    """All that fixes the shapes of a model."""

    model: ModelConfig
    classes: tuple[tuple[str, tuple[str, ...]], ...]
    pose_slots: tuple[int, ...]
    most_frames: int

    def with_one_route(self) -> "_Network":
        """The same operations without a choice: a routed layer runs one block in sparse execution. Which one is a
        question of weights, so one stands for it."""
        model = self.model
        runs = 1 if model.routing and model.routing_execution == "sparse" else model.blocks_per_layer
        return replace(self, model=model.replace(routing=False, blocks_per_layer=runs))

    def with_layers(self, layers: int) -> "_Network":
        """With an encoder that ends after so many layers."""
        return replace(self, model=self.model.replace(encoder_layers=layers))

    def build(self) -> "UPS":
        """The model on the meta device: shapes without values."""
        import torch

        from ups_model.model.ups import UPS
        from ups_model.model.vocabulary import Quantiser, Vocabulary

        vocabulary = Vocabulary(self.classes, self.model.n_bins)
        quantiser = Quantiser((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), self.model.n_bins) if self.pose_slots else None
        width = _text_width(self.model, vocabulary.prompts)
        with torch.device("meta"):
            text_VE = torch.zeros(vocabulary.size, width)
            joints = len(self.pose_slots) or 17
            return UPS(self.model, vocabulary, quantiser, text_VE, self.most_frames, joints, pose_slots=self.pose_slots)


def _text_width(model: ModelConfig, prompts: tuple[str, ...]) -> int:
    """Of the text features that a model is trained with, at most: whitened ones are as wide as their rank, which only
    their values tell. The same on every machine, whatever it has computed before."""
    full = TEXT_WIDTHS.get(model.text_model, 768)
    return min(full, len(prompts) - 1) if model.vocabulary_whitening else full


@_counted_once
def _parameters(network: _Network) -> int:
    return sum(value.numel() for value in network.build().parameters())


@lru_cache(maxsize=1)
def _without_values(network: _Network) -> "tuple[UPS, FakeTensorMode]":
    """The model on the processor, as far as its operations can tell, but without values, and the mode that it works in:
    nothing is computed, whatever the sizes."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    model, mode = network.build(), FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, torch.nn.Parameter(torch.empty(parameter.shape)))
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
    return model, mode


def _inputs(
    network: _Network, task: TaskName, data: TaskData, joints: tuple[int, ...], clips: int
) -> "tuple[Inputs, Tensor]":
    """A batch of zeros, and its target tokens."""
    import torch

    from ups_model.model.inputs import Inputs, Slots
    from ups_model.skeletons import SLOTS

    mask_S = torch.zeros(SLOTS, dtype=torch.bool)
    mask_S[list(joints)] = True
    poses = TASKS[task].kind == "pose"
    targets, length = (data.targets_per_window, 3 * len(network.pose_slots) + 1) if poses else (1, 2)
    frame_BR = torch.zeros(clips, targets, dtype=torch.long) if poses else None
    pose_BPNSC = torch.zeros(clips, 1, data.frames, SLOTS, 3)
    target_BK = torch.zeros(clips * targets, length, dtype=torch.long)
    slots = Slots(joints, torch.tensor(joints))
    return Inputs(task, pose_BPNSC, mask_S, target_frame_BR=frame_BR, slots=slots, checked=True), target_BK


@_counted_once
def _forward_flops(network: _Network, task: TaskName, data: TaskData, joints: tuple[int, ...]) -> tuple[float, float]:
    """Of each sample, and of a batch beside its samples."""
    from torch.utils.flop_counter import FlopCounterMode

    model, mode = _without_values(network)
    counted: list[float] = []
    for clips in (1, 2):
        with mode, FlopCounterMode(display=False) as counter:
            model.eval()(*_inputs(network, task, data, joints, clips))
        counted.append(counter.get_total_flops())
    each = counted[1] - counted[0]
    return each, counted[0] - each


@_counted_once
def _peak_bytes(
    network: _Network,
    task: TaskName,
    data: TaskData,
    joints: tuple[int, ...],
    source: str,
    loss: OptimConfig,
    half: bool,
    activation_checkpointing: bool,
) -> tuple[float, ...]:
    """Of a training step on each of `SMALL_PARTS`."""
    import torch

    from ups_model.data.batching.batch import Batch
    from ups_model.training.fit import SMALL_PARTS, peak_bytes
    from ups_model.training.losses import sequence_loss

    def measured(clips: int) -> float:
        model, mode = _without_values(network)
        model.train().set_activation_checkpointing(activation_checkpointing)
        with mode:
            inputs, target_BK = _inputs(network, task, data, joints, clips)
            row_B, pose_BRJ3 = torch.zeros(clips, dtype=torch.long), None
            if TASKS[task].kind == "pose":
                pose_BRJ3 = torch.zeros(clips, len(target_BK) // clips, len(network.pose_slots), 3)
            batch = Batch(inputs, source, row_B, row_B, pose_BRJ3)

            def sequence() -> "Tensor":
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                    logits_BKV = model(batch.inputs, target_BK)
                return sequence_loss(model, batch, logits_BKV, target_BK, loss)

            return peak_bytes(model, sequence)

    return tuple(measured(clips) for clips in SMALL_PARTS)
