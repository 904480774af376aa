"""Look after a storage: python -m orchestrator.storage du|gc|verify."""

import argparse
import logging
import sys
from collections.abc import Sequence

from orchestrator.command import DEFAULT_STORAGE
from orchestrator.ledger import Ledger
from orchestrator.storage.contents import KINDS, Usage, bytes_text, over, usage
from orchestrator.storage.sweep import Swept, sweep_rest, sweep_unit, units_of
from orchestrator.storage.verify import Verified, verify_studies, verify_unit

LARGEST = 10

EXAMPLES = """examples:
  python -m orchestrator.storage du                                          bytes by kind, by study, largest units
  python -m orchestrator.storage verify --storage /mnt/shared/ablations      read everything, say what is damaged
  python -m orchestrator.storage gc --storage s3://my-bucket/ablations --dry-run
  python -m orchestrator.storage gc --storage s3://my-bucket/ablations --older-than 48

gc deletes the checkpoints to resume from of units that are finished and tested and whose chosen weights can be read,
and leftovers of killed writers; never records, chosen weights or logs, and nothing of a unit that a process holds.
exit status: 0 done, 1 something is damaged (verify) or could not be deleted (gc), 2 usage or storage"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = argparse.ArgumentParser(
        prog="python -m orchestrator.storage",
        description="Look after a storage: how full it is, what can go, what is damaged.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("action", choices=("du", "gc", "verify"))
    made.add_argument(
        "--storage", default=DEFAULT_STORAGE, metavar="URI", help=f"folder or s3://BUCKET/PREFIX ({DEFAULT_STORAGE})"
    )
    made.add_argument("--dry-run", action="store_true", help="gc: only say what would go")
    made.add_argument(
        "--older-than", type=float, default=24.0, metavar="HOURS", help="gc: leftovers that are younger stay (24)"
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    given = parser().parse_args(arguments)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    try:
        if not 0 <= given.older_than < float("inf"):
            raise ValueError(f"--older-than must be 0 or more hours, got {given.older_than:g}; try 24")
        if given.dry_run and given.action != "gc":
            raise ValueError(f"--dry-run is for gc; {given.action} deletes nothing")
        ledger = Ledger.open(given.storage, create=False)
        if given.action == "du":
            print(usage_text(usage(ledger)))
            return 0
        if given.action == "gc":
            return collect(ledger, 3600 * given.older_than, given.dry_run)
        return verify(ledger)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


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
    held = sum(one.held for one in found)
    print(
        f"{len(units)} units, {sum(one.checkpoints for one in found)} checkpoints and chosen weights read, "
        f"{len(damages)} damaged" + (f"; {held} held by processes, whose checkpoints were not read" if held else "")
    )
    return 1 if damages else 0


if __name__ == "__main__":
    sys.exit(main())
