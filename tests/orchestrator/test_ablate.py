"""The command that runs a study, as its users meet it: what it refuses and how, what it plans, how it ends."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from orchestrator import ablate
from orchestrator.cli import arguments
from orchestrator.cli.arguments import command_line
from orchestrator.planning.inputs import read_inputs
from orchestrator.record import Record
from orchestrator.report import __main__ as report_command
from orchestrator.report.claims import looks_of
from orchestrator.storage.ledger import Ledger
from search_spaces import find_study, study_names
from tests.support.drivers import ROOT, Bench
from tests.support.fake_driver import FakeDriver, NoMirror
from tests.support.plans import children_of, finish
from tests.support.runs import FLAT, POSE, SOLID, motion, session_folder, set_info
from ups_model.data.format.writer import Clip, Track, write_clip_set

NAMELESS = "toy_nameless"
"""3D clips without a class."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """The toy study, its clips, and a clip set without classes."""
    folder = session_folder(tmp_path_factory, "ablate")
    with FileLock(folder / "lock"):
        if (folder / "done").exists():
            return Bench.opened(folder)
        bench = Bench.make(folder, 16)
        clips = [
            Clip(f"{row}", (Track(motion(row, 0, 14, 20)),), -1, row % 4, split_test=row % 4 == 0) for row in range(8)
        ]
        write_clip_set(folder / "clips" / NAMELESS, set_info(NAMELESS, "kinect20", classes=()), clips)
        (folder / "done").touch()
    return bench


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No clip set is prepared."""
    monkeypatch.setenv("UPS_CACHE", str(tmp_path / "cache"))


def toy(bench, tmp_path, *more, leave_out=(), study=None):
    """Arguments for the toy study with all of its clip sets but some."""
    data = [f"--data={name}={bench.data[name]}" for name in (POSE, SOLID, FLAT) if name not in leave_out]
    return [str(study or bench.study), *data, "--storage", str(tmp_path / "deep" / "storage"), *more]


def tree(folder):
    """All there is, but the sizes of models, which a plan counts once and keeps in the cache."""
    paths = [path for path in sorted(folder.rglob("*")) if path.relative_to(folder).parts[:2] != ("cache", "sizes")]
    return {path: path.read_bytes() if path.is_file() else None for path in paths if path != folder / "cache"}


def refusal(arguments, capsys, folder):
    """The one line that a refused command prints; nothing starts and nothing is left behind."""
    capsys.readouterr()
    before = tree(folder)
    assert ablate.main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and printed.err.endswith("\n")
    assert tree(folder) == before
    return printed.err.removeprefix("error: ").rstrip()


def claimed(bench, tmp_path):
    """The toy study with one claim, as a file of the user's."""
    claim = 'claims=(Claim("Routing helps", "toy", "with", "without", "ar3d/top1", "superior"),),\n    seeds=1,'
    text = bench.study.read_text().replace("import Column,", "import Claim, Column,").replace("seeds=1,", claim)
    study = tmp_path / "claimed.py"
    study.write_text(text)
    return study


# --- what is refused


def changed(old, new):
    """The toy study with another text, as a file of the user's."""

    def arguments(bench, tmp_path):
        text = bench.study.read_text()
        assert old in text
        (tmp_path / "mine.py").write_text(text.replace(old, new))
        return toy(bench, tmp_path, study=tmp_path / "mine.py")

    return arguments


def flags(*more, **named):
    return lambda bench, tmp_path: toy(bench, tmp_path, *more, **named)


def file_in_the_way(flag):
    def arguments(bench, tmp_path):
        (tmp_path / "file").write_text("")
        return toy(bench, tmp_path, flag, str(tmp_path / "file" / "below"))

    return arguments


