"""A study's results as pandas frames: the report's numbers, from a storage."""

import hashlib
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest

from orchestrator.report import load
from orchestrator.report.__main__ import main
from orchestrator.report.frames import OUTCOME_COLUMNS
from orchestrator.storage.ledger import Ledger
from search_spaces.study import Claim
from tests.support.report_cases import keys_of, plan_file_of, plan_of, records_of
from ups_model.evaluation.health import TaskHealth
from ups_model.evaluation.metric_names import OUTCOMES

CLAIM = Claim("Depth helps", "depth", "full", "thin", "ar3d/top1", "superior")


@pytest.fixture
def storage(tmp_path):
    """A storage with a study of two rows and two seeds; the first seed of row "thin" has results by clip."""
    plan = plan_of(seeds=2)
    records = records_of(plan, {"thin": (80.0, 82.0), "full": (81.0, None)})
    first = keys_of(plan, "thin")[0]
    stream = io.BytesIO()
    np.savez(
        stream,
        **{
            "ar3d/set/clip": np.int32([4, 7]), "ar3d/set/subject": np.int32([1, 2]), "ar3d/set/label": np.int16([5, 6]),
            "ar3d/set/predicted": np.int16([5, 3]), "ar3d/set/rank": np.int16([0, 2]),
            "ar3d/set/margin": np.float16([1.5, -0.5]),
            "eap/set/clip": np.int32([4]), "eap/set/subject": np.int32([1]), "eap/set/label": np.int16([5]),
            **{f"eap/set/{name}@{ratio}": np.int16([value]) for ratio, value in (("0.2", 9), ("0.4", 5))
               for name in ("predicted", "rank", "margin")},
            "pe/set/clip": np.int32([8]), "pe/set/camera": np.int16([1]), "pe/set/subject": np.int32([3]),
            "pe/set/error_sum_mm": np.float64([90.0]), "pe/set/p_error_sum_mm": np.float64([60.0]),
            "pe/set/frames": np.int32([3]), "pe/set/frame": np.int32([0, 1, 2]),
            "pe/set/frame_error": np.uint16([1, 2, 3]),
        },
    )  # fmt: skip
    content = stream.getvalue()
    health = TaskHealth("ar3d/top1", 10.0, ((6, 60.0), (12, 80.0))).to_plain()
    records[first] = replace(records[first], outcomes=hashlib.sha256(content).hexdigest(), health={"ar3d": health})
    ledger = Ledger.open(str(tmp_path / "storage"))
    ledger.save_plan(replace(plan_file_of(plan), claims=(CLAIM,)))
    for key, record in records.items():
        unit = plan.units[key]
        ledger.folder(unit).mkdir(parents=True)
        ledger.write(unit, record)
        if key == first:
            (ledger.folder(unit) / OUTCOMES).write_bytes(content)
    return tmp_path / "storage"


def test_runs_have_each_seeds_value_and_state(storage):
    runs = load(storage=str(storage)).runs
    accuracies = runs[runs["column"] == "ar3d/top1"].set_index(["row", "seed"])
    assert accuracies.loc[("thin", 1), "value"] == 82.0
    assert accuracies.loc[("full", 1), "state"] == "not run"
    assert np.isnan(accuracies.loc[("full", 1), "value"])
    assert list(accuracies["health"]) == ["not converged", "not judged", "not judged", "not judged"]
    assert accuracies.loc[("thin", 0), "published"] == 88.0


@pytest.mark.slow
def test_cells_and_claims_are_those_of_the_csv_files(storage, tmp_path):
    study = load("invented", storage=str(storage))
    assert main(["invented", "--storage", str(storage), "--out", str(tmp_path / "out")]) == 0
    for frame, file in ((study.cells, "cells.csv"), (study.claims, "claims.csv")):
        pandas.testing.assert_frame_equal(frame, pandas.read_csv(tmp_path / "out" / file))
    assert study.claims.loc[0, "withheld"] == "1 of 2 runs of “full” not run; 1 of 1 runs of “thin” did not converge"


def test_outcomes_are_a_line_a_clip_ratio_or_camera(storage):
    frame = load(storage=str(storage)).outcomes
    assert tuple(frame.columns) == OUTCOME_COLUMNS
    by_task = {task: part.to_dict("records") for task, part in frame.groupby("task")}
    assert [(line["clip"], line["predicted"], line["rank"]) for line in by_task["ar3d"]] == [(4, 5, 0), (7, 3, 2)]
    assert [(line["ratio"], line["predicted"]) for line in by_task["eap"]] == [(0.2, 9), (0.4, 5)]
    (pose,) = by_task["pe"]
    assert (pose["camera"], pose["frames"], pose["error_mm"], pose["p_error_mm"]) == (1, 3, 30.0, 20.0)
    assert pandas.isna(pose["label"])


def test_curves_have_each_point_of_each_judged_run(storage):
    curves = load(storage=str(storage)).curves
    assert list(curves["step"]) == [6, 12] and list(curves["value"]) == [60.0, 80.0]
    assert set(curves["state"]) == {"not converged"}


@pytest.mark.slow
def test_outcomes_csv_is_the_frame_and_comes_on_request(storage, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["--storage", str(storage), "--out", str(out)]) == 0
    assert not (out / "outcomes.csv").exists()
    assert main(["--storage", str(storage), "--out", str(out), "--outcomes"]) == 0
    assert str(out / "outcomes.csv") in capsys.readouterr().out
    text = (out / "outcomes.csv").read_text()
    assert text.splitlines()[0] == ",".join(OUTCOME_COLUMNS)
    assert len(text.splitlines()) == 1 + 5


def test_a_study_without_results_by_clip_has_an_empty_frame(tmp_path):
    plan = plan_of()
    ledger = Ledger.open(str(tmp_path / "storage"))
    ledger.save_plan(plan_file_of(plan))
    for key, record in records_of(plan, {"thin": (80.0,)}).items():
        ledger.folder(plan.units[key]).mkdir(parents=True)
        ledger.write(plan.units[key], record)
    frame = load(storage=str(tmp_path / "storage")).outcomes
    assert frame.empty and tuple(frame.columns) == OUTCOME_COLUMNS


def test_the_pages_snippets_run(storage):
    page = (Path(__file__).parents[3] / "docs" / "notebook.md").read_text()
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code.replace('"tables_7_9", storage="runs/ablations"', f'"invented", storage="{storage}"'), names)
    assert names["study"].runs.equals(load(storage=str(storage)).runs)
