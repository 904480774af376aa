"""The known sources: clip set names, and how each is prepared."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ups_model.data import open_sets, synthetic
from ups_model.data.clips import ClipSet, read_manifest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """How a clip set comes about."""

    description: str
    needs: str
    """What the user must have; empty where nothing is."""
    prepare: Callable[[Path | None, Path, int, bool], ClipSet]
    """(source folder, folder to make, seed, progress) -> the set."""
    recipe: Callable[[Path | None, int], Mapping[str, str | int]]
    """(source folder, seed) -> what the result depends on."""
    seeded: bool = False


def _open_source(name: str, spec: open_sets.OpenSet) -> Source:
    return Source(
        spec.description,
        spec.file,
        lambda source, path, seed, progress: open_sets.prepare(name, _given(name, source), path),
        lambda source, seed: open_sets.recipe(name, _given(name, source)),
    )


def _synthetic_source(name: str, spec: synthetic.SyntheticSet) -> Source:
    return Source(
        spec.description,
        "",
        lambda source, path, seed, progress: synthetic.prepare(name, path, seed, progress=progress),
        lambda source, seed: synthetic.recipe(name, seed),
        seeded=True,
    )


SOURCES: Mapping[str, Source] = {
    **{name: _open_source(name, spec) for name, spec in open_sets.OPEN_SETS.items()},
    **{name: _synthetic_source(name, spec) for name, spec in synthetic.SYNTHETIC_SETS.items()},
}
"""Everything `prepare` knows, by the name of the clip set."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "open": tuple(open_sets.OPEN_SETS),
    "synthetic": tuple(synthetic.SYNTHETIC_SETS),
}
"""Names that stand for several sets."""


def default_cache() -> Path:
    """Where clip sets are prepared unless a folder is given: UPS_CACHE, else ~/.cache/ups/clips."""
    given = os.environ.get("UPS_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "ups" / "clips"


def expand(names: list[str]) -> list[str]:
    """Names with groups replaced by their members, each once, in order.

    Raises:
        ValueError: an unknown name; lists near names.
    """
    expanded: dict[str, None] = {}
    for name in names:
        if name not in SOURCES and name not in GROUPS:
            known = [*GROUPS, *SOURCES]
            near = difflib.get_close_matches(name, known, n=3) or known
            raise ValueError(f"unknown data {name!r}; try {', '.join(near)}")
        expanded.update(dict.fromkeys(GROUPS.get(name, (name,))))
    return list(expanded)


def prepare(
    name: str,
    source: str | Path | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Path:
    """Prepares a clip set, unless it is there already, and returns its folder.

    Args:
        name: a name in SOURCES.
        source: the folder (or file) the set is read from; none for synthetic sets.
        out: the folder to put it in, by default `default_cache()`. The set is `<out>/<name>`, and
            `<out>/<name>-seed<N>` for a synthetic set of another seed than 0, so that seeds do not replace each other.
        seed: of synthetic sets; others have nothing random.
        progress: show a progress bar on a terminal.

    Raises:
        ValueError: an unknown name, a missing or damaged source.
    """
    if name in GROUPS:
        raise ValueError(f"prepare takes one set at a time, got the group {name!r}; it is {', '.join(GROUPS[name])}")
    expand([name])
    path = target(name, out, seed)
    source = None if source is None else Path(source).expanduser()
    recipe = dict(SOURCES[name].recipe(source, seed))
    if is_prepared(path, recipe):
        log.info("%s: already prepared", path)
        return path
    return SOURCES[name].prepare(source, path, seed, progress).path


def target(name: str, out: str | Path | None = None, seed: int = 0) -> Path:
    """The folder that `prepare` makes."""
    folder = name if seed == 0 or not SOURCES[name].seeded else f"{name}-seed{seed}"
    return (Path(out).expanduser() if out is not None else default_cache()) / folder


def is_prepared(path: Path, recipe: Mapping[str, str | int]) -> bool:
    """Whether a whole clip set of this recipe is at `path`. A damaged one counts as absent and is made again."""
    try:
        ClipSet.open(path)
        return read_manifest(path).get("provenance", {}).get("recipe") == recipe
    except ValueError:
        return False


def _given(name: str, source: Path | None) -> Path:
    if source is None:
        raise ValueError(f"{name} is read from files of yours; give their folder with --source")
    return source
