"""The commands as their users run them: what is refused, and how; training, resuming, fine-tuning, measuring."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ups_model.evaluate
import ups_model.train
import ups_model.training.run
from tests.support.drivers import command_of, descendants, wait_until
from tests.support.runs import assert_same_run, newest, session_folder, weights
from tests.support.writers_own import bvh_text, rest_frames, write_text
from ups_model.cli import alone_in, read_config
from ups_model.config.presets import preset
from ups_model.data.__main__ import main as data_command

SMALL = {
    "token_width": 8,
    "tokenizer_layers": 1,
    "encoder_layers": 1,
    "tem_width": 16,
    "decoder_layers": 1,
    "decoder_width": 16,
    "n_bins": 10,
    "ar3d.frames": 8,
    "ar3d.batch_size": 4,
    "eap.frames": 8,
    "eap.batch_size": 4,
    "ar2d.frames": 8,
    "ar2d.batch_size": 4,
    "pe.batch_size": 4,
    "pe.evaluate_targets": 9,
    "pe.evaluate_stride": 18,
    "evaluation.ratios": "0.5",
    "evaluation.decoding": "parallel",
    "validation_subjects": 0,
}
"""The tiny preset made so small that a step takes milliseconds."""


def tiny(out, *more, steps=6, task="ar3d"):
    """Arguments of a run; without a task it is the joint run."""
    fields = [part for name, value in (SMALL | {"steps": steps}).items() for part in ("--set", f"{name}={value}")]
    alone = [] if task is None else ["--task", task]
    return ["--preset", "tiny", "--device", "cpu", "--out", str(out), *alone, *fields, *more]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return session_folder(tmp_path_factory, "cache")


@pytest.fixture(scope="module", autouse=True)
def as_a_user(cache):
    """Clip sets and text features in a folder of the session; one thread; signal handlers given back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    threads, before = torch.get_num_threads(), os.environ.get("UPS_CACHE")
    torch.set_num_threads(1)
    os.environ["UPS_CACHE"] = str(cache)
    yield
    torch.set_num_threads(threads)
    os.environ.pop("UPS_CACHE")
    if before is not None:
        os.environ["UPS_CACHE"] = before
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    """The folder of a finished run of all four tasks."""
    out = tmp_path_factory.mktemp("runs") / "joint"
    assert ups_model.train.main(tiny(out, task=None)) == 0
    return out


@pytest.fixture(scope="module")
def chosen(joint):
    """The chosen weights of the joint run."""
    return joint / "best" / "step-00000006"


def subprocess_environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


def tree(folder):
    """Every file below a folder with what it holds, and every folder."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def refusal(main, arguments, capsys):
    """The one line that a refused command prints."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and printed.err.endswith("\n")
    return printed.err.removeprefix("error: ").rstrip()


# --- what training refuses


