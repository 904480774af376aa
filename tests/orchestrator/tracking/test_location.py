"""A storage that was copied or moved: its MLflow store has its own artifacts, and never touches the original's."""

import json
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from orchestrator.planning.plan_file import PlanFile
from orchestrator.report import build, write_report
from orchestrator.report.__main__ import main as report_command
from orchestrator.report.sources import open_study
from orchestrator.storage.__main__ import main as storage_command
from orchestrator.storage.ledger import RECORD, Ledger
from orchestrator.tracking import location as tracking_location
from orchestrator.tracking import mlflow_store
from orchestrator.tracking.client import EXPERIMENT
from orchestrator.tracking.read import fetch
from orchestrator.tracking.uri import default_uri
from tests.orchestrator.tracking.test_tracking import client_of, finish, plan_of, runs_of, study, synchronise
from tests.support.drivers import Bench, mlflow_runs, records

pytest.importorskip("mlflow")


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory):
    """A storage with half a study, mirrored; its name has what SQL and addresses give a meaning."""
    ledger = Ledger.open(str(tmp_path_factory.mktemp("original") / "my_storage %1"))
    plan, content = plan_of()
    ledger.save_plan(PlanFile.from_json(json.dumps(content)))
    for unit in list(plan.units.values())[:2]:
        finish(ledger, unit)
    assert synchronise(ledger, plan, content) == 0
    return ledger.root


@pytest.fixture
def original(mirrored, tmp_path):
    """A storage in its own place: the database says so by the same means that the tests are about."""
    place = tmp_path / "my_storage %1"
    shutil.copytree(mirrored, place)
    tracking_location.settle(place)
    return place


def tree(folder):
    """Every file but locks, with its content and time."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    }


def addresses(folder):
    """All addresses of artifacts in a database."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        (location,) = database.execute(
            "SELECT artifact_location FROM experiments WHERE name = ?", (EXPERIMENT,)
        ).fetchone()
        return {location, *(uri for (uri,) in database.execute("SELECT artifact_uri FROM runs"))}


def uri_of(folder):
    return default_uri(Ledger(folder))


def reports(folder, out):
    """The report's files from the records, and from MLflow."""
    contents = []
    for name, opened in (
        ("ledger", open_study("little", Ledger(folder), None)),
        ("mlflow", open_study("little", None, uri_of(folder))),
    ):
        write_report(build(opened.plan, opened.records), out / name)
        contents.append({path.name: path.read_bytes() for path in (out / name).rglob("*") if path.is_file()})
    return contents


def go_on(folder):
    """What `ablate` does at the end: one more unit has finished, everything is mirrored."""
    ledger, (plan, content) = Ledger(folder), plan_of()
    finish(ledger, list(plan.units.values())[2], 60.0)
    assert synchronise(ledger, plan, content) == 0
    return ledger, plan


def copied(original, tmp_path):
    shutil.copytree(original, tmp_path / "my_storage %1 too")
    return tmp_path / "my_storage %1 too"


def moved(original, tmp_path):
    return Path(shutil.move(original, tmp_path / "elsewhere"))


def copied_and_original_deleted(original, tmp_path):
    place = copied(original, tmp_path)
    shutil.rmtree(original)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("how", [copied, moved, copied_and_original_deleted])
@pytest.mark.parametrize("first", ["report", "ablate"])
def test_the_report_from_mlflow_is_that_of_the_ledger_and_the_original_is_untouched(original, tmp_path, how, first):
    before = tree(original)
    place = how(original, tmp_path)
    if first == "report":
        from_ledger, from_mlflow = reports(place, tmp_path / "first")
        assert from_ledger == from_mlflow and "cells.csv" in from_ledger
    ledger, plan = go_on(place)
    from_ledger, from_mlflow = reports(place, tmp_path / "second")
    assert from_ledger == from_mlflow
    assert len(list((place / "mlartifacts").rglob(RECORD))) == 3
    assert addresses(place) and all(one.startswith(f"{place.as_uri()}/mlartifacts") for one in addresses(place))
    assert len(runs_of(uri_of(place))[0]) == 3, "no run is made twice"
    if how is copied:
        assert tree(original) == before
        assert all(one.startswith(f"{original.as_uri()}/mlartifacts") for one in addresses(original))
    else:
        assert not original.exists()
    for run in runs_of(uri_of(place))[0]:
        file = Path(client_of(uri_of(place)).download_artifacts(run.info.run_id, RECORD))
        unit = plan.units[run.data.tags["ups.key"]]
        assert file.read_text() == ledger.record(unit).to_json()


