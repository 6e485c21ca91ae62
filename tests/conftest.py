"""What every test is held to: no thread and no temporary file outlives it."""

import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.s3 import Server, running_server

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


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start a server of S3 when the first test needs one."""
    with running_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Give the URL of an empty bucket; this process and those that it starts may read and write it."""
    from s3fs import S3FileSystem

    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # they found their server when they were first used
    fs, bucket = S3FileSystem(), f"bucket-{uuid.uuid4().hex}"
    fs.mkdir(bucket)
    yield f"s3://{bucket}"
    fs.rm(bucket, recursive=True)
    S3FileSystem.clear_instance_cache()
