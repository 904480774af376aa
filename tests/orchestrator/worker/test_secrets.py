"""What a driver, its Ray and an MLflow server write down holds no secret of the environment or of an address."""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from orchestrator.tracking.client import check
from orchestrator.tracking.read import fetch
from orchestrator.tracking.uri import ui_command, without_login
from tests.support.drivers import Bench, records
from tests.support.tracking_server import Server, missing, running_server

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=missing() or "all is there"),
]
STEPS = 32
AWS = {
    "AWS_ACCESS_KEY_ID": "planted-id-4b1d",
    "AWS_SECRET_ACCESS_KEY": "planted-secret-8c2e",
    "AWS_SESSION_TOKEN": "planted-token-77aa",
    "AWS_SECURITY_TOKEN": "planted-security-51f0",
}
FALSE_LOGIN = "planted-login-90cd"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folders with all that a study left, which was given its password in the address; and the secrets."""
    with running_server() as server:
        folder = tmp_path_factory.mktemp("secrets")
        bench = Bench.make(folder, STEPS)
        # A short path: Ray's sockets lie in it.
        temporary = Path(tempfile.mkdtemp(prefix="ups-ray-"))
        password = server.login["MLFLOW_TRACKING_PASSWORD"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_TMPDIR", str(temporary))
            for name, value in AWS.items():
                patch.setenv(name, value)
            # Of another server; the address comes first.
            patch.setenv("MLFLOW_TRACKING_USERNAME", "somebody")
            patch.setenv("MLFLOW_TRACKING_PASSWORD", FALSE_LOGIN)
            address = f"http://admin:{password}@127.0.0.1:{server.port}"
            driver = bench.run(folder / "storage", "--tracking-uri", address)
            away = bench.start(folder / "away", "--tracking-uri", address.replace(f":{server.port}", ":9"))
            away.wait_for("training goes on")
            away.kill()
            dump(server, folder)
        yield driver, server, [folder, server.data, temporary], [*AWS.values(), FALSE_LOGIN, password]
    shutil.rmtree(temporary, ignore_errors=True)


def dump(server: Server, folder: Path):
    """All tables of MLflow's database, as text; its binary pages could hide a match."""

    (folder / "database.sql").write_bytes(
        subprocess.run(
            ["pg_dump", "-h", str(server.data / "run"), "-U", "mlflow", "mlflow"], capture_output=True, check=True
        ).stdout
    )


def test_a_study_leaves_none_of_its_secrets_in_any_file(written):
    driver, server, folders, secrets = written
    assert driver.process.returncode == 0, driver.text
    assert len(records(driver.log.parent / "storage")) > 5
    assert len(server.runs_by_key()) > 5, "the password of the address has opened the server"
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    names = {file.name for file in files}
    # What must have been looked at.
    assert {"database.sql", "record.json", "report.md", "plan.json", "mlflow.log", "gcs_server.out"} <= names
    assert any(re.fullmatch(r"worker-.*\.(out|err)", name) for name in names)
    # The file that is there to hold it.
    files.remove(server.data / "password")
    leaks = [(file.name, secret) for file in files for secret in secrets if secret.encode() in file.read_bytes()]
    assert leaks == []


def test_the_search_would_find_a_secret(written):
    _, server, _, secrets = written
    assert secrets[-1].encode() in (server.data / "password").read_bytes()


def test_a_password_of_an_address_is_in_no_text_for_people(caplog):
    for uri in (
        "http://me:hidden@127.0.0.1:9",
        "http://me:hidden@host:port",
        "ftp://me:hidden@host",
        "postgresql://me:hidden@host/db",
        "http://me:hid@den@127.0.0.1:9",
    ):
        try:
            check(uri)
            assert "hid" not in ui_command(uri)
            assert "me:***@" in ui_command(uri)
        except ValueError as error:
            assert "hid" not in str(error) and "me:***@" in str(error)
    assert "hid" not in caplog.text
    with pytest.raises(ValueError, match=r"http://me:\*\*\*@127.0.0.1:9: can't be read") as caught:
        fetch("http://me:hidden@127.0.0.1:9", None)
    assert "hidden" not in str(caught.value)


def test_the_login_of_an_address_is_taken_out_of_it_whole():
    assert without_login("http://a%40b:c%3Ad@host:5000/ml") == ("http://host:5000/ml", ["a@b", "c:d"])
    assert without_login("https://ada@host") == ("https://host", ["ada"])
    assert without_login("http://[::1]:5000") == ("http://[::1]:5000", [])
    assert without_login("postgresql://a:b@host/db") == ("postgresql://a:b@host/db", [])


def test_tune_would_hand_the_drivers_keys_to_ray_were_it_not_kept_from_it():
    """What the driver changes in Tune is still there to be changed."""

    program = (
        "from ray.tune.execution import class_cache as it; before = set(it.ENV_VARS_TO_PROPAGATE)\n"
        "import orchestrator.execution.driver\n"
        "print(*sorted(before - it.ENV_VARS_TO_PROPAGATE))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == set(AWS)
