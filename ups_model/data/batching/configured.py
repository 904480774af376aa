"""The clip sets that a configuration names, opened and split. Imports no torch."""

import difflib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ups_model.config import TASK_NAMES, Config, protocol_of, set_of
from ups_model.config.identity import configured_sets, configured_sources
from ups_model.data.format.clip_set import ClipSet, Split
from ups_model.data.format.splits import check_no_leak, without_leaks


def open_sets(config: Config, paths: Mapping[str, Path]) -> dict[str, tuple[ClipSet, Split]]:
    """Open each clip set that the configuration names, and split it by the protocol of each source.

    Args:
        config: the configuration.
        paths: folder of each clip set.

    Returns:
        Clip set and split of each source, by the source's text.

    Raises:
        ValueError: a set without a path, an unreadable set, an unknown protocol, an empty split, or a clip that is
            trained on in one task and evaluated in another (with `data.leaks="drop"` it is left out of training).
    """
    names = configured_sets(config)
    missing = [name for name in names if name not in paths]
    if missing:
        raise ValueError(f"no folder given for clip set {', '.join(missing)}; pass --data {missing[0]}=PATH")
    opened = {}
    for name in names:
        opened[name] = ClipSet.open(paths[name])
        if opened[name].name != name:
            raise ValueError(f"{paths[name]}: expected clip set {name!r}, got {opened[name].name!r}; check --data")
    return split_sets(config, opened)


def split_sets(config: Config, opened: Mapping[str, ClipSet]) -> dict[str, tuple[ClipSet, Split]]:
    """Clip set and split of each source; see `open_sets`."""
    data, (subjects, seed, fold) = config.data, config.held_out
    sets = {}
    for source in configured_sources(config):
        clips = opened[set_of(source)]
        split = clips.split(subjects, seed, protocol_of(source), fold)
        sets[source] = (clips, _of_actions(config, source, clips, split))
    if data.leaks == "drop":
        kept = without_leaks(list(sets.values()))
        return {source: (clips, split) for (source, (clips, _)), split in zip(sets.items(), kept, strict=True)}
    check_no_leak(list(sets.values()))
    return sets


def _of_actions(config: Config, source: str, clips: ClipSet, split: Split) -> Split:
    """Training and validation clips of the actions that the source's tasks name.

    Raises:
        ValueError: an action that the set hasn't, one without a training clip, or tasks of one source that name
            different ones.
    """
    tasks = [task for task in TASK_NAMES if source in getattr(config.data, task).sources]
    named = list(dict.fromkeys(getattr(config.data, task).actions for task in tasks))
    if len(named) > 1:
        raise ValueError(f"tasks of one source must name the same actions, got {', '.join(tasks)} of {source}")
    actions = named[0]
    if not actions:
        return split
    classes = list(clips.info.classes)
    for action in actions:
        if action not in classes:
            near = difflib.get_close_matches(action, classes, n=3) or classes
            raise ValueError(f"{clips.name} has no action {action!r}; near: {', '.join(near)}")
    wanted = np.isin(clips.label, [classes.index(action) for action in actions])
    train, validation = split.train[wanted[split.train]], split.validation[wanted[split.validation]]
    if not len(train) or (len(split.validation) and not len(validation)):
        raise ValueError(f"{source}: no clip of {', '.join(actions)} to train or validate on; name other actions")
    return replace(split, train=train, validation=validation)
