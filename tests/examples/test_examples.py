"""The examples as their users would run them: trained, stopped, killed, resumed, ablated, reported, mirrored."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.hf_text import model as text_model
from examples.lifting_mlp import data as lifting_data
from examples.lifting_mlp import model as lifting_model
from orchestrator.planning.inputs import read_inputs
from orchestrator.record import Record
from orchestrator.report.frames import load
from orchestrator.search.resolve_space import read_search
from orchestrator.storage.ledger import Ledger
from orchestrator.tracking.mirror import Mirror
from orchestrator.worker.job import Job
from orchestrator.worker.run_unit import run_unit
from tests.support.drivers import PATIENCE, ROOT, Driver
from tests.support.runs import stop_at

SPACE = ROOT / "examples" / "lifting_mlp" / "rate.py"
LIFTING = ROOT / "examples" / "lifting_mlp" / "depth.yaml"
TEXT = ROOT / "examples" / "hf_text" / "study.py"


@pytest.fixture(autouse=True)
def threads_given_back():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def poses(tmp_path_factory):
    """The lifting example's file."""
    file = tmp_path_factory.mktemp("poses") / "poses.npz"
    np.savez(file, **lifting_data.swinging_arms(subjects=4, poses=60))
    return file


def plan_of(study, poses, **fields):
    data = [f"poses={poses}"] if study == LIFTING else []
    inputs = read_inputs(str(study), "tiny", data, [f"{name}={value}" for name, value in fields.items()], 1)
    return inputs.plan, {name: str(path) for name, path in inputs.paths.items()}


def train(unit, paths, storage, should_stop=lambda: False):
    return run_unit(Job(unit, None, str(storage), paths, str(storage / "cache"), device="cpu"), should_stop)


def weights(storage, unit):
    """Names and contents of the files of the chosen weights."""
    ledger = Ledger(storage)
    record = ledger.finished(unit)
    folder = ledger.weights(unit, record)
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "state.json"}


@pytest.mark.slow
@pytest.mark.parametrize("study", [LIFTING, TEXT], ids=["lifting", "text"])
def test_a_run_that_is_stopped_again_and_again_leaves_what_an_undisturbed_one_does(study, poses, tmp_path):
    plan, paths = plan_of(study, poses, steps=40)
    unit = next(iter(plan.units.values()))
    assert train(unit, paths, tmp_path / "whole").status == "finished"
    for stop in (3, 1, 17, 9):
        assert train(unit, paths, tmp_path / "stopped", stop_at(stop)).status == "stopped"
    assert train(unit, paths, tmp_path / "stopped").status == "finished"
    whole, stopped = (Ledger(tmp_path / name).finished(unit) for name in ("whole", "stopped"))
    assert whole.metrics == stopped.metrics and whole.health == stopped.health
    assert weights(tmp_path / "whole", unit) == weights(tmp_path / "stopped", unit)


def test_stopping_really_interrupts(poses, tmp_path):
    plan, paths = plan_of(LIFTING, poses, steps=40)
    unit = next(iter(plan.units.values()))
    # It is asked before a step and when a checkpoint may be due: the 17th time before step 10, the 18th behind it.
    for asked, expected in ((17, ["step-00000004", "step-00000008"]), (18, ["step-00000008", "step-00000010"])):
        train(unit, paths, tmp_path / str(asked), stop_at(asked))
        steps = sorted(path.name for path in Ledger(tmp_path / str(asked)).folder(unit).glob("checkpoints/step-*"))
        assert steps == expected


def test_the_lifter_equals_its_formula(poses):
    """In float64, by hand: normalised input, one residual block, scaled back."""
    parts = lifting_model.parts_of(poses)
    settings = lifting_model.Settings(width=8, blocks=1)
    torch.manual_seed(0)
    model = lifting_model.Lifter(settings, parts["train"]).double().eval()
    x = parts["test"].input_NJ2.double()
    flat = ((x - model.input_mean) / model.input_sd).reshape(len(x), -1)
    hidden = flat @ model.enter.weight.T + model.enter.bias
    inner = model.blocks[0][0]
    hidden = hidden + (hidden @ inner.weight.T + inner.bias).clamp(min=0)
    pose = (hidden @ model.leave.weight.T + model.leave.bias).reshape(len(x), -1, 3)
    expected = pose * model.pose_sd + model.pose_mean
    torch.testing.assert_close(model(x), expected)
    error = (expected - parts["test"].pose_NJ3).pow(2).sum(-1).sqrt().mean()
    assert lifting_model.measure(model, parts["test"]).mean().item() == pytest.approx(error.item())


def test_test_subjects_are_never_trained_on(poses):
    with np.load(poses) as archive:
        subject, test = archive["subject"], archive["test"]
    parts = lifting_model.parts_of(poses)
    assert set(subject[test]).isdisjoint(subject[~test])
    assert len(parts["train"].input_NJ2) + len(parts["validation"].input_NJ2) == (~test).sum()


