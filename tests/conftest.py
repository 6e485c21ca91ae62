"""What every test is held to: no thread and no temporary file outlives it."""

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("distmf", deadline=None, derandomize=True)  # the first call of some compiles
hypothesis.settings.load_profile("distmf")


@pytest.fixture(autouse=True)
def no_leaks(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the test a temporary folder of its own, and fail it if something is left there or a thread still runs."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    assert [path.name for path in folder.iterdir()] == []
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("distmf")] == []
