"""Files and folders that appear whole or not at all."""

import errno
import json
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from distmf import MatrixFactorization, block_ratings
from distmf.checkpoint import KIND as CHECKPOINT
from distmf.errors import StoreError
from distmf.filesystem import temporary_name
from distmf.store import Folder, Kind, free_folder, new_file, new_folder, url_to_fs
from tests.helpers import files, random_ratings, write


def test_new_file__appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with new_file(path) as file:
        file.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"

    def fail() -> None:
        with new_file(path) as file:
            file.write(b"two")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert files(tmp_path) == {"new/file": b"one"}


KIND = Kind("thing", 1, "manifest.json", ("t.parquet",), r"rows/\d")


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    """Give a folder that is not there yet."""
    if request.param == "s3":
        found = Folder.at(f"{request.getfixturevalue('s3')}/f")
    else:
        found = Folder.at(tmp_path / "f" if request.param == "local" else "memory://new/f")
    yield found
    found.delete()


def killed(code: str, *args: object) -> None:
    """Run code in a process that kills itself."""
    before = f"import os, sys\nfrom distmf.store import *\nKIND = {KIND!r}\nkill = lambda: os.kill(os.getpid(), 9)\n"
    command = [sys.executable, "-c", before + code, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_create__is_whole_or_not_at_all(folder: Folder) -> None:
    folder.write("sub/file", b"one")

    def fail() -> None:
        with folder.create("sub/file") as file:
            file.write(b"tw")
            assert folder.read("sub/file") == b"one"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert folder.read("sub/file") == b"one"
    with folder.create("sub/file") as file:
        file.write(b"three")
    folder.remove_temporary_files()
    assert folder.fs.find(folder.path) == [folder.child("sub/file")]
    assert folder.read("sub/file") == b"three"


def test_create__passes_on_what_is_no_error_of_the_file(folder: Folder) -> None:
    def fail() -> None:
        with folder.create("file"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


def test_create__leaves_nothing_that_outlives_a_killed_task(tmp_path: Path) -> None:
    code = "with Folder.at(sys.argv[1]).create('rows/0') as file: file.write(b'half'), kill()"
    killed(code, tmp_path / "f")
    folder = Folder.at(tmp_path / "f")
    assert not (tmp_path / "f" / "rows" / "0").exists()
    assert len(files(tmp_path)) == 1
    folder.write("rows/0", b"whole")
    folder.remove_temporary_files()
    assert files(tmp_path) == {"f/rows/0": b"whole"}


def test_create__of_one_file_by_several_threads_ends_with_one_of_them_whole(tmp_path: Path) -> None:
    folder, start = Folder.at(tmp_path), threading.Barrier(4)

    def write(n: int) -> None:
        start.wait()
        folder.write("file", [bytes([n]) * 100_000] * 10)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    data = folder.read("file")
    assert data == data[:1] * 1_000_000


def test_write__takes_buffers_one_after_the_other(folder: Folder) -> None:
    records = np.zeros(3, dtype=[("a", np.uint8), ("b", np.uint16)])
    folder.write("one", records)
    folder.write("many", [memoryview(b"ab"), np.arange(2, dtype=np.uint16), bytearray(b"c")])
    folder.write("none", [])
    assert folder.read("one") == bytes(9)
    assert folder.read("many") == b"ab\0\0\1\0c"
    assert folder.read("none") == b""


def test_write_new__succeeds_once(folder: Folder) -> None:
    assert folder.write_new("sub/file", b"one")
    assert not folder.write_new("sub/file", b"two")
    assert folder.read("sub/file") == b"one"


def test_read__gives_parts_and_names_what_is_missing_or_truncated(folder: Folder) -> None:
    folder.write("file", b"0123456789")
    assert [folder.read("file"), folder.read("file", 3, 4), folder.read("file", 8)] == [b"0123456789", b"3456", b"89"]
    assert folder.read("file", 10, 0) == b""
    with pytest.raises(StoreError, match="f: the file file is truncated: 12 bytes expected, 10 found"):
        folder.read("file", 8, 4)
    with pytest.raises(StoreError, match="f: the file other is missing; restore it") as caught:
        folder.read("other", 3, 4)
    assert caught.value.errno == errno.ENOENT


def test_write__names_file_and_way_out_when_the_disk_is_full_or_read_only(tmp_path: Path) -> None:
    code = """
import os, sys
from distmf.store import Folder
from distmf.errors import StoreError
for path in sys.argv[1:]:
    try:
        Folder.at(path).write("rows/0", bytes(300_000))
    except StoreError as err:
        print(err.errno, err, sep="|")
        print(sum(len(names) for _, _, names in os.walk(path)))
"""
    full, read_only = tmp_path / "full", tmp_path / "read_only"
    full.mkdir()
    read_only.mkdir()
    mounts = f"mount -t tmpfs -o size=200k tmpfs {full} && mount -t tmpfs -o ro tmpfs {read_only}"
    unshare = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*unshare, "sh", "-c", mounts], capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here, even in a namespace of a user")
    shell = f'{mounts} && exec "$@"'
    command = [*unshare, "sh", "-c", shell, "sh", sys.executable, "-c", code, str(full), str(read_only)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    cannot = "the file rows/0 cannot be written"
    assert done.stdout.splitlines() == [
        f"{errno.ENOSPC}|{full}: {cannot}: No space left on device; "
        "free some space or choose another place, and run it again",
        "0",
        f"{errno.EROFS}|{read_only}: {cannot}: Read-only file system; choose a place that can be written to",
        "0",
    ]


def test_folder__can_be_sent_to_another_process(folder: Folder) -> None:
    folder.write("file", b"x")
    assert pickle.loads(pickle.dumps(folder)).read("file") == b"x"


def test_folder__keeps_no_listings() -> None:
    assert Folder.at("s3://bucket/x").fs.dircache.use_listings_cache is False


def make(url: str | Path, number: int = 0) -> None:
    with new_folder(url, KIND) as folder:
        batch = pa.record_batch({"n": [number]})
        folder.write_table("t.parquet", batch.schema, [batch])
        folder.write("rows/0", b"x")
        folder.write_manifest(KIND, {"number": number})


def number_in(url: str | Path) -> int:
    folder = Folder.at(url)
    manifest = folder.read_manifest(KIND)
    table = folder.read_table("t.parquet", manifest["checksums"]["t.parquet"])
    assert table["n"].to_pylist() == [manifest["number"]]
    return int(manifest["number"])


def test_new_folder__replaces_its_own_kind_and_keeps_it_when_it_fails(folder: Folder) -> None:
    url = str(folder)
    for number in (1, 2):
        make(url, number)
        assert number_in(url) == number

    def fail() -> None:
        with new_folder(url, KIND) as new:
            new.write("rows/1", b"y")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert number_in(url) == 2
    assert [name.rpartition("/")[2] for name in folder.fs.ls(folder.path.rpartition("/")[0], detail=False)] == ["f"]


@pytest.mark.parametrize("foreign", ["manifest", "other kind", "one file more", "one file below", "list"])
def test_new_folder__leaves_foreign_folders_alone(foreign: str, tmp_path: Path) -> None:
    path = tmp_path / "project"
    if foreign == "one file more":
        make(path)
        (path / "thesis.txt").write_text("precious")
    elif foreign == "one file below":
        make(path)
        (path / "rows" / "thesis.txt").write_text("precious")
    else:
        path.mkdir()
        manifests = {"manifest": {"name": "my extension"}, "other kind": {"kind": "other"}, "list": [1]}
        (path / "manifest.json").write_text(json.dumps(manifests[foreign]))
    before = files(tmp_path)
    with pytest.raises(StoreError, match="project exists and is not only thing; choose another path"):
        make(path)
    assert files(tmp_path) == before


def test_new_folder__keeps_what_cannot_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "f", 1)

    def fail(*args: object) -> None:
        raise OSError(16, "Device or resource busy")  # as at a mount point

    monkeypatch.setattr("os.rename", fail)
    with pytest.raises(OSError, match="busy"):
        make(tmp_path / "f", 2)
    assert number_in(tmp_path / "f") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_new_folder__removes_what_killed_processes_left_and_nothing_else(tmp_path: Path) -> None:
    make(tmp_path / "f", 1)
    code = """
with new_folder(sys.argv[1], KIND) as folder:
    folder.write("rows/0", b"x")
    kill()
"""
    killed(code, tmp_path / "f")
    killed("with new_file(sys.argv[1]) as file: kill()", tmp_path / "file")
    theirs = {path.name for path in tmp_path.iterdir()} - {"f"}
    assert len(theirs) == 2
    mine = temporary_name("f")
    elsewhere = re.sub(r"tmp-\w{16}", "tmp-0123456789abcdef", mine)
    others = {mine, elsewhere, "f.tmp-12345678", "g" + next(name for name in theirs if name.startswith("f."))[1:]}
    for name in others:
        (tmp_path / name).mkdir()
    make(tmp_path / "f", 2)
    with new_file(tmp_path / "file") as file:
        file.write(b"x")
    assert {path.name for path in tmp_path.iterdir()} == {"f", "file", *others}


def test_new_folder__puts_back_what_a_killed_process_had_moved_away(tmp_path: Path) -> None:
    make(tmp_path / "f", 1)
    code = """
def rename(source, target, rename=os.rename):
    rename(source, target)
    if target.endswith("-old"):
        kill()
os.rename = rename
with new_folder(sys.argv[1], KIND):
    pass
"""
    killed(code, tmp_path / "f")
    assert not (tmp_path / "f").exists()

    def fail() -> None:
        with new_folder(tmp_path / "f", KIND):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert number_in(tmp_path / "f") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_new_folder__takes_an_empty_folder_and_follows_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for number in (1, 2):
        make(tmp_path / "link", number)
        assert number_in(tmp_path / "real") == number
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_free_folder__knows_before_the_work_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="file/sub/model cannot be written: .*file is not a folder"):
        free_folder(tmp_path / "file" / "sub" / "model", KIND)
    with pytest.raises(StoreError, match="file exists and is not only thing"):
        free_folder(tmp_path / "file", KIND)
    assert free_folder(tmp_path / "new" / "model", KIND).path == str(tmp_path / "new" / "model")