EARLY = {
    "no preset": (
        lambda out: ["--out", out],
        "give one of --preset (tiny, small, paper, paper_twin) and --config FILE",
    ),
    "preset and config": (lambda out: [*tiny(out), "--config", "x.json"], "give one of --preset"),
    "no such config": (lambda out: ["--config", "nowhere.json", "--out", out], "nowhere.json: not a configuration"),
    "unknown field": (
        lambda out: tiny(out, "--set", "learning_rat=1"),
        "unknown field 'learning_rat'; near: learning_rate",
    ),
    "ambiguous field": (
        lambda out: tiny(out, "--set", "frames=9"),
        "field 'frames' is ambiguous: write one of data.pe.frames, data.ar2d.frames, data.eap.frames, data.ar3d.frames",
    ),
    "no value": (lambda out: tiny(out, "--set", "seed"), "--set takes FIELD=VALUE, got 'seed'"),
    "field twice": (lambda out: tiny(out, "--set", "steps=7"), "--set steps is given twice, '6' and '7'; keep one"),
    "field twice in two spellings": (
        lambda out: tiny(out, "--set", "optim.steps=7"),
        "field optim.steps is given twice; keep one",
    ),
    "no processes": (lambda out: tiny(out, "--processes", "0"), "--processes must be at least 1, got 0"),
    "processes on one GPU": (
        lambda out: [*tiny(out, "--processes", "2"), "--device", "cuda:1"],
        "--device must name no single GPU for 2 processes, got cuda:1; try cuda",
    ),
    "more processes than clips": (
        lambda out: tiny(out, "--processes", "5"),
        "data.ar3d.batch_size must be at least the number of processes, got 4 and 5",
    ),
    "out of range": (lambda out: tiny(out, "--set", "dropout=1.5"), "dropout must lie in [0, 0.99], got 1.5"),
    "not a number": (
        lambda out: tiny(out, "--set", "learning_rate=fast"),
        "learning_rate must be a number, got 'fast'",
    ),
    "one bin": (
        lambda out: ["--preset", "tiny", "--out", out, "--set", "n_bins=1"],
        "n_bins must be at least 2, got 1; the paper's order is 500",
    ),
    "indivisible width": (
        lambda out: ["--preset", "paper", "--out", out, "--set", "decoder_width=250"],
        "decoder_width must be divisible by decoder_heads, got 250 and 8; try 256",
    ),
    "all faults at once": (
        lambda out: ["--preset", "tiny", "--out", out, "--set", "dropout=2", "--set", "n_bins=1"],
        "the paper's order is 500; ModelConfig: dropout must lie in [0, 0.99], got 2.0",
    ),
    "unused set": (
        lambda out: tiny(out, "--data", "ntu120=/data"),
        "--data ntu120: no task uses this clip set; used are synthetic_h36m17, synthetic_openpose18, synthetic_ntu25",
    ),
    "set twice": (
        lambda out: tiny(out, "--data", "synthetic_ntu25=a", "--data", "synthetic_ntu25=b"),
        "--data synthetic_ntu25 is given twice, 'a' and 'b'; keep one",
    ),
    "set without a folder": (lambda out: tiny(out, "--data", "synthetic_ntu25"), "--data takes NAME=PATH"),
    "set not prepared": (
        lambda out: ["--preset", "small", "--out", out],
        "clip set 'uiprmd' is not prepared: give --data uiprmd=PATH or run python -m ups_model.data prepare uiprmd",
    ),
    "set without a reader": (
        lambda out: ["--preset", "paper", "--out", out],
        "clip set 'h36m' is not prepared: give --data h36m=PATH",
    ),
    "negative seed": (lambda out: tiny(out, "--seed", "-1"), "seed must be at least 0, got -1"),
    "no checkpoints": (lambda out: tiny(out, "--checkpoint-every", "0"), "--checkpoint-every must be at least 1"),
    "parallel without masks": (
        lambda out: tiny(out, "--set", "mask_inputs=false"),
        "evaluation.decoding='parallel' needs optim.mask_inputs=True, got False",
    ),
}
"""Known from the arguments alone."""

LATE = {
    "not a clip set": (
        lambda out, parent: tiny(out, "--data", f"synthetic_ntu25={out.parent}"),
        "clips.json",
    ),
    "another clip set": (
        lambda out, parent: tiny(out, "--data", f"synthetic_ntu25={os.environ['UPS_CACHE']}/synthetic_h36m17"),
        "expected clip set 'synthetic_ntu25', got 'synthetic_h36m17'; check --data",
    ),
    "frozen routes without a parent": (
        lambda out, parent: tiny(out, "--set", "freeze_routes=true"),
        "freeze_routes needs a parent whose routes to keep; give --parent or set it to false",
    ),
    "unknown device": (lambda out, parent: tiny(out, "--device", "tpu:9"), "device 'tpu:9' cannot be used here"),
    "no parent there": (lambda out, parent: tiny(out, "--parent", str(out / "step-1")), "not a readable checkpoint"),
    "damaged parent": (lambda out, parent: tiny(out, "--parent", str(parent)), "corrupted checkpoint"),
}
"""Known once clip sets, checkpoints or the device are looked at."""


@pytest.fixture
def damaged(chosen, tmp_path):
    """A copy of chosen weights of which one byte is another."""
    copy = tmp_path / "damaged"
    shutil.copytree(chosen, copy)
    file = copy / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("case", EARLY)
