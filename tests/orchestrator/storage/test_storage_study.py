"""A real study on an object store: drivers and workers that are killed, the same cells as on a folder."""

import os
import signal
import subprocess
import sys

import pytest

pytest.importorskip("moto", reason="needs moto[s3,server] for an object store")
pytest.importorskip("boto3", reason="needs boto3 for an object store")

from orchestrator.storage.backends.workspace import RESULT
from orchestrator.storage.ledger import RECORD, Ledger
from tests.support.drivers import PATIENCE, ROOT, cells, mlflow_runs, records, wait_until
from tests.support.storage_server import store_server

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc"),
]


class Address(str):
    """An address that `Bench` takes for a folder: it asks for a name to call the log by."""

    @property
    def name(self) -> str:
        return self.rsplit("/", 1)[-1]


@pytest.fixture(scope="module")
def server():
    with store_server() as store:
        yield store


@pytest.fixture(scope="module")
def bench(undisturbed):
    return undisturbed


@pytest.fixture
def place(bench, server, monkeypatch):
    """An address, a database for MLflow, and a folder for the report."""
    monkeypatch.setenv("UPS_SCRATCH", str(bench.folder / "scratch"))
    return Address(f"s3://{server.new_bucket()}/ablations/toy")


def options(bench):
    report = str(bench.folder / "report")
    return ["--tracking-uri", f"sqlite:///{bench.folder}/mlflow.db", "--out", report, "--max-concurrent", "2"]


def records_there(ledger):
    return {
        folder: ledger.storage.read(f"units/{folder}/{RECORD}")
        for folder in ledger.storage.children("units")
        if ledger.storage.look(f"units/{folder}/{RECORD}") is not None
    }


def storage_command(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.storage", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_study_comes_through_killed_drivers_and_workers_with_the_cells_of_a_folder(bench, place, server):
    ledger = Ledger.at(place)
    first = bench.start(place, *options(bench))
    first.wait_for("done   ")
    first.kill()
    seen = records_there(ledger)
    assert seen
    second = bench.start(place, *options(bench))
    wait_until(lambda: second.workers() or second.process.poll() is not None, lambda: second.text)
    second.wait_for("start ")
    for pid in second.workers():
        os.kill(pid, signal.SIGKILL)
    second.process.wait(PATIENCE)
    assert second.process.returncode == 0, second.text
    assert seen.items() <= records_there(ledger).items()
    reference = bench.folder / "reference"
    assert records_there(ledger).keys() == records(reference).keys()
    (study,) = ledger.studies()
    copy = ledger.storage.read(f"studies/{study}/report/cells.csv")
    assert copy == (bench.folder / "report" / "cells.csv").read_bytes()
    assert copy == next((reference / "studies").glob("*/report/cells.csv")).read_bytes() and cells(reference)
    assert f"report: {place}/studies/{study}/report" in second.text
    assert f"report: {bench.folder}/report/report.md" in second.text
    units, parents = mlflow_runs(bench.folder)
    assert len(units) == 11 and all(status == ["FINISHED"] for status in units.values()), units
    assert parents == ["FINISHED"]

    # Once more: nothing is trained, the objects of the units stay as they are.
    before = {entry.name: entry.tag for entry in ledger.storage.entries("units")}
    third = bench.run(place, *options(bench))
    assert third.process.returncode == 0, third.text
    assert "11 of 11 units finished, 11 of them before this call" in third.text
    assert {entry.name: entry.tag for entry in ledger.storage.entries("units")} == before

    # The report alone, from the store; then cleaned and verified, and still done.
    again = bench.folder / "again"
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.report", "--storage", place, "--out", str(again)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (again / "cells.csv").read_bytes() == copy and f"{place}/studies/{study}/report" in done.stdout
    status, text = storage_command("gc", "--storage", place)
    cleaned = text.count("(the unit is finished and tested)")
    assert status == 0 and cleaned == 9, text  # Of two joint trainings that are starts alone, nothing is tested.
    assert storage_command("verify", "--storage", place)[0] == 0
    status, text = storage_command("du", "--storage", place)
    assert status == 0 and f"study {study}" in text
    fourth = bench.run(place, *options(bench))
    assert "11 of 11 units finished, 11 of them before this call" in fourth.text
    assert ledger.storage.look(f"units/{next(iter(seen))}/{RESULT}") is not None
    assert not list((bench.folder / "scratch").glob("*")), "nothing stays on the machine's disk"


def test_without_a_place_for_mlflow_nothing_starts(bench, place, server):
    begun = len(server.requests)
    driver = bench.run(place, timeout=60)
    assert driver.process.returncode == 2
    assert "has no place for MLflow's database; give --tracking-uri" in driver.text
    assert len(server.requests) == begun


def test_a_search_on_an_object_store_resumes_where_it_was(bench, place, server, tmp_path):
    space = tmp_path / "space.py"
    text = bench.study.read_text()
    base = text[text.index("base={") : text.index("seeds=1")]
    space.write_text(
        '"""Two settings on toy clips."""\n\n'
        "from search_spaces.space import Choice, Space\n\n"
        'SPACE = Space(name="two", question="?", objective="validation/ar3d/top1", direction="maximize",\n'
        f'    dimensions={{"routing": Choice((False, True))}}, {base} trials=2, seeds=1)\n'
    )
    data = [part for name, path in bench.data.items() for part in ("--data", f"{name}={path}")]
    shown = [sys.executable, "-m", "orchestrator.search", str(space), *data, "--storage", place, "--address", "local",
             "--set", "validation_subjects=1", *options(bench)]  # fmt: skip
    environment = os.environ | {"UPS_CACHE": str(bench.folder / "cache"), "PYTHONPATH": str(ROOT)}
    ends = [
        subprocess.run(shown, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        for _ in range(2)
    ]
    assert [end.returncode for end in ends] == [0, 0], ends[0].stdout + ends[0].stderr + ends[1].stderr
    ledger = Ledger.at(place)
    (name,) = ledger.storage.children("searches")
    names = {entry.name.rsplit("/", 1)[-1] for entry in ledger.storage.entries(f"searches/{name}")}
    assert {"journal.log", "search.md", "trials.csv"} <= names
    assert len(records_there(ledger)) == 2
    assert "2 of 2 trials there" in ends[1].stderr
