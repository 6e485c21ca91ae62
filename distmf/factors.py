"""Factor blocks: the first ones, copies to write to, and files of them.

A file is plain: the factors (float32, row by row, `rank` floats each), then the biases (float32). Its shape and its
checksum stand in the manifest of the checkpoint that names it.

A block that was saved stays in memory until it is fetched in the same process, so that the next generation starts
without reading. That is a short cut and nothing else: a block that is not there is read from its file.
"""

import posixpath
import threading
import zlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from distmf.buffers import aligned_copy, aligned_empty, empty_bytes
from distmf.errors import StoreError
from distmf.kernel import FactorBlock, padded_rank
from distmf.store import Folder

FLOAT_BYTES = 4
ROWS_AT_ONCE = 4096  # drawn


class Saved(NamedTuple):
    """A factor block in a file: its name in the folder, its number of rows, and the file's checksum."""

    name: str
    n_rows: int
    checksum: int


class First(NamedTuple):
    """How the factors of a block begin.

    Attributes
    ----------
    seed : tuple of int
        Of the draw.
    n_rows : int
        Rows of the block.
    std : float
        Standard deviation of the factors.
    unrated : int64, shape (n,)
        Rows without a rating to train on: theirs are zero.
    """

    seed: tuple[int, ...]
    n_rows: int
    std: float
    unrated: npt.NDArray[np.int64]


# Where a factor block comes from: drawn, in a file, or in memory.
Source = First | Saved | FactorBlock

_kept: dict[tuple[str, str], FactorBlock] = {}
_lock = threading.Lock()


def fetch(source: Source, folder: Folder | None, rank: int) -> FactorBlock:
    """Return a factor block, read-only.

    Raises
    ------
    StoreError
        If its file is missing or damaged.
    """
    if isinstance(source, FactorBlock):
        return source
    if isinstance(source, First):
        return _drawn(source, rank)
    assert folder is not None
    with _lock:
        kept = _kept.pop((str(folder), source.name), None)
    return kept or read(source, folder, rank)


def _drawn(first: First, rank: int) -> FactorBlock:
    """Return no biases and small random factors."""
    rng = np.random.default_rng(first.seed)
    factors = aligned_empty(first.n_rows, padded_rank(rank))
    factors[:, rank:] = 0
    for begin in range(0, first.n_rows, ROWS_AT_ONCE):
        part = factors[begin : begin + ROWS_AT_ONCE, :rank]
        part[:] = rng.standard_normal(part.shape, dtype=np.float32)
        part *= np.float32(first.std)
    factors[first.unrated] = 0
    return frozen(FactorBlock(factors, np.zeros(first.n_rows, dtype=np.float32)))


def read(saved: Saved, folder: Folder, rank: int) -> FactorBlock:
    """Read a factor block from its file, as `fetch` does when it is not in memory."""
    n_floats = saved.n_rows * (rank + 1)
    data = empty_bytes(FLOAT_BYTES * n_floats)
    folder.read_into(saved.name, 0, data)
    if zlib.crc32(data.data) != saved.checksum:
        raise StoreError(f"{folder}: {saved.name} does not match its checksum: the file is damaged")
    floats = np.frombuffer(data, dtype=np.float32)
    factors = aligned_empty(saved.n_rows, padded_rank(rank))
    factors[:, rank:] = 0
    factors[:, :rank] = floats[: saved.n_rows * rank].reshape(saved.n_rows, rank)
    return frozen(FactorBlock(factors, floats[saved.n_rows * rank :].copy()))


def save(side: FactorBlock, folder: Folder, name: str, rank: int, *, keep: bool) -> Saved:
    """Write a factor block to a file, all or nothing; `keep` it in memory too if it will be fetched next."""
    arrays = np.ascontiguousarray(side.factors[:, :rank]), side.biases
    folder.write(name, arrays)
    if keep:
        forget(folder, all_but=posixpath.dirname(name))
        with _lock:
            _kept[str(folder), name] = side
    return Saved(name, len(side.biases), zlib.crc32(arrays[1].data, zlib.crc32(arrays[0].data)))


def verify(saved: Saved, folder: Folder, rank: int, keep: bool) -> str:
    """Return what is wrong with a file, nothing if it is whole; `keep` it then in memory until it is fetched."""
    try:
        side = read(saved, folder, rank)
    except StoreError as err:
        return str(err)
    if keep:
        with _lock:
            _kept[str(folder), saved.name] = side
    return ""


def forget(folder: Folder, all_but: str = "") -> None:
    """Drop what is kept in memory of a folder, except for the files directly in its sub-folder `all_but`."""
    with _lock:
        for place, name in list(_kept):
            if place == str(folder) and posixpath.dirname(name) != all_but:
                del _kept[place, name]


def thawed(side: FactorBlock, *, is_own: bool = False) -> FactorBlock:
    """Return a copy to write to, or the block itself if it is the caller's own."""
    if not is_own:
        return FactorBlock(aligned_copy(side.factors), aligned_copy(side.biases))
    for array in side:
        array.setflags(write=True)
    return side


def frozen(side: FactorBlock) -> FactorBlock:
    """Make the arrays read-only: a tripwire for tasks that change what they were given."""
    for array in side:
        array.setflags(write=False)
    return side
