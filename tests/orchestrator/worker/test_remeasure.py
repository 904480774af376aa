"""Kept weights are measured and not trained again; what other code has trained is told apart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

import ups_model.evaluation.measure
import ups_model.evaluation.remeasure
from orchestrator.storage.ledger import PROGRESS, RECORD, Ledger
from orchestrator.storage.source_check import SourceCheck
from orchestrator.worker.run_unit import run_unit
from tests.orchestrator.worker.test_run_unit import chosen, job_of, pick, plan_of, refuse_to_train, run
from tests.support.drivers import ROOT
from tests.support.plans import plan_of as invented_plan
from tests.support.plans import small_study
from tests.support.runs import assert_same_tensors, stop_at, weights
from tests.support.source_copy import SourceCopy
from ups_model import source
from ups_model.evaluate import evaluate
from ups_model.inference.find_weights import find_weights
from ups_model.source import source_identity
from ups_model.training.build import load_model

RATIOS = {"evaluation.ratios": "0.5,0.9"}
"""Another way to measure early prediction; the study's column stays."""
FLIP = {"evaluation.flip": "true"}
"""Another way to measure poses."""


@pytest.fixture(autouse=True)
def threads_given_back():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def code(tmp_path, monkeypatch):
    """The source that is digested, to edit."""
    yield SourceCopy.make(tmp_path / "copy", monkeypatch)
    source.forget()


def with_policy(bench, plan, unit, storage, policy, should_stop=lambda: False):
    from dataclasses import replace

    return run_unit(replace(job_of(bench, plan, unit, storage), other_code=policy), should_stop)


def nothing_was_trained(ledger, unit):
    """Neither a step in the curve nor a checkpoint to resume from."""
    folder = ledger.folder(unit)
    return not (folder / PROGRESS).exists() and not (folder / "checkpoints").exists()


# --- which units have the same weights


def test_what_only_changes_measuring_changes_the_key_and_not_the_training_key():
    plain = invented_plan(small_study())
    for changes in ({"evaluation.flip": True}, {"evaluation.ratios": (0.2, 0.9)}, {"pe.evaluate_stride": 8}):
        changed = invented_plan(small_study(), changes=changes)
        pairs = list(zip(plain.units.values(), changed.units.values(), strict=True))
        assert all(one.key != two.key and one.training_key == two.training_key for one, two in pairs)
    keys = {unit.training_key for unit in plain.units.values()}
    assert len(keys) == len(plain.units)


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 1e-3},
        {"pe.evaluate_targets": 4, "pe.evaluate_stride": 8},
        {"pe.jitter": 0.01},
        {"split_seed": 1},
    ],
)
def test_what_changes_weights_changes_the_training_key(changes):
    plain, changed = invented_plan(small_study()), invented_plan(small_study(), changes=changes)
    keys = [{unit.training_key for unit in plan.units.values()} for plan in (plain, changed)]
    assert not keys[0] & keys[1]


def test_where_validations_choose_among_checkpoints_measuring_is_part_of_training():
    several = {"evaluate_every": 2, "validation_subjects": 1}
    plain, changed = (invented_plan(small_study(), changes=several | flip) for flip in ({}, {"evaluation.flip": True}))
    keys = [{unit.training_key for unit in plan.units.values()} for plan in (plain, changed)]
    assert not keys[0] & keys[1]


# --- another way to measure


@pytest.fixture(scope="module")
def measured(bench, tmp_path_factory):
    """A storage on which a joint training and a fine-tuning were measured in one way and then in another."""
    storage = tmp_path_factory.mktemp("measured")
    for changes in ({}, RATIOS | FLIP):
        plan = plan_of(bench, **changes)
        for unit in (pick(plan, "joint", arm="base"), pick(plan, "finetune", "pe", "base")):
            if changes:
                with pytest.MonkeyPatch.context() as patched:
                    refuse_to_train(patched)
                    assert run(bench, plan, unit, storage).status == "finished"
            else:
                assert run(bench, plan, unit, storage).status == "finished"
    return storage


