"""Everything that a GPU must show, in one command of at most eight minutes.

    python benchmarks/gpu.py --data uiprmd=PATH --data utd_mhad=PATH --data jhmdb=PATH --text FOLDER --out FILE

Each part runs in a process of its own with a time limit, so that one that hangs, crashes or runs out of memory does not
stop the others; what it had measured by then is kept. Last, as long as there is time, preset `small` is trained on the
open data. Needs torch 2.11 or newer, numpy, scipy, safetensors and tqdm: of the text features only the training of
`small` needs real ones, which FOLDER holds (the folder `text` of a cache that has trained `small` before); without
--text they are computed, which needs the language model. `--device cpu --quick` runs every part in small.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from gpu_parts.table import Outcome, Row, table

ROOT = Path(__file__).resolve().parents[1]

LIMIT_SECONDS = {
    "device": 40.0,
    "precision": 70.0,
    "steps tiny": 30.0,
    "steps small": 45.0,
    "steps paper": 80.0,
    "temporal encoding": 25.0,
    "memory": 45.0,
    "two processes": 45.0,
    "decoding": 40.0,
}
"""Most seconds of each part, of eight minutes; with --minutes they change in proportion."""
LAST = "training"
"""The part that has whatever time is left."""
LEAST_TRAINING_SECONDS = 20.0
CLOSING_SECONDS = 5.0


def run_part(part: str, limit: float, arguments: list[str]) -> tuple[list[Row], Outcome]:
    """Run one part in a process of its own: the rows it has emitted, and how it ended."""
    command = [sys.executable, __file__, "--part", part, "--seconds", f"{limit:.1f}", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
        # A session of its own, so that a part which has processes of its own is ended with them.
        process = subprocess.Popen(command, stdout=out, stderr=log, env=environment, start_new_session=True)
        try:
            status = "ok" if process.wait(timeout=limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "over its time"
        finally:
            end(process)
        out.seek(0)
        log.seek(0)
        rows = [Row(**{**json.loads(line), "part": part}) for line in out if line.startswith("{")]
        error = "" if status == "ok" else "".join(log.readlines()[-12:])
    return rows, Outcome(part, status, round(time.monotonic() - started, 1), error)


def end(process: subprocess.Popen[str]) -> None:
    """End a process and those it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_all(options: argparse.Namespace) -> tuple[list[Row], list[Outcome]]:
    """Every part, one after the other, within the time; a line of each as it ends, to standard error."""
    started, rows, outcomes = time.monotonic(), [], []
    arguments = ["--device", options.device, *(["--quick"] if options.quick else [])]
    training = [text for value in options.data for text in ("--data", value)]
    training += ["--text", str(options.text)] if options.text else []
    limits = {part: limit * options.minutes / 8 for part, limit in LIMIT_SECONDS.items()}
    for part in options.only or [*limits, LAST]:
        left = 60 * options.minutes - CLOSING_SECONDS - (time.monotonic() - started)
        limit = min(left, limits.get(part, left))
        if limit < (LEAST_TRAINING_SECONDS if part == LAST else 1):
            outcomes.append(Outcome(part, "no time left", 0.0))
            continue
        new, outcome = run_part(part, limit, arguments + (training if part == LAST else []))
        print(f"{part}: {outcome.status}, {outcome.seconds:.0f} s", file=sys.stderr, flush=True)
        rows += new
        outcomes.append(outcome)
    return rows, outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="of the whole (8)")
    parser.add_argument("--quick", action="store_true", help="everything in small: shows that it runs")
    parser.add_argument("--only", action="append", choices=[*LIMIT_SECONDS, LAST], metavar="PART", help="(repeatable)")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=PATH", help="clip set of `small`")
    parser.add_argument("--text", type=Path, metavar="FOLDER", help="of text features, computed elsewhere")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="raw JSON: every row with its data, how each part ended"
    )
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        from gpu_parts.run import run  # Here, since it imports torch.

        run(options)
        return 0
    rows, outcomes = run_all(options)
    print(table(rows, outcomes))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        raw = {"rows": [asdict(row) for row in rows], "parts": [asdict(outcome) for outcome in outcomes]}
        options.out.write_text(json.dumps(raw, indent=1) + "\n", "utf-8")
    return int(any(outcome.status not in ("ok", "no time left") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
