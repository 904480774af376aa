"""What no change of layout or wording may change: unit keys, flags and exit statuses, the bytes of a report.

Where a change is meant, `python -m tests.test_golden` writes the files under `tests/golden` anew.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from orchestrator.record import Record
from orchestrator.report import build, files
from search_spaces import find_study, study_names
from search_spaces.columns import AR3D, MPJPE
from search_spaces.study import Reference, Row
from tests.support.plans import plan_of as study_plan
from tests.support.report_cases import keys_of, plan_file_of, plan_of, records_of
from ups_model.config.presets import PRESETS
from ups_model.config.schema import digest
from ups_model.evaluation.health import TaskHealth

GOLDEN = Path(__file__).parent / "golden"
COMMANDS = (
    *(("orchestrator.ablate",), ("orchestrator.report",), ("orchestrator.search",), ("orchestrator.storage",)),
    *(("ups_model.data", name) for name in ("prepare", "verify", "list")),
    *(("ups_model.train",), ("ups_model.evaluate",), ("ups_model.predict",)),
    *(("cluster.check",), ("cluster.node_check",), ("cluster.mlflow_server",)),
)


def unit_keys(study: str) -> dict[str, list[object]]:
    """By preset: how many units two seeds have, and one digest of their names and keys; what the study refuses, for a
    preset that it isn't made for."""
    plans: dict[str, list[object]] = {}
    for preset in PRESETS:
        try:
            units = study_plan(find_study(study), seeds=2, name=preset).units.values()
        except ValueError as error:
            plans[preset] = [str(error)]
            continue
        plans[preset] = [len(units), digest(sorted([unit.name, unit.key, unit.training_key] for unit in units))]
    return plans


def command_line(command: tuple[str, ...]) -> dict[str, object]:
    """Flags of a command, what it says of exit statuses, and those of --help and of a flag that doesn't exist."""
    status, text = run([*command, "--help"])
    return {
        "flags": sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z-]*(?![\w-])", text.partition("\nexamples")[0]))),
        "statuses": re.findall(r"\b\d+ [a-z][\w ]*", " ".join(text.rpartition("exit status")[2].split())),
        "help": status,
        "unknown flag": run([*command, "--no-such-flag"])[0],
    }


def run(command: list[str]) -> tuple[object, str]:
    """Exit status and what is printed by a command that ends before it starts anything."""
    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [*command]),
        mock.patch.dict(os.environ, {"COLUMNS": "250"}),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(io.StringIO()),
        pytest.raises(SystemExit) as ended,
    ):
        runpy.run_module(command[0], run_name="__main__", alter_sys=False)
    return ended.value.code, printed.getvalue()


def fixed_report() -> dict[str, str]:
    """A report with all that a cell can be: several seeds, a seed that is missing, a failed and a collapsed run."""
    rows = (
        Row("thin", {"encoder_layers": 1}, "joint", published=(88.0, 42.0)),
        Row("full", {"encoder_layers": 2}, "joint", published=(89.3, 40.8)),
        Row("deep", {"encoder_layers": 3}, "joint"),
        Row("broken", {"encoder_layers": 4}, "joint"),
    )
    plan = plan_of(rows, (AR3D, MPJPE), references=(Reference("another method", (87.5, None)),), notes=("A note.",))
    records = records_of(
        plan,
        {"thin": (80.0, 82.0, 84.0), "full": (81.0, 85.0, 86.0), "deep": (80.5, None, 81.25)},
        {"thin": (50.0, 51.0, 52.5), "full": (48.0, 49.5, 49.0), "deep": (60.0, 0.0, 61.0)},
    )
    collapsed = keys_of(plan, "deep")[2]
    curve = ((120, 40.0), (240, 3.7))
    records[collapsed] = replace(records[collapsed], health={"ar3d": TaskHealth("ar3d/top1", 3.7, curve).to_plain()})
    failed = keys_of(plan, "broken")[0]
    records[failed] = Record(failed, "failed", {}, error="NonFiniteLoss: the loss of step 12 is nan")
    return {
        name: text
        for name, text in files(build(plan_file_of(plan), records)).items()
        if not name.endswith((".svg", ".png"))
    }


def golden_json(name: str) -> dict[str, object]:
    return json.loads((GOLDEN / name).read_text("utf-8"))


@pytest.mark.parametrize("study", study_names())
def test_every_unit_of_every_study_and_preset_keeps_its_key(study):
    assert unit_keys(study) == golden_json("unit_keys.json")[study]


def test_a_new_study_has_golden_keys_too():
    assert set(golden_json("unit_keys.json")) == set(study_names())


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_keeps_its_flags_and_exit_statuses(command):
    assert command_line(command) == golden_json("commands.json")[" ".join(command)]


@pytest.mark.parametrize("module", sorted({command[0] for command in COMMANDS} | {"baselines"}))
def test_no_character_that_the_output_can_not_encode_ends_a_command(module, monkeypatch):
    package = importlib.import_module(module)
    main = package.main if hasattr(package, "main") else importlib.import_module(f"{module}.__main__").main
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit):
        main(["--help"])
    print("2 ± 1, ŷ → x, file \udcff", flush=True)
    assert stream.buffer.getvalue().endswith(b"2 \\xb1 1, \\u0177 \\u2192 x, file \\udcff\n")


@pytest.mark.parametrize("name", ["cells.csv", "report.md"])
def test_a_fixed_ledger_gives_the_same_bytes(name):
    assert fixed_report()[name].encode() == (GOLDEN / name).read_bytes()


def _write() -> None:
    GOLDEN.mkdir(exist_ok=True)
    texts = {name: fixed_report()[name] for name in ("cells.csv", "report.md")}
    texts["unit_keys.json"] = _lines({study: unit_keys(study) for study in study_names()})
    texts["commands.json"] = _lines({" ".join(command): command_line(command) for command in COMMANDS})
    for name, text in texts.items():
        (GOLDEN / name).write_bytes(text.encode())


def _lines(entries: dict[str, object]) -> str:
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in entries.items()) + "\n}\n"


if __name__ == "__main__":
    _write()