@pytest.mark.slow
def test_other_ratios_are_measured_on_the_weights_that_are_there_without_a_training_step(bench, measured):
    ledger = Ledger(measured)
    before, after = plan_of(bench), plan_of(bench, **RATIOS | FLIP)
    for kind in (("joint", "", "base"), ("finetune", "pe", "base")):
        old, new = pick(before, *kind), pick(after, *kind)
        assert old.key != new.key and nothing_was_trained(ledger, new)
        record, trained = ledger.finished(new), ledger.finished(old)
        assert record.about["trained_by"] == old.key and record.about["train_seconds"] == 0
        assert record.about["config"] == new.config.canonical()
        assert record.about["source"] == source_identity() == trained.about["source"]
        assert record.routes == trained.routes
        assert_same_tensors(chosen(measured, new), chosen(measured, old))
    assert "test/eap/top1@0.9" in ledger.finished(pick(after, "joint", arm="base")).metrics
    assert "test/eap/top1@0.9" not in ledger.finished(pick(before, "joint", arm="base")).metrics


@pytest.mark.slow
def test_metrics_are_those_of_training_again_and_of_the_evaluate_command(bench, measured, tmp_path):
    plan = plan_of(bench, **RATIOS | FLIP)
    joint, child = pick(plan, "joint", arm="base"), pick(plan, "finetune", "pe", "base")
    for unit in (joint, child):
        assert run(bench, plan, unit, tmp_path).status == "finished"
        record, anew = Ledger(measured).finished(unit), Ledger(tmp_path).finished(unit)
        assert record.metrics == anew.metrics
        assert_same_tensors(chosen(measured, unit), chosen(tmp_path, unit))
        metrics, _, _ = evaluate(Ledger(measured).weights(unit, record), dict(bench.data), "test", "cpu")
        assert {f"test/{name}": value for name, value in metrics.items()} == {
            name: value for name, value in record.metrics.items() if name.startswith("test/") and name != "test/score"
        }


@pytest.mark.slow
def test_measured_weights_serve_children_and_predictions_as_trained_ones_do(bench, measured, tmp_path):
    plan = plan_of(bench, **RATIOS | FLIP)
    joint, child = pick(plan, "joint", arm="base"), pick(plan, "finetune", "ar3d", "base")
    assert run(bench, plan, child, measured).status == "finished"
    for unit in (joint, child):
        assert run(bench, plan, unit, tmp_path).status == "finished"
    assert_same_tensors(chosen(measured, child), chosen(tmp_path, child))
    _, config, state = load_model(find_weights(joint.key, measured), torch.device("cpu"))
    assert state["key"] == joint.key and config == joint.config


@pytest.mark.slow
def test_weights_of_other_code_are_not_taken(bench, tmp_path, code):
    before, after = plan_of(bench), plan_of(bench, **RATIOS)
    old, new = pick(before, "separate", "eap"), pick(after, "separate", "eap")
    ledger = Ledger(tmp_path / "storage")
    assert run(bench, before, old, tmp_path / "storage").status == "finished"
    code.edit_training()
    assert run(bench, after, new, tmp_path / "storage").status == "finished"
    assert not nothing_was_trained(ledger, new) and "trained_by" not in ledger.finished(new).about
    # And from here on the index names the unit of the present code.
    third = plan_of(bench, **{"evaluation.ratios": "0.5,0.8"})
    assert run(bench, third, pick(third, "separate", "eap"), tmp_path / "storage").status == "finished"
    assert ledger.finished(pick(third, "separate", "eap")).about["trained_by"] == new.key


