"""What one unit does in a worker: every way it can end, and that the process it runs in leaves no trace in it."""

import copy
import dataclasses
import logging
import math
import os
import shutil
import subprocess
import sys

import pytest
import torch

import orchestrator.worker.run_unit as run_unit_module
import ups_model.training.run
from orchestrator.planning.inputs import read_inputs
from orchestrator.storage.ledger import FAILURE, RECORD, Ledger
from orchestrator.worker.job import Job, Rung
from orchestrator.worker.run_unit import _log_to, run_unit
from search_spaces import find_study, study_names
from search_spaces.columns import MPJPE
from search_spaces.study import UPS, Row, Study, Table
from tests.support.drivers import ROOT
from tests.support.runs import FLAT, POSE, SOLID, assert_same_tensors, stop_at, weights
from ups_model.config import TASK_NAMES
from ups_model.training.progress import read_rows

LIGHT = {
    "token_width": 8, "tokenizer_layers": 1, "router_width": 16, "tem_width": 16, "tem_heads": 2, "tem_mlp_ratio": 1,
    "decoder_layers": 1, "decoder_width": 16, "decoder_heads": 2, "steps": 12,
    "pe.sources": POSE, "pe.frames": 4, "pe.batch_size": 2, "pe.frame_stride": 1, "pe.targets_per_window": 1,
    "pe.evaluate_targets": 4, "pe.evaluate_stride": 4, "evaluation.decoding": "parallel", "validation_subjects": 0,
    "ar2d.sources": FLAT, "ar2d.frames": 4, "ar2d.batch_size": 2,
    "eap.sources": SOLID, "eap.frames": 4, "eap.batch_size": 2,
    "ar3d.sources": SOLID, "ar3d.frames": 4, "ar3d.batch_size": 2,
}  # fmt: skip
"""The tiny preset on toy clips, so light that a unit takes a fraction of a second. Rows keep what they vary."""


JOINT = Study("joint", "?", "!", (Table("t", "T", "Row", (MPJPE,), (Row("base", {}, "joint"),), "base"),))

MEMORY = "system/process_memory_usage_megabytes"


@pytest.fixture(autouse=True)
def threads_given_back():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def plan_of(bench, study=None, **fields):
    """A plan as the command makes it."""
    data = [f"{name}={path}" for name, path in bench.data.items()]
    sets = [f"{name}={value}" for name, value in fields.items()]
    return read_inputs(study or str(bench.study), "tiny", data, sets, 1).plan


def job_of(bench, plan, unit, storage):
    """Of a unit whose weights are needed."""
    paths = {name: str(path) for name, path in bench.data.items()}
    cache = str(bench.folder / "cache")
    return Job(unit, plan.units.get(unit.parent), str(storage), paths, cache, 1, "cpu", "fp32", remake=True)


def run(bench, plan, unit, storage, should_stop=lambda: False):
    return run_unit(job_of(bench, plan, unit, storage), should_stop)


def pick(plan, stage, task="", arm=""):
    """The first unit of this kind."""
    return next(one for one in plan.units.values() if (one.stage, one.task) == (stage, task) and arm in one.arm)


def chosen(storage, unit):
    """All tensors of a finished unit's weights."""
    ledger = Ledger(storage)
    return weights(ledger.weights(unit, ledger.finished(unit)))


def refuse_to_train(monkeypatch):
    def step(*args):
        raise AssertionError("nothing is left to train")

    monkeypatch.setattr(ups_model.training.run, "sequence_loss", step)


def test_a_job_comes_back_from_its_text(bench, tmp_path):
    plan = plan_of(bench)
    for unit in (pick(plan, "joint"), pick(plan, "finetune", "pe"), pick(plan, "separate", "ar3d")):
        job = dataclasses.replace(job_of(bench, plan, unit, tmp_path), threads=3, test=False)
        assert Job.from_json(job.to_json()) == job


