"""The whole of distmf on an object store: a server of S3 in a process of its own, with keys and rights."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

import distmf
from distmf.checkpoint import KIND as CHECKPOINT
from distmf.cli import main
from distmf.errors import StoreError
from distmf.ratings import Columns, open_ratings, read_piece
from distmf.store import Folder, Kind, new_folder
from tests.helpers import files, random_ratings, write
from tests.s3 import Server, running_server

TABLE = random_ratings(4000, 200, 80)
KIND = Kind("thing", 1, "manifest.json", (), r"rows/\d")


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refusal(*arguments: Any) -> str:
    """Return the one line that a command says when it gives up."""
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    return line


def upload(path: Path, url: str) -> str:
    Folder.at(url).write(path.name, path.read_bytes())
    return f"{url}/{path.name}"


def objects(url: str) -> dict[str, bytes]:
    """Return what lies below a URL, as `files` does for a folder."""
    folder = Folder.at(url)
    paths = [path for path in folder.fs.find(folder.path) if not path.endswith("/run.json")]
    return {path[len(folder.path) + 1 :]: folder.fs.cat_file(path) for path in paths}


def killed(code: str, *args: str) -> None:
    """Run code in a process that kills itself."""
    before = f"import os, sys\nfrom distmf.store import *\nKIND = {KIND!r}\nkill = lambda: os.kill(os.getpid(), 9)\n"
    command = [sys.executable, "-c", before + code, *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ratings, their blocks, and a model, all on the disk."""
    path = tmp_path_factory.mktemp("local")
    write(path / "r.parquet", TABLE, row_group_size=1500)
    distmf.block_ratings(path / "r.parquet", path / "blocks", holdout=0.1, grid=(3, 2), rank=8)
    distmf.MatrixFactorization(8, epochs=4).fit(path / "blocks").save(path / "model")
    return path


@pytest.fixture
def blocks(s3: str, local: Path) -> str:
    """Return the URL of the same blocks in a bucket."""
    fs = Folder.at(s3).fs
    fs.put(str(local / "blocks"), f"{s3}/blocks", recursive=True)
    return f"{s3}/blocks"


def test_s3__gives_the_bytes_that_a_disk_gives(s3: str, local: Path) -> None:
    ratings = upload(local / "r.parquet", f"{s3}/ratings")
    blocks = distmf.block_ratings(f"{s3}/ratings", f"{s3}/blocks", holdout=0.1, grid=(3, 2), rank=8)
    assert objects(f"{s3}/blocks") == files(local / "blocks")
    distmf.MatrixFactorization(8, epochs=4).fit(blocks).save(f"{s3}/model")
    assert objects(f"{s3}/model") == files(local / "model")
    found = distmf.evaluate(distmf.load(f"{s3}/model"), ratings)
    assert found == distmf.evaluate(distmf.load(local / "model"), local / "r.parquet")


def test_s3__serves_every_command(s3: str, local: Path, tmp_path: Path) -> None:
    ratings = upload(local / "r.parquet", f"{s3}/ratings")
    for place, source in ((s3, ratings), (tmp_path, local / "r.parquet")):
        options = "--holdout", 0.1, "--grid", "3x2", "--rank", 8
        assert run("block", source, f"{place}/blocks", *options, "-q").exit_code == 0
        checkpoint = "--checkpoint", f"{place}/checkpoint", "--resume"
        trained = run("train", f"{place}/blocks", f"{place}/model", "--rank", 8, "--epochs", 4, *checkpoint, "-q")
        assert trained.exit_code == 0, trained.output
        assert run("predict", f"{place}/model", source, f"{place}/predictions.parquet", "-q").exit_code == 0
        assert run("recommend", f"{place}/model", f"{place}/best", "--exclude", f"{place}/blocks", "-q").exit_code == 0
    assert objects(f"{s3}/model") == files(local / "model") == files(tmp_path / "model")
    for name in ("predictions.parquet", "best/part-00000.parquet"):
        assert Folder.at(s3).read(name) == (tmp_path / name).read_bytes()
    for name in ("blocks", "model"):
        assert run("inspect", f"{s3}/{name}").output == run("inspect", tmp_path / name).output.replace(
            str(tmp_path), s3
        )
    said = [run("evaluate", f"{place}/model", ratings).output for place in (s3, tmp_path)]
    assert said[0] == said[1]
    assert "RMSE" in said[0]