@pytest.mark.slow
def test_a_unit_trains_where_the_weights_of_the_index_are_gone(bench, tmp_path):
    before, after = plan_of(bench), plan_of(bench, **RATIOS)
    old, new = pick(before, "separate", "eap"), pick(after, "separate", "eap")
    ledger = Ledger(tmp_path)
    assert run(bench, before, old, tmp_path).status == "finished"
    file = ledger.weights(old, ledger.finished(old)) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert run(bench, after, new, tmp_path).status == "finished"
    assert not nothing_was_trained(ledger, new) and "trained_by" not in ledger.finished(new).about


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["measuring", "between result and record"])
def test_a_unit_killed_while_it_is_measured_is_complete_after_the_next_call(moment, bench, tmp_path, monkeypatch):
    before, after = plan_of(bench), plan_of(bench, **RATIOS)
    old, new = pick(before, "separate", "eap"), pick(after, "separate", "eap")
    ledger = Ledger(tmp_path)
    assert run(bench, before, old, tmp_path).status == "finished"
    name = (
        "ups_model.evaluation.remeasure.measure"
        if moment == "measuring"
        else "orchestrator.storage.ledger.Ledger.write"
    )
    program = (
        "import os, signal, sys, importlib; from unittest.mock import patch\n"
        "from orchestrator.worker.run_unit import *\n"
        f"with patch({name!r}, lambda *given: os.kill(os.getpid(), signal.SIGKILL)):\n"
        "    run_unit(Job.from_json(sys.stdin.read()), bool)"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    job = job_of(bench, after, new, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", program], input=job.to_json(), env=environment, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert ledger.record(new) is None
    assert (ledger.folder(new) / "result.json").exists() is (moment != "measuring")
    refuse_to_train(monkeypatch)
    assert run(bench, after, new, tmp_path).status == "finished"
    record = ledger.finished(new)
    assert record.about["trained_by"] == old.key and "test/eap/top1@0.9" in record.metrics
    assert record.about["source"] == source_identity()


# --- other code that measures


@pytest.mark.slow
def test_metrics_of_other_code_are_measured_again_and_all_that_was_said_of_training_stays(
    bench, tmp_path, code, monkeypatch
):
    plan, storage = plan_of(bench), tmp_path / "storage"
    unit, ledger = pick(plan, "separate", "pe"), Ledger(tmp_path / "storage")
    assert run(bench, plan, unit, storage).status == "finished"
    before, curve = ledger.finished(unit), (ledger.folder(unit) / PROGRESS).read_bytes()
    code.edit_evaluation()
    for module in (ups_model.evaluation.remeasure, ups_model.evaluation.measure):
        monkeypatch.setattr(module, "measure", lambda *args: {"pe/mpjpe_mm": 7.0})
    refuse_to_train(monkeypatch)
    assert SourceCheck(ledger).standing([unit]).to_measure == (unit.key,)
    assert run(bench, plan, unit, storage).status == "finished"
    after = ledger.finished(unit)
    assert after.metrics["test/pe/mpjpe_mm"] == 7.0 and "test/pe/p_mpjpe_mm" not in after.metrics
    assert after.about["source"] == source_identity() != before.about["source"]
    assert after.about["source"]["training"] == before.about["source"]["training"]
    for name in ("train_seconds", "started", "ended", "host", "device", "chosen_step", "parameters"):
        assert after.about[name] == before.about[name], name
    assert (ledger.folder(unit) / PROGRESS).read_bytes() == curve
    assert SourceCheck(ledger).standing([unit]).to_measure == ()


@pytest.mark.slow
def test_without_weights_a_record_of_other_evaluation_code_stays(bench, tmp_path, code):
    plan, storage = plan_of(bench), tmp_path / "storage"
    unit, ledger = pick(plan, "separate", "pe"), Ledger(tmp_path / "storage")
    assert run(bench, plan, unit, storage).status == "finished"
    record = ledger.finished(unit)
    (ledger.weights(unit, record) / "state.json").unlink()
    code.edit_evaluation()
    standing = SourceCheck(ledger).standing([unit])
    assert (standing.to_measure, standing.without_weights) == ((), (unit.key,))
    assert SourceCheck(ledger).is_current(unit, record)
    assert not SourceCheck(ledger, "retrain").is_current(unit, record)


# --- other code that trains


@pytest.mark.slow
def test_a_half_trained_unit_of_other_code_waits_for_a_word_and_then_names_both_sources(bench, tmp_path, code):
    plan, storage = plan_of(bench), tmp_path / "storage"
    unit, ledger = pick(plan, "joint"), Ledger(tmp_path / "storage")
    assert run(bench, plan, unit, storage, stop_at(5)).status == "stopped"
    old = source_identity()["training"]
    code.edit_training()
    new = source_identity()["training"]
    assert SourceCheck(ledger).standing([unit]).begun_otherwise == {unit.key: old}
    outcome = run(bench, plan, unit, storage)
    assert outcome.status == "failed" and old in outcome.error and "--retrain" in outcome.error
    assert ledger.record(unit) is None
    assert with_policy(bench, plan, unit, storage, "accept").status == "finished"
    assert ledger.finished(unit).about["source"]["training"] == f"{old} then {new}"
    assert "resuming at step 5 of 12" in (ledger.folder(unit) / "log.txt").read_text()


@pytest.mark.slow
def test_retraining_a_half_trained_unit_begins_at_the_first_step(bench, tmp_path, code):
    plan, storage = plan_of(bench), tmp_path / "storage"
    unit, ledger = pick(plan, "joint"), Ledger(tmp_path / "storage")
    assert run(bench, plan, unit, storage, stop_at(5)).status == "stopped"
    code.edit_training()
    assert with_policy(bench, plan, unit, storage, "retrain", stop_at(3)).status == "stopped"
    # What was begun anew is gone on with.
    assert with_policy(bench, plan, unit, storage, "retrain").status == "finished"
    log = (ledger.folder(unit) / "log.txt").read_text()
    assert "resuming at step 3 of 12" in log and "resuming at step 5" not in log
    assert ledger.finished(unit).about["source"] == source_identity()
    rows = [json.loads(line) for line in (ledger.folder(unit) / PROGRESS).read_text().splitlines()]
    assert [row["step"] for row in rows if "learning_rate" in row] == list(range(1, 13))


@pytest.mark.slow
def test_retraining_keeps_the_old_record_and_takes_children_along(bench, tmp_path, code):
    plan, storage = plan_of(bench), tmp_path / "storage"
    parent, child = pick(plan, "joint", arm="base"), pick(plan, "finetune", "pe", "base")
    ledger = Ledger(storage)
    for unit in (parent, child):
        assert run(bench, plan, unit, storage).status == "finished"
    texts = {unit.key: (ledger.folder(unit) / RECORD).read_bytes() for unit in (parent, child)}
    old = source_identity()["training"]
    code.edit_training()
    assert with_policy(bench, plan, parent, storage, "retrain").status == "finished"
    # Killed here: the child is of other code until it has been trained again.
    assert list(SourceCheck(ledger).standing(plan.units.values()).trained_otherwise) == [child.key]
    assert with_policy(bench, plan, child, storage, "retrain").status == "finished"
    for unit in (parent, child):
        assert (ledger.folder(unit) / f"record-{old}.json").read_bytes() == texts[unit.key]
        assert ledger.finished(unit).about["source"] == source_identity()
    assert not SourceCheck(ledger).standing(plan.units.values()).is_mixed


@pytest.mark.slow
def test_a_child_of_accepted_weights_names_its_parents_code_and_is_other_code_itself(bench, tmp_path, code):
    plan, storage = plan_of(bench), tmp_path / "storage"
    parent, child = pick(plan, "joint", arm="base"), pick(plan, "finetune", "pe", "base")
    ledger = Ledger(storage)
    assert run(bench, plan, parent, storage).status == "finished"
    old = source_identity()["training"]
    code.edit_training()
    assert with_policy(bench, plan, parent, storage, "accept").status == "finished"
    assert ledger.finished(parent).about["source"]["training"] == old
    assert with_policy(bench, plan, child, storage, "accept").status == "finished"
    assert ledger.finished(child).about["source"]["training"] == f"{old} then {source_identity()['training']}"
    assert set(SourceCheck(ledger).standing(plan.units.values()).trained_otherwise) == {parent.key, child.key}


@pytest.mark.slow
def test_the_weights_of_a_retrained_unit_are_those_of_a_new_one(bench, tmp_path, code):
    plan, storage = plan_of(bench), tmp_path / "storage"
    unit = pick(plan, "separate", "pe")
    assert run(bench, plan, unit, storage).status == "finished"
    before = weights(Ledger(storage).folder(unit) / Ledger(storage).finished(unit).checkpoint)
    code.edit_training()  # What is digested, not what runs: so the same bits must come out.
    assert with_policy(bench, plan, unit, storage, "retrain").status == "finished"
    assert_same_tensors(chosen(storage, unit), before)
