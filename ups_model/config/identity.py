"""Which tasks and clip sets a run has, and the key that names it. Imports no torch."""

from collections.abc import Mapping
from typing import Any

from ups_model.config import TASK_NAMES, Config, TaskName, digest, set_of


def configured_tasks(config: Config) -> tuple[TaskName, ...]:
    """Tasks that have clip sets, trained in this run or not: they fix the vocabulary and the sizes of shared weights,
    so that a joint run, its fine-tuning and runs of one task alone have the same model."""
    return tuple(task for task in TASK_NAMES if getattr(config.data, task).sources)


def configured_sources(config: Config) -> tuple[str, ...]:
    """Sources of all configured tasks, as they are written: a clip set under two protocols is two."""
    return tuple(
        dict.fromkeys(source for task in configured_tasks(config) for source in getattr(config.data, task).sources)
    )


def configured_sets(config: Config) -> tuple[str, ...]:
    """Names of the clip sets of all configured tasks."""
    return tuple(dict.fromkeys(map(set_of, configured_sources(config))))


def run_key(config: Config, data: Mapping[str, str], text_identity: str, parent: str = "") -> str:
    """16 hexadecimal digits that name a run.

    Args:
        config: its configuration.
        data: content fingerprint of each clip set, by name.
        text_identity: of the vocabulary's language model.
        parent: key of the run whose weights it starts from; empty for none.
    """
    return digest({"config": config.canonical(), "data": dict(data), "text": text_identity, "parent": parent})


def training_key(config: Config, data: Mapping[str, str], text_identity: str, parent: str = "") -> str:
    """`run_key` without the fields that only change how weights are measured: equal for runs of equal weights.

    `parent` is a training key, too.
    """
    plain = config.canonical()
    if not config.chooses:
        _forget_measuring(plain)
    return digest({"training": plain, "data": dict(data), "text": text_identity, "parent": parent})


def trunk_key(config: Config, data: Mapping[str, str], text_identity: str, parent: str = "") -> str:
    """`run_key` without the fields that change a run only from its rate's decay on: equal for runs of which the longer
    one can start from the shorter one's last checkpoint before its decay. Empty without a horizon, or where validations
    choose between checkpoints, which a trunk doesn't keep."""
    optim = config.optim
    if not optim.horizon or (optim.evaluate_every and config.data.validation_subjects):
        return ""
    plain = config.canonical()
    _forget_measuring(plain)
    for name in ("steps", "decay_share", "evaluate_every"):
        plain["optim"].pop(name, None)
    return digest({"trunk": plain, "data": dict(data), "text": text_identity, "parent": parent})


def _forget_measuring(plain: dict[str, Any]) -> None:
    del plain["evaluation"]
    for task in TASK_NAMES:
        plain["data"][task].pop("evaluate_stride", None)