def test_s3__is_found_by_the_workers_of_a_cluster(blocks: str, s3: str, local: Path) -> None:
    options = "--rank", 8, "--epochs", 4, "--workers", 2, "--checkpoint", f"{s3}/checkpoint"
    command = [sys.executable, "-m", "distmf", "train", blocks, f"{s3}/model", *map(str, options)]
    trained = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert trained.returncode == 0, trained.stderr
    assert objects(f"{s3}/model") == files(local / "model")
    assert Folder.at(f"{s3}/checkpoint").read_manifest(CHECKPOINT)["states"][-1]["state"]["epoch"] == 4
    assert not any(name.startswith(("tmp/", "driver")) for name in objects(f"{s3}/checkpoint"))


def test_read__of_a_part_is_one_request(blocks: str, s3_server: Server) -> None:
    opened = distmf.open_blocks(blocks)
    key = max(opened.entries)
    before = len(s3_server.requests())
    opened._load(key)
    path = blocks.removeprefix("s3:/")
    assert s3_server.requests()[before:] == [f"GET {path}/rows/{key.row:05d}.bin 206"]


def test_write__is_one_request(s3: str, s3_server: Server) -> None:
    folder = Folder.at(f"{s3}/f")
    before = len(s3_server.requests())
    folder.write("rows/0", [b"one", b"two"])
    assert s3_server.requests()[before:] == [f"PUT {s3.removeprefix('s3:/')}/f/rows/0 200"]


