"""What the commands of this package share: arguments, presets, the folders of clip sets, the closing report."""

import argparse
import hashlib
import io
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal

import numpy as np

from ups_model.config import Config
from ups_model.config.presets import PRESETS, preset
from ups_model.data.format.clip_set import MANIFEST, ClipSet
from ups_model.data.prepare.catalog import GROUPS, SOURCES, default_cache, prepare
from ups_model.evaluation.metric_names import is_headline
from ups_model.wording import count

if TYPE_CHECKING:
    from ups_model.training.result import Result

logger = logging.getLogger(__name__)


class StopOnSignal:
    """True once SIGTERM or SIGINT has come: the trainer then saves and ends. A second SIGINT ends at once."""

    def __init__(self) -> None:
        self.stopping = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def __call__(self) -> bool:
        return self.stopping

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True
        logger.warning("%s: saving a checkpoint after this step, then ending", signal.Signals(number).name)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def start_logging() -> None:
    """Log lines with the time, to standard error; of several processes only the first logs its progress."""
    level = logging.INFO
    if "RANK" in os.environ:  # Set by torchrun; without it there is one process, and torch need not be imported.
        from ups_model.training.parallel.group import first_process

        level = logging.INFO if first_process() else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")


def command_parser(module: str, description: str, examples: str) -> argparse.ArgumentParser:
    """The parser of `python -m MODULE`, without arguments. From here on, characters that the terminal's encoding lacks
    are printed as escapes, and end no command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """`--data NAME=PATH`, repeatable."""
    parser.add_argument(
        "--data", action="append", default=[], metavar="NAME=PATH", help="folder of a prepared clip set (repeatable)"
    )


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """`--device` and `--precision`."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (auto)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="(auto)")


def add_fit_arguments(parser: argparse.ArgumentParser) -> None:
    """How batches are cut to fit the memory, which changes results by rounding alone."""
    parser.add_argument(
        "--micro-batch",
        type=_micro_batch,
        default=0,
        metavar="N|auto",
        help="clips computed at once, gradients added up; auto measures what fits (default: whole batches)",
    )
    parser.add_argument(
        "--activation-checkpointing",
        choices=("auto", "on", "off"),
        default="auto",
        help="compute layers again in the backward pass (auto: where --micro-batch auto has little room)",
    )


def check_processes(flag: str, processes: int, device: str) -> None:
    """ValueError for a number of processes that can't share a batch on a device."""
    if processes < 1:
        raise ValueError(f"{flag} must be at least 1, got {processes}")
    if processes > 1 and ":" in device:
        raise ValueError(f"--device must name no single GPU for {processes} processes, got {device}; try cuda")


