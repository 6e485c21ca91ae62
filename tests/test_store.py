"""Files and folders that appear whole or not at all."""

from pathlib import Path

import pytest

from distmf.errors import StoreError
from distmf.sizes import format_bytes, parse_bytes
from distmf.store import Folder, new_file, new_folder
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


def test_new_folder__replaces_its_own_kind_only(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for content in (b"one", b"two"):
        with new_folder(path, "manifest") as folder:
            folder.write("manifest", content)
    assert files(tmp_path) == {"folder/manifest": b"two"}
    with pytest.raises(StoreError, match="other is missing"), new_folder(path, "other"):
        pass
    assert files(tmp_path) == {"folder/manifest": b"two"}
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty", "manifest") as folder:
        folder.write("manifest", b"x")
    assert files(tmp_path / "empty") == {"manifest": b"x"}


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
