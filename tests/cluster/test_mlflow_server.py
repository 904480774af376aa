"""The MLflow server with PostgreSQL: what studies leave in it, through crashes, and who gets in."""

import getpass
import json
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from cluster import mlflow_server, postgres
from cluster.postgres import Postgres
from orchestrator.storage.ledger import Ledger
from orchestrator.tracking import mlflow_store
from orchestrator.tracking import schema as mirrored
from orchestrator.tracking.client import EXPERIMENT
from orchestrator.tracking.mirror import PERMANENT_CODES
from tests.support.drivers import PATIENCE, ROOT, Bench, alive, command_of, descendants, records, wait_until
from tests.support.tracking_server import client, missing, running_server

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=missing() or "all is there"),
]
STEPS = 48
LONG_STEPS = 480
"""Enough for the server to start again meanwhile."""


@pytest.fixture(scope="module")
def server():
    with running_server() as server:
        yield server


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench.make(tmp_path_factory.mktemp("tracked"), STEPS)


@pytest.fixture
def login(server, monkeypatch):
    """The environment of a driver that may write."""
    for name, value in server.login.items():
        monkeypatch.setenv(name, value)


def tracked(server):
    return ["--tracking-uri", server.url]


def report(out, *source):
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.report", *source, "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {file.name: file.read_bytes() for file in out.iterdir() if file.suffix in (".md", ".csv", ".tex")}


def assert_whole(server, storage, folder):
    """The database has one finished run for each record, with all its points once, its files, and the same report."""
    kept = {json.loads(text)["key"]: json.loads(text) for text in records(storage).values()}
    runs = server.runs_by_key()
    assert set(kept) <= set(runs)
    assert {key: [status for _, status in runs[key]] for key in kept} == {key: ["FINISHED"] for key in kept}
    for key, record in kept.items():
        ((run, _),) = runs[key]
        points = server.query(f"SELECT key, step, count(*) FROM metrics WHERE run_uuid = '{run}' GROUP BY key, step")
        assert [point for point in points if point[2] != "1"] == []
        values = dict(server.query(f"SELECT key, value FROM latest_metrics WHERE run_uuid = '{run}'"))
        # Names are of MLflow's alphabet there.
        measured = {f"best/{name.replace('@', '_at_')}": value for name, value in record["metrics"].items()}
        assert len(measured) > 3
        assert {name: float(values[name]) for name in measured} == measured
        ((address,),) = server.query(f"SELECT artifact_uri FROM runs WHERE run_uuid = '{run}'")
        assert address.startswith("mlflow-artifacts:/")
        (file,) = (server.data / "artifacts").glob(f"*/{run}/artifacts/record.json")
        assert json.loads(file.read_text()) == record
    name = next((storage / "studies").iterdir()).name
    from_server = report(folder / "from-server", name, "--tracking-uri", server.url)
    assert from_server == report(folder / "from-storage", name, "--storage", str(storage))
    assert {"report.md", "cells.csv"} <= set(from_server)


def test_runs_metrics_and_files_of_a_study_are_in_the_database_and_in_the_servers_folder(
    server, bench, login, tmp_path
):
    storage = bench.folder / "plain"
    driver = bench.run(storage, *tracked(server))
    assert driver.process.returncode == 0, driver.text
    assert "not mirrored" not in driver.text
    assert len(records(storage)) > 5
    assert_whole(server, storage, tmp_path)


@pytest.mark.parametrize("victim", ["mlflow", "postgres"])
def test_a_server_that_is_killed_in_the_middle_of_a_study_is_filled_when_it_is_back(
    victim, tmp_path_factory, tmp_path, monkeypatch
):
    bench = Bench.make(tmp_path_factory.mktemp("long"), LONG_STEPS)
    storage = bench.folder / "storage"
    with running_server() as server, driver_on(server, bench, storage, monkeypatch) as driver:
        wait_until(lambda: bool(server.runs_by_key()), lambda: driver.text)
        assert server.kill(victim) == 1
        assert re.search(rf"error: {victim} ended with status -9", server.log.read_text())
        driver.wait_for("training goes on")
        server.start()
        before = len(records(storage))
        driver.wait_for("is back; runs are mirrored again")
        assert driver.process.wait(PATIENCE) == 0, driver.text
        assert before < len(records(storage))  # It was the middle.
        assert "not in MLflow yet" not in driver.text
        assert_whole(server, storage, tmp_path)