@pytest.mark.slow
def test_artifacts_that_were_not_copied_along_are_made_again_from_the_records(original, tmp_path, capsys):
    place = tmp_path / "copy"
    shutil.copytree(original, place, ignore=shutil.ignore_patterns("mlartifacts"))
    before = tree(original)
    status = report_command(["little", "--tracking-uri", uri_of(place), "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert status == 2 and "plan.json of run" in error and "run the study's ablate command again" in error
    go_on(place)
    from_ledger, from_mlflow = reports(place, tmp_path / "out")
    assert from_ledger == from_mlflow and len(list((place / "mlartifacts").rglob(RECORD))) == 3
    assert tree(original) == before
    metrics = client_of(uri_of(place)).get_metric_history(
        runs_of(uri_of(place))[0][0].info.run_id, "best/test/ar3d/top1"
    )
    assert len(metrics) == 1, "the same values written again are the same points"


@pytest.mark.slow
def test_a_copy_that_wrote_into_its_original_gets_artifacts_of_its_own(original, tmp_path, monkeypatch):
    place = copied(original, tmp_path)
    with monkeypatch.context() as before_it_was_known:
        before_it_was_known.setattr(mlflow_store, "settle", lambda storage: None)
        before = tree(original)
        go_on(place)
        assert tree(original) != before and len(list((place / "mlartifacts").rglob(RECORD))) == 2
    plan, content = plan_of()
    before = tree(original)
    assert synchronise(Ledger(place), plan, content) == 0
    from_ledger, from_mlflow = reports(place, tmp_path / "out")
    assert from_ledger == from_mlflow and len(list((place / "mlartifacts").rglob(RECORD))) == 3
    assert tree(original) == before


def test_an_artifact_that_was_changed_or_deleted_is_written_again(original, tmp_path):
    one, other = (original / "mlartifacts").rglob(RECORD)
    expected = one.read_bytes(), other.read_bytes()
    one.unlink()
    other.write_text("{}")
    plan, content = plan_of()
    assert synchronise(Ledger(original), plan, content) == 0
    assert (one.read_bytes(), other.read_bytes()) == expected


@pytest.mark.slow
def test_drivers_that_open_a_moved_storage_at_once_agree(original, tmp_path):
    place = moved(original, tmp_path)
    (plan, content), (second, second_content) = plan_of(), plan_of(study("second"), seeds=2)
    finish(Ledger(place), list(plan.units.values())[2])
    left = []
    threads = [
        threading.Thread(target=lambda arguments=arguments: left.append(synchronise(Ledger(place), *arguments)))
        for arguments in ((plan, content), (plan, content), (second, second_content))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert left == [0, 0, 0]
    units, studies = runs_of(uri_of(place))
    assert len(units) == 3 and len(studies) == 2
    assert all(one.startswith(place.as_uri()) for one in addresses(place))
    from_ledger, from_mlflow = reports(place, tmp_path / "out")
    assert from_ledger == from_mlflow


@pytest.mark.slow
def test_another_path_to_the_same_storage_is_no_move(original, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(original)
    before = addresses(original)
    go_on(link)
    from_ledger, from_mlflow = reports(link, tmp_path / "out")
    assert from_ledger == from_mlflow and addresses(original) >= before
    assert all(one.startswith(original.as_uri()) for one in addresses(original))


def test_a_store_of_the_users_own_is_left_as_it_is(original, tmp_path):
    own = tmp_path / "own.db"
    shutil.copy(original / "mlflow.db", own)
    before = own.read_bytes()
    assert tracking_location.own_storage(f"sqlite:///{own}") is None
    assert tracking_location.own_storage("http://host:5000") is None
    ((_, fetched),) = fetch(f"sqlite:///{own}", None)
    assert sum(record is not None for record in fetched.values()) == 2 and own.read_bytes() == before


def test_a_database_that_can_not_be_put_right_is_one_line_with_the_way_out(original, tmp_path, monkeypatch, capsys):
    place = moved(original, tmp_path)

    def refuse(storage):
        raise sqlite3.OperationalError("attempt to write a readonly database")

    monkeypatch.setattr("orchestrator.tracking.read.settle", refuse)
    status = report_command(["little", "--tracking-uri", uri_of(place), "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert status == 2 and error.count("\n") == 1 and "readonly database" in error
    assert f"make it writable, or report from --storage {place}" in error


@pytest.mark.slow
def test_an_imported_ledger_is_mirrored_whole(original, tmp_path):
    file, place = tmp_path / "ledger.tar.gz", tmp_path / "imported"
    assert storage_command(["export", str(file), "--storage", str(original)]) == 0
    assert storage_command(["import", str(file), "--storage", str(place)]) == 0
    go_on(place)
    from_ledger, from_mlflow = reports(place, tmp_path / "out")
    assert from_ledger == from_mlflow
    ours, theirs = (
        {
            run.data.tags["ups.key"]: client_of(uri_of(one)).get_metric_history(run.info.run_id, "train/pe_loss")
            for run in runs_of(uri_of(one))[0]
        }
        for one in (original, place)
    )
    assert len(theirs) == 3 and all(
        [vars(point) for point in ours[key]] == [vars(point) for point in theirs[key]] for key in ours
    )


@pytest.mark.slow
def test_a_driver_on_a_moved_storage_and_on_an_imported_one_trains_nothing_again(tmp_path, monkeypatch):
    bench = Bench.make(tmp_path / "bench", 16)
    first = tmp_path / "first"
    assert bench.run(first).process.returncode == 0
    expected, count = records(first), len(records(first))
    place = Path(shutil.move(first, tmp_path / "second"))
    file, imported = tmp_path / "ledger.tar.gz", tmp_path / "imported"
    assert storage_command(["export", str(file), "--storage", str(place)]) == 0
    assert storage_command(["import", str(file), "--storage", str(imported)]) == 0
    texts = []
    for storage in (place, imported):
        driver = bench.run(storage)
        assert driver.process.returncode == 0 and f"{count} done before" in driver.text, driver.text
        assert records(storage) == expected
        units, studies = mlflow_runs(storage)
        assert len(units) == count and all(status == ["FINISHED"] for status in units.values()) and len(studies) == 1
        for option, name in ((["--storage", str(storage)], "ledger"), (["--tracking-uri", uri_of(storage)], "mlflow")):
            out = tmp_path / storage.name / name
            assert report_command(["toy", *option, "--out", str(out)]) == 0
            texts.append((out / "cells.csv").read_bytes())
    assert len(set(texts)) == 1
    # One unit is lost: it is trained again, and the parent before it, whose weights were not imported.
    lost = next(folder for folder in expected if folder.startswith("finetune-pe"))
    shutil.rmtree(imported / "units" / lost)
    driver = bench.run(imported)
    assert driver.process.returncode == 0 and "its weights are not on the storage; making them again" in driver.text
    assert records(imported).keys() == expected.keys()
