"""Real drivers, workers and disks that fail at bad moments: nothing trained twice, nothing lost, the same tables."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from orchestrator.scheduling.retry import RETRIES
from tests.support.drivers import PATIENCE, Bench, cells, command_of, descendants, mlflow_runs, records, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc"),
]


@pytest.fixture(scope="module")
def bench(undisturbed):
    return undisturbed


TWO = ("--max-concurrent", "2")


@pytest.fixture
def storage(bench, request):
    """An empty place for a storage, named after the test."""
    return bench.folder / request.node.name[:60]


def assert_whole(bench, storage, text):
    """All units done, one closed MLflow run each, the tables of the undisturbed run."""
    reference = bench.folder / "reference"
    assert records(storage).keys() == records(reference).keys(), text
    assert cells(storage) == cells(reference), text
    units, parents = mlflow_runs(storage)
    assert sorted(units) == sorted(mlflow_runs(reference)[0])
    assert all(status == ["FINISHED"] for status in units.values()), units
    assert parents == ["FINISHED"]


def starts(storage):
    """How often each unit began at its first step."""
    return {file.parent.name: file.read_text().count("training ") for file in (storage / "units").glob("*/log.txt")}


def test_the_undisturbed_run_starts_each_unit_once(bench):
    reference = bench.folder / "reference"
    assert len(records(reference)) == 11
    assert set(starts(reference).values()) == {1}
    assert_whole(bench, reference, "")


def test_a_finished_study_run_again_trains_nothing(bench):
    before = records(bench.folder / "reference")
    driver = bench.run(bench.folder / "reference")
    assert driver.process.returncode == 0
    assert "11 of 11 units finished, 11 of them before this call" in driver.text
    assert (
        "means over seeds side by side: http://127.0.0.1:5000/#/experiments/1/runs?viewStateShareKey=toy-"
        in driver.text
    )
    assert records(bench.folder / "reference") == before
    assert_whole(bench, bench.folder / "reference", driver.text)


def test_a_driver_killed_again_and_again_loses_nothing(bench, storage):
    seen = {}
    for done in (0, 1, 6):
        driver = bench.start(storage, *TWO)
        driver.wait_for("start ")
        wait_until(lambda wanted=done: len(records(storage)) >= wanted)
        driver.kill()
        now = records(storage)
        assert seen.items() <= now.items()
        seen = now
    driver = bench.run(storage)
    assert driver.process.returncode == 0, driver.text
    assert seen.items() <= records(storage).items()
    assert_whole(bench, storage, driver.text)


def test_killed_workers_are_replaced_and_go_on(bench, storage):
    driver = bench.start(storage, *TWO)
    killed = 0
    for done in (0, 4):
        driver.wait_for("done   ", times=done)
        wait_until(lambda: driver.workers() or driver.process.poll() is not None, lambda: driver.text)
        for pid in driver.workers():
            os.kill(pid, signal.SIGKILL)
            killed += 1
    driver.process.wait(PATIENCE)
    assert driver.process.returncode == 0, driver.text
    assert killed >= 2
    assert_whole(bench, storage, driver.text)


def test_ctrl_c_saves_and_the_same_command_goes_on(bench, storage):
    driver = bench.start(storage, *TWO)
    driver.wait_for("start ", times=2)
    wait_until(lambda: any((storage / "units").glob("*/progress.jsonl")))
    os.killpg(driver.process.pid, signal.SIGINT)  # As a terminal does: to every process of the group.
    driver.process.wait(60)
    assert driver.process.returncode == 1, driver.text
    assert "stopped; the same command goes on from here" in driver.text
    assert any(status == ["KILLED"] for status in mlflow_runs(storage)[0].values())
    driver = bench.run(storage)
    assert driver.process.returncode == 0, driver.text
    assert_whole(bench, storage, driver.text)
    assert max(starts(storage).values()) == 1


def test_a_second_ctrl_c_ends_at_once(bench, storage):
    driver = bench.start(storage, *TWO)
    driver.wait_for("start ", times=2)
    os.kill(driver.process.pid, signal.SIGINT)
    driver.wait_for("once more ends at once")
    os.kill(driver.process.pid, signal.SIGINT)
    driver.process.wait(20)
    assert driver.process.returncode in (1, 128 + signal.SIGINT), driver.text


def test_two_drivers_on_one_storage_share_the_work(bench, storage):
    drivers = [bench.start(storage, *TWO), bench.start(storage, *TWO)]
    for driver in drivers:
        driver.process.wait(PATIENCE)
        assert driver.process.returncode == 0, driver.text
    assert set(starts(storage).values()) == {1}
    assert_whole(bench, storage, drivers[0].text + drivers[1].text)


def test_damaged_weights_are_made_again_for_the_units_that_need_them(bench, storage):
    shutil.copytree(bench.folder / "reference", storage)
    (joint,) = [folder for folder in (storage / "units").glob("joint-*") if routed(folder)]
    (weights,) = joint.glob("best/*/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    lost = [folder for folder in (storage / "units").glob("finetune-*") if routed(folder)]
    assert len(lost) == 3
    for folder in lost:
        shutil.rmtree(folder)
    driver = bench.run(storage)
    assert driver.process.returncode == 0, driver.text
    assert "makes them again" in driver.text
    assert_whole(bench, storage, driver.text)


def routed(folder):
    """Whether a unit's model has routing."""
    return json.loads((folder / "config.json").read_text())["model"]["routing"]