@pytest.mark.slow
def test_a_finished_unit_has_a_record_of_all_its_tasks_and_is_not_trained_again(bench, tmp_path, monkeypatch):
    plan = plan_of(bench)
    unit, ledger = pick(plan, "joint", arm="base"), Ledger(tmp_path)
    assert run(bench, plan, unit, tmp_path).status == "finished"
    record = ledger.finished(unit)
    assert {f"test/{name}" for name in ("ar3d/top1", "pe/mpjpe_mm", "eap/top1@0.5", "ar2d/top1")} <= set(record.metrics)
    assert record.routes.keys() == set(TASK_NAMES) and ledger.has_weights(unit, record)
    assert record.about["config"] == unit.config.canonical()
    assert record.about["started"] <= record.about["ended"] and record.about["threads"] == 1
    before = (ledger.folder(unit) / RECORD).read_bytes()
    refuse_to_train(monkeypatch)
    assert run(bench, plan, unit, tmp_path).status == "finished"
    assert (ledger.folder(unit) / RECORD).read_bytes() == before


def test_a_unit_that_another_process_holds_is_left_alone(bench, tmp_path, monkeypatch):
    plan = plan_of(bench)
    unit, ledger = pick(plan, "joint"), Ledger(tmp_path)
    refuse_to_train(monkeypatch)
    with ledger.claim(unit) as held:
        assert held
        files = sorted(ledger.folder(unit).iterdir())
        outcome = run(bench, plan, unit, tmp_path)
        assert outcome.status == "busy" and f"process {os.getpid()}" in outcome.error
        assert sorted(ledger.folder(unit).iterdir()) == files


def test_what_a_unit_prints_is_in_its_log_and_on_the_screen(tmp_path, capsys):
    with _log_to(tmp_path / "log.txt"):
        kept = sys.stdout  # As a module may.
        print("resumed at", 7)
        sys.stdout.writelines(["one\n", "two\n"])
        assert sys.stdout.encoding and copy.copy(sys.stdout)
        logging.getLogger("trainer").info("step 8")
    print("after", file=kept)
    text = (tmp_path / "log.txt").read_text()
    assert "resumed at 7\none\ntwo\n" in text and "step 8" in text and "after" not in text
    assert capsys.readouterr().out == "resumed at 7\none\ntwo\nafter\n"


