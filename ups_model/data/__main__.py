"""The command `python -m ups_model.data`: prepare, verify and list clip sets."""

import logging
from collections.abc import Sequence
from pathlib import Path

from ups_model.cli import command_parser
from ups_model.data.format.clip_set import MANIFEST, ClipSet
from ups_model.data.prepare import catalog
from ups_model.data.prepare.runner import available_workers, check_place, is_prepared
from ups_model.data.prepare.tables import classes, overview, protocols, same_clips
from ups_model.pipes import end_with, refuse

EXAMPLES = """examples:
  python -m ups_model.data prepare synthetic
  python -m ups_model.data prepare open --source ~/open_data
  python -m ups_model.data prepare ntu --source ~/nturgb+d_skeletons --missing ~/missing_skeletons.txt
  python -m ups_model.data prepare h36m kinetics --source ~/motion --out /data/clips --workers 8
  python -m ups_model.data prepare keypoints --source ~/detections --fps 25
  python -m ups_model.data prepare synthetic_ntu25 --seed 7 --out /tmp/clips
  python -m ups_model.data verify ~/.cache/ups/clips/uiprmd
  python -m ups_model.data list

exit status: 0 done, 1 a set is damaged or could not be prepared, 2 usage, before anything starts, 130 stopped"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = command_parser("ups_model.data", "Prepares, verifies and lists clip sets.", EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("prepare", help="make clip sets from their sources")
    sub.add_argument("names", nargs="+", metavar="NAME", help=", ".join([*catalog.GROUPS, *catalog.SOURCES]))
    sub.add_argument("--source", type=Path, metavar="DIR", help="where your files are; synthetic sets need none")
    sub.add_argument("--out", type=Path, metavar="DIR", help="where to put the sets (UPS_CACHE or ~/.cache/ups/clips)")
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="of synthetic sets (0)")
    sub.add_argument(
        "--workers", type=int, default=available_workers(), metavar="N", help="processes that read (one a processor)"
    )
    sub.add_argument(
        "--missing", type=Path, action="append", default=[], metavar="FILE",
        help="NTU RGB+D: list of recordings to leave out (repeatable; such lists in DIR are found)",
    )  # fmt: skip
    sub.add_argument(
        "--metres-per-unit",
        type=float,
        metavar="F",
        help="bvh, motion: length of a unit (by height, or as files say)",
    )
    sub.add_argument(
        "--fps", type=float, metavar="F", help="files of your own: frames per second of all files (as they say)"
    )
    sub = commands.add_parser("verify", help="read whole clip sets and check everything in them")
    sub.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    sub = commands.add_parser("list", help="show known sources and prepared clip sets")
    sub.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="(UPS_CACHE or ~/.cache/ups/clips)")
    options = parser.parse_args(arguments)

    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    if options.command == "prepare":
        chosen = catalog.Options(
            options.seed, options.workers, tuple(options.missing), options.metres_per_unit, options.fps, progress=True
        )
        return _prepare(options.names, options.source, options.out, chosen)
    if options.command == "verify":
        return _verify(options.paths)
    return _list(options.folder or catalog.default_cache())


def _prepare(names: list[str], source: Path | None, out: Path | None, options: catalog.Options) -> int:
    try:
        catalog.check_options(options)
        source = None if source is None else source.expanduser()
        names = catalog.expand(names, source)
        if options.fps is not None and (others := [name for name in names if name not in catalog.OWN_SETS]):
            raise ValueError(f"--fps says nothing to {others[0]}, whose frame rate is known; leave it out")
        if source is not None and source.suffix == ".npz" and len(names) > 1:
            raise ValueError(f"--source must be a folder for several sets, got the file {source}")
        preparations = {name: catalog.SOURCES[name].look(source, options) for name in names}
        places = {name: catalog.target(name, out, options.seed) for name in preparations}
        there = {name for name, one in preparations.items() if is_prepared(places[name], one.recipe)}
        for name in (name for name in names if name not in there):
            check_place(places[name])
    except (ValueError, OSError) as error:
        return _fail(error, 2)
    except KeyboardInterrupt:
        return _fail("stopped; nothing has been read yet", 130)
    made = []
    for name, preparation in preparations.items():
        path, was_there = places[name], name in there
        for note in preparation.notes:
            print(f"{name}: {note}")
        try:
            if not was_there and (path / MANIFEST).is_file():
                print(f"{name}: replaces the set at {path}; --out names a folder for another one")
            made.append(catalog.make(preparation, path))
            print(f"{name}: {'already prepared' if was_there else 'prepared'} at {path}")
            if name in catalog.OWN_SETS and (same := same_clips(made[-1])):
                print(f"{name}: {same}")
        except (ValueError, OSError) as error:
            return _fail(error, 1)
        except KeyboardInterrupt:
            return _fail(f"{name}: stopped; the same command goes on from here", 130)
    for name, clips in zip(preparations, made, strict=True):
        if not clips.info.synthetic:
            tables = (classes(clips), protocols(clips, catalog.SOURCES[name].published))
            print("".join(f"\n{name}\n{table}\n" for table in tables if table), end="")
    print()
    print(overview(made))
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
    for name, source in catalog.SOURCES.items():
        needs = f" (needs {source.needs})" if source.needs else ""
        print(f"  {name:22}{source.description}{needs}")
    for name, members in catalog.GROUPS.items():
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
    print(overview(whole))
    return status


def _fail(error: Exception | str, status: int) -> int:
    if isinstance(error, OSError) and error.filename is not None and ";" not in str(error.strerror):
        error = f"{error.filename}: {error.strerror}; make it readable, or take it away"
    return refuse(error, status)


if __name__ == "__main__":
    end_with(main)