@pytest.mark.slow
def test_recorded_poses_project_onto_their_inputs(repo_root):
    file = Path(os.environ.get("UPS_OPEN_DATA", repo_root.parent / "shared" / "data")) / "uiprmd_vicon17.npz"
    if not file.exists():
        pytest.skip(f"the open motion data are not at {file}")
    made = lifting_data.recorded(file)
    with np.load(file) as archive:
        first, center, rotation = archive["positions"][0], archive["cam_center"][1], archive["cam_R"][1]
        focal, offset, size = archive["cam_f"][1], archive["cam_c"][1], archive["cam_wh"]
    seen = (first.astype(float) - center) @ rotation.T
    np.testing.assert_allclose(made["input"][1], (focal * seen[:, :2] / seen[:, 2:] + offset) / size - 0.5, atol=1e-5)
    np.testing.assert_allclose(made["pose_mm"][1], 1000 * (seen - seen[0]), atol=0.05)


def test_words_change_no_class_but_the_order_of_names_does():
    words, labels = text_model.sentences()
    for row, label in zip(words[:50], labels[:50], strict=True):
        names = [int(word) for word in row if word < 2]
        assert names == [label, 1 - label]


def test_without_positions_the_text_model_cannot_tell_word_order():
    settings = text_model.Settings(positions=False)
    words, _ = text_model.sentences()
    model = text_model.build(settings).eval()
    torch.nn.init.zeros_(model.bert.embeddings.position_embeddings.weight)
    shuffled = words[:20].clone()
    shuffled[:, 1:] = shuffled[:, 1:].flip(1)  # The first token is what the answer is read from.
    torch.testing.assert_close(model(words[:20]).logits, model(shuffled).logits)


def test_health_of_a_lifter_is_judged_against_the_mean_pose(poses, tmp_path):
    plan, paths = plan_of(LIFTING, poses, steps=60)
    unit = next(iter(plan.units.values()))
    train(unit, paths, tmp_path)
    health = Ledger(tmp_path).finished(unit).health["lifting"]
    parts = lifting_model.parts_of(poses)
    mean = parts["train"].pose_NJ3.mean(dim=0)
    trivial = (mean - parts["validation"].pose_NJ3).norm(dim=-1).mean().item()
    assert health["trivial"] == pytest.approx(trivial, abs=1e-3) and health["perfect"] == 0.0
    assert [step for step, _ in health["curve"]] == [12, 24, 36, 48, 60]


@pytest.mark.slow
def test_the_mirror_has_an_example_s_runs_and_the_report_is_the_same_from_it(poses, tmp_path):
    plan, paths = plan_of(TEXT, poses, steps=10)
    storage = tmp_path / "storage"
    for unit in plan.units.values():
        assert train(unit, paths, storage).status == "finished"
    from orchestrator.planning.plan_file import PlanFile

    plan_file = PlanFile.of(plan, "a command", {})
    ledger = Ledger(storage)
    ledger.save_plan(plan_file)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    mirror = Mirror(ledger, plan, plan_file.to_plain(), uri)
    mirror.start()
    mirror.close("finished", None, 60)
    ours, theirs = load(storage=str(storage)), load(tracking_uri=uri)
    assert ours.runs.equals(theirs.runs) and len(ours.runs) == 2 * len(plan.units)
    assert set(ours.runs["column"]) == {"hf_text/accuracy", "hf_text/loss"}


def command(study, storage, *more):
    kind = "search" if study == SPACE else "ablate"
    return [
        *(sys.executable, "-m", f"orchestrator.{kind}", str(study), "--storage", str(storage), "--address", "local"),
        *("--max-concurrent", "1", "--seeds", "1", *more),
    ]


def start(folder, *arguments):
    log = folder / f"{len(list(folder.glob('*.log')))}.log"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command(*arguments), cwd=folder, env=environment, stdout=stream, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    return Driver(process, log)


@pytest.mark.slow
def test_the_lifting_grid_killed_in_the_middle_gives_the_tables_of_an_undisturbed_run(poses, tmp_path):
    arguments = ("--data", f"poses={poses}", "--set", "steps=400")
    whole = start(tmp_path, LIFTING, tmp_path / "whole", *arguments)
    assert whole.process.wait(PATIENCE) == 0, whole.text
    killed = start(tmp_path, LIFTING, tmp_path / "killed", *arguments)
    killed.wait_for("done   ")
    killed.kill()
    again = start(tmp_path, LIFTING, tmp_path / "killed", *arguments)
    assert again.process.wait(PATIENCE) == 0, again.text
    cells = [next((tmp_path / name).glob("studies/*/report/cells.csv")).read_text() for name in ("whole", "killed")]
    assert cells[0] == cells[1] and "blocks=2, dropout=0.5" in cells[0]
    items = load("lifting_depth", storage=str(tmp_path / "killed")).outcomes
    means = items.groupby(["arm", "seed"])["value"].mean().round(2).tolist()
    assert len(means) == 4 and set(items["metric"]) == {"mpjpe"} and items["subject"].nunique() >= 1
    for row in csv.DictReader(cells[0].splitlines()):
        assert round(float(row["mean"]), 2) in means
    before = re.search(r"4 of 4 units finished, (\d) of them before this call", again.text)
    assert before and 1 <= int(before[1]) <= 3
    third = start(tmp_path, LIFTING, tmp_path / "killed", *arguments)
    assert third.process.wait(PATIENCE) == 0 and "4 of 4 units finished, 4 of them before this call" in third.text


