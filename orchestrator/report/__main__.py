"""Rebuild a study's tables: python -m orchestrator.report."""

import argparse
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from orchestrator.cli.arguments import DEFAULT_STORAGE
from orchestrator.report import build, health_lines, summary, write_report
from orchestrator.report.frames import outcome_frame
from orchestrator.report.sources import open_study
from orchestrator.storage.ledger import Ledger
from search_spaces import find_study, names_a_file
from ups_model.cli import command_parser
from ups_model.pipes import end_with, refuse

EXAMPLES = """examples:
  python -m orchestrator.report                                the one study in runs/ablations
  python -m orchestrator.report tables_7_9                     by its study's name
  python -m orchestrator.report tables_7_9-small-1a2b3c4d      by its own, where a study was run in several ways
  python -m orchestrator.report tables_7_9 --storage /mnt/shared/ablations --out tables
  python -m orchestrator.report tables_7_9 --storage s3://my-bucket/ablations
  python -m orchestrator.report tables_7_9 --tracking-uri http://HOST:5000

It reads and trains nothing; the same records give the same bytes, from storage and from MLflow. Files of an earlier
report in the same folder that this one doesn't write are removed; other files stay.
exit status: 0 done, 2 usage, or nothing to report"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = command_parser(
        "orchestrator.report", "Rebuild a study's tables as Markdown, HTML, LaTeX, CSV and figures.", EXAMPLES
    )
    made.add_argument(
        "study",
        nargs="?",
        metavar="STUDY",
        help="name, FILE.py, FILE.yaml or module:name of a study, or name of its plan (the one that is there)",
    )
    source = made.add_mutually_exclusive_group()
    source.add_argument("--storage", metavar="URI", help=f"folder or s3://BUCKET/PREFIX ({DEFAULT_STORAGE})")
    source.add_argument("--tracking-uri", metavar="URI", help="read from MLflow instead")
    made.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="(STORAGE/studies/PLAN/report; report-PLAN here, if from MLflow; runs/reports/PLAN, if from s3://)",
    )
    made.add_argument(
        "--price-per-hour",
        type=float,
        metavar="PRICE",
        help="of a GPU, or of a unit without one: adds the rows' price",
    )
    made.add_argument(
        "--mlflow-page",
        metavar="URL",
        help="of the experiment, http://HOST:5000/#/experiments/1: report.html links to runs",
    )
    made.add_argument("--outcomes", action="store_true", help="also outcomes.csv: every run's result of each test clip")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    ledger = None
    try:
        if options.price_per_hour is not None and not 0 < options.price_per_hour < float("inf"):
            raise ValueError(f"--price-per-hour must be above 0, got {options.price_per_hour:g}")
        if options.mlflow_page is not None and not re.fullmatch(
            r"https?://[^#]+#/experiments/\d+/?", options.mlflow_page
        ):
            raise ValueError(
                "--mlflow-page must be the address of an experiment's page as the browser shows it, "
                f"http://HOST:5000/#/experiments/1, got {options.mlflow_page!r}"
            )
        if options.tracking_uri is None:
            ledger = Ledger.open(options.storage or DEFAULT_STORAGE, create=False)
        name = find_study(options.study).name if names_a_file(options.study or "") else options.study
        study = open_study(name, ledger, options.tracking_uri)
        report = build(study.plan, study.records, study.outcomes, options.price_per_hour)
        out = options.out or study.folder
        outcomes = outcome_frame(study.plan, study.outcomes) if options.outcomes else None
        written = write_report(report, out, options.mlflow_page, outcomes)
        copy = ledger.publish_report(study.plan.name, written, out) if ledger is not None else ""
    except (ValueError, OSError) as error:
        return refuse(error)
    print(
        "\n".join([study.plan.name, *summary(report), *health_lines(report), *map(str, written), *filter(None, [copy])])
    )
    return 0


if __name__ == "__main__":
    end_with(main)
