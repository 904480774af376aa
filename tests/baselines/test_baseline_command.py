"""`python -m baselines`: what it trains, reports and refuses."""

import pytest

from baselines.__main__ import main
from tests.support.runs import POSE, SOLID

TOY = [
    "dd_net", "--preset", "small", "--set", f"data.ar3d.sources={SOLID}", "--set", "steps=2", "--set", "width=4",
    "--device", "cpu",
]  # fmt: skip


def test_a_run_is_trained_and_reported_and_the_same_command_only_reports(toy_sets, tmp_path, capsys):
    command = [*TOY, "--data", f"{SOLID}={toy_sets[SOLID]}", "--out", str(tmp_path)]
    assert main([*command, "--no-test"]) == 0
    untested = capsys.readouterr().out.replace(str(tmp_path), "")
    assert "finished at step 2" in untested and "validation" in untested and "test" not in untested
    assert main(command) == 0
    assert "test" in capsys.readouterr().out


def test_a_stopped_run_says_so_and_ends_with_1(toy_sets, tmp_path, capsys, monkeypatch):
    class StopAtOnce:
        def __call__(self):
            return True

    monkeypatch.setattr("baselines.__main__.StopOnSignal", StopAtOnce)
    assert main([*TOY, "--data", f"{SOLID}={toy_sets[SOLID]}", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().out.startswith("stopped at step 1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "pe"], "system for task pe must be one of residual_mlp, videopose3d, got dd_net"),
        (["--set", "stepz=3"], "unknown field 'stepz'; near: steps"),
        (["--data", "other=."], f"--data other: no task uses this clip set; used are {SOLID}"),
        ([], f"clip set '{SOLID}' is not prepared: give --data {SOLID}=PATH"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(arguments, message, capsys):
    assert main([*TOY, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_the_multitask_network_is_trained_by_the_same_command(toy_sets, tmp_path, capsys):
    small = ["pe.sources=" + POSE, "pe.frame_stride=1", "pe.evaluate_stride=4", "steps=1"]
    fields = [word for field in small for word in ("--set", field)]
    command = ["multitask", "--preset", "tiny", *fields, "--data", f"{POSE}={toy_sets[POSE]}", "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "finished at step 1" in printed and "mpjpe_mm@exit1" in printed and "top1@exit4" in printed
    assert main([*command, "--task", "ar3d"]) == 2
    assert "task must be pe, whose windows have poses and classes, got ar3d" in capsys.readouterr().err
