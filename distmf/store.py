"""Folders on any file system: written whole or not at all, read with errors that name the file.

A folder that distmf writes appears under its name when it is complete. On a local disk it is written under a temporary
name beside the target and renamed; on an object store, which cannot rename, its manifest is written last. A folder
without its manifest is not one of ours.
"""

import contextlib
import json
import posixpath
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from distmf.errors import StoreError


def url_to_fs(url: str | Path) -> tuple[Any, str]:
    """Return the file system and the path on it of a local path (``~`` is expanded) or an fsspec URL."""
    url = str(url)
    fs, path = fsspec.core.url_to_fs(url if "://" in url else str(Path(url).expanduser()))
    return fs, path


def is_local(fs: Any) -> bool:
    """Return whether a file system is the local one: files can be renamed, and libraries can open them by name."""
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def display_name(fs: Any, path: str) -> str:
    """Return a path as people write it: plain on the local file system, else a URL."""
    return path if is_local(fs) else str(fs.unstrip_protocol(path))


def one_line(err: Exception) -> str:
    """Return the message of another library's error in one line."""
    return " ".join(str(err).split()).rstrip(".")


class Folder(NamedTuple):
    """A folder on a file system; a value that can be sent to another process.

    Attributes
    ----------
    fs : fsspec.AbstractFileSystem
        The file system.
    path : str
        The folder, as `fs` names it.
    """

    fs: Any
    path: str

    @classmethod
    def at(cls, url: str | Path) -> "Folder":
        """Return the folder at a local path or an fsspec URL, whether or not it exists."""
        fs, path = url_to_fs(url)
        return cls(fs, path.rstrip("/") or "/")

    def __str__(self) -> str:
        return display_name(self.fs, self.path)

    def child(self, name: str) -> str:
        """Return the path of a file in the folder; a name that leads out of it is refused."""
        path = posixpath.normpath(posixpath.join(self.path, name))
        if not path.startswith(self.path.rstrip("/") + "/"):
            raise StoreError(f"{self}: the file name {name!r} leads out of the folder")
        return path

    def create(self, name: str) -> Any:
        """Open a new file for writing; the folders above it are made."""
        path = self.child(name)
        self.fs.makedirs(posixpath.dirname(path), exist_ok=True)
        return self.fs.open(path, "wb")

    def write(self, name: str, data: Any) -> None:
        """Write bytes as a file."""
        with self.create(name) as file:
            file.write(data)

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all that is in it."""
        self.fs.rm(self.child(name), recursive=True)

    def read(self, name: str, start: int = 0, length: int = -1) -> bytes:
        """Return `length` bytes of a file from `start`, by default all; fewer are an error, as is a missing file."""
        try:
            with self.fs.open(self.child(name), "rb") as file:
                file.seek(start)
                data: bytes = file.read(length)
        except FileNotFoundError as err:
            raise StoreError(f"{self}: the file {name} is missing; restore it or make the folder again") from err
        if length >= 0 and len(data) != length:
            raise StoreError(
                f"{self}: the file {name} is truncated: {start + length:,} bytes expected, {start + len(data):,} "
                "found; restore it or make the folder again"
            )
        return data

    def delete(self) -> None:
        """Remove the folder, if it is there."""
        if self.fs.exists(self.path):
            self.fs.rm(self.path, recursive=True)

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a table as Parquet."""
        with self.create(name) as file:
            pq.write_table(table, file, compression="zstd")

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Read a Parquet file whole."""
        # In this thread alone: a thread of Arrow's that holds a Python object when the interpreter ends aborts it.
        try:
            return pq.ParquetFile(pa.BufferReader(self.read(name))).read(columns, use_threads=False)
        except pa.ArrowException as err:
            raise StoreError(
                f"{self}: {name} is damaged: {one_line(err)}; restore it or make the folder again"
            ) from err

    def write_manifest(self, name: str, manifest: dict[str, Any]) -> None:
        """Write a dictionary as JSON; the last file of a folder."""
        self.write(name, json.dumps(manifest, indent=1, allow_nan=False).encode())

    def read_manifest(self, name: str, version: int) -> dict[str, Any]:
        """Return the manifest, if this is a folder of that kind and version."""
        try:
            manifest: dict[str, Any] = json.loads(self.read(name))
        except ValueError as err:
            raise StoreError(
                f"{self}: {name} is damaged: {one_line(err)}; restore it or make the folder again"
            ) from err
        if manifest.get("version") != version:
            raise StoreError(
                f"{self}: {name} has format version {manifest.get('version')!r}, this distmf reads version {version}; "
                "use the distmf that wrote it or make the folder again"
            )
        return manifest


def free_folder(url: str | Path, manifest: str) -> Folder:
    """Return the folder at `url`, if there is nothing in it but perhaps the same kind of `manifest`.

    Raises
    ------
    StoreError
        If `url` is a file, or a folder with something else in it.
    """
    folder = Folder.at(url)
    is_taken = folder.fs.exists(folder.path) and not folder.fs.exists(folder.child(manifest))
    if is_taken and (folder.fs.isfile(folder.path) or folder.fs.ls(folder.path, detail=False)):
        raise StoreError(
            f"{folder} exists and is not what distmf would replace: {manifest} is missing; choose another path"
        )
    return folder


@contextlib.contextmanager
def new_file(url: str | Path) -> Iterator[Any]:
    """Yield a file to write bytes to; it appears at `url` when the block ends, and not at all if it raises."""
    fs, path = url_to_fs(url)
    temporary = f"{path}.tmp-{uuid.uuid4().hex[:8]}"
    if fs.isdir(path):
        raise StoreError(f"{display_name(fs, path)} is a folder; choose the name of a file")
    try:
        fs.makedirs(posixpath.dirname(path), exist_ok=True)
        with fs.open(temporary, "wb") as file:
            yield file
        fs.mv(temporary, path)
    except BaseException:
        if fs.exists(temporary):
            fs.rm(temporary)
        raise


@contextlib.contextmanager
def new_folder(url: str | Path, manifest: str) -> Iterator[Folder]:
    """Yield an empty folder to write; it appears at `url` when the block ends, and not at all if it raises.

    A folder that holds the same kind of `manifest` is replaced. Anything else at `url` is left alone.

    Raises
    ------
    StoreError
        If `url` is a file, or a folder with something else in it.
    """
    target = free_folder(url, manifest)
    fs = target.fs
    suffix = f".tmp-{uuid.uuid4().hex[:8]}"
    folder = target._replace(path=target.path + suffix) if is_local(fs) else target
    old = Path(folder.path + "-old")
    if not is_local(fs) and fs.exists(target.path):
        fs.rm(target.path, recursive=True)
    try:
        fs.makedirs(folder.path, exist_ok=True)
        yield folder
        if is_local(fs):
            if Path(target.path).exists():
                Path(target.path).rename(old)
            Path(folder.path).rename(target.path)
    except BaseException:
        folder.delete()
        raise
    finally:
        if is_local(fs) and old.exists():
            shutil.rmtree(old)
