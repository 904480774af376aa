"""The command `python -m ups_model.data`: prepare, verify and list clip sets."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ups_model.data.clips import MANIFEST, ClipSet
from ups_model.data.sources import GROUPS, SOURCES, default_cache, expand, is_prepared, prepare, target

EXAMPLES = """examples:
  python -m ups_model.data prepare synthetic
  python -m ups_model.data prepare open --source ~/open_data
  python -m ups_model.data prepare synthetic_ntu25 --seed 7 --out /tmp/clips
  python -m ups_model.data verify ~/.cache/ups/clips/uiprmd
  python -m ups_model.data list

exit status: 0 done, 1 a set is damaged or could not be prepared, 2 usage, before anything starts"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m ups_model.data",
        description="Prepares, verifies and lists clip sets.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("prepare", help="make clip sets from their sources")
    sub.add_argument("names", nargs="+", metavar="NAME", help=", ".join([*GROUPS, *SOURCES]))
    sub.add_argument("--source", type=Path, metavar="DIR", help="where your files are; synthetic sets need none")
    sub.add_argument("--out", type=Path, metavar="DIR", help="where to put the sets (UPS_CACHE or ~/.cache/ups/clips)")
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="of synthetic sets (0)")
    sub = commands.add_parser("verify", help="read whole clip sets and check everything in them")
    sub.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    sub = commands.add_parser("list", help="show known sources and prepared clip sets")
    sub.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="(UPS_CACHE or ~/.cache/ups/clips)")
    options = parser.parse_args(arguments)

    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    if options.command == "prepare":
        return _prepare(options.names, options.source, options.out, options.seed)
    if options.command == "verify":
        return _verify(options.paths)
    return _list(options.folder or default_cache())


def _prepare(names: list[str], source: Path | None, out: Path | None, seed: int) -> int:
    try:
        if seed < 0:
            raise ValueError(f"--seed must be >= 0, got {seed}")
        names = expand(names)
        if source is not None and source.suffix == ".npz" and len(names) > 1:
            raise ValueError(f"--source must be a folder for several sets, got the file {source}")
        recipes = {name: dict(SOURCES[name].recipe(source, seed)) for name in names}
    except (ValueError, OSError) as error:
        return _fail(error, 2)
    made = []
    for name, recipe in recipes.items():
        path = target(name, out, seed)
        try:
            if is_prepared(path, recipe):
                print(f"{name}: already prepared at {path}")
            else:
                print(f"{name}: prepared at {prepare(name, source, out, seed, progress=True)}")
            made.append(ClipSet.open(path))
        except (ValueError, OSError) as error:
            return _fail(error, 1)
    print()
    print(summary(made))
    return 0


def _verify(paths: list[Path]) -> int:
    if missing := [path for path in paths if not path.is_dir()]:
        return _fail(f"{missing[0]}: no such folder", 2)
    status = 0
    for path in paths:
        try:
            clips = ClipSet.open(path)
            clips.verify()
            print(f"{path}: ok, {len(clips)} clips, fingerprint {clips.fingerprint[:16]}")
        except (ValueError, OSError) as error:
            status = _fail(error, 1)
    return status


def _list(folder: Path) -> int:
    print("known sources")
    for name, source in SOURCES.items():
        needs = f" (needs {source.needs})" if source.needs else ""
        print(f"  {name:22}{source.description}{needs}")
    for name, members in GROUPS.items():
        print(f"  {name:22}= {', '.join(members)}")
    paths = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    paths = [path for path in paths if not path.name.startswith(".")]
    if not paths:
        print(f"\nno prepared sets in {folder}")
        return 0
    print(f"\nprepared sets in {folder}")
    whole, status = [], 0
    for path in paths:
        try:
            whole.append(ClipSet.open(path))
        except ValueError as error:
            status = _fail(error, 1)
    print(summary(whole))
    return status


def summary(sets: Sequence[ClipSet]) -> str:
    """A plain text table of clip sets; below it, what was left out of them and why."""
    header = ("folder", "clips", "train", "test", "classes", "subjects", "persons", "frames", "cameras", "fingerprint")
    rows = [header]
    notes = []
    for clips in sets:
        known = np.unique(clips.subject[clips.subject >= 0])
        persons = np.bincount(clips.track_clip).max()
        cameras = max((len(group) for group in clips.info.camera_groups), default=0)
        test = int(clips.split_test.sum())
        counts = (len(clips), len(clips) - test, test, len(clips.info.classes), len(known) or "?", persons)
        counts += (len(clips.positions), cameras)
        rows.append((clips.path.name, *(f"{n:,}" if n != "?" else n for n in counts), clips.fingerprint[:16]))
        notes += [f"{clips.path.name}: left out {count:,} clips: {why}" for why, count in clips.info.left_out.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = []
    for row in rows:
        name, *numbers, fingerprint = (
            cell.rjust(width) if 0 < column < len(header) - 1 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([name, *numbers, fingerprint]).rstrip())
    if sets and not notes:
        notes = ["nothing was left out"]
    return "\n".join(lines + notes)


def _fail(error: Exception | str, status: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