def test_a_process_without_standard_output_trains_too(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with _log_to(tmp_path / "log.txt"):
        print("nobody sees it")


@pytest.mark.slow
@pytest.mark.parametrize("every", [0, 2], ids=["validated at the end", "validated before it stops"])
def test_a_stopped_unit_goes_on_where_it_was_and_ends_as_if_never_stopped(bench, tmp_path, every):
    plan = plan_of(bench, evaluate_every=every)
    unit = pick(plan, "joint")
    ledger = Ledger(tmp_path / "parts")
    assert run(bench, plan, unit, tmp_path / "parts", stop_at(5)).status == "stopped"
    assert ledger.record(unit) is None
    assert run(bench, plan, unit, tmp_path / "parts").status == "finished"
    log = (ledger.folder(unit) / "log.txt").read_text()
    assert "resuming at step 5 of 12" in log and "making the weights again" not in log
    assert log.count("training ") == 1
    assert run(bench, plan, unit, tmp_path / "whole").status == "finished"
    assert_same_tensors(chosen(tmp_path / "parts", unit), chosen(tmp_path / "whole", unit))
    assert ledger.finished(unit).metrics == Ledger(tmp_path / "whole").finished(unit).metrics


@pytest.mark.slow
def test_a_unit_pauses_at_its_rungs_and_ends_as_if_it_never_had(bench, tmp_path, monkeypatch):
    plan = plan_of(bench, validation_subjects=1)
    unit = pick(plan, "joint")

    def leg(storage, step, metric="validation/score", should_stop=lambda: False):
        rung = Rung(step, metric) if step else None
        return run_unit(dataclasses.replace(job_of(bench, plan, unit, storage), rung=rung), should_stop)

    ledger = Ledger(tmp_path / "parts")
    first = leg(tmp_path / "parts", 4)
    assert first.status == "paused" and first.value is not None and ledger.record(unit) is None
    assert [row["step"] for row in ledger.progress(unit) if "validation/score" in row] == [4]
    with monkeypatch.context() as context:
        refuse_to_train(context)
        assert leg(tmp_path / "parts", 4) == first, "its value is there; a driver that died hadn't heard of it"
    assert leg(tmp_path / "parts", 9, should_stop=stop_at(3)).status == "stopped"
    second = leg(tmp_path / "parts", 9)
    assert second.status == "paused" and second.value != first.value
    assert leg(tmp_path / "parts", 0).status == "finished"
    log = (ledger.folder(unit) / "log.txt").read_text()
    assert [f"resuming at step {step} of 12" in log for step in (4, 7, 9)] == [True] * 3
    assert leg(tmp_path / "whole", 0).status == "finished"
    assert_same_tensors(chosen(tmp_path / "parts", unit), chosen(tmp_path / "whole", unit))
    assert ledger.finished(unit).metrics == Ledger(tmp_path / "whole").finished(unit).metrics
    # What is measured in passing is what a run of that length would be measured as, not another run's value.
    assert leg(tmp_path / "other", 5, "validation/ar3d/top1").value == next(
        row["validation/ar3d/top1"] for row in Ledger(tmp_path / "other").progress(unit) if "validation/score" in row
    )
    assert leg(tmp_path / "never", 5, "validation/nothing").status == "finished", "there is nothing to wait for"


@pytest.mark.slow
def test_a_finished_unit_is_trained_longer_to_the_bits_of_one_that_was_that_long_from_the_start(bench, tmp_path):
    fields = {"validation_subjects": 1, "schedule": "constant", "horizon": 12, "decay_share": 0.25}
    study = "tests.orchestrator.worker.test_run_unit:JOINT"
    fields |= {name: value for name, value in LIGHT.items() if name not in fields}
    plans = [plan_of(bench, study, **fields | {"steps": steps}) for steps in (12, 20)]
    short, long = (pick(plan, "joint") for plan in plans)

    def trained(unit, storage):
        assert run(bench, plans[unit is long], unit, storage).status == "finished"
        ledger = Ledger(storage)
        return ledger.finished(unit), [row["step"] for row in ledger.progress(unit) if "train/pe_loss" in row]

    whole, _ = trained(long, tmp_path / "whole")
    before, _ = trained(short, tmp_path / "extended")
    after, steps = trained(long, tmp_path / "extended")
    assert after.about["taken_over_steps"] == 9 and min(steps) > 9, "12 less a decay of 3"
    assert "taken_over_steps" not in before.about and "taken_over_steps" not in whole.about
    assert_same_tensors(chosen(tmp_path / "extended", long), chosen(tmp_path / "whole", long))
    assert after.metrics == whole.metrics
    # The shorter one finds no shorter trunk than its own in what the longer one has left: 15 steps are too many.
    log = tmp_path / "other"
    trained(long, log)
    record, _ = trained(short, log)
    assert "taken_over_steps" not in record.about and record.metrics == before.metrics
    # One of another seed, or with other fields, shares nothing.
    other = plan_of(bench, study, **fields | {"steps": 20, "learning_rate": 1e-4})
    assert run(bench, other, pick(other, "joint"), tmp_path / "extended").status == "finished"
    assert "taken_over_steps" not in Ledger(tmp_path / "extended").finished(pick(other, "joint")).about


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_a_failed_record_with_its_traceback(bench, tmp_path):
    plan = plan_of(bench, learning_rate=1e30)
    unit, ledger = pick(plan, "joint"), Ledger(tmp_path)
    outcome = run(bench, plan, unit, tmp_path)
    assert outcome.status == "failed" and "not finite" in outcome.error
    record = ledger.record(unit)
    assert record.status == "failed" and record.error.startswith("Traceback")
    assert "NonFiniteLoss" in record.error.splitlines()[-1]
    assert record.about["host"] and record.about["commit"]
    assert not (ledger.folder(unit) / RECORD).exists()


@pytest.mark.slow
def test_an_error_whose_text_has_half_a_character_is_a_failed_record_like_any_other(bench, tmp_path, monkeypatch):
    plan = plan_of(bench)
    unit, ledger = pick(plan, "joint"), Ledger(tmp_path)

    def fails(*args):
        raise ValueError("clip \udcff.npy")

    monkeypatch.setattr(ups_model.training.run, "sequence_loss", fails)
    # pytest-xdist can't send such a text.
    monkeypatch.setattr(run_unit_module.logger, "exception", lambda *words: None)
    outcome = run(bench, plan, unit, tmp_path)
    assert (outcome.status, outcome.error) == ("failed", "clip \\udcff.npy")
    assert ledger.record(unit).error.endswith("ValueError: clip \\udcff.npy")


@pytest.mark.slow
def test_what_may_pass_is_raised_for_another_try_and_leaves_no_record(bench, tmp_path, monkeypatch):
    plan = plan_of(bench)
    unit, ledger = pick(plan, "joint"), Ledger(tmp_path)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ups_model.training.run_state, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space left"):
        run(bench, plan, unit, tmp_path)
    assert ledger.record(unit) is None and not (ledger.folder(unit) / FAILURE).exists()
    assert "No space left" in (ledger.folder(unit) / "log.txt").read_text()
    monkeypatch.undo()
    assert run(bench, plan, unit, tmp_path).status == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["no record", "no weights", "a changed byte"])