def test_bad_arguments_of_training_are_one_line_and_status_2_and_create_nothing(case, capsys, tmp_path):
    arguments, message = EARLY[case]
    assert message in refusal(ups_model.train.main, arguments(tmp_path / "run"), capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("case", LATE)
def test_bad_data_parents_and_devices_are_one_line_and_status_2(case, damaged, capsys, tmp_path):
    arguments, message = LATE[case]
    assert message in refusal(ups_model.train.main, arguments(tmp_path / "run", damaged), capsys)
    assert not [path for path in tmp_path.rglob("*") if path.name in ("checkpoints", "best", "result.json")]


@pytest.mark.parametrize("case", LATE)
def test_refused_data_parents_and_devices_create_nothing(case, damaged, tmp_path):
    before = tree(tmp_path)
    assert ups_model.train.main(LATE[case][0](tmp_path / "run", damaged)) == 2
    assert tree(tmp_path) == before


def test_a_folder_in_which_another_process_trains_is_refused(capsys, tmp_path):
    with alone_in(tmp_path / "run"):
        said = refusal(ups_model.train.main, tiny(tmp_path / "run"), capsys)
    assert said == f"--out {tmp_path / 'run'}: another process trains there; wait for it, or give another folder"
    assert not list(tmp_path.iterdir())


def test_processes_of_torchrun_start_no_more_of_them(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = refusal(ups_model.train.main, tiny(tmp_path / "run", "--processes", "2"), capsys)
    assert said == "torchrun has started the processes already, got --processes 2; leave it out"


@pytest.mark.slow
def test_ctrl_c_while_processes_start_ends_them_all_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "ups_model.train", *tiny(tmp_path / "run", "--processes", "2", steps=4000)]
    log = (tmp_path / "log").open("w+")
    with subprocess.Popen(
        command, env=subprocess_environment(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    ) as run:
        # It is about to import torch, and whoever starts it is ready to be told.
        wait_until(lambda: any(b"spawn_main" in command_of(pid) for pid in descendants(run.pid)))
        os.killpg(run.pid, signal.SIGINT)
        assert run.wait(120) == 1
    log.seek(0)
    text = log.read()
    assert "Traceback" not in text and "signal SIGINT" not in text, text
    assert "stopped at step" in text


def test_a_folder_that_holds_another_run_is_refused(joint, capsys, tmp_path):
    out = shutil.copytree(joint, tmp_path / "joint")
    message = refusal(ups_model.train.main, tiny(out, task=None, steps=8), capsys)
    assert f"{out} holds another run" in message and "give another --out or delete it" in message
    kept = [path for path in tree(joint) if path.name != "config.json"]
    assert kept and all(tree(out)[out / path.relative_to(joint)] == tree(joint)[path] for path in kept)


def test_a_refused_run_leaves_the_other_runs_configuration_as_it_is(joint, tmp_path):
    out = shutil.copytree(joint, tmp_path / "joint")
    assert ups_model.train.main(tiny(out, task=None, steps=8)) == 2
    assert list(tree(out).values()) == list(tree(joint).values())


@pytest.mark.parametrize("content", ["", "{", "5", "[1, 2]", "null", "{}", '{"recipe": 1, "colour": 2}'])
def test_a_file_that_is_no_configuration_is_refused_by_its_name(content, capsys, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(content)
    message = refusal(ups_model.train.main, ["--config", file, "--out", tmp_path / "run"], capsys)
    assert message.startswith(f"{file}: not a configuration (")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]


def test_a_parent_must_be_chosen_weights_not_a_checkpoint_to_resume_from(joint, capsys, tmp_path):
    message = refusal(ups_model.train.main, tiny(tmp_path / "run", "--parent", str(newest(joint))), capsys)
    assert "not a checkpoint of chosen weights" in message and "give one from the folder best/" in message
    assert not (tmp_path / "run" / "best").exists()


@pytest.mark.parametrize("main", [ups_model.train.main, ups_model.evaluate.main], ids=["train", "evaluate"])
@pytest.mark.parametrize("arguments", [["--colour"], ["--preset", "huge"], ["--seed", "one"]])
def test_an_unknown_flag_or_choice_is_a_usage_error(main, arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("usage: python -m ups_model.") and "error: " in printed.splitlines()[-1]


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_help_has_examples_and_exit_statuses(command, capsys):
    with pytest.raises(SystemExit) as ended:
        {"train": ups_model.train, "evaluate": ups_model.evaluate}[command].main(["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert f"python -m ups_model.{command} " in printed and "exit status: 0 done" in printed


@pytest.mark.slow
def test_in_a_process_of_its_own_a_refusal_is_one_line_and_status_2(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "ups_model.train", *tiny(tmp_path / "run", "--set", "step=7")],
        env=subprocess_environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown field 'step'; near: steps\n"
    assert not list(tmp_path.iterdir())


# --- what evaluation refuses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "n_bins=20"], "only evaluation and data fields can be changed after training, got n_bins"),
        (["--set", "learning_rate=1"], "only evaluation and data fields can be changed after training"),
        (["--set", "seed=3"], "only evaluation and data fields can be changed after training"),
        (["--set", "split_seed=3"], "cannot be changed after training: training clips would be evaluated"),
        (["--set", "validation_subjects=1"], "split_seed and validation_folds cannot be changed after training"),
        (["--set", "flop=true"], "unknown field 'flop'"),
        (["--set", "ratios=1.5"], "ratios must lie in (0, 1], got (1.5,)"),
        (["--data", "ntu=/data"], "--data ntu: no task uses this clip set"),
        (["--part", "validation"], "validation split must have clips, got none"),
        (["--device", "tpu:9"], "device 'tpu:9' cannot be used here"),
        (["--out", "/nowhere/at/all/scores.json"], "--out /nowhere/at/all/scores.json: no such folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments_of_evaluation_are_one_line_and_status_2(arguments, message, chosen, joint, capsys):
    before = tree(joint)
    assert message in refusal(ups_model.evaluate.main, [chosen, *arguments], capsys)
    assert tree(joint) == before


@pytest.mark.slow
def test_evaluate_takes_a_runs_folder_as_predict_does(joint, chosen, capsys):
    assert ups_model.evaluate.main([str(joint), "--device", "cpu"]) == 0
    of_run = capsys.readouterr().out
    assert ups_model.evaluate.main([str(chosen), "--device", "cpu"]) == 0
    assert capsys.readouterr().out == of_run


def test_a_set_of_one_clip_is_refused_with_a_way_out(tmp_path, capsys):
    write_text(tmp_path / "motion" / "walk.bvh", bvh_text(frames=rest_frames(count=30)))
    assert data_command(["prepare", "bvh", "--source", str(tmp_path / "motion"), "--out", str(tmp_path)]) == 0
    assert "one clip can't train a model" in capsys.readouterr().out
    sets = ["--set", "pe.sources=bvh", "--task", "pe", "--data", f"bvh={tmp_path / 'bvh'}"]
    message = refusal(ups_model.train.main, ["--preset", "tiny", "--out", tmp_path / "run", *sets], capsys)
    assert "bvh: must have training and test clips, got 1 clip and no" in message
    assert "add files to the folder that it was made from" in message and not (tmp_path / "run").exists()


def test_a_damaged_missing_or_unchosen_checkpoint_is_refused_by_its_name(joint, damaged, capsys, tmp_path):
    message = refusal(ups_model.evaluate.main, [damaged], capsys)
    assert f"{damaged / 'model.safetensors'}: corrupted checkpoint" in message
    message = refusal(ups_model.evaluate.main, [tmp_path / "nowhere"], capsys)
    assert f"{tmp_path / 'nowhere' / 'state.json'}: not a readable checkpoint state" in message
    message = refusal(ups_model.evaluate.main, [newest(joint)], capsys)
    assert "not a checkpoint of chosen weights" in message


# --- what they do


def test_a_joint_run_leaves_its_configuration_progress_result_and_weights(joint, chosen):
    assert sorted(path.name for path in joint.iterdir()) == [
        "best",
        "checkpoints",
        "config.json",
        "outcomes.npz",
        "progress.jsonl",
        "result.json",
    ]
    result = json.loads((joint / "result.json").read_text())
    assert (result["status"], result["step"], result["checkpoint"]) == ("finished", 6, str(chosen))
    assert result["about"]["config"] == json.loads((joint / "config.json").read_text())
    assert result["about"]["chosen_by"] == "last step" and sorted(result["routes"]) == ["ar2d", "ar3d", "eap", "pe"]
    assert {name.split("/")[1] for name in result["metrics"]} == {"pe", "ar2d", "eap", "ar3d", "score"}
    assert [json.loads(line)["step"] for line in (joint / "progress.jsonl").read_text().splitlines()] == [6]


def test_the_same_command_again_reports_the_finished_run_and_trains_nothing(joint, capsys, monkeypatch):
    def step(*args):
        raise AssertionError("a finished run must not train or measure")

    monkeypatch.setattr(ups_model.training.run, "sequence_loss", step)
    monkeypatch.setattr(ups_model.training.run, "measure", step)
    before = tree(joint)
    assert ups_model.train.main(tiny(joint, task=None)) == 0
    printed = capsys.readouterr().out
    assert "finished at step 6" in printed and "pe/mpjpe_mm" in printed and "Synthetic data" in printed
    assert tree(joint) == before


def test_a_written_configuration_given_back_is_the_same_run(joint, capsys):
    key = json.loads((joint / "result.json").read_text())["key"]
    assert ups_model.train.main(["--config", str(joint / "config.json"), "--out", str(joint)]) == 0
    assert f"run {key}" in capsys.readouterr().out


@pytest.mark.parametrize(("seed", "fields", "expected"), [(None, [], 3), (0, [], 0), (None, ["seed=5"], 5)])
def test_a_configuration_has_its_own_seed_unless_another_is_given(tmp_path, seed, fields, expected):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(preset("tiny").replace(seed=3).canonical()))
    options = argparse.Namespace(preset=None, config=file, task=None, parent=None, set=fields, seed=seed)
    assert read_config(options) == preset("tiny").replace(seed=expected)


@pytest.mark.slow
def test_evaluation_gives_exactly_the_test_metrics_that_training_reported(joint, chosen, capsys, tmp_path):
    scores = tmp_path / "scores.json"
    assert ups_model.evaluate.main([str(chosen), "--device", "cpu", "--out", str(scores)]) == 0
    scored, result = json.loads(scores.read_text()), json.loads((joint / "result.json").read_text())
    reported = {name.removeprefix("test/"): value for name, value in result["metrics"].items() if name != "test/score"}
    assert scored["metrics"] == reported and reported["pe/mpjpe_mm"] > 0
    assert scored["part"] == "test" and scored["data"] == result["about"]["data"]
    assert scored["config"] == result["about"]["config"]
    # The same clips, the same file.
    assert scored["outcomes"] == result["outcomes"]
    assert (tmp_path / "scores_clips.npz").read_bytes() == (joint / "outcomes.npz").read_bytes()
    printed = {line.split()[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]}
    assert printed["pe/mpjpe_mm"] == f"{reported['pe/mpjpe_mm']:.2f}"


@pytest.mark.slow
def test_evaluation_measures_other_ratios_when_asked(joint, tmp_path):
    out = tmp_path / "run"
    assert ups_model.train.main(tiny(out, task="eap", steps=2)) == 0
    scores = tmp_path / "scores.json"
    weights_folder = out / "best" / "step-00000002"
    assert ups_model.evaluate.main([str(weights_folder), "--set", "ratios=0.25,1", "--out", str(scores)]) == 0
    scored = json.loads(scores.read_text())
    assert {"eap/top1@0.25", "eap/top1@1"} <= scored["metrics"].keys() and "eap/top1@0.5" not in scored["metrics"]
    assert scored["config"]["evaluation"]["ratios"] == [0.25, 1.0]


def test_fine_tuning_one_task_starts_from_the_parent_and_keeps_its_routes(joint, chosen, capsys, tmp_path):
    arguments = tiny(tmp_path / "child", "--parent", str(chosen), "--set", "learning_rate=0.3", steps=4)
    assert ups_model.train.main(arguments) == 0
    result, parent = (json.loads((out / "result.json").read_text()) for out in (tmp_path / "child", joint))
    assert result["about"]["config"]["freeze_routes"] is True and result["key"] != parent["key"]
    assert result["routes"] == parent["routes"]
    trained = weights(result["checkpoint"])
    routes = [[int(block) for block in row] for row in trained["encoder.router.frozen_TL"]]
    assert routes == [parent["routes"][task] for task in ("pe", "ar2d", "eap", "ar3d")]
    start = weights(chosen)
    assert not torch.equal(trained["encoder.router.task_TQ"], start["encoder.router.task_TQ"])  # It did train.
    assert {name.split("/")[1] for name in result["metrics"]} == {"ar3d", "score"}
    # Without its parent the same command is another run.
    without = [part for part in arguments if part not in ("--parent", str(chosen))]
    assert "holds another run" in refusal(ups_model.train.main, without, capsys)


@pytest.mark.slow
def test_sigterm_ends_with_status_1_and_the_same_command_goes_on_to_the_same_end(tmp_path, capsys):
    command = [sys.executable, "-m", "ups_model.train", *tiny(tmp_path / "parts", steps=60)]
    process = subprocess.Popen(
        command, env=subprocess_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        lines = []
        for line in process.stderr:  # Ends with the process if the line never comes.
            lines.append(line)
            if " training ar3d on cpu" in line:
                process.send_signal(signal.SIGTERM)
                break
        printed, rest = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1, "".join(lines) + rest
    assert "SIGTERM: saving a checkpoint after this step, then ending" in rest and "Traceback" not in rest
    step = int(newest(tmp_path / "parts").name.removeprefix("step-"))
    assert 1 <= step < 60 and f"stopped at step {step}" in printed
    assert not (tmp_path / "parts" / "best").exists()
    assert ups_model.train.main(tiny(tmp_path / "parts", steps=60)) == 0
    assert "finished at step 60" in capsys.readouterr().out
    assert ups_model.train.main(tiny(tmp_path / "whole", steps=60)) == 0
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
