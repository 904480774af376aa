"""The sources: clip set names, and how each is prepared."""

import difflib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ups_model.data.format.clip_set import ClipSet
from ups_model.data.prepare.jobs import Reading
from ups_model.data.prepare.runner import is_prepared, prepare_reading
from ups_model.data.readers import open_sets
from ups_model.data.readers.bvh import reader as bvh
from ups_model.data.readers.h36m import reader as h36m
from ups_model.data.readers.keypoints import reader as keypoints
from ups_model.data.readers.kinetics import reader as kinetics
from ups_model.data.readers.motion import reader as motion
from ups_model.data.readers.ntu import reader as ntu
from ups_model.data.readers.ntu.files import sets_in
from ups_model.data.readers.ntu.names import PUBLISHED_COUNTS
from ups_model.data.readers.open_originals import OPEN_SETS, OpenSet
from ups_model.data.readers.synthetic import reader as synthetic

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What `prepare` can be told beside names and folders."""

    seed: int = 0
    """Of synthetic sets."""
    workers: int = 1
    """Processes that read."""
    missing: tuple[Path, ...] = ()
    """NTU RGB+D: lists of recordings to leave out, beside those in the source folder."""
    metres_per_unit: float | None = None
    """bvh, motion: length of a file's unit; None takes the one that gives a person's height, or that the file tells."""
    fps: float | None = None
    """Files of your own: frames per second of all of them, whatever they say; None takes what each says."""
    progress: bool = False
    """Show what is done and the time left, on a terminal."""


@dataclass(frozen=True)
class Preparation:
    """What would be made of a source, and how."""

    recipe: Mapping[str, str | int]
    """What the result depends on."""
    make: Callable[[Path], ClipSet]
    """Prepares the set in a folder."""
    notes: tuple[str, ...] = ()
    """How the source is taken, one line each; for people."""


@dataclass(frozen=True)
class Source:
    """How a clip set comes about."""

    description: str
    needs: str
    """What the user must have; empty where nothing is."""
    look: Callable[[Path | None, Options], Preparation]
    """(source folder, options) -> what is there; ValueError where it isn't."""
    published: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Protocol -> training and test clips, as counted by others."""
    seeded: bool = False


def _open_source(name: str, spec: OpenSet) -> Source:
    def look(source: Path | None, options: Options) -> Preparation:
        folder = _required(name, source)
        return Preparation(open_sets.recipe(name, folder), partial(open_sets.prepare, name, folder))

    return Source(spec.description, f"{spec.file}, or the original files", look)


def _synthetic_source(name: str, spec: synthetic.SyntheticSet) -> Source:
    def look(source: Path | None, options: Options) -> Preparation:
        make = partial(synthetic.prepare, name, seed=options.seed, progress=options.progress)
        return Preparation(synthetic.recipe(name, options.seed), make)

    return Source(spec.description, "", look, seeded=True)


def _read_source(
    name: str,
    description: str,
    needs: str,
    read: Callable[[Path, Options], Reading],
    published: Mapping[str, tuple[int, int]] | None = None,
) -> Source:
    """A source that is read in jobs."""

    def look(source: Path | None, options: Options) -> Preparation:
        reading = read(_required(name, source), options)
        make = partial(prepare_reading, reading=reading, workers=options.workers, progress=options.progress)
        return Preparation(reading.info.recipe, make, reading.notes)

    return Source(description, needs, look, published or {})


def _ntu_source(name: str, description: str) -> Source:
    needs = ".skeleton files, CTR-GCN's .npz or pyskl's .pkl"
    return _read_source(
        name,
        description,
        needs,
        lambda source, options: ntu.reading(name, source, options.missing),
        PUBLISHED_COUNTS[name],
    )


def _h36m_source(name: str, description: str) -> Source:
    files = f"{h36m.POSES_FILE} and {h36m.KEYPOINT_FILES[name]}"
    # Seven subjects, fifteen actions, two recordings of each, less S11's first "Directions".
    counts = {"default": (5 * 30, 2 * 30 - 1)}
    return _read_source(name, description, files, lambda source, options: h36m.reading(name, source), counts)


SOURCES: Mapping[str, Source] = {
    "h36m": _h36m_source("h36m", "Human3.6M: motion capture, keypoints by CPN"),
    "h36m_gt": _h36m_source("h36m_gt", "Human3.6M with true keypoints"),
    "ntu60": _ntu_source("ntu60", "NTU RGB+D: Kinect v2 skeletons of 60 actions"),
    "ntu120": _ntu_source("ntu120", "NTU RGB+D 120: Kinect v2 skeletons of 120 actions"),
    "kinetics": _read_source(
        "kinetics",
        "Kinetics-400: OpenPose skeletons in video, 400 actions",
        "ST-GCN's JSON folders or .npy with .pkl",
        lambda source, options: kinetics.reading(source),
        kinetics.PUBLISHED_COUNTS["kinetics"],
    ),
    "bvh": _read_source(
        "bvh",
        "motion capture of your own, any skeleton",
        "a folder of .bvh files, a folder a class",
        lambda source, options: bvh.reading(source, options.metres_per_unit, options.fps),
    ),
    "motion": _read_source(
        "motion",
        "3D motion of your own, in one of the known layouts",
        "a folder of .npz, .npy, .csv, .c3d or pyskl's .pkl files, a folder a class",
        lambda source, options: motion.reading(source, options.metres_per_unit, options.fps),
    ),
    "keypoints": _read_source(
        "keypoints",
        "COCO keypoints of your own videos",
        "a folder of .json, .npz, .csv or .pkl files of a pose estimator, a folder a class",
        lambda source, options: keypoints.reading(source, options.fps),
    ),
    **{name: _open_source(name, spec) for name, spec in OPEN_SETS.items()},
    **{name: _synthetic_source(name, spec) for name, spec in synthetic.SYNTHETIC_SETS.items()},
}
"""Everything that can be prepared, by the name of the clip set."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "open": tuple(OPEN_SETS),
    "synthetic": tuple(synthetic.SYNTHETIC_SETS),
    "ntu": ("ntu60", "ntu120"),
}
"""Names that stand for several sets; "ntu" for those of the two that can be made from the files that are there."""


