"""Training, validation and test clips of a set, and the check that nothing evaluated is ever trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

GROUP = "group"
"""Column that says which clips of a class belong together, as those cut from one video do: where subjects are unknown,
training and validation never part them."""
CONTENT_ID = "content-"
"""How ids of clips begin whose file has no names: a hash of their content follows."""


class Clips(Protocol):
    """What a split needs of a clip set (`clip_set.ClipSet`)."""

    @property
    def name(self) -> str: ...
    @property
    def origin(self) -> str: ...
    @property
    def clip_id(self) -> np.ndarray: ...
    @property
    def label(self) -> np.ndarray: ...
    @property
    def subject(self) -> np.ndarray: ...
    @property
    def split_test(self) -> np.ndarray: ...
    @property
    def extra(self) -> Mapping[str, np.ndarray]: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Split:
    """Clip indices, int64, ascending, disjoint."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_clips(
    clips: Clips, validation_subjects: int, seed: int = 0, protocol: str = "default", fold: int = 0
) -> Split:
    """Splits a clip set; see `ClipSet.split`."""
    if validation_subjects < 0:
        raise ValueError(f"validation_subjects must be >= 0, got {validation_subjects}")
    test_N = _test_flags(clips, protocol)
    pool = np.flatnonzero(~test_N)
    for part, indices in (("training", pool), ("test", np.flatnonzero(test_N))):
        if not len(indices):
            raise ValueError(f"{clips.name}: protocol {protocol!r} leaves no {part} clips; choose another protocol")
    if validation_subjects == 0:
        held_out = np.zeros(len(pool), dtype=bool)
    elif (clips.subject[pool] >= 0).all():
        # Subject-wise: clips of one subject are alike, a random split would overstate validation accuracy.
        subjects = np.unique(clips.subject[pool])
        if validation_subjects >= len(subjects):
            raise ValueError(
                f"{clips.name}: validation_subjects must be below the {len(subjects)} training subjects "
                f"of protocol {protocol!r}, got {validation_subjects}"
            )
        ranked = sorted(subjects.tolist(), key=lambda subject: _rank(seed, clips.name, subject))
        turned = np.roll(ranked, -fold * validation_subjects)
        held_out = np.isin(clips.subject[pool], turned[:validation_subjects])
    else:
        held_out = _stratified(clips, pool, validation_subjects / 10, seed, fold)
    if validation_subjects and not held_out.any():
        raise ValueError(
            f"{clips.name}: no training clip of protocol {protocol!r} can be held out, for every class is one group of "
            "clips that belong together; set validation_subjects=0"
        )
    return Split(pool[~held_out], pool[held_out], np.flatnonzero(test_N))


def check_no_leak(tasks: Sequence[tuple[Clips, Split]]) -> None:
    """Raises if a clip that any task validates or tests on is trained on by any task.

    Clips are the same when id and `origin` are: NTU60 is part of NTU120, and its cross-subject test sequences are in
    NTU120's cross-setup training split.

    Args:
        tasks: the set and split of every task trained together.

    Raises:
        ValueError: naming the rule, an offending clip, where it is used, and the way out.
    """
    for clips, split, leaks in _leaks(tasks):
        names = clips.clip_id[split.train].tolist()
        rows = [row for row, where in enumerate(leaks) if where]
        if rows:
            raise ValueError(
                "a clip in a validation or test split must not be in a training split: "
                f"{clips.origin}/{names[rows[0]]} is trained on in {clips.name} and is in the {leaks[rows[0]]} "
                f"({len(rows)} such clips); leave them out of training with data.leaks=drop"
            )


def without_leaks(tasks: Sequence[tuple[Clips, Split]]) -> list[Split]:
    """The tasks' splits, each training part without the clips that any of the tasks validates or tests on.

    Raises:
        ValueError: a training split would be left empty, or clips can't be told apart.
    """
    kept = []
    for clips, split, leaks in _leaks(tasks):
        train = split.train[np.array([not where for where in leaks], dtype=bool)]
        if not len(train):
            raise ValueError(f"{clips.name}: every training clip is in a validation or test split of a task")
        kept.append(replace(split, train=train))
    return kept


