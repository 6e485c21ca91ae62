"""Folders on any file system: written whole or not at all, read with errors that name the file.

A folder that distmf writes appears under its name when it is complete: it is written under a temporary name beside the
target, then moved. Its manifest says what it is and has the checksums of what is in it, its own included; a folder
without one is not one of ours.
"""

import contextlib
import functools
import json
import os
import posixpath
import re
import uuid
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from distmf.errors import StoreError

CHUNK_BYTES = 1 << 24


def url_to_fs(url: str | Path) -> tuple[Any, str]:
    """Return the file system and the path on it of a local path (``~`` is expanded) or an fsspec URL.

    Raises
    ------
    StoreError
        If no file system is known for the URL, or the package for it is not installed.
    """
    url = str(url)
    try:
        fs, path = fsspec.core.url_to_fs(url if "://" in url else str(Path(url).expanduser()))
    except (ImportError, ValueError, RuntimeError, TypeError) as err:
        raise StoreError(f"{url}: {one_line(err)}") from err
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


class Kind(NamedTuple):
    """What a folder that distmf writes is.

    Attributes
    ----------
    name : str
        As its manifest says it.
    version : int
        Of its format.
    manifest : str
        The file that says so.
    tables : tuple of str
        Parquet files in it.
    others : str
        Pattern of the names of all other files in it.
    """

    name: str
    version: int
    manifest: str
    tables: tuple[str, ...]
    others: str = ""


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

    def read_table(self, name: str, checksum: int) -> pa.Table:
        """Read a Parquet file whole, if it has this checksum."""
        data = self.read(name)
        if zlib.crc32(data) != checksum:
            raise StoreError(f"{self}: {name} does not match its checksum; restore it or make the folder again")
        # In this thread alone: a thread of Arrow's that holds a Python object when the interpreter ends aborts it.
        return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)

    def checksums(self, names: Iterable[str]) -> dict[str, int]:
        """Return the checksum of each file."""
        found = {}
        for name in names:
            found[name] = 0
            with self.fs.open(self.child(name), "rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    found[name] = zlib.crc32(chunk, found[name])
        return found

    def write_manifest(self, kind: Kind, content: dict[str, Any]) -> None:
        """Write what the folder is, the checksums of its tables, and `content`, as JSON."""
        manifest = {"kind": kind.name, "version": kind.version, "checksums": self.checksums(kind.tables), **content}
        manifest = json.loads(json.dumps(manifest, allow_nan=False))  # as it will be read
        self.write(kind.manifest, json.dumps({**manifest, "checksum": _checksum(manifest)}, indent=1).encode())

    def is_a(self, kind: Kind) -> bool:
        """Return whether the folder says that it is of a kind, whole or not."""
        if not self.fs.isfile(self.child(kind.manifest)):
            return False
        try:
            manifest = json.loads(self.read(kind.manifest))
        except ValueError:
            return False
        return isinstance(manifest, dict) and manifest.get("kind") == kind.name

    def read_manifest(self, kind: Kind) -> dict[str, Any]:
        """Return the manifest, if this is a folder of that kind and its version is known."""
        try:
            manifest: dict[str, Any] = json.loads(self.read(kind.manifest))
            checksum = manifest.pop("checksum", None)
        except (ValueError, AttributeError, TypeError) as err:
            raise StoreError(
                f"{self}: {kind.manifest} is damaged: {one_line(err)}; restore it or make the folder again"
            ) from err
        if manifest.get("kind") != kind.name or manifest.get("version") != kind.version:
            raise StoreError(
                f"{self}: {kind.manifest} is of {manifest.get('kind')!r}, format version {manifest.get('version')!r}; "
                f"{kind.name!r}, version {kind.version} is needed: use the distmf that wrote it or make it again"
            )
        if checksum != _checksum(manifest):
            raise StoreError(
                f"{self}: {kind.manifest} is damaged: its checksum does not match; restore it or make the folder again"
            )
        return manifest


def _checksum(manifest: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(manifest, sort_keys=True).encode())


def free_folder(url: str | Path, kind: Kind) -> Folder:
    """Return the folder at `url`, if it can be written and nothing is in it but what a folder of its `kind` holds.

    Raises
    ------
    StoreError
        If `url` is a file, a folder with something else in it, or below something that is no folder or may not be
        written to.
    """
    folder = Folder.at(url)
    fs = folder.fs
    if is_local(fs):
        folder = folder._replace(path=os.path.realpath(folder.path))  # what a symbolic link points to is replaced
        above = Path(folder.path).parent
        while not above.exists():
            above = above.parent
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise StoreError(f"{folder} cannot be written: {above} is not a folder, or may not be written to")
    if fs.exists(folder.path):
        names = [path[len(folder.path) :].lstrip("/") for path in fs.find(folder.path)]
        expected = {kind.manifest, *kind.tables}
        is_ours = all(name in expected or re.fullmatch(kind.others, name) for name in names) and folder.is_a(kind)
        is_empty = fs.isdir(folder.path) and not fs.ls(folder.path, detail=False)
        if not is_empty and not is_ours:
            raise StoreError(f"{folder} exists and is not only {kind.name}; choose another path, or remove it yourself")
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
def new_folder(url: str | Path, kind: Kind) -> Iterator[Folder]:
    """Yield an empty folder to write; it appears at `url` when the block ends, and not at all if it raises.

    A folder of the same `kind` is replaced. Anything else at `url` is left alone. On an object store, which cannot
    rename, the folder is copied to its name at the end.

    Raises
    ------
    StoreError
        As `free_folder`.
    """
    target = free_folder(url, kind)
    fs = target.fs
    folder = target._replace(path=f"{target.path}.tmp-{uuid.uuid4().hex[:8]}")
    old = target._replace(path=f"{folder.path}-old")
    # A local rename does all or nothing; a move that fell back to copying could lose files half way.
    move = os.rename if is_local(fs) else functools.partial(fs.mv, recursive=True)
    try:
        fs.makedirs(folder.path, exist_ok=True)
        yield folder
        is_replaced = fs.exists(target.path)
        if is_replaced:
            move(target.path, old.path)
        try:
            move(folder.path, target.path)
        except BaseException:
            if is_replaced:
                move(old.path, target.path)
            raise
    except BaseException:
        folder.delete()
        raise
    old.delete()
