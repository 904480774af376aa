"""What `--plan` says of memory and cost."""

from pathlib import Path

import pytest

from orchestrator import ablate
from orchestrator.planning.describe import memory_notes
from orchestrator.project import Fitting, Gpus
from orchestrator.ups.sizes import fitting
from tests.support.paper_sets import write_paper_sets
from ups_model.config.presets import paper
from ups_model.data.format.clip_set import ClipSet

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_paper_sets(tmp_path_factory.mktemp("paper"))


@pytest.mark.slow
def test_the_worked_example_is_what_the_command_prints(paths, tmp_path, capsys):
    text = (ROOT / "cluster" / "README.md").read_text("utf-8")
    block = text.split("### What a study of preset `paper` needs")[1].split("```console\n$ ")[1].split("```")[0]
    command, *shown = [line for line in block.splitlines() if line and line != "..."]
    data = [f"--data={name}={path}" for name, path in paths.items()]
    assert ablate.main([*command.split()[3:], *data, "--storage", str(tmp_path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in shown if line not in printed] == []
    assert len(shown) > 15
    assert not list(tmp_path.iterdir()), "a plan leaves nothing behind"


@pytest.mark.slow
def test_a_unit_fits_as_its_options_say(paths):
    sets = {name: ClipSet.open(path) for name, path in paths.items()}
    gib = 2**30
    whole = fitting(paper(), sets, Gpus(400 * gib, 1, 0, "auto"))
    assert whole.task == "ar2d" and whole.at_once == whole.clips == 1024 and not whole.activation_checkpointing
    auto = fitting(paper(), sets, Gpus(16 * gib, 4, "auto", "auto"))
    assert auto.clips == 256 and 8 <= auto.at_once < 256 and auto.peak <= 0.9 * 16 * gib
    assert fitting(paper(), sets, Gpus(16 * gib, 4, 16, "auto")).at_once == 16
    small = fitting(paper(), sets, Gpus(4.5 * gib, 4, "auto", "auto"))
    assert (
        small.activation_checkpointing
        and small.at_once > fitting(paper(), sets, Gpus(4.5 * gib, 4, "auto", "off")).at_once
    )


def test_notes_tell_what_does_not_fit():
    gpus = Gpus(16e9, 8, 0, "auto")
    fits = Fitting("ar2d", 12e9, 128, 128, 12e9, False)
    cut = Fitting("ar2d", 40e9, 128, 40, 14e9, True)
    assert len(memory_notes([fits], gpus)) == 1
    assert memory_notes([fits, cut], gpus)[1:] == [
        "*: layers are computed again in the backward pass (activation checkpointing).",
        "whole batches don't fit; run with --micro-batch auto, which takes about so many clips at once",
    ]
    told = memory_notes([Fitting("pe", 90e9, 128, 128, 90e9, False)], Gpus(16e9, 8, 128, "off"))[-1]
    assert "the largest needs 90.0 GB of the 14.4 GB planned for; give --micro-batch auto" in told
