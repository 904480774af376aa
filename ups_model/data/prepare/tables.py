"""Clip sets as plain text tables: what is in them, by split and class, and what was left out and why."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from ups_model.data.format.clip_set import ClipSet
from ups_model.data.prepare.runner import LEFT_OUT_FILE
from ups_model.wording import count


def overview(sets: Sequence[ClipSet]) -> str:
    """A row for each set; below it, what was left out of them and why."""
    header = ("folder", "clips", "train", "test", "classes", "subjects", "persons", "frames", "cameras", "fingerprint")
    rows: list[tuple[str, ...]] = [header]
    notes = []
    for clips in sets:
        subjects = np.unique(clips.subject[clips.subject >= 0])
        persons = np.bincount(clips.track_clip).max()
        cameras = max((len(group) for group in clips.info.camera_groups), default=0)
        test = int(clips.split_test.sum())
        counts: tuple[int | str, ...]
        counts = (len(clips), len(clips) - test, test, len(clips.info.classes), len(subjects) or "?", persons)
        counts += (len(clips.positions), cameras)
        rows.append((clips.path.name, *(f"{n:,}" if n != "?" else n for n in counts), clips.fingerprint[:16]))
        for why, number in clips.info.left_out.items():
            notes.append(f"{clips.path.name}: left out {count(number, 'clip')}: {why}")
        if (file := clips.path / LEFT_OUT_FILE).exists():
            notes.append(f"{clips.path.name}: each of them is listed in {file}")
    if sets and not notes:
        notes = ["nothing was left out"]
    return "\n".join([*_aligned(rows, text=(0, len(header) - 1)), *notes])


def same_clips(clips: ClipSet) -> str:
    """How many test clips have the content of a training clip, under another name; empty where none has."""
    training: dict[bytes, str] = {}
    pairs = []
    for row in np.argsort(clips.split_test, kind="stable"):  # Those for training first.
        content = hashlib.sha256()
        for track in clips.tracks(int(row)):
            content.update(np.ascontiguousarray(clips.positions[clips.frames(track)]).tobytes())
        name = str(clips.clip_id[row])
        if not clips.split_test[row]:
            training.setdefault(content.digest(), name)
        elif content.digest() in training:
            pairs.append((name, training[content.digest()]))
    if not pairs:
        return ""
    test, trained = pairs[0]
    return (
        f"{count(len(pairs), 'test clip')} {'has' if len(pairs) == 1 else 'have'} the content of training clips, the "
        f"first {test!r} that of {trained!r}: a model knows them; take the copies away"
    )


def protocols(clips: ClipSet, published: Mapping[str, tuple[int, int]]) -> str:
    """Training and test clips of each protocol, beside the published counts; empty where there is one and no count."""
    there = [name.removeprefix("split_test_") for name in clips.extra if name.startswith("split_test_")]
    names = [name for name in published if name in there] + [name for name in there if name not in published]
    flags = {name: clips.extra[f"split_test_{name}"] != 0 for name in names} or {"default": clips.split_test}
    if not published and len(flags) < 2:
        return ""
    rows: list[tuple[str, ...]] = [("protocol", "train", "test", "published train", "published test", "")]
    for name, test_M in flags.items():
        counts = (int((~test_M).sum()), int(test_M.sum()))
        expected = published.get(name)
        verdict = "" if expected is None else "as published" if counts == expected else "other than published"
        shown = ("", "") if expected is None else tuple(f"{number:,}" for number in expected)
        rows.append((name, *(f"{number:,}" for number in counts), *shown, verdict))
    return "\n".join(_aligned(rows, text=(0, 5)))


def classes(clips: ClipSet) -> str:
    """Training clips, test clips and frames of each class under the default protocol; empty for a set without."""
    if not clips.info.classes:
        return ""
    rows: list[tuple[str, ...]] = [("class", "", "train", "test", "frames")]
    frames_M = np.bincount(clips.track_clip, weights=clips.track_length, minlength=len(clips)).astype(np.int64)
    unlabelled = [(-1, "(no class)")] if (clips.label < 0).any() else []
    for label, name in [*enumerate(clips.info.classes), *unlabelled]:
        own_M = clips.label == label
        test = int((own_M & clips.split_test).sum())
        counts = (int(own_M.sum()) - test, test, int(frames_M[own_M].sum()))
        rows.append((str(label + 1), name, *(f"{number:,}" for number in counts)))
    return "\n".join(_aligned(rows, text=(1,)))


def _aligned(rows: Sequence[Sequence[str]], text: Sequence[int]) -> list[str]:
    """Lines of columns, numbers to the right; `text` are the columns that go to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column in text else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
