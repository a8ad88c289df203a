"""Empty stores in files for tests: created once and copied, which takes a twentieth of the time."""

import shutil
from pathlib import Path

import pytest

from streamkm.stores import open_store


@pytest.fixture(scope="session")
def empty_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with an empty store, to be copied."""
    file = tmp_path_factory.mktemp("empty") / "store.db"
    open_store(f"sqlite:///{file}").close()
    return file


@pytest.fixture
def sqlite_url(empty_sqlite: Path, tmp_path: Path) -> str:
    """An empty store in a file for one test."""
    return f"sqlite:///{shutil.copy(empty_sqlite, tmp_path / 'store.db')}"