@pytest.mark.slow
def test_the_lifting_example_is_searched_and_its_best_trial_measured(poses, tmp_path):
    data = ("--data", f"poses={poses}")
    search = start(tmp_path, SPACE, tmp_path / "storage", *data, "--trials", "3", "--set", "steps=60")
    assert search.process.wait(PATIENCE) == 0, search.text
    assert "3 of 3 trials complete" in search.text
    (folder,) = (tmp_path / "storage" / "searches").glob("lifting_rate-*/")
    with (folder / "trials.csv").open() as file:
        values = [float(row["validation/lifting/mpjpe"]) for row in csv.DictReader(file)]
    assert values == sorted(values), "the best first, and of an error that is the lowest"
    for file in (tmp_path / "storage" / "units").glob("*/record.json"):
        assert not any(name.startswith("test/") for name in json.loads(file.read_text())["metrics"])
    best = start(tmp_path, folder / "best.yaml", tmp_path / "storage", *data)
    assert best.process.wait(PATIENCE) == 0, best.text
    assert re.search(r"2 of 2 units finished, 0 of them before this call", best.text)
    (report,) = (tmp_path / "storage").glob("studies/lifting_rate_best-*/report/report.md")
    assert "| **best** |" in report.read_text() and "(mm ↓)" in report.read_text()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"dropout": Range(0.0, 0.5)', '"steps": Range(10, 20)', "steps changes how many samples"),
        ('"minimize"', '"maximize"', "direction of validation/lifting/mpjpe must be 'minimize', got 'maximize'"),
        ("lifting/mpjpe", "lifting/mpjp", "objective 'validation/lifting/mpjp' is not measured"),
        ("project:PROJECT", "project:OTHER", "project.py has no OTHER; near: PROJECT"),
    ],
)
def test_a_space_of_an_example_that_makes_no_sense_is_refused(old, new, message, poses, tmp_path):
    file = tmp_path / "space.py"
    assert old in SPACE.read_text()
    file.write_text(SPACE.read_text().replace(old, new))
    with pytest.raises(ValueError, match=re.escape(message)):
        read_search(str(file), "tiny", [f"poses={poses}"], [], None, None)


@pytest.mark.slow
def test_ctrl_c_saves_an_example_and_the_same_command_goes_on(poses, tmp_path):
    arguments = ("--data", f"poses={poses}", "--set", "steps=40000")
    driver = start(tmp_path, LIFTING, tmp_path / "storage", *arguments)
    driver.wait_for("start ")
    driver.process.send_signal(signal.SIGINT)
    assert driver.process.wait(120) == 1, driver.text
    states = list((tmp_path / "storage").glob("units/*/checkpoints/*/state.json"))
    assert not list((tmp_path / "storage").glob("units/*/record.json"))
    assert all(json.loads(state.read_text())["train_seconds"] > 0 for state in states)


def test_a_record_names_its_project_and_its_code(poses, tmp_path):
    plan, paths = plan_of(LIFTING, poses, steps=10)
    unit = next(iter(plan.units.values()))
    train(unit, paths, tmp_path)
    record = Ledger(tmp_path).finished(unit)
    assert record.about["project"] == "examples.lifting_mlp.project:PROJECT"
    assert record.about["source"]["training"] == unit.trainer.identity().training
    assert record.about["data"] == {"poses": unit.trainer.open({"poses": poses})["poses"].fingerprint}


def test_other_code_of_a_project_is_noticed_and_trained_again_if_asked(poses, tmp_path):
    plan, paths = plan_of(LIFTING, poses, steps=10)
    unit = next(iter(plan.units.values()))
    train(unit, paths, tmp_path)
    ledger = Ledger(tmp_path)
    record = ledger.finished(unit)
    about = {**record.about, "source": {"training": "0" * 16, "evaluation": ""}}
    ledger.write(unit, replace(record, about=about))
    job = Job(unit, None, str(tmp_path), paths, str(tmp_path / "cache"), device="cpu")
    refused = run_unit(job, lambda: False)
    assert refused.status == "failed" and "was trained by other code" in refused.error
    assert run_unit(replace(job, other_code="retrain"), lambda: False).status == "finished"
    after = ledger.finished(unit)
    assert isinstance(after, Record) and after.metrics == record.metrics
    assert after.about["source"]["training"] == unit.trainer.identity().training