CASES = {
    "unknown study": (lambda bench, tmp_path: ["tables_79"], "unknown study 'tables_79'; near: tables_7_9"),
    "no study file": (lambda bench, tmp_path: [tmp_path / "gone.py"], "gone.py: no such Python file"),
    "unknown field": (flags("--set", "encoder_layer=2"), "unknown field 'encoder_layer'; near: encoder_layers"),
    "no value": (flags("--set", "steps"), "--set takes FIELD=VALUE, got 'steps'"),
    "field twice": (flags("--set", "steps=8", "--set", "steps=9"), "--set steps is given twice"),
    "not a number": (flags("--set", "dropout=much"), "dropout must be a number, got 'much'"),
    "too few steps": (flags("--set", "steps=4"), "row 'without': steps must be enough for joint training"),
    "row out of range": (
        changed('{"routing": False}', '{"encoder_layers": 0}'),
        "study 'toy', table 'toy', row 'without': ModelConfig: encoder_layers must be at least 1, got 0",
    ),
    "row with an unknown field": (
        changed('{"routing": False}', '{"rooting": False}'),
        "study 'toy', table 'toy', row 'without': unknown field 'rooting'; near: routing",
    ),
    "row on other clips": (
        changed('{"routing": False}', '{"eap.sources": ("toy_pose",)}'),
        "row 'without': rows of one table must have the same clip sets, got toy_pose for eap beside toy_solid",
    ),
    "row that its clips can't serve": (
        changed('{"routing": False}', '{"validation_subjects": 9}'),
        "row 'without': toy_pose: validation_subjects must be below the 3 training subjects",
    ),
    "column never measured": (
        flags("--set", "evaluation.ratios=0.2"),
        "column 'eap/top1@0.5' is not measured on toy_solid with evaluation.ratios=0.2; near: eap/top1@0.2",
    ),
    "mistyped metric": (
        changed('Column("eap/top1@0.5"', 'Column("eap/topone@0.5"'),
        "column 'eap/topone@0.5' is not measured on toy_solid with evaluation.ratios=0.5; near: eap/top1@0.5",
    ),
    "column of a task not trained": (flags("--set", "cycle=pe,eap"), "a column measures ar3d, which is not trained"),
    "study file that fails": (changed("STUDY = Study(", "STUDY = Studie("), "mine.py: cannot be read (NameError"),
    "2D clips for pose estimation": (
        flags("--set", f"data.pe.sources={FLAT}", leave_out=(POSE,)),
        f"pe needs 3D clips with cameras, '{FLAT}' has none",
    ),
    "2D clips for 3D recognition": (
        flags("--set", f"ar3d.sources={FLAT}"),
        f"ar3d needs 3D clips, '{FLAT}' has 2D",
    ),
    "clips without classes": (
        lambda bench, tmp_path: toy(
            bench, tmp_path, "--set", f"ar3d.sources={NAMELESS}", f"--data={NAMELESS}={bench.folder}/clips/{NAMELESS}"
        ),
        f"ar3d needs labelled clips, '{NAMELESS}' has clips without a class",
    ),
    "no folder given": (flags(leave_out=(SOLID,)), f"clip set '{SOLID}' is not prepared: give --data {SOLID}=PATH"),
    "no such folder": (flags("--data", f"{SOLID}=/nowhere", leave_out=(SOLID,)), "/nowhere"),
    "no clip set there": (
        lambda bench, tmp_path: toy(bench, tmp_path, f"--data={SOLID}={tmp_path}", leave_out=(SOLID,)),
        "clips.json",
    ),
    "another clip set there": (
        lambda bench, tmp_path: toy(bench, tmp_path, f"--data={SOLID}={bench.data[FLAT]}", leave_out=(SOLID,)),
        f"expected clip set '{SOLID}', got '{FLAT}'; check --data",
    ),
    "clips that nobody uses": (flags("--data", "ntu120=/data"), "--data ntu120: no task uses this clip set"),
    "no seeds": (flags("--seeds", "0"), "--seeds must be at least 1, got 0"),
    "too many seeds": (
        flags("--seeds", "99999999999999999999"),
        "--seeds must be at most 1000, got 99999999999999999999",
    ),
    "no seed in a list": (flags("--seeds", ","), "--seeds must name at least one seed, as in 0,3,7"),
    "a seed twice": (flags("--seeds", "1,1"), "seeds must be from 0 to 2**32 - 1, each there once, got 1, 1"),
    "no concurrency": (flags("--max-concurrent", "0"), "--max-concurrent must be at least 1, got 0"),
    "negative GPUs": (flags("--gpus-per-unit", "-1"), "--gpus-per-unit must be at least 0, got -1"),
    "broken GPUs": (flags("--gpus-per-unit", "1.5"), "--gpus-per-unit above 1 must be whole, got 1.5"),
    "no number of GPUs": (flags("--gpus-per-unit", "nan"), "--gpus-per-unit must be finite, got nan"),
    "no processes": (flags("--processes-per-unit", "0"), "--processes-per-unit must be at least 1, got 0"),
    "processes that don't match the GPUs": (
        flags("--processes-per-unit", "2", "--gpus-per-unit", "4"),
        "--processes-per-unit must be the number of a unit's GPUs, got 2 with --gpus-per-unit 4; leave it out",
    ),
    "processes that share GPUs": (
        flags("--processes-per-unit", "2", "--gpus-per-unit", "auto"),
        "--gpus-per-unit auto shares GPUs between units, got --processes-per-unit 2; give --gpus-per-unit 2",
    ),
    "processes on one GPU": (
        flags("--processes-per-unit", "2", "--device", "cuda:1"),
        "--device must name no single GPU for 2 processes, got cuda:1; try cuda",
    ),
    "too few CPUs for processes": (
        flags("--processes-per-unit", "4", "--cpus-per-unit", "2"),
        "--cpus-per-unit must be at least 1 for each of 4 processes, got 2",
    ),
    "more processes than clips": (
        flags("--processes-per-unit", "8"),
        "data.pe.batch_size must be at least the number of processes, got 4 and 8",
    ),
    "statistics of whole batches": (
        flags("--micro-batch", "2", "--set", "normalisation=task_batch"),
        "normalisation='task_batch' takes statistics of whole batches, got --micro-batch 2; use normalisation='layer'",
    ),
    "a price without a plan": (
        flags("--price-per-hour", "3"),
        "--price-per-hour goes with --plan or --watch and must be above 0",
    ),
    "no memory": (flags("--plan", "--gpu-memory", "0"), "--gpu-memory goes with --plan and must be above 0, got 0"),
    "memory of no GPU": (
        flags("--plan", "--gpus-per-unit", "0", "--gpu-memory", "16"),
        "--gpu-memory 16 needs units on GPUs; leave it out",
    ),
    "no CPUs": (flags("--cpus-per-unit", "0"), "--cpus-per-unit must be above 0, got 0"),
    "infinite CPUs": (flags("--cpus-per-unit", "inf"), "--cpus-per-unit must be finite, got inf"),
    "unknown device": (flags("--device", "gpu"), "--device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
    "storage below a file": (file_in_the_way("--storage"), "cannot be written to"),
    "storage that can't be made": (flags("--storage", "/proc/nothing/here"), "--storage /proc/nothing/here: cannot be"),
    "object storage": (flags("--storage", "gs://bucket/folder"), "gs:// is not supported; give a folder"),
    "report below a file": (file_in_the_way("--out"), "--out "),
    "report that can't be made": (flags("--out", "/proc/nothing"), "--out /proc/nothing: cannot be written to"),
    "tracking without a host": (flags("--tracking-uri", "http:/host"), "--tracking-uri http:/host: names no host"),
    "tracking in a folder": (flags("--tracking-uri", "mlruns"), "--tracking-uri mlruns: must be http(s)://"),
    "no address": (flags("--address", "head"), "--address must be auto, local or HOST:PORT, got 'head'"),
    "nobody at the address": (flags("--address", "127.0.0.1:1"), "--address 127.0.0.1:1: no Ray cluster answers"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_status_2_and_leaves_nothing(case, bench, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, message = CASES[case]
    assert message in refusal(arguments(bench, tmp_path), capsys, tmp_path)
    assert not (tmp_path / "deep").exists() and not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_more_than_any_machine_has_is_refused_before_a_unit_starts(bench, tmp_path, capsys):
    start = toy(bench, tmp_path, "--address", "local")
    message = refusal([*start, "--gpus-per-unit", "4"], capsys, tmp_path)
    assert re.search(r"--gpus-per-unit must be at most what one node has, got 4: the cluster has \d+ GPU", message)
    message = refusal([*start, "--cpus-per-unit", "100000"], capsys, tmp_path)
    assert f"got 100000: the cluster has {os.cpu_count()} CPU in all" in message
    assert not (tmp_path / "deep").exists()


def test_a_refusal_leaves_a_storage_that_was_there_as_it_was(bench, tmp_path, capsys):
    ledger = Ledger.open(str(tmp_path / "deep" / "storage"))
    finish(ledger, next(iter(toy_plan(bench).units.values())))
    refusal(toy(bench, tmp_path, "--address", "127.0.0.1:1"), capsys, tmp_path)


@pytest.mark.parametrize("arguments", [["--colour"], ["--preset", "huge"], ["--seeds", "one"], ["--stor", "x"]])
def test_an_unknown_flag_or_choice_is_a_usage_error(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        ablate.main(arguments)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


# --- what it shows without starting anything


def test_the_flags_are_those_of_the_contract():
    flags = {text for action in ablate.parser()._actions for text in action.option_strings}
    assert flags == {
        "-h", "--help", "--list", "--plan", "--data", "--preset", "--seeds", "--set", "--storage", "--tracking-uri",
        "--address", "--max-concurrent", "--gpus-per-unit", "--cpus-per-unit", "--device", "--precision", "--out",
        "--accept-other-code", "--retrain", "--micro-batch", "--activation-checkpointing", "--processes-per-unit",
        "--gpu-memory", "--price-per-hour", "--notify", "--notify-every", "--watch",
    }  # fmt: skip


def test_help_has_examples_and_exit_statuses(capsys):
    with pytest.raises(SystemExit) as ended:
        ablate.main(["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "python -m orchestrator.ablate paper_tables --plan" in printed and "exit status: 0 done" in printed


def test_list_names_every_study_with_its_question(capsys):
    assert ablate.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == study_names()
    assert {"paper_tables", "smoke", "tables_7_9"} <= {line.split()[0] for line in lines}
    assert all(line.endswith("?") for line in lines)


def toy_plan(bench, seeds=1):
    return read_inputs(
        str(bench.study), "tiny", [f"{name}={path}" for name, path in bench.data.items()], [], seeds
    ).plan


@pytest.mark.slow
def test_the_plan_of_tables_7_to_9_says_what_would_run(tmp_path_factory, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("UPS_CACHE", str(session_folder(tmp_path_factory, "cache")))
    storage = str(tmp_path / "storage")
    assert ablate.main(["tables_7_9", "--plan", "--seeds", "1", "--storage", storage, "--max-concurrent", "3"]) == 0
    printed = capsys.readouterr().out
    assert "8 rows -> 6 arms -> 24 units with 1 seed; 8 trainings saved by sharing, 0 done already" in printed
    assert printed.count("SYNTHETIC") == 3
    for title in ("Table 7. Depth of the encoder", "Table 8. Number of blocks", "Table 9. Dynamic routing (DR)"):
        assert title in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("base · joint ")]
    seeds, done, parameters, _, operations, _, after = line.removeprefix("base · joint").split()
    parameters, operations = float(parameters), float(operations)
    assert (seeds, done, after) == ("1", "0", "-")
    assert 0.4 < parameters < 1.2  # README's tiny run: 0.55 M with its 2 layers; here 3.
    assert 1e11 < operations < 1e13
    assert re.search(r"to run: 24 units, \d:\d\d:\d\d of one slot, about \d:\d\d:\d\d on 3 at once", printed)
    assert "Times: a guess: nothing has been measured here, 1.2e+10 operations a second are assumed." in printed
    assert not (tmp_path / "storage").exists()


def test_a_plan_counts_what_the_ledger_has(bench, tmp_path, capsys):
    plan = toy_plan(bench)
    ledger = Ledger.open(str(tmp_path / "deep" / "storage"))
    joint = next(unit for unit in plan.units.values() if unit.stage == "joint")
    finish(ledger, joint)
    for key in children_of(plan, joint.key):
        finish(ledger, plan.units[key])
    before = tree(tmp_path)
    assert ablate.main(toy(bench, tmp_path, "--plan")) == 0
    printed = capsys.readouterr().out
    assert "3 rows -> 3 arms -> 11 units with 1 seed; 0 trainings saved by sharing, 4 done already" in printed
    assert re.search(r"without +arm routing=False \(fine-tuned\): 4 units, 0 to run", printed)
    assert re.search(r"separate +arm separate \(separate\): 3 units, 3 to run", printed)
    assert "to run: 7 units" in printed
    kinds = re.findall(r"^.* · .*? (\d+) +(\d+) +[\d.]+ M ", printed, re.MULTILINE)
    assert [sum(int(kind[place]) for kind in kinds) for place in (0, 1)] == [11, 4]
    assert tree(tmp_path) == before


def test_a_plan_on_a_storage_that_can_never_be_is_refused(bench, tmp_path, capsys):
    message = refusal(toy(bench, tmp_path, "--plan", "--storage", "gs://bucket"), capsys, tmp_path)
    assert "gs:// is not supported" in message


@pytest.mark.slow
def test_a_plan_imports_no_scheduler_and_makes_no_folder(bench, tmp_path, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")  # What it counts of models is kept there.
    program = (
        "import sys; from orchestrator import ablate; status = ablate.main(sys.argv[1:]); "
        "print(status, sorted({'ray', 'mlflow', 'optuna'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *toy(bench, tmp_path, "--plan")], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "UPS_CACHE": str(cache)}, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    assert not list(tmp_path.iterdir())
    assert [path.name for path in cache.iterdir()] == ["sizes"]


@pytest.fixture
def page(repo_root):
    return (repo_root / "docs" / "ablations.md").read_text("utf-8")


@pytest.mark.slow
def test_the_study_in_the_documentation_is_planned_as_its_text_says(
    page, tmp_path_factory, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("UPS_CACHE", str(session_folder(tmp_path_factory, "cache")))
    (text,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "expectation.py").write_text(text)
    assert ablate.main([str(tmp_path / "expectation.py"), "--plan", "--storage", str(tmp_path / "storage")]) == 0
    printed = capsys.readouterr().out
    # Each seed: joint training and fine-tuning for each of two rows, one training alone for the third.
    assert "3 rows -> 3 arms -> 25 units with 5 seeds; 0 trainings saved by sharing" in printed
    plan = read_inputs(str(tmp_path / "expectation.py"), "tiny", [], [], None).plan
    tuned = next(unit for unit in plan.units.values() if unit.stage == "finetune")
    joint = plan.units[tuned.parent]
    # 400 steps over four tasks are 100 of each; a quarter of them fine-tunes, at 0.3 of tiny's rate of 2e-3.
    assert (joint.config.optim.steps, tuned.config.optim.steps) == (300, 25)
    assert tuned.config.optim.learning_rate == pytest.approx(6e-4)


def test_the_documentation_names_no_flag_that_is_not_there(page):
    def flags_of(command):
        return {text for action in command.parser()._actions for text in action.option_strings}

    of_report = set(re.findall(r"`report (--[a-z][a-z-]+)", page))
    named = set(re.findall(r"--[a-z][a-z-]+", page))
    assert of_report and of_report <= flags_of(report_command)
    assert {"--plan", "--seeds", "--gpus-per-unit"} <= named <= flags_of(ablate) | of_report


def test_the_command_that_a_report_shows_has_no_paths():
    shown = command_line(
        "orchestrator.ablate",
        [
            "/home/me/my_study.py", "--data", "uiprmd=/data/x", "--data=jhmdb=/data/y", "--storage", "/mnt/s",
            "--tracking-uri=http://me:secret@host:5000", "--out", "/tmp/o", "--address", "10.0.0.1:6379",
            "--set", "steps=400", "--set", "text_model=/home/me/roberta", "--seeds", "5",
        ]
    )  # fmt: skip
    assert shown == (
        "python -m orchestrator.ablate my_study.py --data uiprmd=PATH --data=jhmdb=PATH "
        "--set steps=400 --set text_model=PATH --seeds 5"
    )


def test_the_command_that_a_report_shows_keeps_a_files_folder_below_the_working_one(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for given in ("my/lr.py", str(tmp_path / "my" / "lr.py")):
        assert command_line("orchestrator.ablate", [given]) == "python -m orchestrator.ablate my/lr.py"


# --- two studies of one name


def mine(bench, folder, *changes):
    """A study of the toy's name and base in a folder of its own."""
    text = bench.study.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    folder.mkdir(exist_ok=True)
    (folder / "study.py").write_text(text)
    return folder / "study.py"


def test_another_study_of_the_same_name_and_base_is_refused_before_anything_starts(
    bench, tmp_path, driver, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert ablate.main(toy(bench, tmp_path, study=Path("a") / mine(bench, tmp_path / "a").name)) == 0
    mine(bench, tmp_path / "b", ('"without"', '"plain"'))
    message = refusal(toy(bench, tmp_path, study="b/study.py"), capsys, tmp_path)
    for part in ("orchestrator.ablate a/study.py", "orchestrator.ablate b/study.py", "row 'without'", "another name"):
        assert part in message
    assert driver.started == 1


@pytest.mark.slow
def test_a_study_that_grew_goes_on_in_any_file_and_its_own_file_may_lose_rows(
    bench, tmp_path, driver, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    assert ablate.main(toy(bench, tmp_path, study=mine(bench, tmp_path / "a"))) == 0
    grown = (('(Row("without"', '(Row("one more", {"n_bins": 12}), Row("without"'),)
    assert ablate.main(toy(bench, tmp_path, study=mine(bench, tmp_path / "b", *grown))) == 0
    assert len(saved_plan(tmp_path).tables[0].rows) == 1 + len(find_study(str(bench.study)).tables[0].rows)
    assert "replaced" not in caplog.text
    assert ablate.main(toy(bench, tmp_path, study=mine(bench, tmp_path / "b"))) == 0
    assert "row 'one more' of table 'toy' is no longer in the study" in caplog.text


def test_the_study_file_and_the_working_trees_diff_lie_beside_the_plan(bench, tmp_path, driver, monkeypatch):
    monkeypatch.setattr(ablate, "working_tree_diff", lambda: b"- a\n+ b\n")
    assert ablate.main(toy(bench, tmp_path)) == 0
    (folder,) = (tmp_path / "deep" / "storage" / "studies").iterdir()
    assert (folder / "study.py").read_bytes() == bench.study.read_bytes()
    assert (folder / ablate.DIFF).read_text() == "- a\n+ b\n"
    monkeypatch.setattr(ablate, "working_tree_diff", lambda: b"")
    assert ablate.main(toy(bench, tmp_path)) == 0
    assert not (folder / ablate.DIFF).exists()


@pytest.mark.parametrize("name", ["my/lr.py", "my/lr.yaml"])
def test_the_report_takes_the_study_as_the_ablation_did(name, bench, tmp_path, driver, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("my").mkdir()
    toy_study = find_study(str(bench.study))
    column = {"metric": "ar3d/top1", "title": "Recognition", "unit": "%", "higher_is_better": True}
    rows = [{"label": "joint", "training": "joint"}]
    table = {"name": "one", "title": "One", "varies": "Kind", "columns": [column], "rows": rows, "baseline": "joint"}
    texts = {"name": "lr", "question": "?", "expectation": "!"}
    plain = {**texts, "tables": [table], "seeds": 1, "base": dict(toy_study.base)}
    Path("my/lr.yaml").write_text(json.dumps(plain))
    Path("my/lr.py").write_text("from search_spaces import find_study\n\nSTUDY = find_study('my/lr.yaml')\n")
    assert ablate.main(toy(bench, tmp_path, study=name)) == 0
    assert f"python -m orchestrator.ablate {name}" in saved_plan(tmp_path).command
    assert report_command.main([name, "--storage", str(tmp_path / "deep" / "storage")]) == 0


# --- how it ends


@pytest.fixture
def driver(monkeypatch):
    return FakeDriver.install(monkeypatch)


def saved_plan(tmp_path):
    (plan,) = Ledger(tmp_path / "deep" / "storage").studies().values()
    return plan


def test_a_command_is_told_of_failed_units_and_of_the_end(bench, tmp_path, driver):
    told = tmp_path / "told"
    notify = ("--notify", f'echo "$UPS_EVENT: $UPS_NAME: $UPS_STATUS" >> {told}')
    driver.becomes = lambda unit: "failed" if unit.task == "pe" else "finished"
    assert ablate.main(toy(bench, tmp_path, *notify)) == 1
    name, lines = saved_plan(tmp_path).name, sorted(told.read_text().splitlines())
    units = len(saved_plan(tmp_path).units)
    failed = [line for line in lines if line.startswith(f"unit failed: {name}: ")]
    assert failed and lines == [f"failed: {name}: {units - len(failed)} of {units} units finished", *failed]
    told.unlink()
    driver.becomes = lambda unit: "finished"
    assert ablate.main(toy(bench, tmp_path, *notify)) == 0
    assert told.read_text() == f"finished: {name}: {units} of {units} units finished\n"
    assert "notify" not in saved_plan(tmp_path).command, "it may hold a secret"


def test_hours_between_messages_need_a_command(bench, tmp_path, driver, capsys):
    assert ablate.main(toy(bench, tmp_path, "--notify-every", "2")) == 2
    assert "--notify-every needs a command to run: --notify COMMAND" in capsys.readouterr().err
    assert ablate.main(toy(bench, tmp_path, "--notify-every", "-1", "--notify", "true")) == 2
    assert "--notify-every must be 0 or more hours, got -1; try 6" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("gain", "looks"), [(30.0, (2,)), (0.0, (2, 3))])
def test_seeds_auto_stops_where_all_is_decided_and_goes_on_where_not(bench, tmp_path, driver, monkeypatch, gain, looks):
    monkeypatch.setattr(arguments, "AUTO_LOOKS", (2, 3))
    driver.metrics = lambda unit: {
        "ar3d/top1": 40 + gain * unit.config.model.routing + 0.1 * unit.seed**2 * (unit.arm == "base")
    }
    assert ablate.main(toy(bench, tmp_path, "--seeds", "auto", study=claimed(bench, tmp_path))) == 0
    plan = saved_plan(tmp_path)
    seen = tuple(tuple(range(look)) for look in looks[:-1])
    assert (plan.seeds, plan.looks, plan.planned_looks) == (looks[-1], seen, (2, 3))
    assert driver.started == len(looks)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "planned"), [("2", ()), ("auto:2", ()), ("1", (2, 3))])
def test_auto_after_a_look_under_another_plan_is_not_called_planned(
    bench, tmp_path, driver, monkeypatch, first, planned
):
    """Else each plan uses up the whole of what its looks may err: 7 of 100 studies without an effect were decided."""
    monkeypatch.setattr(arguments, "AUTO_LOOKS", (2, 3))
    driver.metrics = lambda unit: {"ar3d/top1": 40 + 0.1 * unit.seed**2 * (unit.arm == "base")}
    study = claimed(bench, tmp_path)
    for seeds in (first, "auto", "auto"):
        assert ablate.main(toy(bench, tmp_path, "--seeds", seeds, study=study)) == 0
        assert saved_plan(tmp_path).planned_looks == (planned if seeds == "auto" else (2,) if first == "auto:2" else ())
    looks = looks_of(saved_plan(tmp_path))
    assert looks.planned is bool(planned) and looks.factors == ((2, 2) if planned else (4, 4))


@pytest.mark.slow
def test_a_study_remembers_that_it_was_complete_with_fewer_seeds(bench, tmp_path, driver):
    study = claimed(bench, tmp_path)
    for seeds in ("1", "1", "2"):
        assert ablate.main(toy(bench, tmp_path, "--seeds", seeds, study=study)) == 0
    assert saved_plan(tmp_path).looks == ((0,),)


@pytest.mark.slow
def test_seeds_auto_ends_at_the_number_that_is_given(bench, tmp_path, driver, monkeypatch):
    monkeypatch.setattr(arguments, "AUTO_LOOKS", (2, 3))
    driver.metrics = lambda unit: {"ar3d/top1": 40 + 0.1 * unit.seed**2 * (unit.arm == "base")}
    assert ablate.main(toy(bench, tmp_path, "--seeds", "auto:2", study=claimed(bench, tmp_path))) == 0
    plan = saved_plan(tmp_path)
    assert (plan.seeds, plan.planned_looks, plan.seed_numbers) == (2, (2,), (0, 1))


@pytest.mark.slow
def test_a_claim_is_looked_at_once_its_own_runs_are_complete(bench, tmp_path, driver):
    study = claimed(bench, tmp_path)
    # What the claim isn't about never finishes.
    driver.becomes = lambda unit: "failed" if unit.task == "pe" else "finished"
    for seeds, looks in (("1", ()), ("2", ((0,),)), ("3", ((0,), (0, 1)))):
        ablate.main(toy(bench, tmp_path, "--seeds", seeds, study=study))
        assert saved_plan(tmp_path).looks == looks
        assert saved_plan(tmp_path).ended_before == 0


def test_runs_that_ended_before_their_claims_were_declared_are_counted(bench, tmp_path, driver):
    assert ablate.main(toy(bench, tmp_path)) == 0
    assert ablate.main(toy(bench, tmp_path, study=claimed(bench, tmp_path))) == 0
    assert {plan.ended_before for plan in Ledger(tmp_path / "deep" / "storage").studies().values() if plan.claims} == {
        2
    }


@pytest.mark.slow
def test_a_study_that_gets_claims_goes_on_beside_its_older_plan_and_trains_nothing_again(
    bench, tmp_path, driver, capsys
):
    assert ablate.main(toy(bench, tmp_path)) == 0
    older = saved_plan(tmp_path)
    storage = tmp_path / "deep" / "storage"
    records = {file: file.read_bytes() for file in storage.glob("units/*/record.json")}
    driver.becomes = lambda unit: pytest.fail(f"{unit.name} is trained again")
    assert ablate.main(toy(bench, tmp_path, study=claimed(bench, tmp_path))) == 0
    assert {file: file.read_bytes() for file in storage.glob("units/*/record.json")} == records
    plans = Ledger(storage).studies()
    assert len(plans) == 2 and plans[older.name] == older
    (newer,) = (plan for plan in plans.values() if plan.claims)
    assert newer.units.keys() == older.units.keys()
    report = (storage / "studies" / newer.name / "report" / "report.md").read_text()
    assert "Not planned: 2 runs that the claims rest on had ended when they were first declared" in report
    capsys.readouterr()
    assert report_command.main([older.study, "--storage", str(storage)]) == 2
    assert f"several plans are there; name one of {', '.join(sorted(plans))}" in capsys.readouterr().err
    assert report_command.main([newer.name, "--storage", str(storage)]) == 0


@pytest.mark.slow
def test_a_list_of_seeds_trains_those_alone_and_other_seeds_count_as_a_look(bench, tmp_path, driver):
    study = claimed(bench, tmp_path)
    for seeds, looks in (("7,3", ()), ("3,7", ()), ("0,1", ((3, 7),)), ("0,1", ((3, 7),))):
        assert ablate.main(toy(bench, tmp_path, "--seeds", seeds, study=study)) == 0
        plan = saved_plan(tmp_path)
        assert plan.seed_numbers == tuple(map(int, seeds.split(",")))
        assert {unit.seed for unit in plan.units.values()} == set(plan.seed_numbers)
        assert plan.looks == looks
    report = (tmp_path / "deep" / "storage" / "studies" / plan.name / "report" / "report.md").read_text()
    assert "seeds 0, 1" in report
    assert "to be looked at, with seeds 3, 7; 2 seeds, which was not planned" in report


def test_a_second_call_takes_the_sizes_that_the_first_has_counted(bench, tmp_path, driver):
    assert ablate.main(toy(bench, tmp_path)) == 0
    first = saved_plan(tmp_path)
    assert all(unit.size.operations > 0 and unit.size.active_parameters > 0 for unit in first.units.values())
    marked = {key: replace(unit, size=replace(unit.size, operations=1.0)) for key, unit in first.units.items()}
    Ledger(tmp_path / "deep" / "storage").save_plan(replace(first, units=marked))
    assert ablate.main(toy(bench, tmp_path, "--seeds", "2")) == 0
    assert {unit.size.operations for unit in saved_plan(tmp_path).units.values()} == {1.0}


def test_seeds_auto_needs_claims(bench, tmp_path, capsys):
    told = refusal(toy(bench, tmp_path, "--seeds", "auto"), capsys, tmp_path)
    assert told == "--seeds auto: study 'toy' has no claims to decide; give a number"


def test_status_0_when_all_is_done_and_again_without_a_cluster(bench, tmp_path, driver, capsys, monkeypatch):
    from orchestrator.execution import ray_cluster as ray_nodes

    assert ablate.main(toy(bench, tmp_path)) == 0
    printed = capsys.readouterr().out
    assert "11 of 11 units finished, 0 of them before this call" in printed
    report = re.search(r"report: (.*report\.md)", printed)[1]
    assert Path(report).is_file() and f"mlflow ui --backend-store-uri sqlite:///{tmp_path}" in printed

    def connect(address):
        raise AssertionError("a finished study needs no cluster")

    monkeypatch.setattr(ray_nodes, "connect", connect)
    assert ablate.main(toy(bench, tmp_path, "--address", "127.0.0.1:1")) == 0
    assert "11 of 11 units finished, 11 of them before this call" in capsys.readouterr().out
    assert driver.started == 1 and NoMirror.outcomes == ["finished", "finished"]


def test_a_study_may_name_its_seeds(bench, tmp_path, driver):
    study = mine(bench, tmp_path / "named", ("seeds=1,", "seeds=(0, 3, 7),"))
    assert ablate.main(toy(bench, tmp_path, study=study)) == 0
    assert saved_plan(tmp_path).seed_numbers == (0, 3, 7) and {job.unit.seed for job in driver.jobs} == {0, 3, 7}


@pytest.mark.slow
def test_more_seeds_train_the_new_ones_alone(bench, tmp_path, driver, capsys):
    assert ablate.main(toy(bench, tmp_path)) == 0
    released = []
    driver.becomes = lambda unit: released.append(unit.seed) or "finished"
    assert ablate.main(toy(bench, tmp_path, "--seeds", "2")) == 0
    assert released == [1] * 11
    assert "22 of 22 units finished, 11 of them before this call" in capsys.readouterr().out


def test_status_1_when_a_unit_failed_and_the_rest_is_reported(bench, tmp_path, driver, capsys):
    driver.becomes = lambda unit: "failed" if unit.stage == "separate" and unit.task == "pe" else "finished"
    assert ablate.main(toy(bench, tmp_path)) == 1
    printed = capsys.readouterr().out
    assert "10 of 11 units finished" in printed and "failed: separate · separate pe · seed 0: it broke" in printed
    assert "the same command tries the failed units again" in printed
    report = Path(re.search(r"report: (.*report\.md)", printed)[1]).read_text()
    assert "10 of 11 units finished, 1 failed" in report
    storage = Ledger(tmp_path / "deep" / "storage")
    (unit,) = [one for one in toy_plan(bench).units.values() if one.stage == "separate" and one.task == "pe"]
    record = storage.record(unit)
    assert record == Record(unit.key, "failed", about={"ended": record.about["ended"]}, error="it broke")
    assert NoMirror.outcomes == ["failed"]
    driver.becomes = lambda unit: "finished"
    assert ablate.main(toy(bench, tmp_path)) == 0


def test_status_1_when_stopped_and_it_says_how_to_go_on(bench, tmp_path, driver, capsys):
    driver.becomes = lambda unit: "stopped" if unit.stage == "finetune" else "finished"
    assert ablate.main(toy(bench, tmp_path)) == 1
    assert "stopped; the same command goes on from here" in capsys.readouterr().out
    assert NoMirror.outcomes == ["stopped"]


@pytest.mark.slow
def test_stopping_when_nothing_was_left_is_no_failure(bench, tmp_path, driver, capsys, monkeypatch):
    from orchestrator.execution import driver as run

    def execute(graph, *more, **named):
        driver.execute(graph, *more, **named)
        graph.stopping = True

    monkeypatch.setattr(run, "execute", execute)
    assert ablate.main(toy(bench, tmp_path)) == 0
    assert NoMirror.outcomes == ["finished"]


def test_a_report_folder_lost_during_the_run_costs_the_report_alone(bench, tmp_path, driver, capsys, caplog):
    out = tmp_path / "out"

    def becomes(unit):
        if out.is_dir():
            out.rmdir()
            out.write_text("in the way")
        return "finished"

    driver.becomes = becomes
    assert ablate.main(toy(bench, tmp_path, "--out", str(out))) == 1
    assert "11 of 11 units finished" in capsys.readouterr().out
    assert "make it with python -m orchestrator.report toy-tiny-" in caplog.text
    assert NoMirror.outcomes == ["finished"]
    out.unlink()
    assert ablate.main(toy(bench, tmp_path, "--out", str(out))) == 0
    assert (out / "report.md").is_file()
