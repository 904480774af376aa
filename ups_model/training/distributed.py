"""Several processes that train one run together (DistributedDataParallel, started by torchrun)."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from ups_model.config import Config


def first_process() -> bool:
    """Whether this is the process of rank 0, which logs and writes."""
    return os.environ.get("RANK", "0") == "0"


def start_processes() -> tuple[int, int]:
    """Rank and number of processes; joins the group that torchrun describes in the environment."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    if not dist.is_initialized():
        # The others wait while the first process measures; that may take long on large test sets.
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(hours=6))
    return dist.get_rank(), dist.get_world_size()


def check_shares(config: Config, processes: int) -> None:
    """Raise ValueError where the processes cannot share each batch evenly."""
    for task in config.optim.tasks:
        size = getattr(config.data, task).batch_size
        if size % processes:
            raise ValueError(f"data.{task}.batch_size must be divisible by the processes, got {size} and {processes}")
    if processes > 1 and config.model.normalisation == "task_batch":
        raise ValueError("normalisation='task_batch' keeps statistics of one process; use 'layer' with several")


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
