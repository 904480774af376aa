"""What changes from step to step in a run, its optimizer included, saved in checkpoints and restored from them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ups_model.training.checkpoint import (
    load_weights,
    newest_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)

Metrics = dict[str, float]


@dataclass
class RunState:
    """All that changes from step to step: what a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: AveragedModel | None
    """Moving average of the weights (`optim.ema`), which is measured in place of the weights."""
    step: int = 0
    best: dict[str, Any] | None = None
    """Step, score and metrics of the best validation so far."""
    curve: dict[int, Metrics] = field(default_factory=dict)
    """Headline metrics by step, from which the run's health is judged."""
    seconds: float = 0.0
    """Training time of the processes before this one."""
    taken_over: int = 0
    """Steps of another run that this one began from."""
    made_on: list[list[str]] = field(default_factory=list)
    """Devices and precisions in their order: half a run in fp16 is another thing than all of it in bf16."""

    @property
    def evaluated(self) -> nn.Module:
        """The model that is measured."""
        return self.model if self.average is None else self.average.module

    def restore(self, folder: Path, key: str) -> Path | None:
        """Continue from the newest whole checkpoint in `folder`, which is returned; None where there is none.

        Raises:
            ValueError: the checkpoint is of another run.
        """
        saved = newest_checkpoint(folder)
        if saved is None:
            return None
        path, tensors, saved_state = saved
        if saved_state["key"] != key:
            raise ValueError(
                f"{folder.parent} holds another run ({saved_state['key']}, this one is {key}); "
                "give another --out or delete it"
            )
        load_weights(self.model, tensors["model"], path)
        restore_optimizer(self.optimizer, tensors["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(tensors["ema"])
        if saved_state["scaler"]:  # Empty where the run so far was not in fp16; the scale then starts anew.
            self.scaler.load_state_dict(saved_state["scaler"])
        for name, parameter in self.model.named_parameters():
            if name in tensors.get("gradients", {}):
                parameter.grad = tensors["gradients"][name].to(parameter.device) * self.scaler.get_scale()
        self.step, self.best, self.seconds = (saved_state[name] for name in ("step", "best", "seconds"))
        self.made_on = saved_state.get("made_on", [])
        self.taken_over = saved_state.get("taken_over", 0)
        self.curve = {int(step): metrics for step, metrics in saved_state["curve"].items()}
        return path

    def save(self, folder: Path, key: str, seconds: float) -> None:
        """Write a checkpoint; `seconds` is the training time so far."""
        groups = {"model": self.model.state_dict(), "optimizer": optimizer_tensors(self.optimizer)}
        if self.average is not None:
            groups["ema"] = self.average.state_dict()
        # In the middle of a cycle: what its tasks so far have added up, free of fp16's scale, which may be another one
        # or none where the run goes on.
        scale = self.scaler.get_scale()
        gradients = {
            name: value.grad / scale for name, value in self.model.named_parameters() if value.grad is not None
        }
        if gradients:
            groups["gradients"] = gradients
        state = {
            "key": key,
            "best": self.best,
            "curve": {str(step): metrics for step, metrics in self.curve.items()},
            "scaler": self.scaler.state_dict(),
            "seconds": seconds,
            "made_on": self.made_on,
            "taken_over": self.taken_over,
        }
        save_checkpoint(folder, self.step, groups, state)


def make_optimizer(model: nn.Module, optim: Any, amsgrad: bool = False) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices alone; without decay it is Adam.

    Args:
        optim: has `weight_decay` and `beta2`.
    """
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, optim.beta2), amsgrad=amsgrad, fused=True)
