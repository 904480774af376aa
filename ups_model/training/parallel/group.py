"""Several processes that train one run together (DistributedDataParallel), in a group that torchrun or
`training.parallel.launch` describes."""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ups_model.config import Config, TaskName
from ups_model.training.fit import Fit

RENDEZVOUS = "UPS_RENDEZVOUS"
"""Environment variable: where the processes of a run find each other, if not as torchrun says it."""
GROUP_TIMEOUT = timedelta(hours=6)
"""The others wait while the first process measures; that may take long on large test sets."""


def first_process() -> bool:
    """Whether this is the process of rank 0, which logs and writes."""
    return os.environ.get("RANK", "0") == "0"


def start_processes(device: str) -> tuple[int, int]:
    """Rank and number of processes; joins the group that the environment describes.

    Args:
        device: that the processes compute on, as `RunOptions.device`.

    Raises:
        ValueError: more processes than GPUs.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        return 0, 1
    on_gpus = device != "cpu" and torch.cuda.is_available()
    if on_gpus and int(os.environ.get("LOCAL_WORLD_SIZE", processes)) > torch.cuda.device_count():
        raise ValueError(
            f"each process needs a GPU of its own, got {processes} for {torch.cuda.device_count()}; start fewer, or "
            "give --device cpu"
        )
    if not dist.is_initialized():
        dist.init_process_group(
            "nccl" if on_gpus else "gloo",
            init_method=os.environ.get(RENDEZVOUS, "env://"),
            rank=int(os.environ["RANK"]),
            world_size=processes,
            timeout=GROUP_TIMEOUT,
        )
    return dist.get_rank(), dist.get_world_size()


def check_shares(config: Config, processes: int, micro_batch: int | Literal["auto"] = 0) -> None:
    """Raise ValueError where a batch can't be cut: over the processes, or in parts."""
    for task in config.optim.tasks:
        size = getattr(config.data, task).batch_size
        if size < processes:
            raise ValueError(
                f"data.{task}.batch_size must be at least the number of processes, got {size} and {processes}"
            )
    if config.model.normalisation == "task_batch" and (processes > 1 or micro_batch):
        cut = f"{processes} processes" if processes > 1 else f"--micro-batch {micro_batch}"
        raise ValueError(
            f"normalisation='task_batch' takes statistics of whole batches, got {cut}; use normalisation='layer'"
        )


def in_parallel(model: nn.Module, processes: int) -> nn.Module:
    """The model, or one whose gradients are averaged over all processes."""
    if processes == 1:
        return model
    # A task takes one block of each layer, so others have no gradient; buckets are the gradients, not copies of them.
    return DistributedDataParallel(model, find_unused_parameters=True, gradient_as_bucket_view=True)


def agreed_fit(fit: Fit, tasks: Sequence[TaskName], processes: int, device: torch.device) -> Fit:
    """The fit that every process has memory for."""
    if processes == 1:
        return fit
    whole = torch.iinfo(torch.int64).max
    limits = torch.tensor(
        [*(fit.part(task) or whole for task in tasks), int(not fit.activation_checkpointing)], device=device
    )
    dist.all_reduce(limits, dist.ReduceOp.MIN)
    *sizes, keep = limits.tolist()
    return Fit({task: size for task, size in zip(tasks, sizes, strict=True) if size < whole}, not keep)


def mean_over_processes(value: Tensor, processes: int) -> float:
    """Mean of a number over all processes."""
    if processes > 1:
        value = value.clone()
        dist.all_reduce(value)
    return float(value) / processes


def wait_for_all(processes: int) -> None:
    """Return once every process has come here."""
    if processes > 1:
        dist.barrier()
