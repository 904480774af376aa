"""Look after a storage: python -m orchestrator.storage du|gc|verify|export|import."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from orchestrator.cli.arguments import DEFAULT_STORAGE
from orchestrator.storage.archive import export_ledger
from orchestrator.storage.gc import Swept, sweep_rest, sweep_unit, units_of
from orchestrator.storage.ledger import Ledger
from orchestrator.storage.merge import Imported, import_archives
from orchestrator.storage.usage import KINDS, Usage, bytes_text, over, usage
from orchestrator.storage.verify import Verified, verify_studies, verify_unit

LARGEST = 10

EXAMPLES = """examples:
  python -m orchestrator.storage du                                          bytes by kind, by study, largest units
  python -m orchestrator.storage verify --storage /mnt/shared/ablations      read everything, say what is damaged
  python -m orchestrator.storage gc --storage s3://my-bucket/ablations --dry-run
  python -m orchestrator.storage gc --storage s3://my-bucket/ablations --older-than 48
  python -m orchestrator.storage export ledger.tar.gz                        records and plans of all studies
  python -m orchestrator.storage export tables.tar.gz --study tables_7_9 --storage /mnt/shared/ablations
  python -m orchestrator.storage import ledger.tar.gz tables.tar.gz --storage s3://my-bucket/ablations

