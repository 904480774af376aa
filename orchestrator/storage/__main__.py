"""Look after a storage: python -m orchestrator.storage list|du|gc|verify|delete|export|import."""

import argparse
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tqdm.contrib.concurrent import thread_map

from orchestrator.cli.arguments import DEFAULT_STORAGE
from orchestrator.storage.archive import export_ledger
from orchestrator.storage.gc import Swept, sweep_rest, sweep_unit
from orchestrator.storage.ledger import Ledger
from orchestrator.storage.merge import Imported, import_archives
from orchestrator.storage.studies import remove, states_of, works
from orchestrator.storage.usage import KINDS, Usage, bytes_text, usage
from orchestrator.storage.verify import verify_studies, verify_unit
from ups_model.cli import command_parser
from ups_model.pipes import end_with, refuse
from ups_model.wording import count

MAX_UNITS_LISTED = 10
each_unit = partial(thread_map, max_workers=4, desc="units", disable=None, leave=False)
"""Results in order, a few at a time, under a progress bar where standard error is a terminal. Each may have a
checkpoint in memory whole."""

EXAMPLES = """examples:
  python -m orchestrator.storage list                                        studies and searches, and how far they are
  python -m orchestrator.storage du                                          bytes by kind, by study, largest units
  python -m orchestrator.storage verify --storage /mnt/shared/ablations      read everything, say what is damaged
  python -m orchestrator.storage gc --storage s3://my-bucket/ablations --dry-run
  python -m orchestrator.storage gc --storage s3://my-bucket/ablations --older-than 48
  python -m orchestrator.storage delete --study smoke-tiny-1a2b3c4d --dry-run
  python -m orchestrator.storage export ledger.tar.gz                        records and plans of all studies
  python -m orchestrator.storage export tables.tar.gz --study tables_7_9 --storage /mnt/shared/ablations
  python -m orchestrator.storage import ledger.tar.gz tables.tar.gz --storage s3://my-bucket/ablations

gc deletes the checkpoints to resume from of units that are finished and tested and whose chosen weights can be read,
and leftovers of killed writers; never records, chosen weights or logs, and nothing of a unit that a process holds.
delete removes the plan and report of a study, or the journal of a search, and those of its units, records and weights
included, that no other study or search uses; nothing while a process holds one of them. MLflow's runs stay.
export packs records, outcomes, progress, plans and journals of searches into one file, without weights; import adds to
a storage what it lacks, and changes nothing the second time. A finished record is never replaced by another result.
exit status: 0 done; 1 something is damaged (verify), could not be deleted (gc, delete), could not be read (export), or
was left out because a record here differs or a process holds the unit (import); 2 usage, storage or file, before
anything is written"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = command_parser(
        "orchestrator.storage",
        "Look after a storage: how full it is, what can go, what is damaged; carry its records elsewhere.",
        EXAMPLES,
    )
    made.add_argument("action", choices=("list", "du", "gc", "verify", "delete", "export", "import"))
    made.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help="export: to write; import: to read, one or more"
    )
    made.add_argument(
        "--storage", default=DEFAULT_STORAGE, metavar="URI", help=f"folder or s3://BUCKET/PREFIX ({DEFAULT_STORAGE})"
    )
    made.add_argument("--dry-run", action="store_true", help="gc, delete: only say what would go")
    made.add_argument(
        "--older-than", type=float, default=24.0, metavar="HOURS", help="gc: leftovers that are younger stay (24)"
    )
    made.add_argument(
        "--study",
        action="append",
        default=[],
        metavar="NAME",
        help="export: only this study or plan; delete: this plan or search, as list names it (repeatable)",
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = parser().parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    try:
        check(options)
        if options.action == "import":
            return add(options.storage, options.files)
        ledger = Ledger.open(options.storage, create=False)
        if options.action in ("du", "list"):
            print(usage_text(usage(ledger)) if options.action == "du" else list_text(ledger))
            return 0
        if options.action == "delete":
            return delete(ledger, options.study, options.dry_run)
        if options.action == "gc":
            return collect(ledger, 3600 * options.older_than, options.dry_run)
        if options.action == "export":
            return export(ledger, options.files[0], options.study)
        return verify(ledger)
    except (ValueError, OSError) as error:
        return refuse(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def check(options: argparse.Namespace) -> None:
    """ValueError where arguments don't go together."""
    if not 0 <= options.older_than < float("inf"):
        raise ValueError(f"--older-than must be 0 or more hours, got {options.older_than:g}; try 24")
    if options.dry_run and options.action not in ("gc", "delete"):
        raise ValueError(f"--dry-run is for gc and delete; {options.action} deletes nothing")
    if options.study and options.action not in ("export", "delete"):
        raise ValueError(f"--study is for export and delete; {options.action} takes the whole storage or file")
    if options.action == "delete" and not options.study:
        raise ValueError("delete needs --study NAME; orchestrator.storage list has the names")
    if options.action == "export" and len(options.files) != 1:
        raise ValueError(f"export writes one FILE, got {len(options.files)}; give e.g. ledger.tar.gz")
    if options.action == "import" and not options.files:
        raise ValueError("import reads a FILE; give one that orchestrator.storage export wrote")
    if options.files and options.action not in ("export", "import"):
        raise ValueError(f"{options.action} takes no FILE, got {options.files[0]}; name the storage with --storage")


