"""Files on any file system: written whole or not at all, with errors that say what to do.

On an object store a file appears when its upload is complete. Elsewhere it is written under a temporary name and moved,
so that whoever reads it, or is killed while it writes, never meets half a file.
"""

import contextlib
import errno
import io
import os
import posixpath
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import fsspec

from distmf.errors import DistMFError, StoreError
from distmf.process import TAG, Process, is_limited

UNSYNCED_BYTES = 1 << 24

_WAYS_OUT = {
    None: "check the network, the address of the object store and the credentials, and run it again",
    errno.ENOSPC: "free some space or choose another place, and run it again",
    errno.EDQUOT: "free some space or choose another place, and run it again",
    errno.EACCES: "you may not; check the rights, or the credentials of the object store",
    errno.EPERM: "you may not; check the rights, or the credentials of the object store",
    errno.EROFS: "choose a place that can be written to",
    errno.ENOENT: "check the name, or make the folder or bucket",
    errno.EEXIST: "a file is where a folder has to be; choose another place",
    errno.ENOTDIR: "a file is where a folder has to be; choose another place",
}


def url_to_fs(url: str | Path) -> tuple[Any, str]:
    """Return the file system and the path on it of a local path (``~`` is expanded) or an fsspec URL.

    Raises
    ------
    StoreError
        If no file system is known for the URL, or the package for it is not installed.
    """
    url = str(url)
    try:
        if "://" in url:
            # Listings are not kept: other processes write as well.
            fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
        else:
            path = Path(url).expanduser()
            fs, path = fsspec.core.url_to_fs(os.path.realpath(path) if ".." in path.parts else str(path))
    except (ImportError, ValueError, RuntimeError, TypeError) as err:
        way_out = "give a path, or a URL of a kind that fsspec knows, as s3://bucket/folder"
        raise StoreError(f"{url}: {one_line(err)}; {way_out}") from err
    return fs, path


def is_local(fs: Any) -> bool:
    """Return whether a file system is the local one: files can be renamed, and libraries can open them by name."""
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def is_object_store(fs: Any) -> bool:
    """Return whether files appear when their upload is complete, and there are no folders to make."""
    return bool(fs.async_impl)


def display_name(fs: Any, path: str) -> str:
    """Return a path as people write it: plain on the local file system, else a URL."""
    return path if is_local(fs) else str(fs.unstrip_protocol(path))