def _micro_batch(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if (size := int(text)) < 1:
        raise ValueError(text)
    return size


_micro_batch.__name__ = "number of clips above 0, or auto:"
"""What argparse says was expected."""


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """While this process trains in a folder, no other one does. ValueError where another one trains there."""
    from filelock import FileLock, Timeout

    # Not in the folder itself, which isn't made before all is known to be right.
    locks = default_cache() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"{hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]}.lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"--out {out}: another process trains there; wait for it, or give another folder") from None
    with held:
        yield


def check_output(file: Path) -> None:
    """ValueError for a file of `--out` whose folder doesn't exist, or that is a folder."""
    if file.is_dir():
        raise ValueError(f"--out {file}: it is a folder; name a file")
    if not file.absolute().parent.is_dir():
        raise ValueError(f"--out {file}: no such folder to write to; make {file.parent} first")


def read_config(options: argparse.Namespace) -> Config:
    """The configuration that `--preset` or `--config`, `--task`, `--parent`, `--set` and `--seed` describe."""
    if (options.preset is None) == (options.config is None):
        raise ValueError(f"give one of --preset ({', '.join(PRESETS)}) and --config FILE")
    if options.config is not None:
        try:
            config = Config.from_canonical(json.loads(options.config.read_text("utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{options.config}: not a configuration ({error})") from error
    else:
        config = preset(options.preset)
    seed = config.seed if options.seed is None else options.seed
    config = config.replace(seed=seed, freeze_routes=options.parent is not None or config.freeze_routes)
    if options.task is not None:
        alone: dict[str, object] = {"optim.cycle": (options.task,)}
        if config.optim.update == "cycle":
            alone["optim.update"] = "iteration"
        config = config.with_fields(alone)
    return config.with_fields(assignments(options.set, "--set", "FIELD=VALUE"))


def assignments(texts: Sequence[str], flag: str, form: str) -> dict[str, str]:
    """NAME=VALUE texts as a dict; ValueError for a text without = and for a name given twice."""
    values: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name or not value:
            raise ValueError(f"{flag} takes {form}, got {text!r}")
        if name in values:
            raise ValueError(f"{flag} {name} is given twice, {values[name]!r} and {value!r}; keep one")
        values[name] = value
    return values


def data_paths(texts: Sequence[str], names: Sequence[str]) -> dict[str, Path]:
    """Folder of each clip set: from `--data`, else in the cache; synthetic sets are made there on first use. ValueError
    for a set that is neither named nor prepared, and a named one that the configuration does not use."""
    folders = {name: Path(value).expanduser() for name, value in assignments(texts, "--data", "NAME=PATH").items()}
    if unused := [name for name in folders if name not in names]:
        raise ValueError(f"--data {unused[0]}: no task uses this clip set; used are {', '.join(names)}")
    paths = {}
    for name in names:
        if name in folders:
            paths[name] = folders[name]
        elif name in GROUPS["synthetic"]:
            paths[name] = prepare(name)
        elif (default_cache() / name).is_dir():
            paths[name] = default_cache() / name
        else:
            way = f"or run python -m ups_model.data prepare {name} --source DIR"
            if name not in SOURCES:
                way = "of a clip set in the format of docs/data.md; no reader is known by that name"
            raise ValueError(f"clip set {name!r} is not prepared: give --data {name}=PATH {way}")
        _check_parts(paths[name])
    return paths


def _check_parts(path: Path) -> None:
    """ValueError where no protocol of a clip set has both training and test clips."""
    if not (path / MANIFEST).is_file():
        return  # Refused where it is opened.
    clips = ClipSet.open(path)
    columns = [clips.split_test, *(flags for name, flags in clips.extra.items() if name.startswith("split_test_"))]
    if not any(0 < np.count_nonzero(flags) < len(clips) for flags in columns):
        part = "training" if clips.split_test.all() else "test"
        raise ValueError(
            f"{path}: must have training and test clips, got {count(len(clips), 'clip')} and no {part} clips; add "
            "files to the folder that it was made from, and prepare it again"
        )


def report(result: "Result") -> str:
    """A finished run for people: headline metrics, routes, time, folder of the weights."""
    about = result.about
    shown = {name: value for name, value in result.metrics.items() if is_headline(name.split("/", 1)[1])}
    lines = [metric_table(shown), "all metrics: result.json in the run's folder"] if shown else []
    if about["synthetic"]:
        lines.append(f"Synthetic data ({', '.join(about['synthetic'])}): these numbers say nothing about real motion.")
    trained = {task: route for task, route in result.routes.items() if task in about["config"]["optim"]["cycle"]}
    if trained:
        routes = ", ".join(f"{task} {'-'.join(map(str, route))}" for task, route in trained.items())
        lines.append(f"routes (block per layer): {routes}")
    chosen = "chosen by validation subjects" if about["chosen_by"] == "validation subjects" else "the last"
    lines.append(
        f"{result.status} at step {result.step}, {about['train_seconds']:.0f} s on {about['device']} "
        f"({about['precision']}), {about['parameters'] / 1e6:.2f} M parameters, run {result.key}"
    )
    if result.checkpoint:
        lines.append(f"weights: {result.checkpoint} (step {about['chosen_step']}, {chosen})")
    return "\n".join(lines)


def metric_table(metrics: dict[str, float]) -> str:
    """Metrics as aligned lines, one a name, with a column for each part (validation, test)."""
    parts = list(dict.fromkeys(name.split("/", 1)[0] for name in metrics))
    names = list(dict.fromkeys(name.split("/", 1)[1] for name in metrics))
    width = max(map(len, names))
    rows = [" " * width + "".join(f"{part:>12}" for part in parts)]
    for name in names:
        cells = (metrics.get(f"{part}/{name}") for part in parts)
        rows.append(f"{name:<{width}}" + "".join(f"{'' if cell is None else f'{cell:.2f}':>12}" for cell in cells))
    return "\n".join(rows)
