"""A ledger with an MLflow database."""

import shutil

import pytest

from orchestrator.storage.ledger import Ledger
from orchestrator.tracking.client import connect


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """A new MLflow database, made once: making one takes seconds."""
    file = tmp_path_factory.mktemp("database") / "mlflow.db"
    connect(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def ledger(tmp_path, database, monkeypatch):
    """An empty ledger in a folder with a space, and with a database; the working directory is another."""
    monkeypatch.chdir(tmp_path)
    new_ledger = Ledger.open(str(tmp_path / "a storage"))
    shutil.copy(database, new_ledger.root / "mlflow.db")
    return new_ledger