def list_text(ledger: Ledger) -> str:
    """What `list` prints."""
    every = works(ledger)
    if not every:
        return "no study and no search"
    width, lines = max(len(work.name) for work in every), []
    for work in every:
        states = states_of(ledger, work) if work.trials is None else work.trials
        text = ", ".join(f"{number} {state}" for state, number in states.items() if number)
        of = count(sum(states.values()), "unit" if work.kind == "study" else "trial")
        unknown = work.kind == "search" and work.trials is None
        lines.append(
            f"{work.kind:<7}{work.name:<{width}}  "
            + ("no table of all trials: it has not ended, or was imported" if unknown else f"{of}: {text}")
        )
    return "\n".join(lines)


def delete(ledger: Ledger, names: Sequence[str], dry_run: bool) -> int:
    """`delete`; returns the exit status."""
    names = list(dict.fromkeys(names))
    for name in names[1:]:  # What is refused of one, before another goes.
        remove(ledger, name, dry_run=True)
    is_whole = True
    for name in names:
        removed = remove(ledger, name, dry_run)
        if removed.held:
            is_whole = False
            print(f"{name}: stays, for a process holds {', '.join(removed.held)}; stop it and call again")
            continue
        would = "would be" if dry_run else "were"
        kept = f"; {removed.kept} that others use stay" if removed.kept else ""
        print(f"{name}: it and {count(len(removed.units), 'unit')} {would} deleted{kept}")
    return 0 if is_whole else 1


def usage_text(used: Usage) -> str:
    """What `du` prints."""
    lines = [f"{bytes_text(used.total):>10}  in all"]
    lines += [f"{bytes_text(used.kinds[kind]):>10}  {kind}" for kind in KINDS if used.kinds[kind]]
    for study, kinds in sorted(used.studies.items()):
        parts = ", ".join(f"{kind} {bytes_text(size)}" for kind, size in kinds.most_common())
        lines.append(f"{bytes_text(sum(kinds.values())):>10}  study {study}" + (f": {parts}" if parts else ""))
    lines += [f"{bytes_text(size):>10}  unit {unit}" for unit, size in used.units.most_common(MAX_UNITS_LISTED)]
    return "\n".join(lines)


def collect(ledger: Ledger, older_than: float, dry_run: bool) -> int:
    """`gc`; returns the exit status."""

    def sweep(folder: str) -> Swept:
        try:
            return sweep_unit(ledger, folder, older_than, dry_run)
        except OSError as error:
            return Swept(note=f"could not be cleaned ({error})", failed=True)

    units = ledger.storage.children("units")
    swept = each_unit(sweep, units)
    for folder, one in zip(units, swept, strict=True):
        if one.note:
            print(f"{folder}: {one.note}")
    removed = [removal for one in (*swept, sweep_rest(ledger, older_than, dry_run)) for removal in one.removed]
    for removal in removed:
        print(f"{'would delete' if dry_run else 'deleted'} {removal.name}  {bytes_text(removal.size)}  ({removal.why})")
    size = bytes_text(sum(removal.size for removal in removed))
    print(f"{len(removed)} checkpoints and leftovers, {size}, {'would be' if dry_run else 'were'} deleted")
    return int(any(one.failed for one in swept))


def verify(ledger: Ledger) -> int:
    """`verify`; returns the exit status."""
    units = ledger.storage.children("units")
    verified = each_unit(lambda folder: verify_unit(ledger, folder), units)
    damages = [damage for one in verified for damage in one.damages] + verify_studies(ledger)
    for damage in damages:
        print(f"damaged: {ledger.storage.where(damage.name)}: {damage.what}\n    {damage.then}")
    held, bare = sum(one.held for one in verified), sum(one.imported for one in verified)
    checkpoints = sum(one.checkpoints for one in verified)
    print(
        f"{count(len(units), 'unit')}, {count(checkpoints, 'checkpoint')} and chosen weights read, "
        f"{len(damages)} damaged"
        + (f"; {count(bare, 'record')} without weights (imported)" if bare else "")
        + (f"; {held} held by processes, whose checkpoints were not read" if held else "")
    )
    return 1 if damages else 0


def export(ledger: Ledger, file: Path, studies: Sequence[str]) -> int:
    """`export`; returns the exit status."""
    exported = export_ledger(ledger, file, studies)
    for fault in exported.unreadable:
        print(f"left out: {fault}")
    print(
        f"{file}: {exported.finished} finished and {count(exported.failed, 'failed unit')}, "
        f"{count(exported.plans, 'plan')}, {exported.searches} search{'' if exported.searches == 1 else 'es'}, "
        f"{bytes_text(exported.size)}"
    )
    return 1 if exported.unreadable else 0


def add(storage: str, files: Sequence[Path]) -> int:
    """`import`; returns the exit status."""
    done = import_archives(storage, files)
    for file, imported in done.items():
        for line in (*imported.left, *imported.notes):
            print(line)
        print(f"{file}: {imported_text(imported)}")
    return 1 if any(imported.left for imported in done.values()) else 0


def imported_text(imported: Imported) -> str:
    """What `import` says of one file."""
    units, there = imported.units, imported.units["there already"]
    if not imported.changed and not imported.left:
        return f"nothing to add, {count(there, 'unit')} {'is' if there == 1 else 'are'} there already"
    counts = {"units added": units["added"], "there already": there, "plans and searches written": imported.files}
    counts |= {what: units[what] for what in ("brought up to date", "in conflict", "held") if units[what]}
    return ", ".join(f"{number} {what}" for what, number in counts.items())


if __name__ == "__main__":
    end_with(main)