OWN_SETS = ("bvh", "motion", "keypoints")
"""Sets made of files of the user's own."""


def default_cache() -> Path:
    """Where clip sets are prepared unless told otherwise: UPS_CACHE, else ~/.cache/ups/clips."""
    folder = os.environ.get("UPS_CACHE")
    return Path(folder).expanduser() if folder else Path.home() / ".cache" / "ups" / "clips"


def check_options(options: Options) -> None:
    """ValueError names the option, its value and what it must be."""
    if options.seed < 0:
        raise ValueError(f"--seed must be >= 0, got {options.seed}")
    if options.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {options.workers}")
    if options.metres_per_unit is not None and not 0 < options.metres_per_unit <= 100:
        raise ValueError(f"--metres-per-unit must be above 0 and at most 100, got {options.metres_per_unit}")
    if options.fps is not None and not 1 <= options.fps <= 1000:
        raise ValueError(f"--fps must be in 1..1000 frames per second, got {options.fps:g}")
    for file in options.missing:
        if not file.is_file():
            raise ValueError(f"--missing {file}: no such file; give a list with a recording's name on each line")


def expand(names: Sequence[str], source: Path | None = None) -> list[str]:
    """Names with groups replaced by their members, each once, in order. Of "ntu", the members that can be made from
    `source`. ValueError for an unknown name lists near names; for a `source` without NTU's files, what it must have."""
    expanded: dict[str, None] = {}
    for name in names:
        if name not in SOURCES and name not in GROUPS:
            all_names = [*GROUPS, *SOURCES]
            near = difflib.get_close_matches(name, all_names, n=3) or all_names
            raise ValueError(f"unknown data {name!r}; try {', '.join(near)}")
        members = GROUPS.get(name, (name,))
        if name == "ntu" and source is not None:
            members = sets_in(source)
        expanded.update(dict.fromkeys(members))
    return list(expanded)


def prepare(
    name: str,
    source: str | Path | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    progress: bool = False,
    workers: int = 1,
) -> Path:
    """Prepares a clip set, unless it is there already, and returns its folder.

    Args:
        name: a name in SOURCES.
        source: the folder (or file) the set is read from; none for synthetic sets.
        out: the folder to put it in, by default `default_cache()`; the set is `target(name, out, seed)`.
        seed, progress, workers: as of `Options`.

    Raises:
        ValueError: an unknown name, a missing or damaged source.
    """
    if name in GROUPS:
        raise ValueError(f"prepare takes one set at a time, got the group {name!r}; it is {', '.join(GROUPS[name])}")
    expand([name])
    source = None if source is None else Path(source).expanduser()
    preparation = SOURCES[name].look(source, Options(seed=seed, workers=workers, progress=progress))
    return make(preparation, target(name, out, seed)).path


def make(preparation: Preparation, path: Path) -> ClipSet:
    """The clip set at `path`, prepared unless it is there already."""
    if is_prepared(path, preparation.recipe):
        log.info("%s: already prepared", path)
        return ClipSet.open(path)
    return preparation.make(path)


def target(name: str, out: str | Path | None = None, seed: int = 0) -> Path:
    """The folder that `prepare` makes: <out>/<name>, or <out>/<name>-seed<N> for a synthetic set of a seed but 0."""
    folder = name if seed == 0 or not SOURCES[name].seeded else f"{name}-seed{seed}"
    return (Path(out).expanduser() if out is not None else default_cache()) / folder


def _required(name: str, source: Path | None) -> Path:
    if source is None:
        raise ValueError(f"{name} is read from files of yours; give their folder with --source")
    return source
