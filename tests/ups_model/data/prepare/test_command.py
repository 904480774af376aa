"""The command `python -m ups_model.data`, and `prepare` as a function."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from ups_model.data import ClipSet, prepare
from ups_model.data.__main__ import main
from ups_model.data.prepare import catalog as sources
from ups_model.data.readers.detect import read_recording
from ups_model.data.readers.keypoints import reader as keypoints
from ups_model.data.readers.motion import reader as motion
from ups_model.skeletons import get_skeleton


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    assert main(["prepare", "synthetic", "--out", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_preparing_again_keeps_what_is_there_and_says_so(cache, capsys):
    inodes = [path.stat().st_ino for path in sorted(cache.rglob("*.npy"))]
    assert main(["prepare", "synthetic", "--out", str(cache)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("already prepared") == 3
    assert inodes == [path.stat().st_ino for path in sorted(cache.rglob("*.npy"))]
    row = next(line for line in printed.splitlines() if line.startswith("synthetic_h36m17 "))
    assert row.split()[1:7] == ["240", "120", "120", "12", "10", "1"] and row.split()[8] == "4"


@pytest.mark.slow
def test_a_damaged_set_is_prepared_again(tmp_path):
    path = prepare("synthetic_h36m17", out=tmp_path)
    before = ClipSet.open(path).fingerprint
    (path / "label.npy").unlink()
    assert prepare("synthetic_h36m17", out=tmp_path) == path
    assert ClipSet.open(path).fingerprint == before


def test_seeds_do_not_replace_each_other(cache):
    path = prepare("synthetic_h36m17", out=cache, seed=9)
    assert path.name == "synthetic_h36m17-seed9"
    assert ClipSet.open(path).fingerprint != ClipSet.open(cache / "synthetic_h36m17").fingerprint


def test_a_mistyped_name_and_a_group_are_refused_by_the_function(tmp_path):
    with pytest.raises(ValueError, match="unknown data 'synthetic_ntu52'; try synthetic_ntu25"):
        prepare("synthetic_ntu52", out=tmp_path)
    with pytest.raises(ValueError, match="one set at a time, got the group 'open'; it is uiprmd, utd_mhad, jhmdb"):
        prepare("open", out=tmp_path)


def test_list_shows_known_sources_and_prepared_sets(cache, capsys):
    assert main(["list", str(cache)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in sources.SOURCES) and "needs uiprmd_vicon17.npz" in printed
    assert ClipSet.open(cache / "synthetic_ntu25").fingerprint[:16] in printed


def test_list_of_an_empty_folder_says_so(tmp_path, capsys):
    assert main(["list", str(tmp_path / "nowhere")]) == 0
    assert "no prepared sets" in capsys.readouterr().out


@pytest.mark.slow
def test_verify_reports_every_folder_and_fails_on_a_damaged_one(tmp_path, cache, capsys):
    path = prepare("synthetic_h36m17", out=tmp_path)
    raw = bytearray((path / "keypoints.npy").read_bytes())
    raw[5000] ^= 1
    (path / "keypoints.npy").write_bytes(raw)
    assert main(["verify", str(path), str(cache / "synthetic_ntu25")]) == 1
    output = capsys.readouterr()
    assert "synthetic_ntu25: ok, 480 clips" in output.out
    assert "keypoints.npy: content differs" in output.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "jhmd"], "unknown data 'jhmd'; try jhmdb"),
        (["prepare", "jhmdb"], "give their folder with --source"),
        (["prepare", "synthetic", "jhmdb", "--source", "/nowhere"], "/nowhere/jhmdb2d15.npz: no such file"),
        (["prepare", "synthetic", "--seed", "-3"], "--seed must be >= 0, got -3"),
        (["verify", "/nowhere"], "/nowhere: no such folder"),
    ],
)
def test_bad_usage_ends_with_2_and_one_line_before_anything_starts(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setenv("UPS_CACHE", str(tmp_path))
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_source_ends_with_1_and_one_line(tmp_path, capsys):
    (tmp_path / "jhmdb2d15.npz").write_bytes(b"PK not a zip file")
    assert main(["prepare", "jhmdb", "--source", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("UPS_CACHE", str(tmp_path / "elsewhere"))
    assert sources.default_cache() == tmp_path / "elsewhere"
    monkeypatch.delenv("UPS_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sources.default_cache() == tmp_path / ".cache" / "ups" / "clips"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["ups_model.data list {0}", "ups_model.predict none {0}/synthetic_ntu25 --list"])
def test_output_into_a_pipe_that_is_closed_early_ends_quietly(cache, command):
    command = f"{sys.executable} -m {command.format(cache)}"
    for reader in ("head -1", "true"):
        finished = subprocess.run(
            ["bash", "-o", "pipefail", "-c", f"{command} | {reader}"], capture_output=True, text=True, timeout=60
        )
        assert finished.stderr == "" and finished.returncode in (0, 141)


@pytest.mark.slow
def test_the_command_runs_without_torch_and_prints_no_progress_into_a_pipe(tmp_path):
    code = "import sys; sys.modules['torch'] = None\n"  # so that importing it fails
    code += "from ups_model.data.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "prepare", "synthetic_h36m17", "--out", str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0 and finished.stderr == "" and "prepared at" in finished.stdout


def test_the_table_of_the_users_files_names_every_set_that_is_made_of_them(repo_root):
    text = (repo_root / "docs" / "your-data.md").read_text("utf-8")
    table = text[text.index("## Your file, and the command") : text.index("## What is read")]
    named = set(re.findall(r"prepare (\w+) --source DIR", table))
    assert named - sources.SOURCES.keys() - sources.GROUPS.keys() == set()
    assert {*sources.OWN_SETS, "ntu", "h36m", "kinetics"} == named
    endings = set(re.findall(r"`(?:\*_keypoints)?(\.[a-z0-9]+)`", table))
    assert {*motion.SUFFIXES, *keypoints.SUFFIXES, ".bvh", ".skeleton"} <= endings


def test_the_options_of_prepare_that_the_documentation_names_are_there(repo_root, capsys):
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    printed = capsys.readouterr().out
    text = (repo_root / "docs" / "your-data.md").read_text("utf-8")
    for option in ("--source", "--missing", "--metres-per-unit", "--fps", "--workers", "--out"):
        assert option in printed and option in text
    assert all(name in printed for name in sources.OWN_SETS)


def test_a_rate_for_a_set_whose_rate_is_known_is_refused(tmp_path, capsys):
    assert main(["prepare", "ntu60", "--source", str(tmp_path), "--fps", "25"]) == 2
    assert "--fps says nothing to ntu60, whose frame rate is known; leave it out" in capsys.readouterr().err
    assert main(["prepare", "keypoints", "--source", str(tmp_path), "--fps", "0"]) == 2
    assert "--fps must be in 1..1000 frames per second, got 0" in capsys.readouterr().err


def own_motion(folder, clips=("kick/a", "kick/b", "wave/c", "wave/d"), seed=0):
    """Files of 3D motion, a folder a class."""
    moving = np.random.default_rng(seed).normal(0, 0.01, (12, 17, 3)) + np.linspace(0, 1.7, 17)[:, None]
    for clip in clips:
        (folder / clip).parent.mkdir(parents=True, exist_ok=True)
        names = get_skeleton("h36m17").joint_names
        np.savez(
            folder / f"{clip}.npz", positions=moving * (1 + len(clip) / 100), joint_names=np.array(names), up_axis="z"
        )
    return folder


def refusal(capsys, *arguments):
    assert main(["prepare", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_a_place_that_cannot_be_written_to_is_refused_before_anything_is_read(tmp_path, capsys):
    source = own_motion(tmp_path / "source")
    (tmp_path / "file").write_text("mine")
    error = refusal(capsys, "motion", "--source", source, "--out", tmp_path / "file" / "sub")
    assert "can't be written to" in error and "name another folder with --out" in error
    (tmp_path / "out" / "motion").mkdir(parents=True)
    (tmp_path / "out" / "motion" / "thesis.tex").write_text("mine")
    error = refusal(capsys, "motion", "--source", source, "--out", tmp_path / "out")
    assert "holds files that are not a clip set; name another folder with --out" in error
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["motion"]
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "new").exists()


def test_another_source_of_ones_own_says_that_it_replaces_the_set(tmp_path, capsys):
    first, second = own_motion(tmp_path / "first"), own_motion(tmp_path / "second", ("run/a", "run/b", "sit/c"))
    for source, replaced in ((first, False), (first, False), (second, True)):
        assert main(["prepare", "motion", "--source", str(source), "--out", str(tmp_path / "out")]) == 0
        said = f"motion: replaces the set at {tmp_path / 'out' / 'motion'}" in capsys.readouterr().out
        assert said == replaced


def test_subjects_of_some_clips_alone_are_refused_by_the_clips_name(tmp_path, capsys):
    source = own_motion(tmp_path / "source")
    (source / "subjects.csv").write_text("clip,subject\nkick/a,Ann\nkick/b,Bob\nwave/c,Ann\n")
    error = refusal(capsys, "motion", "--source", source, "--out", tmp_path / "out")
    assert "subjects must be known for all clips or for none, got none of 1 clip, the first 'wave/d'" in error
    assert "add them to subjects.csv" in error and not (tmp_path / "out").exists()


def test_a_table_without_a_test_clip_is_told(tmp_path, capsys):
    source = own_motion(tmp_path / "source")
    rows = "".join(f"{clip},train\n" for clip in ("kick/a", "kick/b", "wave/c", "wave/d"))
    (source / "splits.csv").write_text("clip,split\n" + rows)
    assert main(["prepare", "motion", "--source", str(source), "--out", str(tmp_path / "out")]) == 0
    assert "leave no test clips: a set to train on needs both kinds" in capsys.readouterr().out


def test_predicting_from_a_pipe_does_not_wait_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ValueError, match=r"pipe\.json: not a file"):
        read_recording(tmp_path / "pipe.json")


def test_copies_of_a_training_clip_among_the_test_clips_are_told(tmp_path, capsys):
    source = own_motion(tmp_path / "source", ("train/kick/a", "train/wave/b1", "test/wave/c2222"))
    shutil.copy(source / "train" / "kick" / "a.npz", source / "test" / "wave" / "d.npz")
    for _ in range(2):
        assert main(["prepare", "motion", "--source", str(source), "--out", str(tmp_path / "out")]) == 0
        told = "1 test clip has the content of training clips, the first 'test/wave/d' that of 'train/kick/a'"
        assert told in capsys.readouterr().out
    (source / "test" / "wave" / "d.npz").unlink()
    assert main(["prepare", "motion", "--source", str(source), "--out", str(tmp_path / "out")]) == 0
    assert "the content of" not in capsys.readouterr().out
