"""The figure of speed and accuracy of each exit."""

import json

import pytest

from baselines.multitask.config import base
from baselines.multitask.learner import Multitask
from baselines.train import train
from tests.support.runs import POSE


@pytest.fixture
def exits(repo_root, monkeypatch):
    monkeypatch.syspath_prepend(repo_root / "benchmarks")
    import exits

    return exits


@pytest.fixture(scope="module")
def run(toy_sets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exits")
    changes = {"pe.sources": (POSE,), "pe.frame_stride": 1, "pe.evaluate_stride": 4, "steps": 2}
    train(base("tiny").with_fields(changes), toy_sets, folder=folder, learner=Multitask, device="cpu")
    return folder


@pytest.mark.slow
def test_every_exit_has_a_speed_and_its_own_accuracy(exits, run, tmp_path, capsys):
    assert exits.main([str(run), "--rounds", "3", "--seconds", "0.02", "--svg", str(tmp_path / "exits.svg")]) == 0
    lines = exits.measure([run], rounds=3, seconds=0.02)
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert [line.number for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert line.mpjpe_mm == metrics[f"test/pe/mpjpe_mm@exit{line.number}"]
        assert line.top1 == metrics[f"test/action/top1@exit{line.number}"]
        assert min(line.window, line.poses, line.batch) > 0
    assert lines[0].window > lines[-1].window
    text = capsys.readouterr().out
    assert text.count("\nexit ") == 4 and "240" in text and "63.9" in text
    drawn = (tmp_path / "exits.svg").read_text()
    assert "exit 4" in drawn and "180 frames/s" in drawn


def test_accuracy_is_the_mean_of_runs_and_of_validation_where_nothing_was_tested(exits, tmp_path):
    for name, value in (("one", 40.0), ("other", 50.0)):
        (tmp_path / name).mkdir()
        metrics = {"validation/pe/mpjpe_mm@exit1": value}
        (tmp_path / name / "result.json").write_text(json.dumps({"metrics": metrics}))
    assert exits.accuracies([tmp_path / "one", tmp_path / "other"], 1) == (45.0, None)


def test_a_folder_without_a_run_is_one_line(exits, tmp_path, capsys):
    assert exits.main([str(tmp_path)]) == 2
    assert "result.json" in capsys.readouterr().err