def _check_comparable(tasks: Sequence[tuple[Clips, Split]]) -> None:
    """ValueError where two sets of one origin name their clips in ways that can't be compared."""
    named: dict[str, str] = {}
    for clips, _ in tasks:
        way = "content" if str(clips.clip_id[0]).startswith(CONTENT_ID) else "names"
        if named.setdefault(clips.origin, way) != way:
            raise ValueError(
                f"clip sets of {clips.origin} must all name their clips or none: a clip in both could not be found; "
                f"some have names, others are known by content alone ({CONTENT_ID}...), prepare those again with a "
                "list of names beside their files"
            )


def _leaks(tasks: Sequence[tuple[Clips, Split]]) -> list[tuple[Clips, Split, list[str]]]:
    """Each task with the split that evaluates each of its training clips, in words; empty for clips that none does."""
    _check_comparable(tasks)
    evaluated: dict[tuple[str, str], str] = {}
    for clips, split in tasks:
        for part in ("validation", "test"):
            names = clips.clip_id[getattr(split, part)].tolist()
            evaluated |= {(clips.origin, name): f"{part} split of {clips.name}" for name in names}
    return [
        (clips, split, [evaluated.get((clips.origin, name), "") for name in clips.clip_id[split.train].tolist()])
        for clips, split in tasks
    ]


def _test_flags(clips: Clips, protocol: str) -> np.ndarray:
    if protocol == "default":
        return np.asarray(clips.split_test)
    column = f"split_test_{protocol}"
    if column not in clips.extra:
        others = [name.removeprefix("split_test_") for name in clips.extra if name.startswith("split_test_")]
        raise ValueError(f"{clips.name} has no protocol {protocol!r}; it has {', '.join(['default', *others])}")
    return clips.extra[column] != 0


def _stratified(clips: Clips, pool: np.ndarray, fraction: float, seed: int, fold: int) -> np.ndarray:
    """Flags about `fraction` of the clips of each label, in whole groups; at least one group of a label with several.

    Fold 0 takes the first groups of a pseudo-random order, fold 1 those that follow, and so on round the circle. Groups
    of more than twice as many clips as are wanted stay in training: one of them would be most of a validation split.
    """
    if fraction >= 1:
        raise ValueError(
            f"{clips.name} has no subjects, so validation_subjects / 10 of its training clips are held out "
            f"and it must be below 10, got {round(fraction * 10)}"
        )
    held_out = np.zeros(len(pool), dtype=bool)
    labels, groups = clips.label[pool], clips.extra.get(GROUP, np.arange(len(clips)))[pool]
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        own, first, sizes = np.unique(groups[members], return_index=True, return_counts=True)
        wanted = max(round(fraction * len(members)), 1)
        small = sizes <= max(2 * wanted, sizes.min())
        names = dict(zip(own[small].tolist(), clips.clip_id[pool[members[first[small]]]].tolist(), strict=True))
        ranked = sorted(names, key=lambda group: _rank(seed, clips.name, names[group]))
        held_out[members[_next_groups(groups[members], ranked, wanted, fold)]] = True
    return held_out


def _next_groups(group_M: np.ndarray, ranked: list[int], wanted: int, fold: int) -> np.ndarray:
    """[M] flags of the groups that a fold takes, until `wanted` clips are taken or all but one group are."""
    position = 0
    for _ in range(fold + 1):
        taken_M = np.zeros(len(group_M), dtype=bool)
        for _ in ranked:
            own_M = group_M == ranked[position % len(ranked)]
            if taken_M.sum() >= wanted or (taken_M | own_M).all():
                break
            taken_M |= own_M
            position += 1
    return taken_M


def _rank(seed: int, set_name: str, item: int | str) -> bytes:
    """A pseudo-random order that depends on nothing else, so that adding clips or subjects moves no other."""
    return hashlib.sha256(f"{seed}/{set_name}/{item}".encode()).digest()