def test_a_server_that_is_killed_with_its_children_and_comes_back_late_is_filled_by_the_same_command(
    bench, tmp_path, monkeypatch
):
    storage = bench.folder / "late"
    with running_server() as server, driver_on(server, bench, storage, monkeypatch) as driver:
        wait_until(lambda: bool(server.runs_by_key()), lambda: driver.text)
        assert server.kill("command") == -signal.SIGKILL  # Returns when PostgreSQL and MLflow are gone, too.
        assert driver.process.wait(PATIENCE) == 0, driver.text
        assert "units are not in MLflow yet; the same command makes up for it" in driver.text
        trained = records(storage)
        server.start()
        again = bench.run(storage, *tracked(server))
        assert again.process.returncode == 0 and "start " not in again.text, again.text
        assert records(storage) == trained
        assert_whole(server, storage, tmp_path)


@contextmanager
def driver_on(server, bench, storage, monkeypatch):
    """A driver that may write, one unit at a time; killed at the end of the block if it runs still."""
    for name, value in server.login.items():
        monkeypatch.setenv(name, value)
    driver = bench.start(storage, *tracked(server))
    try:
        yield driver
    finally:
        if driver.process.poll() is None:
            driver.kill()


def test_two_drivers_that_share_nothing_but_the_server_make_one_run_a_unit(server, tmp_path_factory, login):
    bench = Bench.make(tmp_path_factory.mktemp("twice"), STEPS + 16)  # Keys of its own.
    drivers = [bench.start(bench.folder / name, *tracked(server)) for name in ("one", "two")]
    try:
        for driver in drivers:
            assert driver.process.wait(PATIENCE) == 0, driver.text
    finally:
        for driver in drivers:
            if driver.process.poll() is None:
                driver.kill()
    keys = {json.loads(text)["key"] for text in records(bench.folder / "one").values()}
    assert len(keys) > 5
    runs = server.runs_by_key()
    assert {key: len(runs[key]) for key in keys} == dict.fromkeys(keys, 1)
    name = next((bench.folder / "one" / "studies").iterdir()).name
    parents = server.query(
        "SELECT run_uuid FROM tags JOIN runs USING (run_uuid) "
        f"WHERE key = 'ups.plan' AND value = '{name}' AND lifecycle_stage = 'active'"
    )
    assert len(parents) == 1


@pytest.mark.parametrize(("second_began", "kept"), [(2000, 0), (500, 1)])
def test_of_two_runs_made_at_the_same_moment_the_older_is_kept_and_the_other_driver_finds_it(
    second_began, kept, server, login, tmp_path, monkeypatch
):
    key, experiment = f"raced-{second_began}", f"race {second_began}"
    tags = {mirrored.KEY: key, mirrored.RUN_NAME: "raced"}
    stores = [mlflow_store.MlflowStore(server.url, experiment, Ledger.open(str(tmp_path / one))) for one in "ab"]
    stores[0].ensure_units({key: (tags, 1000)})
    with monkeypatch.context() as patch:
        patch.setattr(stores[1], "_look", lambda condition="": None)  # It looked just before the first made its run.
        stores[1].ensure_units({key: (tags, second_began)})
    ((run, _),) = server.runs_by_key()[key]
    assert run == stores[kept].units[key].id == stores[1].units[key].id
    if kept == 1:
        # The mirror takes such an error for a reason to look again.
        with pytest.raises(Exception, match="active") as caught:
            stores[0].write(stores[0].units[key], tags={"more": "yes"})
        assert caught.value.error_code in PERMANENT_CODES
        del stores[0].units[key]
        stores[0].ensure_units({key: (tags, 1000)})
    assert stores[0].units[key].id == run


def test_no_worker_has_the_credentials_and_all_is_mirrored(server, tmp_path_factory, login, tmp_path):
    """On a cluster, whose machines the driver's environment doesn't reach."""
    bench = Bench.make(tmp_path_factory.mktemp("strangers"), STEPS + 32)  # Keys of its own.
    password = server.login["MLFLOW_TRACKING_PASSWORD"].encode()
    storage, seen = bench.folder / "strangers", {}
    with cluster_without(server.login) as (ray_pid, address):
        driver = bench.start(storage, *tracked(server), "--address", address)
        try:
            while driver.process.poll() is None:
                for pid in descendants(ray_pid):
                    if b"Trainable.train" in command_of(pid):
                        seen[pid] = environment_of(pid) or seen.get(pid, b"")
                time.sleep(0.1)
        finally:
            if driver.process.poll() is None:
                driver.kill()
    assert driver.process.returncode == 0, driver.text
    assert seen and all(b"PATH=" in text for text in seen.values())
    assert not [pid for pid, text in seen.items() if password in text]
    assert_whole(server, storage, tmp_path)