def test_read__refuses_every_flipped_byte(tmp_path: Path) -> None:
    make(tmp_path / "f", 7)
    for name in ("manifest.json", "t.parquet"):
        file = tmp_path / "f" / name
        data = file.read_bytes()
        for position in range(0, len(data), 11):
            damaged = bytearray(data)
            damaged[position] ^= 0b10000
            file.write_bytes(damaged)
            with pytest.raises(StoreError, match=re.escape(name)):
                number_in(tmp_path / "f")
        file.write_bytes(data)
    assert number_in(tmp_path / "f") == 7


@pytest.mark.parametrize("url", ["foo://bucket/x", "s3x://bucket/x"])
def test_url_to_fs__refuses_unknown_protocols(url: str) -> None:
    with pytest.raises(StoreError, match=url):
        url_to_fs(url)


def test_url_to_fs__names_the_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str, **options: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", fail)
    with pytest.raises(StoreError, match="s3://bucket/x: Install s3fs to access S3"):
        url_to_fs("s3://bucket/x")


def test_folder__refuses_names_that_lead_out(tmp_path: Path) -> None:
    for name in ("../x", "a/../../x", "/etc/passwd", ""):
        with pytest.raises(StoreError, match="leads out of the folder"):
            Folder.at(tmp_path).child(name)
    assert Folder.at(tmp_path).child("a/b") == str(tmp_path / "a" / "b")


