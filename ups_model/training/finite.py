"""Whether losses and gradients are finite, asked a step late so that no step waits for its device."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ups_model.config import Config
from ups_model.model.host import read_later
from ups_model.model.vocabulary import NonFiniteValues


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the message names the step and what to try."""


class FiniteCheck:
    """The newest step's numbers, until they are asked for: at the next step, and before anything is reported, measured
    or written."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._newest: tuple[int, str, Callable[[], list[float]]] | None = None

    def add(self, step: int, task: str, loss: Tensor, norm: Tensor | None) -> None:
        """Take a step's loss and, if they count, the norm of its gradients; checks the step before."""
        self()
        numbers = [loss.detach()] if norm is None else [loss.detach(), norm.detach()]
        self._newest = step, task, read_later(torch.stack(numbers))

    def __call__(self) -> None:
        """Raise NonFiniteLoss if the newest step's numbers are not finite."""
        if self._newest is None:
            return
        (step, task, read), self._newest = self._newest, None
        numbers = read()
        if not all(map(math.isfinite, numbers)):
            raise NonFiniteLoss(
                f"loss or gradient of {task} is not finite at step {step} (loss {numbers[0]}); {ways_out(self.config)}"
            )

    @contextmanager
    def measuring(self, step: int) -> Iterator[None]:
        """The output of a model that diverged is the run's fault, not that of its configuration or data."""
        try:
            yield
        except NonFiniteValues as error:
            raise NonFiniteLoss(
                f"the output is not finite at step {step} ({error}); {ways_out(self.config)}"
            ) from error


def ways_out(config: Config) -> str:
    """What to try after a loss that was not finite."""
    return (
        "the newest checkpoint is kept. "
        f"Try a learning_rate below {config.optim.learning_rate}, a longer warmup_share, a smaller clip_norm, or "
        "--precision fp32"
    )