def test_create__leaves_the_old_object_when_it_is_killed_or_fails_half_way(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_parts = {"default_block_size": 5 << 20}  # so that the first is sent soon
    monkeypatch.setenv("FSSPEC_S3", json.dumps(small_parts))
    monkeypatch.setitem(fsspec.config.conf, "s3", small_parts)
    folder = Folder.at(f"{s3}/f")
    folder.write("rows/0", b"old")
    killed("with Folder.at(sys.argv[1]).create('rows/0') as file: file.write(bytes(6 << 20)), kill()", str(folder))
    assert objects(str(folder)) == {"rows/0": b"old"}

    def fail() -> None:
        with folder.create("rows/0") as file:
            file.write(bytes(6 << 20))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert objects(str(folder)) == {"rows/0": b"old"}
    uploads = folder.fs.call_s3("list_multipart_uploads", Bucket=folder.path.split("/")[0]).get("Uploads", [])
    assert len(uploads) == 1  # of the process that was killed: a rule of the bucket's life cycle removes such


@pytest.mark.parametrize("when", ["rows/", "manifest.json"])
def test_new_folder__can_be_made_again_when_it_was_killed_while_it_was_copied(when: str, s3: str) -> None:
    def make(number: int) -> None:
        with new_folder(f"{s3}/f", KIND) as folder:
            folder.write("rows/0", b"%d" % number)
            folder.write("rows/1", b"%d" % number)
            folder.write_manifest(KIND, {"number": number})

    make(1)
    code = """
from s3fs import S3FileSystem
async def cp_file(self, source, target, cp_file=S3FileSystem._cp_file, **options):
    if sys.argv[2] in target:
        kill()
    await cp_file(self, source, target, **options)
S3FileSystem._cp_file = cp_file
with new_folder(sys.argv[1], KIND) as folder:
    folder.write("rows/0", b"2")
    folder.write("rows/1", b"2")
    folder.write_manifest(KIND, {"number": 2})
"""
    killed(code, f"{s3}/f", when)
    with pytest.raises(StoreError, match="restore it or make the folder again|format version"):
        Folder.at(f"{s3}/f").read_manifest(KIND)
    make(3)
    assert Folder.at(f"{s3}/f").read_manifest(KIND)["number"] == 3
    assert sorted(objects(s3)) == ["f/manifest.json", "f/rows/0", "f/rows/1"]


def test_s3__names_a_bucket_that_is_not_there_before_the_work_and_makes_none(s3: str, local: Path) -> None:
    missing = "s3://no-such-bucket"
    cannot = "cannot be written: The specified bucket does not exist; check the name, or make the folder or bucket"
    assert refusal("block", local / "r.parquet", f"{missing}/b") == f"distmf: {missing}/b {cannot}"
    assert refusal("train", local / "blocks", f"{missing}/m") == f"distmf: {missing}/m {cannot}"
    assert f"{missing}/c {cannot}" in refusal("train", local / "blocks", f"{s3}/m", "--checkpoint", f"{missing}/c")
    assert f"{missing}/o {cannot}" in refusal("recommend", local / "model", f"{missing}/o", "-q")
    assert "no such file" in refusal("block", f"{missing}/r", f"{s3}/b")
    assert "it does not exist" in refusal("inspect", f"{missing}/m")
    assert "model.json is missing" in refusal("evaluate", f"{missing}/m", local / "r.parquet")
    assert "is a whole bucket; choose a folder in it" in refusal("block", local / "r.parquet", s3)
    assert "no-such-bucket" not in Folder.at(s3).fs.ls("")


def test_s3__says_that_credentials_are_wrong(blocks: str, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = blocks.rpartition("/")[0]
    ratings = upload(local / "r.parquet", f"{place}/ratings")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    Folder.at(blocks).fs.clear_instance_cache()
    you_may_not = "you may not; check the rights, or the credentials of the object store"
    for command in (
        ["block", local / "r.parquet", f"{place}/b"],
        ["block", ratings, f"{place}/b"],
        ["train", blocks, f"{place}/m"],
        ["evaluate", f"{place}/m", ratings],
        ["inspect", blocks],
        ["predict", local / "model", ratings, f"{place}/p"],
        ["predict", local / "model", local / "r.parquet", f"{place}/p", "-q"],
    ):
        assert refusal(*command).endswith(f"; {you_may_not}"), command


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3: str) -> Iterator[Server]:
    """Start a server that a test may kill."""
    with running_server(tmp_path) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # botocore's patience, on top of that of s3fs
        Folder.at(s3).fs.clear_instance_cache()
        Folder.at("s3://bucket").fs.mkdir("bucket")
        yield server
        Folder.at(s3).fs.clear_instance_cache()


def test_s3__says_that_the_server_is_gone_and_does_not_wait_for_ever(server: Server, local: Path) -> None:
    ratings = upload(local / "r.parquet", "s3://bucket/ratings")
    folder = Folder.at("s3://bucket/f")
    began = 0.0
    check = "check the network, the address of the object store and the credentials, and run it again"

    def write() -> None:
        with folder.create("rows/0") as file:
            file.write(b"half")
            server.process.kill()
            server.process.wait()
            nonlocal began
            began = time.monotonic()

    with pytest.raises(StoreError, match=rf"f: the file rows/0 cannot be written: Could not connect to .*; {check}"):
        write()
    assert refusal("block", ratings, "s3://bucket/b").endswith(f"; {check}")
    assert time.monotonic() - began < 30


def test_read_piece__does_not_take_a_server_that_is_gone_for_a_damaged_file(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = {"use_dictionary": False, "data_page_size": 500, "write_batch_size": 50}  # many, to be read one by one
    many = random_ratings(50_000, 1000, 500)  # more than is read with the footer
    url = upload(write(tmp_path / "r.parquet", many, **pages), "s3://bucket/ratings")
    monkeypatch.setattr("distmf.ratings.REMOTE_BUFFER_BYTES", 1000)
    monkeypatch.setattr("distmf.ratings.BATCH_ROWS", 100)
    ratings = open_ratings(url, Columns("user_id", "item_id", "rating"))
    batches = read_piece(ratings, ratings.pieces[0])
    assert len(next(batches).rating) == 100
    server.process.kill()
    server.process.wait()
    with pytest.raises(
        StoreError, match="ratings/r.parquet cannot be read: Could not connect to .*; check the network"
    ):
        list(batches)


def test_s3__reads_parquet_as_a_disk_does(s3: str, local: Path) -> None:
    data = (local / "r.parquet").read_bytes()
    folder = Folder.at(f"{s3}/r")
    for name, damaged, message in (
        ("empty", b"", "is empty"),
        ("text", b"user,item", "is not a Parquet file"),
        ("short", data[:-100], "is a Parquet file that is truncated or damaged"),
    ):
        folder.write(name, damaged)
        assert message in refusal("block", f"{s3}/r/{name}", f"{s3}/b")
    folder.write("a.parquet", data)
    assert "no such file" in refusal("block", f"{s3}/r/x*", f"{s3}/b")
    assert run("block", f"{s3}/r/*.parquet", f"{s3}/b", "-q").exit_code == 0
    assert pq.read_metadata(local / "r.parquet").num_rows == distmf.open_blocks(f"{s3}/b").n_ratings
