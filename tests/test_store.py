"""Files and folders that appear whole or not at all."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pytest

from distmf.errors import StoreError
from distmf.sizes import format_bytes, parse_bytes
from distmf.store import Folder, Kind, free_folder, new_file, new_folder, url_to_fs
from tests.helpers import files


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


def make(url: str | Path, number: int = 0) -> None:
    with new_folder(url, KIND) as folder:
        folder.write_table("t.parquet", pa.table({"n": [number]}))
        folder.write("rows/0", b"x")
        folder.write_manifest(KIND, {"number": number})


def number_in(url: str | Path) -> int:
    folder = Folder.at(url)
    manifest = folder.read_manifest(KIND)
    table = folder.read_table("t.parquet", manifest["checksums"]["t.parquet"])
    assert table["n"].to_pylist() == [manifest["number"]]
    return int(manifest["number"])


@pytest.mark.parametrize("where", ["local", "memory"])
def test_new_folder__replaces_its_own_kind_and_keeps_it_when_it_fails(where: str, tmp_path: Path) -> None:
    url = str(tmp_path / "folder") if where == "local" else "memory://new/folder"
    fs, path = url_to_fs(url)
    try:
        for number in (1, 2):
            make(url, number)
            assert number_in(url) == number

        def fail() -> None:
            with new_folder(url, KIND) as folder:
                folder.write("rows/1", b"y")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fail()
        assert number_in(url) == 2
        assert [name.rpartition("/")[2] for name in fs.ls(path.rpartition("/")[0], detail=False)] == ["folder"]
    finally:
        fs.rm(path, recursive=True)


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
    def fail(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", fail)
    with pytest.raises(StoreError, match="s3://bucket/x: Install s3fs to access S3"):
        url_to_fs("s3://bucket/x")


def test_folder__refuses_names_that_lead_out(tmp_path: Path) -> None:
    for name in ("../x", "a/../../x", "/etc/passwd", ""):
        with pytest.raises(StoreError, match="leads out of the folder"):
            Folder.at(tmp_path).child(name)
    assert Folder.at(tmp_path).child("a/b") == str(tmp_path / "a" / "b")


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("1 GiB", 2**30), ("500MB", 500_000_000), ("2g", 2**31), ("1.5 KiB", 1536), (12, 12), ("7", 7), ("1TiB", 2**40)],
)
def test_parse_bytes(text: str | int, n_bytes: int) -> None:
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize("text", ["", "GiB", "1 XB", "-1", 0, "1.2.3", "0.1", "nan", None])
def test_parse_bytes__refuses(text: str) -> None:
    with pytest.raises(ValueError, match="is not an amount of memory; write for example '1 GiB'"):
        parse_bytes(text)


def test_format_bytes__reads_well() -> None:
    assert [format_bytes(n) for n in (0, 999, 1536, 2**30, 5 * 2**40)] == [
        "0 B",
        "999 B",
        "1.5 KiB",
        "1.0 GiB",
        "5.0 TiB",
    ]