@contextmanager
def cluster_without(names):
    """Ray on this machine, of a process that lacks some environment variables: its id and the cluster's address."""
    program = (
        "import sys; from ray.cluster_utils import Cluster; "
        "cluster = Cluster(initialize_head=True, head_node_args={'include_dashboard': False, 'num_cpus': 2}); "
        "print(cluster.address, flush=True); sys.stdin.read(); cluster.shutdown()"
    )
    environment = {name: value for name, value in os.environ.items() if name not in names}
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process.pid, process.stdout.readline().strip()
    finally:
        process.communicate(timeout=60)


def environment_of(pid):
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def test_only_the_file_that_is_named_for_it_writes_to_mlflow_and_no_worker_reaches_it(repo_root):
    """Whatever a worker imports, by way of anything, is not MLflow and not the file that imports it."""
    program = (
        "import sys, orchestrator.worker.run_unit, orchestrator.execution.driver\n"
        "names = {'mlflow', 'orchestrator.tracking.mlflow_store', 'orchestrator.tracking.mirror'}\n"
        "print(sorted(names & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=repo_root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("login", [{}, {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "wrong-one"}])
def test_wrong_credentials_are_refused_before_anything_starts(login, server, bench, monkeypatch):
    for name in server.login:
        monkeypatch.delenv(name, raising=False)
    for name, value in login.items():
        monkeypatch.setenv(name, value)
    storage = bench.folder / "refused"
    driver = bench.run(storage, *tracked(server), timeout=60)
    assert driver.process.returncode == 2
    (line,) = [line for line in driver.text.splitlines() if line.startswith("error: ")]
    assert f"--tracking-uri {server.url}: refuses us" in line
    assert "MLFLOW_TRACKING_USERNAME" in line and "MLFLOW_TRACKING_PASSWORD" in line
    assert "wrong-one" not in driver.text and "Traceback" not in driver.text
    assert not storage.exists()


def test_a_user_who_may_only_read_is_refused_before_anything_starts(server, bench, monkeypatch, login):
    from mlflow.server import get_app_client

    if client(server).get_experiment_by_name(EXPERIMENT) is None:
        client(server).create_experiment(EXPERIMENT)
    get_app_client("basic-auth", server.url).create_user("reader", "a-long-password")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "reader")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a-long-password")
    driver = bench.run(bench.folder / "reader", *tracked(server), timeout=60)
    assert driver.process.returncode == 2
    assert "refuses us" in driver.text and "who may write there" in driver.text


def test_nothing_secret_is_shown_and_nobody_else_gets_in(server):
    password, key = ((server.data / name).read_text() for name in ("password", "flask-key"))
    assert min(len(password), len(key)) > 30
    for pid in [server.process.pid, *server.pids()]:
        assert password.encode() not in command_of(pid) and key.encode() not in command_of(pid)
    for log in (server.log, server.data / "mlflow.log", server.data / "postgres.log"):
        assert log.read_text() and password not in log.read_text() and key not in log.read_text()
    for name in ("password", "flask-key", "auth.ini", "mlflow.log", "postgres.log"):
        assert stat.S_IMODE((server.data / name).stat().st_mode) == 0o600, name
    for name in ("postgres", "run", "artifacts"):
        assert stat.S_IMODE((server.data / name).stat().st_mode) == 0o700, name
    assert server.query("SHOW listen_addresses") == [("",)]
    # By the socket, too, only who has started it: the kernel says who asks.
    assert server.query("SELECT DISTINCT type, auth_method FROM pg_hba_file_rules", "postgres") == [("local", "peer")]
    allowed = server.query("SELECT DISTINCT sys_name FROM pg_ident_file_mappings", "postgres")
    assert allowed == [(getpass.getuser(),)]