gc deletes the checkpoints to resume from of units that are finished and tested and whose chosen weights can be read,
and leftovers of killed writers; never records, chosen weights or logs, and nothing of a unit that a process holds.
export packs records, outcomes, progress, plans and journals of searches into one file, without weights; import adds to
a storage what it lacks, and changes nothing the second time. A finished record is never replaced by another result.
exit status: 0 done; 1 something is damaged (verify), could not be deleted (gc), could not be read (export), or was
left out because a record here differs or a process holds the unit (import); 2 usage, storage or file, before anything
is written"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = argparse.ArgumentParser(
        prog="python -m orchestrator.storage",
        description="Look after a storage: how full it is, what can go, what is damaged; carry its records elsewhere.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("action", choices=("du", "gc", "verify", "export", "import"))
    made.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help="export: to write; import: to read, one or more"
    )
    made.add_argument(
        "--storage", default=DEFAULT_STORAGE, metavar="URI", help=f"folder or s3://BUCKET/PREFIX ({DEFAULT_STORAGE})"
    )
    made.add_argument("--dry-run", action="store_true", help="gc: only say what would go")
    made.add_argument(
        "--older-than", type=float, default=24.0, metavar="HOURS", help="gc: leftovers that are younger stay (24)"
    )
    made.add_argument(
        "--study", action="append", default=[], metavar="NAME", help="export: only this study or plan (repeatable)"
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    given = parser().parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    try:
        check(given)
        if given.action == "import":
            return add(given.storage, given.files)
        ledger = Ledger.open(given.storage, create=False)
        if given.action == "du":
            print(usage_text(usage(ledger)))
            return 0
        if given.action == "gc":
            return collect(ledger, 3600 * given.older_than, given.dry_run)
        if given.action == "export":
            return export(ledger, given.files[0], given.study)
        return verify(ledger)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def check(given: argparse.Namespace) -> None:
    """ValueError where arguments don't go together."""
    if not 0 <= given.older_than < float("inf"):
        raise ValueError(f"--older-than must be 0 or more hours, got {given.older_than:g}; try 24")
    if given.dry_run and given.action != "gc":
        raise ValueError(f"--dry-run is for gc; {given.action} deletes nothing")
    if given.study and given.action != "export":
        raise ValueError(f"--study is for export; {given.action} takes the whole storage or file")
    if given.action == "export" and len(given.files) != 1:
        raise ValueError(f"export writes one FILE, got {len(given.files)}; give e.g. ledger.tar.gz")
    if given.action == "import" and not given.files:
        raise ValueError("import reads a FILE; give one that orchestrator.storage export wrote")
    if given.files and given.action not in ("export", "import"):
        raise ValueError(f"{given.action} takes no FILE, got {given.files[0]}; name the storage with --storage")


def usage_text(used: Usage) -> str:
    """What `du` prints."""
    lines = [f"{bytes_text(used.total):>10}  in all"]
    lines += [f"{bytes_text(used.kinds[kind]):>10}  {kind}" for kind in KINDS if used.kinds[kind]]
    for study, kinds in sorted(used.studies.items()):
        parts = ", ".join(f"{kind} {bytes_text(size)}" for kind, size in kinds.most_common())
        lines.append(f"{bytes_text(sum(kinds.values())):>10}  study {study}" + (f": {parts}" if parts else ""))
    lines += [f"{bytes_text(size):>10}  unit {unit}" for unit, size in used.units.most_common(LARGEST)]
    return "\n".join(lines)


def collect(ledger: Ledger, older_than: float, dry_run: bool) -> int:
    """`gc`; returns the exit status."""
    failed = 0

    def sweep(folder: str) -> Swept:
        nonlocal failed
        try:
            return sweep_unit(ledger, folder, older_than, dry_run)
        except OSError as error:
            failed += 1
            return Swept(note=f"could not be cleaned ({error})")

    units = list(units_of(ledger))
    swept = over(sweep, units, "units")
    for folder, one in zip(units, swept, strict=True):
        if one.note:
            print(f"{folder}: {one.note}")
    removed = [removal for one in (*swept, sweep_rest(ledger, older_than, dry_run)) for removal in one.removed]
    for removal in removed:
        print(f"{'would delete' if dry_run else 'deleted'} {removal.name}  {bytes_text(removal.size)}  ({removal.why})")
    size = bytes_text(sum(removal.size for removal in removed))
    print(f"{len(removed)} checkpoints and leftovers, {size}, {'would be' if dry_run else 'were'} deleted")
    return 1 if failed else 0


def verify(ledger: Ledger) -> int:
    """`verify`; returns the exit status."""
    units = list(units_of(ledger))
    found: Sequence[Verified] = over(lambda folder: verify_unit(ledger, folder), units, "units")
    damages = [damage for one in found for damage in one.damages] + verify_studies(ledger)
    for damage in damages:
        print(f"damaged: {ledger.storage.where(damage.name)}: {damage.what}\n    {damage.then}")
    held, bare = sum(one.held for one in found), sum(one.imported for one in found)
    print(
        f"{len(units)} units, {sum(one.checkpoints for one in found)} checkpoints and chosen weights read, "
        f"{len(damages)} damaged"
        + (f"; {bare} records without weights (imported)" if bare else "")
        + (f"; {held} held by processes, whose checkpoints were not read" if held else "")
    )
    return 1 if damages else 0


def export(ledger: Ledger, file: Path, studies: Sequence[str]) -> int:
    """`export`; returns the exit status."""
    found = export_ledger(ledger, file, studies)
    for fault in found.unreadable:
        print(f"left out: {fault}")
    print(
        f"{file}: {found.finished} finished and {found.failed} failed units, {found.plans} plans, {found.searches} "
        f"searches, {bytes_text(found.size)}"
    )
    return 1 if found.unreadable else 0


def add(storage: str, files: Sequence[Path]) -> int:
    """`import`; returns the exit status."""
    done = import_archives(storage, files)
    for file, found in done.items():
        for line in (*found.left, *found.notes):
            print(line)
        print(f"{file}: {imported_text(found)}")
    return 1 if any(found.left for found in done.values()) else 0


def imported_text(found: Imported) -> str:
    """What `import` says of one file."""
    there = found.units["there already"]
    if not found.changed and not found.left:
        return f"nothing to add, {there} units are there already"
    counts = {"units added": found.units["added"], "there already": there, "plans and searches written": found.files}
    counts |= {what: found.units[what] for what in ("brought up to date", "in conflict", "held") if found.units[what]}
    return ", ".join(f"{count} {what}" for what, count in counts.items())


if __name__ == "__main__":
    sys.exit(main())