def one_line(err: Exception) -> str:
    """Return the message of another library's error in one line."""
    return " ".join(str(err).split()).rstrip(".")


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what a file system raises into a `StoreError`: `what` failed, why, and what to do; `errno` is kept."""
    try:
        yield
    except DistMFError:
        raise
    # Clients of object stores have errors of their own, which derive from Exception and nothing more.
    except Exception as err:
        number = _number(err)
        reason = getattr(err, "strerror", None) or one_line(err) or type(err).__name__
        way_out = _WAYS_OUT.get(number, "check the disk or the network, and run it again")
        raise StoreError(f"{what}: {reason}; {way_out}", number) from err


def _number(err: Exception) -> int | None:
    if isinstance(err, OSError) and err.errno:
        return err.errno
    kinds = {FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES, FileExistsError: errno.EEXIST}
    return next((number for kind, number in kinds.items() if isinstance(err, kind)), None)


def path_type(fs: Any, path: str) -> Literal["file", "directory"] | None:
    """Return what a path is, or None if nothing is there.

    Raises
    ------
    StoreError
        If that cannot be found out: wrong credentials are no missing file.
    """
    with explained(f"{display_name(fs, path)} cannot be looked up"):
        try:
            return "directory" if fs.info(path)["type"] == "directory" else "file"
        except (FileNotFoundError, NotADirectoryError):
            return None


class _File(io.RawIOBase):
    """An open file of a file system; its errors say what cannot be read or written.

    If it `syncs`, it waits for the disk now and then: what is written counts as memory until it is there, and where
    memory is limited, a process is killed if there is too much of it.
    """

    def __init__(self, file: Any, what: str, *, syncs: bool = False) -> None:
        self._file, self._what, self._syncs = file, what, syncs
        self._unsynced = 0

    def readable(self) -> bool:
        return bool(self._file.readable())

    def writable(self) -> bool:
        return bool(self._file.writable())

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def read(self, size: int = -1) -> bytes:
        with explained(self._what):
            return bytes(self._file.read(size))

    def write(self, data: Any) -> int:
        with explained(self._what):
            n_bytes: int = self._file.write(data)
            self._unsynced += n_bytes
            if self._syncs and self._unsynced >= UNSYNCED_BYTES:
                self._file.flush()
                os.fdatasync(self._file.fileno())
                self._unsynced = 0
            return n_bytes


@contextlib.contextmanager
def opened(fs: Any, path: str) -> Iterator[Any]:
    """Yield a file to read bytes from; from an object store every read is one request, for no more than is read."""
    what = f"{display_name(fs, path)} cannot be read"
    with explained(what):
        file = fs.open(path, "rb", cache_type="none") if is_object_store(fs) else fs.open(path, "rb")
    with file:
        yield _File(file, what)


@contextlib.contextmanager
def whole_file(fs: Any, path: str, temporary: str, what: str) -> Iterator[Any]:
    """Yield a file to write bytes to; it appears at `path` when the block ends, and not at all if it raises.

    Parameters
    ----------
    fs : fsspec.AbstractFileSystem
        The file system.
    path : str
        The file to write, or to replace.
    temporary : str
        Where it is written until it is complete, unless the file system is an object store.
    what : str
        Begins the message of a `StoreError`: what cannot be written.
    """
    is_moved = not is_object_store(fs)
    with explained(what):
        for name in (path, temporary) if is_moved else ():
            fs.makedirs(posixpath.dirname(name), exist_ok=True)
        file = fs.open(temporary if is_moved else path, "wb")
    try:
        yield _File(file, what, syncs=is_local(fs) and is_limited())
        with explained(what):
            file.close()
            if is_moved:
                (os.replace if is_local(fs) else fs.mv)(temporary, path)
    except BaseException:
        with contextlib.suppress(Exception):
            if is_moved:
                file.close()
            else:
                file.closed = True  # else it would be closed, which uploads it, when it is collected
                file.discard()
        if is_moved:
            with contextlib.suppress(OSError):
                delete(fs, temporary)
        raise


def read_range(fs: Any, path: str, start: int, length: int) -> bytes:
    """Return `length` bytes of a file from `start`, or as many as there are; all if `length` is negative."""
    if is_local(fs):
        with Path(path).open("rb") as file:
            file.seek(start)
            return file.read(length)
    if length == 0:
        return b""
    try:
        return bytes(fs.cat_file(path, start=start or None, end=None if length < 0 else start + length))
    except OSError:
        if length < 0 or fs.size(path) > start:
            raise
        return b""  # S3 refuses a range that begins behind the end


def read_range_into(fs: Any, path: str, start: int, buffer: Any) -> int:
    """Fill a writable buffer from `start` of a file, as far as the file goes; return the number of bytes."""
    if not is_local(fs):
        data = read_range(fs, path, start, len(buffer))
        memoryview(buffer)[: len(data)] = data
        return len(data)
    view, n_bytes = memoryview(buffer), 0
    with Path(path).open("rb", buffering=0) as file:
        file.seek(start)
        while n_bytes < len(view) and (n := file.readinto(view[n_bytes:])):
            n_bytes += n
    return n_bytes


def temporary_name(path: str) -> str:
    """Return a new name beside `path` that tells whose it is: `delete_leftovers` finds it when this process is dead."""
    return f"{path}.tmp-{Process.current().tag}-{uuid.uuid4().hex[:8]}"


def leftovers(fs: Any, path: str) -> list[str]:
    """Return what processes that are certainly dead left beside `path`, under names from `temporary_name`.

    What belongs to a process of another machine is not among it: it may be alive.
    """
    parent, _, name = path.rpartition("/")
    pattern = re.compile(rf"{re.escape(name)}\.tmp-({TAG.pattern})-[0-9a-f]{{8}}(-old)?")
    found = []
    if path_type(fs, parent or "/") == "directory":
        with explained(f"{display_name(fs, parent)} cannot be listed"):
            names = [other.rstrip("/") for other in fs.ls(parent or "/", detail=False)]
        for other in names:
            match = pattern.fullmatch(other.rpartition("/")[2])
            if match and Process.of_tag(match[1]).state() == "dead":
                found.append(other)
    return found


def delete(fs: Any, path: str) -> None:
    """Remove a file, or a folder with all that is in it, as far as it is there."""
    try:
        fs.rm(path, recursive=True)
    except OSError as err:
        # Others may remove it, or write into it, at the same time.
        if _number(err) not in (errno.ENOENT, errno.ENOTEMPTY):
            raise
