"""Folders on any file system: written whole or not at all, read with errors that name the file.

A folder that distmf writes appears under its name when it is complete: it is written under a temporary name beside the
target, then moved. Its manifest says what it is and has the checksums of what is in it, its own included; a folder
without one is not one of ours.
"""

import contextlib
import errno
import itertools
import json
import logging
import os
import posixpath
import re
import tempfile
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from distmf.errors import StoreError
from distmf.filesystem import (
    delete,
    display_name,
    explained,
    is_local,
    is_object_store,
    leftovers,
    opened,
    path_type,
    read_range,
    read_range_into,
    temporary_name,
    url_to_fs,
    whole_file,
)

Value = TypeVar("Value")

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 24
MANIFESTS = "manifest.json", "model.json", "checkpoint.json", "tuning.json", "vectors.json", "_distmf.json"
MISSING = errno.ENOENT, errno.ENOTDIR
TEMPORARY = "tmp"  # where files of a folder are written until they are complete
# What a killed process may leave in a folder that it had begun to write.
TRANSIENT = rf"{TEMPORARY}/(probe-)?[0-9a-f]{{32}}(/.*)?|driver\.json"


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
        """Return the path of a file in the folder; a name that leads out of it, even by a link, is refused."""
        path = posixpath.normpath(posixpath.join(self.path, name))
        is_inside = path.startswith(self.path.rstrip("/") + "/")
        if is_inside and is_local(self.fs):
            is_inside = os.path.realpath(path).startswith(os.path.realpath(self.path).rstrip("/") + "/")
        if not is_inside:
            raise StoreError(f"{self}: the file name {name!r} leads out of the folder")
        return path

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[Any]:
        """Yield a file to write bytes to; it appears when the block ends, and not at all if that fails or is killed.

        The folders above it are made. Two tasks may create one file at the same time: the last to end wins.
        """
        path = self.child(name)
        temporary = self.child(f"{TEMPORARY}/{uuid.uuid4().hex}")
        with whole_file(self.fs, path, temporary, f"{self}: the file {name} cannot be written") as file:
            yield file

    def write(self, name: str, data: Any) -> None:
        """Write a buffer, or a list or tuple of buffers one after the other, as a file, as `create` does."""
        with self.create(name) as file:
            for part in data if isinstance(data, list | tuple) else (data,):
                file.write(part)

    def write_new(self, name: str, data: bytes) -> bool:
        """Write a file if none of that name is there, and return whether so: of several that try, one succeeds."""
        path = self.child(name)
        with explained(f"{self}: the file {name} cannot be written"):
            try:
                if is_local(self.fs):
                    self.fs.makedirs(posixpath.dirname(path), exist_ok=True)
                    with Path(path).open("xb") as file:
                        file.write(data)
                else:
                    self.fs.pipe_file(path, data, mode="create")
            except OSError as err:
                # S3 says so when two requests to create the file meet.
                if isinstance(err, FileExistsError) or "ConditionalRequestConflict" in str(err.__cause__):
                    return False
                raise
        return True

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all that is in it, if it is there."""
        with explained(f"{self}: {name} cannot be removed"):
            delete(self.fs, self.child(name))

    def remove_temporary_files(self) -> None:
        """Remove what killed tasks left; tasks that write at this moment fail."""
        self.remove(TEMPORARY)

    def exists(self) -> bool:
        """Return whether there is anything at the path."""
        return path_type(self.fs, self.path) is not None

    def has(self, name: str) -> bool:
        """Return whether there is a file of a name in the folder."""
        return path_type(self.fs, self.child(name)) == "file"

    def read(self, name: str, start: int = 0, length: int = -1) -> bytes:
        """Return `length` bytes of a file from `start`, by default all; fewer are an error, as is a missing file.

        A part of a file on an object store is one request.
        """
        data = self._read(name, lambda path: read_range(self.fs, path, start, length))
        if length >= 0:
            self._check_length(name, start, length, len(data))
        return data

    def read_into(self, name: str, start: int, buffer: npt.NDArray[np.uint8]) -> None:
        """Fill a buffer with the bytes of a file from `start`; errors are those of `read`."""
        n_bytes = self._read(name, lambda path: read_range_into(self.fs, path, start, buffer))
        self._check_length(name, start, len(buffer), n_bytes)

    def _read(self, name: str, read: Callable[[str], Value]) -> Value:
        path = self.child(name)
        try:
            with explained(f"{self}: the file {name} cannot be read"):
                return read(path)
        except StoreError as err:
            if err.errno not in MISSING:
                raise
            raise StoreError(
                f"{self}: the file {name} is missing; restore it or make the folder again", err.errno
            ) from err

    def _check_length(self, name: str, start: int, expected: int, found: int) -> None:
        if found != expected:
            raise StoreError(
                f"{self}: the file {name} is truncated: {start + expected:,} bytes expected, {start + found:,} found; "
                "restore it or make the folder again"
            )

    def delete(self) -> None:
        """Remove the folder, if it is there."""
        with explained(f"{self} cannot be removed"):
            delete(self.fs, self.path)

    def write_table(self, name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
        """Write batches of a table as Parquet, one at a time."""
        with self.create(name) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for batch in batches:
                writer.write_batch(batch)

    @contextlib.contextmanager
    def parquet(self, name: str) -> Iterator[pq.ParquetFile]:
        """Yield a Parquet file, of which nothing but the end is read yet."""
        with opened(self.fs, self.child(name)) as file, pq.ParquetFile(file, pre_buffer=False) as parquet:
            yield parquet

    def read_table(self, name: str, checksum: int, columns: list[str] | None = None) -> pa.Table:
        """Read a Parquet file, all of it or some columns, if it has this checksum."""
        data = self.read(name)
        self._check(name, zlib.crc32(data), checksum)
        # In this thread alone: a thread of Arrow's that holds a Python object when the interpreter ends aborts it.
        return pq.ParquetFile(pa.BufferReader(data)).read(columns, use_threads=False)

    def read_row_groups(self, name: str, columns: list[str]) -> Iterator[pa.Table]:
        """Yield some columns of a Parquet file, a row group at a time."""
        with self.parquet(name) as parquet:
            for group in range(parquet.num_row_groups):
                yield parquet.read_row_group(group, columns, use_threads=False)

    @contextlib.contextmanager
    def new_batches(self, name: str, schema: pa.Schema) -> Iterator[Any]:
        """Yield a writer of record batches, which are read again by their numbers; the file is there at the end."""
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with self.create(name) as file, pa.ipc.new_file(pa.PythonFile(file), schema, options=options) as writer:
            yield writer

    @contextlib.contextmanager
    def batches(self, name: str) -> Iterator[Any]:
        """Yield a reader of record batches."""
        with opened(self.fs, self.child(name)) as file, pa.ipc.open_file(pa.PythonFile(file, mode="r")) as reader:
            yield reader

    def _check(self, name: str, found: int, checksum: int) -> None:
        if found != checksum:
            raise StoreError(f"{self}: {name} does not match its checksum; restore it or make the folder again")

    def checksums(self, names: Iterable[str]) -> dict[str, int]:
        """Return the checksum of each file."""
        found = {}
        for name in names:
            found[name] = 0
            with opened(self.fs, self.child(name)) as file:
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
        try:
            manifest = json.loads(self.read(kind.manifest))
        except ValueError:
            return False
        except StoreError as err:
            if err.errno not in MISSING:
                raise
            return False
        return isinstance(manifest, dict) and manifest.get("kind") == kind.name

    def kind(self) -> str | None:
        """Return the name of the kind that the folder is of, None if it is of none."""
        for name in MANIFESTS:
            with contextlib.suppress(StoreError, ValueError, AttributeError):
                if (found := str(json.loads(self.read(name)).get("kind"))).startswith("distmf "):
                    return found
        return None

    def read_manifest(self, kind: Kind) -> dict[str, Any]:
        """Return the manifest, if this is a folder of that kind and its version is known."""
        try:
            manifest: dict[str, Any] = json.loads(self.read(kind.manifest))
            checksum = manifest.pop("checksum", None)
        except StoreError as err:
            if err.errno not in MISSING:
                raise
            other = self.kind()
            instead = f"{kind.manifest} is missing" if other is None else f"but {other}"
            raise StoreError(f"{self}: no {kind.name} here, {instead}; check the path", err.errno) from err
        except (ValueError, AttributeError, TypeError) as err:
            raise StoreError(
                f"{self}: {kind.manifest} is damaged: it is no JSON; restore it or make the folder again"
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
        with explained(f"{folder} cannot be written"):
            Path(tempfile.mkdtemp(dir=above)).rmdir()
    elif is_object_store(fs):
        if "/" not in folder.path.strip("/"):
            raise StoreError(f"{folder} is a whole bucket; choose a folder in it")
        # Where it would be written beside its name, so that what is not allowed shows now and not after the work.
        probe = temporary_name(folder.path)
        with explained(f"{folder} cannot be written"):
            fs.pipe_file(probe, b"")
            fs.rm_file(probe)
    if folder.exists():
        _check_replaceable(folder, kind)
    return folder


def refuse_nested(*folders: Folder) -> None:
    """Refuse folders of which one is another, or lies in it: whatever replaces the one would lose the other.

    Raises
    ------
    StoreError
        With the two.
    """
    for one, other in itertools.combinations(folders, 2):
        if one.fs == other.fs:
            paths = [os.path.realpath(folder.path) if is_local(folder.fs) else folder.path for folder in (one, other)]
            if posixpath.commonpath(paths) in paths:
                raise StoreError(f"{one} and {other}: they are the same folder, or one is in the other; take two apart")


def _check_replaceable(folder: Folder, kind: Kind) -> None:
    fs = folder.fs
    with explained(f"{folder} cannot be listed"):
        names = [path[len(folder.path) :].lstrip("/") for path in fs.find(folder.path)]
    names = [name for name in names if not re.fullmatch(TRANSIENT, name)]
    expected = {kind.manifest, *kind.tables}
    is_ours = all(name in expected or re.fullmatch(kind.others, name) for name in names) and folder.is_a(kind)
    if names and not is_ours:
        raise StoreError(f"{folder} exists and is not only {kind.name}; choose another path, or remove it yourself")


@contextlib.contextmanager
def new_file(url: str | Path) -> Iterator[Any]:
    """Yield a file to write bytes to; it appears at `url` when the block ends, and not at all if it raises."""
    fs, path = url_to_fs(url)
    where = display_name(fs, path)
    if path_type(fs, path) == "directory":
        raise StoreError(f"{where} is a folder; choose the name of a file")
    for leftover in leftovers(fs, path):
        delete(fs, leftover)
    with whole_file(fs, path, temporary_name(path), f"{where} cannot be written") as file:
        yield file


@contextlib.contextmanager
def temporary_folder(stem: str | Path) -> Iterator[Folder]:
    """Yield the name of a new folder that begins with `stem`; what is there at the end is removed.

    What killed processes left under such names is removed first.
    """
    fs, path = url_to_fs(stem)
    for leftover in leftovers(fs, path):
        delete(fs, leftover)
    folder = Folder(fs, temporary_name(path))
    try:
        yield folder
    except BaseException:
        with contextlib.suppress(StoreError):  # what went wrong first counts
            folder.delete()
        raise
    folder.delete()


@contextlib.contextmanager
def new_folder(url: str | Path, kind: Kind) -> Iterator[Folder]:
    """Yield an empty folder to write; it appears at `url` when the block ends, and not at all if it raises.

    A folder of the same `kind` is replaced. Anything else at `url` is left alone. What killed processes left beside it
    is removed. An object store cannot rename: the folder is copied to its name at the end, its manifest last, and from
    the first file copied until then, a folder that was there before is not whole.

    Raises
    ------
    StoreError
        As `free_folder`.
    """
    target = free_folder(url, kind)
    clean_up(target)
    folder = target._replace(path=temporary_name(target.path))
    try:
        if not is_object_store(folder.fs):
            with explained(f"{target} cannot be written"):
                folder.fs.makedirs(folder.path, exist_ok=True)
        yield folder
        folder.remove_temporary_files()
        if is_local(folder.fs):
            put_in_place(folder, target, kind)
    except BaseException:
        with contextlib.suppress(StoreError):
            folder.delete()
        raise
    if not is_local(folder.fs):
        put_in_place(folder, target, kind)


def put_in_place(folder: Folder, target: Folder, kind: Kind) -> None:
    """Give a folder that is complete the name of `target`, instead of one of the same kind that may be there."""
    if is_local(folder.fs):
        _rename(folder, target)
    else:
        _copy(folder, target, kind)


def clean_up(target: Folder) -> None:
    """Remove what processes that are dead left beside a folder; put back what they had moved out of the way."""
    for path in leftovers(target.fs, target.path):
        if path.endswith("-old") and not target.exists():
            with contextlib.suppress(OSError):  # another process was quicker
                Path(path).rename(target.path)
        delete(target.fs, path)


def _rename(folder: Folder, target: Folder) -> None:
    """Move a folder to its name. A rename does all or nothing; a move that fell back to copying could lose files."""
    old = f"{folder.path}-old"
    is_replaced = target.exists()
    if is_replaced:
        logger.info("%s: what was there is replaced", target)
    with explained(f"{target} cannot be replaced" if is_replaced else f"{target} cannot be written"):
        if is_replaced:
            Path(target.path).rename(old)
        try:
            Path(folder.path).rename(target.path)
        except BaseException:
            if is_replaced:
                Path(old).rename(target.path)
            raise
        delete(target.fs, old)


def _copy(folder: Folder, target: Folder, kind: Kind) -> None:
    """Copy a folder to its name. Until its manifest comes, last, the one that is there says no more than the kind."""
    fs = target.fs
    target.write(kind.manifest, json.dumps({"kind": kind.name}).encode())
    manifest, new_manifest = target.child(kind.manifest), folder.child(kind.manifest)
    with explained(f"{target} cannot be written; what it was to become is whole in {folder}"):
        if outdated := [path for path in fs.find(target.path) if path != manifest]:
            fs.rm(outdated)
        paths = [path for path in fs.find(folder.path) if path != new_manifest]
        fs.copy(paths, [target.path + path[len(folder.path) :] for path in paths])
        fs.cp_file(new_manifest, manifest)
    folder.delete()
