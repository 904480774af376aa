"""Where and how a run is carried out: nothing here is part of its identity."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ups_model.data.prepare.catalog import default_cache
from ups_model.device import Precision

Switch = Literal["auto", "on", "off"]
AUTO: Literal["auto"] = "auto"


@dataclass(frozen=True)
class RunOptions:
    """Options of a run that change its result by rounding at most."""

    out: Path
    """Folder of `config.json`, checkpoints, `progress.jsonl` and `result.json`."""
    device: str = AUTO
    precision: Precision = AUTO
    """auto: bf16 from compute capability 8.0, fp16 with a loss scaler on older GPUs (V100), fp32 on the CPU."""
    checkpoint_every: int = 500
    """Steps between checkpoints; a kill loses at most so many."""
    keep: int = 2
    """Checkpoints kept to resume from."""
    log_every: int = 50
    """Steps between progress lines."""
    cache: Path = field(default_factory=default_cache)
    """Folder of clip sets and, under `text`, of text features."""
    test: bool = True
    """Measure the test split at the end."""
    micro_batch: int | Literal["auto"] = 0
    """Most clips (pose estimation: windows) of a task's batch that a process computes at once; the gradients of all
    parts add up to those of the whole batch. 0: the process's whole share. auto: as many as fit the memory."""
    activation_checkpointing: Switch = AUTO
    """Keep the inputs of tokenizer layers and encoder blocks alone, and compute the rest again in the backward pass.
    auto: where `micro_batch="auto"` would otherwise give parts of few clips."""
    memory_share: float = 1.0
    """Share of a device's memory for which `micro_batch="auto"` may plan."""
    trunk: Path | None = None
    """Checkpoint of another run to begin from, the last before its rate's decay (`config.identity.trunk_key`)."""
    measure_at: tuple[int, ...] = ()
    """Steps after which the validation subjects are measured for the progress alone; no weights are chosen by it."""

    def __post_init__(self) -> None:
        if self.checkpoint_every < 1:
            raise ValueError(f"checkpoint_every must be at least 1, got {self.checkpoint_every}")
        if self.micro_batch != "auto" and self.micro_batch < 0:
            raise ValueError(f"micro_batch must be auto or at least 1 (0: whole batches), got {self.micro_batch}")