def test_resume__reads_nothing_outside_of_the_checkpoint(tmp_path: Path) -> None:
    blocks = block_ratings(write(tmp_path / "r.parquet", random_ratings(500, 30, 20)), tmp_path / "blocks")
    folder = Folder.at(tmp_path / "checkpoint")
    MatrixFactorization(4, epochs=1).fit(blocks, checkpoint=folder.path)
    shutil.copytree(tmp_path / "checkpoint" / "factors", tmp_path / "factors")
    manifest = json.loads(json.dumps(folder.read_manifest(CHECKPOINT)).replace('"factors/', '"../factors/'))
    content = {name: value for name, value in manifest.items() if name not in ("kind", "version", "checksums")}
    folder.write_manifest(CHECKPOINT, content)
    with pytest.raises(StoreError, match="checkpoint: neither of the two states can be read"):
        MatrixFactorization(4, epochs=2).fit(blocks, checkpoint=folder.path, resume=True)
    assert any((tmp_path / "factors").rglob("*.bin"))


def test_free_folder__takes_what_a_killed_process_had_only_begun(tmp_path: Path) -> None:
    for name in ("tmp/" + "0" * 32, "driver.json", f"tmp/probe-{'0' * 32}/driver"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert free_folder(tmp_path, KIND).path == str(tmp_path)
    make(tmp_path)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "thesis.txt").write_text("precious")
    with pytest.raises(StoreError, match="exists and is not only thing"):
        free_folder(tmp_path, KIND)


def test_folder__refuses_links_that_lead_out(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "f" / "rows").mkdir(parents=True)
    (tmp_path / "f" / "rows" / "0").write_text("y")
    links = {"file": tmp_path / "secret", "up": tmp_path, "inside": tmp_path / "f" / "rows", "gone": tmp_path / "gone"}
    for name, target in links.items():
        (tmp_path / "f" / name).symlink_to(target)
    (tmp_path / "link").symlink_to(tmp_path / "f")
    for folder in Folder.at(tmp_path / "f"), Folder.at(tmp_path / "link"):
        for name in ("file", "up/secret", "up/f/../secret", "gone"):
            with pytest.raises(StoreError, match="leads out of the folder"):
                folder.read(name)
            with pytest.raises(StoreError, match="leads out of the folder"):
                folder.write(name, b"")
        assert folder.read("inside/0") == b"y"
    assert (tmp_path / "secret").read_text() == "x"
