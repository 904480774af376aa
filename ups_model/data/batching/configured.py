"""The clip sets that a configuration names, opened and split. Imports no torch."""

from collections.abc import Mapping
from pathlib import Path

from ups_model.config import Config, protocol_of, set_of
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
    sets = {
        source: (
            opened[set_of(source)],
            opened[set_of(source)].split(subjects, seed, protocol_of(source), fold),
        )
        for source in configured_sources(config)
    }
    if data.leaks == "drop":
        kept = without_leaks(list(sets.values()))
        return {source: (clips, split) for (source, (clips, _)), split in zip(sets.items(), kept, strict=True)}
    check_no_leak(list(sets.values()))
    return sets