def test_a_unit_that_fails_for_good_takes_its_descendants_alone(bench, storage):
    study = bench.folder / "failing.py"
    study.write_text(bench.study.read_text().replace('{"routing": False}', '{"learning_rate": 1e30}'))
    driver = Bench(bench.folder, bench.data, study).run(storage)
    assert driver.process.returncode == 1, driver.text
    assert "not finite" in driver.text and "Traceback" not in driver.text
    by_row = {}
    for cell in cells(storage):
        by_row.setdefault(cell["row"], set()).add(cell["status"])
    assert by_row["with"] == by_row["separate"] == {"finished"}
    assert by_row["without"] == {"parent failed"}
    (failure,) = (storage / "units").glob("*/failure.json")
    assert "NonFiniteLoss" in json.loads(failure.read_text())["error"]
    assert ["FAILED"] in mlflow_runs(storage)[0].values()


def test_on_a_full_disk_units_wait_and_room_heals_the_study_in_the_same_call(bench, storage):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(_made(storage))], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        driver = bench.start(storage, *TWO)
        driver.wait_for("units wait for space on the disk")
        assert "No space left" in driver.text
        seen = records(storage)
        subprocess.run(["mount", "-o", "remount,size=500m", str(storage)], check=True)
        driver.process.wait(PATIENCE)
        assert driver.process.returncode == 0, driver.text
        assert seen.items() <= records(storage).items() and "of 4 failed" not in driver.text
        assert_whole(bench, storage, driver.text)
    finally:
        subprocess.run(["umount", "-l", str(storage)], check=True)


def _made(folder):
    folder.mkdir()
    return folder


def test_retries_are_few():
    """A unit that can't succeed must not hold a study for long."""
    assert 1 <= RETRIES <= 5


def test_units_of_two_processes_survive_the_death_of_one_and_give_the_tables_of_one_process(bench, storage):
    """One row of the study; values to rounding, since two processes add up gradients in another order."""
    study = bench.study.with_name("one_row.py")
    rows = '(Row("without", {"routing": False}), Row("with"), Row("separate", training="separate"))'
    text = bench.study.read_text()
    assert rows in text
    study.write_text(text.replace(rows, '(Row("with"),)'))
    short = Bench(bench.folder, bench.data, study)
    driver = short.start(storage, "--processes-per-unit", "2")
    wait_until(
        lambda: any((storage / "units").glob("joint-*/checkpoints/step-*")) or driver.process.poll() is not None,
        lambda: driver.text,
    )
    _, second = parts_of_units(driver)
    os.kill(second, signal.SIGKILL)
    driver.process.wait(PATIENCE)
    assert driver.process.returncode == 0, driver.text
    assert "try 1 of 4 failed" in driver.text and "process 1 of 2 ended with signal SIGKILL" in driver.text, driver.text
    assert not parts_of_units(driver)
    (joint,) = (storage / "units").glob("joint-*")
    assert "resuming at step" in (joint / "log.txt").read_text(), "it goes on from its checkpoint"
    assert json.loads((joint / "record.json").read_text())["about"]["processes"] == 2
    assert "system/process_memory_usage_megabytes" in (joint / "progress.jsonl").read_text()
    reference = {(cell["row"], cell["column"]): cell for cell in cells(bench.folder / "reference")}
    ours = cells(storage)
    assert len(ours) == 3
    for cell in ours:
        same = reference[cell["row"], cell["column"]]
        assert float(cell["mean"]) == pytest.approx(float(same["mean"]), rel=1e-3), cell


def parts_of_units(driver):
    """Processes that train a unit together with others, in the order of their ranks."""
    return sorted(pid for pid in descendants(driver.process.pid) if b"spawn_main" in command_of(pid))