def test_an_unreadable_parent_is_said_and_nothing_is_trained_from_it(bench, tmp_path, damage):
    plan = plan_of(bench)
    child, ledger = pick(plan, "finetune", "pe"), Ledger(tmp_path)
    parent = plan.units[child.parent]
    assert run(bench, plan, parent, tmp_path).status == "finished"
    folder = ledger.weights(parent, ledger.finished(parent))
    if damage == "no record":
        (ledger.folder(parent) / RECORD).unlink()
    elif damage == "no weights":
        shutil.rmtree(folder)
    else:
        content = bytearray((folder / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (folder / "model.safetensors").write_bytes(content)
    outcome = run(bench, plan, child, tmp_path)
    assert outcome.status == "parent_unreadable"
    assert ("has no record" if damage == "no record" else str(folder)) in outcome.error
    assert ledger.record(child) is None and not (ledger.folder(child) / "checkpoints").exists()


@pytest.mark.slow
def test_damaged_weights_of_a_finished_unit_are_made_again_with_the_same_bits(bench, tmp_path):
    plan = plan_of(bench)
    unit, ledger = pick(plan, "joint"), Ledger(tmp_path)
    assert run(bench, plan, unit, tmp_path).status == "finished"
    record, before = ledger.finished(unit), chosen(tmp_path, unit)
    shutil.rmtree(ledger.weights(unit, record))
    assert run(bench, plan, unit, tmp_path).status == "finished"
    assert_same_tensors(chosen(tmp_path, unit), before)
    assert ledger.finished(unit).metrics == record.metrics


@pytest.mark.slow
def test_an_unfinished_unit_whose_chosen_weights_are_damaged_goes_on_from_before_they_were_chosen(bench, tmp_path):
    plan = plan_of(bench, validation_subjects=1, evaluate_every=4)
    unit = pick(plan, "joint")
    assert run(bench, plan, unit, tmp_path / "whole").status == "finished"
    stopped = stop_at(unit.config.optim.steps - 1)
    assert run(bench, plan, unit, tmp_path / "damaged", stopped).status == "stopped"
    (best,) = (Ledger(tmp_path / "damaged").folder(unit) / "best").iterdir()
    file = best / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert run(bench, plan, unit, tmp_path / "damaged").status == "finished"
    assert_same_tensors(chosen(tmp_path / "damaged", unit), chosen(tmp_path / "whole", unit))
    metrics = [Ledger(tmp_path / name).finished(unit).metrics for name in ("whole", "damaged")]
    assert metrics[0] == metrics[1]


@pytest.mark.slow
def test_a_unit_killed_between_its_result_and_its_record_makes_the_record_without_training(
    bench, tmp_path, monkeypatch
):
    plan = plan_of(bench)
    unit, ledger = pick(plan, "joint"), Ledger(tmp_path)
    assert run(bench, plan, unit, tmp_path).status == "finished"
    record = ledger.finished(unit)
    (ledger.folder(unit) / RECORD).unlink()
    refuse_to_train(monkeypatch)
    monkeypatch.setattr(ups_model.training.run, "measure", ups_model.training.run.sequence_loss)
    assert run(bench, plan, unit, tmp_path).status == "finished"
    again = ledger.finished(unit)
    assert (again.metrics, again.routes, again.checkpoint) == (record.metrics, record.routes, record.checkpoint)
    assert again.about["train_seconds"] == record.about["train_seconds"]


@pytest.mark.slow
def test_a_unit_takes_nothing_from_those_that_ran_before_it_in_its_process(bench, tmp_path):
    """Workers are used again: each unit must have the bits of one that had a process to itself."""
    plan = plan_of(bench)
    joint, other = pick(plan, "joint", arm="base"), pick(plan, "joint", arm="routing=False")
    separate = pick(plan, "separate", "eap")
    tuned, other_tuned = pick(plan, "finetune", "ar3d", "base"), pick(plan, "finetune", "pe", "routing=False")
    torch.manual_seed(12345)  # What no fresh process has.
    torch.rand(7)
    reused, fresh = tmp_path / "reused", tmp_path / "fresh"
    for unit in (joint, other, tuned, other_tuned, separate):
        assert run(bench, plan, unit, reused).status == "finished"
    program = (
        "import sys; from orchestrator.worker.run_unit import *\n"
        "print(run_unit(Job.from_json(sys.stdin.read()), bool).status)"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for unit in (other, other_tuned, separate):
        done = subprocess.run(
            [sys.executable, "-c", program], input=job_of(bench, plan, unit, fresh).to_json(),
            env=environment, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.stdout.split() == ["finished"], done.stderr
        assert_same_tensors(chosen(reused, unit), chosen(fresh, unit))
        one, two = (Ledger(storage).finished(unit) for storage in (reused, fresh))
        assert (one.metrics, one.routes) == (two.metrics, two.routes)
    # And in another order, in this process once more.
    for unit in (separate, tuned):
        if unit.parent:
            assert run(bench, plan, plan.units[unit.parent], tmp_path / "order").status == "finished"
        assert run(bench, plan, unit, tmp_path / "order").status == "finished"
        assert_same_tensors(chosen(tmp_path / "order", unit), chosen(reused, unit))


def features(prompts, *args, **kwargs):
    """Numbers in place of a language model's: a thousand bins would take it a minute, and no claim here is on words."""
    return torch.randn(len(prompts), 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A storage: units that studies share are trained once, as a user's would be."""
    return tmp_path_factory.mktemp("shared")


def is_of_ups(name):
    study = find_study(name)
    return {study.project, *(row.project or UPS for table in study.tables for row in table.rows)} == {UPS}


UPS_STUDIES = [name for name in study_names() if is_of_ups(name) and name != "tables_1_6"]  # test_tables_1_6.py has it


@pytest.mark.slow
@pytest.mark.parametrize("name", UPS_STUDIES)
def test_every_arm_of_every_study_trains_and_measures_all_its_columns(name, bench, shared, monkeypatch):
    monkeypatch.setattr("ups_model.training.build.text_features", features)
    plan, ledger = plan_of(bench, name, **LIGHT), Ledger(shared)
    assert find_study(name).name == plan.study.name
    trained = {}
    for table, lines in plan.tables:
        for line in lines:
            for task in line.units:
                if line.arms[task].training == "fine-tuned" and line.arms[task].name != "base" and task != "eap":
                    continue  # Of each fine-tuned arm one task's second stage; of the base all.
                for key in plan.with_parents(line.units[task]):
                    unit = plan.units[key]
                    if key not in trained:
                        assert run(bench, plan, unit, shared).status == "finished", unit.name
                        trained[key] = unit
                record = ledger.finished(plan.units[line.units[task][0]])
                measured = [f"test/{column.metric}" for column in table.columns if column.task == task]
                measured = [key for key in measured if not key.endswith("top5")]  # The toy clips have two classes.
                assert measured or task == "ar2d"
                assert all(math.isfinite(record.metrics[key]) for key in measured), line.row.label
    assert {unit.arm for unit in trained.values()} == {arm.name for arm in plan.arms}
    steps = [unit.config.optim.steps for unit in trained.values() if unit.stage != "finetune"]
    assert min(steps) >= 2


@pytest.mark.slow
def test_a_unit_of_several_processes_measures_what_they_take_together(bench, tmp_path):
    plan = plan_of(bench)
    unit = pick(plan, "separate", "ar3d")
    memory = {}
    for processes in (1, 2):
        storage = tmp_path / str(processes)
        job = dataclasses.replace(job_of(bench, plan, unit, storage), processes=processes)
        assert run_unit(job, lambda: False).status == "finished"
        rows = read_rows(Ledger(storage).folder(unit) / "progress.jsonl")
        memory[processes] = [row[MEMORY] for row in rows if MEMORY in row]
        assert {row["step"] for row in rows if MEMORY in row} == {row["step"] for row in rows if MEMORY not in row}
    # Each has loaded torch, which alone takes more than 100 MB.
    assert min(memory[2]) > max(memory[1]) + 100
