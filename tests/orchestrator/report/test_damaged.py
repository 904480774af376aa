"""Files that no run leaves: each is left out or named, and none ends the report with a traceback."""

import hashlib
import io
import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from orchestrator.planning.plan_file import PlanFile
from orchestrator.record import Record
from orchestrator.report import build, files, load
from orchestrator.report.clip_results import check_outcomes
from orchestrator.storage.ledger import Ledger
from search_spaces.study import Claim
from tests.support.report_cases import keys_of, plan_file_of, plan_of, records_of
from ups_model.evaluation.metric_names import OUTCOMES

SOUND = {
    "ar3d/set/clip": np.int32([0, 1]), "ar3d/set/subject": np.int32([1, 2]), "ar3d/set/label": np.int16([0, 1]),
    "ar3d/set/predicted": np.int16([0, 0]), "ar3d/set/rank": np.int16([0, 1]), "ar3d/set/margin": np.float16([1, -1]),
    "pe/set/clip": np.int32([0, 1]), "pe/set/camera": np.int16([0, 0]), "pe/set/subject": np.int32([1, 2]),
    "pe/set/frames": np.int32([3, 4]), "pe/set/error_sum_mm": np.float64([90, 80]),
    "pe/set/p_error_sum_mm": np.float64([60, 50]), "pe/set/example_bones": np.int16([[0, 1]]),
    "pe/set/example_input": np.zeros((3, 2, 2)), "pe/set/example_pose_mm": np.zeros((3, 2, 3)),
    "pe/set/example_truth_mm": np.zeros((3, 2, 3)),
    **{f"pe/set/example_{name}": np.int32([0, 0, 1]) for name in ("clip", "camera", "frame")},
}  # fmt: skip


def test_what_runs_leave_is_sound():
    check_outcomes(SOUND)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("ar3d/set/label", None, "label is missing"),
        ("ar3d/set/rank", np.int16([0]), "one length"),
        ("ar3d/set/label", np.int16([0, -1]), "label must be at least 0"),
        ("ar3d/set/label", np.float32([0, 1]), "whole numbers"),
        ("pe/set/frames", np.int32([0, 4]), "frames must be at least 1"),
        ("pe/set/error_sum_mm", np.float64([np.nan, 1]), "errors must be finite"),
        ("pe/set/example_bones", np.int16([[0, 2]]), "don't fit together"),
        ("pe/set/example_truth_mm", np.zeros((3, 1, 3)), "don't fit together"),
        ("odd", np.zeros(1), "task/source/what"),
    ],
)
def test_arrays_that_no_run_leaves_are_refused(name, array, message):
    arrays = {**SOUND, name: array}
    if array is None:
        del arrays[name]
    with pytest.raises(ValueError, match=message):
        check_outcomes(arrays)


def npz(arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK",
        npz(SOUND)[:-300],
        npz({**SOUND, "ar3d/set/label": np.array([{}, {}], dtype=object)}),
        npz({name: array for name, array in SOUND.items() if "rank" not in name} | {"ar3d/set/rank": np.int16([1])}),
    ],
    ids=["empty", "cut", "truncated", "pickled", "short"],
)
def test_damaged_results_by_clip_are_left_out_with_a_warning(content, tmp_path, caplog):
    plan = plan_of(seeds=1)
    ledger = Ledger.open(str(tmp_path / "storage"))
    ledger.save_plan(plan_file_of(plan))
    (key,) = keys_of(plan, "full")
    for unit_key, record in records_of(plan, {"thin": (80.0,), "full": (81.0,)}).items():
        unit = plan.units[unit_key]
        ledger.folder(unit).mkdir(parents=True)
        if unit_key == key:
            record = replace(record, outcomes=hashlib.sha256(content).hexdigest())
            (ledger.folder(unit) / OUTCOMES).write_bytes(content)
        ledger.write(unit, record)
    study = load(storage=str(tmp_path / "storage"))
    assert study.outcomes.empty and not study.report.confusions
    assert "81.00" in files(study.report)["report.md"]
    assert f"{OUTCOMES} of unit {key}" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"about": {"gpus": "two"}}, "about.gpus must be a number"),
        ({"about": {"parameters": [1]}}, "about.parameters must be a number"),
        ({"about": {"train_seconds": None}}, "about.train_seconds must be a number"),
        ({"about": {"trained_by": []}}, "about.trained_by must be the key"),
        ({"routes": {"pe": "ab"}}, "routes must have a block"),
        ({"routes": {"pe": []}}, "routes must have a block"),
        ({"routes": {"pe": [0], "ar3d": [0, 1]}}, "routes must have a block"),
        ({"routes": {"pe": [10**6]}}, "routes must have a block"),
        ({"routes": {"no task": [0]}}, "routes must be of"),
        ({"metrics": {"test/pe/mpjpe_mm": 1e308}}, "metrics must be finite"),
    ],
)
def test_a_record_that_no_unit_leaves_is_refused(change, message):
    text = json.dumps(asdict(Record("k", "finished")) | change)
    with pytest.raises(ValueError, match=message):
        Record.from_json(text)


def test_a_deeply_nested_record_is_refused():
    with pytest.raises(ValueError, match="not a record"):
        Record.from_json('{"key": ' + "[" * 100_000)


@pytest.mark.parametrize("clips", [0.5, -3.0])
def test_an_impossible_number_of_clips_costs_the_sampling_error_alone(clips):
    plan = plan_of(seeds=1)
    records = records_of(plan, {"thin": (80.0,), "full": (81.0,)})
    for record in records.values():
        record.metrics["test/ar3d/clips"] = clips
    assert "81.00 †± unknown" in files(build(plan_file_of(plan), records))["report.md"]


def without_baseline(plain):
    plain["tables"][0]["baseline"] = "nobody"


def with_unknown_unit(plain):
    plain["tables"][0]["rows"][0]["units"]["ar3d"] = ["nobody"]


def with_unknown_parent(plain):
    next(iter(plain["units"].values()))["parent"] = "nobody"


def with_a_ring(plain):
    first, second = list(plain["units"])[:2]
    plain["units"][first]["parent"], plain["units"][second]["parent"] = second, first


def with_a_claim_of_nobody(plain):
    plain["claims"] = [asdict(Claim("Nobody wins", "depth", "nobody", "full", "ar3d/top1", "superior"))]


@pytest.mark.parametrize(
    "damage", [without_baseline, with_unknown_unit, with_unknown_parent, with_a_ring, with_a_claim_of_nobody]
)
def test_a_plan_that_refers_to_what_is_not_there_is_refused(damage):
    plain = plan_file_of(plan_of()).to_plain()
    damage(plain)
    with pytest.raises(ValueError, match="not a plan"):
        PlanFile.from_json(json.dumps(plain))