def test_a_second_start_says_that_it_runs_and_ends_well(server):
    done = subprocess.run(server.command(), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "runs already" in done.stdout and server.url in done.stdout
    assert server.process.poll() is None and server.query("SELECT 1") == [("1",)]


def test_a_backup_that_is_brought_into_an_empty_server_has_runs_files_and_users(tmp_path, monkeypatch):
    """The commands of docs/tracking.md."""
    from mlflow.server import get_app_client

    dump, tar, note = str(tmp_path / "mlflow.dump"), str(tmp_path / "artifacts.tar"), tmp_path / "note.txt"
    note.write_text("seen at the seminar")
    with running_server() as old:
        for name, value in old.login.items():
            monkeypatch.setenv(name, value)
        run = client(old).create_run(client(old).create_experiment("kept"))
        client(old).log_artifact(run.info.run_id, str(note))
        get_app_client("basic-auth", old.url).create_user("ada", "a-long-password")
        subprocess.run(["pg_dump", "-h", old.data / "run", "-U", "mlflow", "-Fc", "mlflow", "-f", dump], check=True)
        subprocess.run(["tar", "-C", old.data, "-cf", tar, "artifacts"], check=True)
        password = (old.data / "password").read_text()
    with running_server() as new:
        back = ["pg_restore", "-h", new.data / "run", "-U", "mlflow", "--clean", "--if-exists", "-d", "mlflow", dump]
        subprocess.run(back, check=True)
        subprocess.run(["tar", "-C", new.data, "-xf", tar], check=True)
        (new.data / "password").write_text(password)
        assert new.stop() == 0
        new.start()
        assert new.query("SELECT run_uuid FROM runs") == [(run.info.run_id,)]
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a-long-password")
        note = client(new).download_artifacts(run.info.run_id, "note.txt", str(tmp_path / "back"))
        assert Path(note).read_text() == "seen at the seminar"


def test_a_database_of_sqlite_that_is_asked_for_serves_with_users_too():
    with running_server("--database-uri", "sqlite:///{folder}/runs.db") as server:
        assert server.pids(b"postgres") == []
        with pytest.raises(HTTPError, match="401"):
            urlopen(f"{server.url}/api/2.0/mlflow/experiments/search?max_results=1")
        with sqlite3.connect(server.folder / "runs.db") as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
            assert {"runs", "users"} <= tables
        assert not (server.data / "postgres").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_end_it_ends_both_servers_and_says_nothing_is_wrong(number):
    with running_server() as server:
        pids = server.pids()
        assert len(pids) > 3
        assert server.stop(number) == 0
        wait_until(lambda: not any(alive(pid) for pid in pids), lambda: str([command_of(pid) for pid in pids]))
        assert "database system is shut down" in (server.data / "postgres.log").read_text()


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--host", "0.0.0.0"], "--host must be a loopback address, got 0.0.0.0"),
        (["--host", "example.org"], "--host must be a loopback address"),
        (["--port", "70000"], "--port must be from 1 to 65535, got 70000"),
        (["--database-uri", "postgresql://me:hidden-one@db/mlflow"], "put it into ~/.pgpass"),
        (["--database-uri", "postgresql://db/mlflow?user=me&password=hidden-one"], "put it into ~/.pgpass"),
        (["--database-uri", "mysql://db/mlflow"], "must be postgresql:// or sqlite:///, got mysql"),
        (["--database-uri", "sqlite:///mlflow.db"], "must name a file by its whole path"),
        (["--artifacts", "ftp://host/folder"], "--artifacts must be a folder or s3://"),
        (["--artifacts", "s3://key:hidden-one@bucket/x"], "--artifacts must be s3://BUCKET/PREFIX"),
    ],
)
def test_what_can_not_be_or_is_not_safe_is_refused_in_one_line(arguments, fault, capsys):
    assert mlflow_server.main([*arguments, "--data", "/tmp/ups-never-made"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and fault in said.err
    assert "hidden-one" not in said.err + said.out
    assert not Path("/tmp/ups-never-made").exists()


def test_without_postgresql_it_says_how_to_get_it_and_takes_nothing_else(monkeypatch, capsys):
    monkeypatch.setattr(postgres, "PACKAGES", "/nonexistent")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert mlflow_server.main(["--data", "/tmp/ups-never-made"]) == 2
    said = capsys.readouterr().err
    assert "apt-get install postgresql" in said and "--database-uri sqlite:////" in said
    assert not Path("/tmp/ups-never-made").exists()


def test_a_folder_of_somebody_elses_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds other things \(thesis.tex\); give an empty folder"):
        mlflow_server.prepare(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_data_of_another_version_of_postgresql_is_refused():
    folder = Path("/tmp") / f"ups-old-{os.getpid()}" / "postgres"
    folder.mkdir(parents=True)
    (folder / "PG_VERSION").write_text("9.6\n")
    try:
        with pytest.raises(ValueError, match=r"made by PostgreSQL 9.6, found \d+.*; apt-get install postgresql-9.6"):
            Postgres(folder)
    finally:
        (folder / "PG_VERSION").unlink()
        folder.rmdir()
        folder.parent.rmdir()
