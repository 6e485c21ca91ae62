"""Factor blocks: the first ones, copies to write to, and files of them.

A file is plain, of float32: the factors (row by row, `rank` floats each), then the biases. For a block of a chain of
draws those of its mean follow, and the line of each row (five floats); where training goes on from a model, the shares
of the step of each row do. Its shape and its checksum stand in the manifest of the checkpoint that names it.

A block that was saved stays in memory until it is fetched in the same process, so that the next generation starts
without reading. That is a short cut and nothing else: a block that is not there is read from its file.
"""

import functools
import math
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
from distmf.vectors import Line

FLOAT_BYTES, LINE_FLOATS = 4, len(Line._fields)
ROWS_AT_ONCE = 4096  # drawn


class Saved(NamedTuple):
    """A factor block in a file: its name in the folder, its number of rows, the file's checksum, and what is in it."""

    name: str
    n_rows: int
    checksum: int
    has_mean: bool = False
    has_shares: bool = False


class First(NamedTuple):
    """How the factors of a block begin.

    Attributes
    ----------
    seed : tuple of int
        Of the draw.
    n_rows : int
        Rows of the block.
    size : float
        Of the factors: standard deviation of normal ones, or the largest of positive ones.
    unrated : int64, shape (n,)
        Rows without a rating to train on: theirs are zero.
    counts : float32, shape (n_rows,), or None
        Ratings of each row, for a chain of draws.
    is_positive : bool
        Whether they are drawn evenly from 0 on, else from a normal distribution.
    """

    seed: tuple[int, ...]
    n_rows: int
    size: float
    unrated: npt.NDArray[np.int64]
    counts: npt.NDArray[np.float32] | None = None
    is_positive: bool = False


class Stacked(NamedTuple):
    """Factor blocks of several chains side by side.

    Attributes
    ----------
    parts : tuple of Saved or FactorBlock
        The end of each chain.
    draws : bool
        Whether the last draws of the chains are meant, each with its bias as one more factor, and no biases; else their
        means, as one block of which a product is the mean of the chains' products.
    """

    parts: "tuple[Source, ...]"
    draws: bool = False


# Where a factor block comes from: drawn, in a file, in memory, or put together.
Source = First | Saved | FactorBlock | Stacked

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
    if isinstance(source, Stacked):
        return _stacked(source, folder, rank // len(source.parts))
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
        draw = rng.random if first.is_positive else rng.standard_normal
        part[:] = draw(part.shape, dtype=np.float32)
        part *= np.float32(first.size)
    factors[first.unrated] = 0
    block = FactorBlock(factors, np.zeros(first.n_rows, dtype=np.float32))
    if first.counts is not None:
        lines = np.zeros((first.n_rows, LINE_FLOATS), dtype=np.float32)
        columns = Line(*lines.T)
        columns.precision[:], columns.noise[:], columns.count[:] = 1, 1, first.counts
        block = block._replace(mean=FactorBlock(factors.copy(), block.biases.copy()), lines=lines)
    return frozen(block)


def _stacked(stacked: Stacked, folder: Folder | None, rank: int) -> FactorBlock:
    """Put the chains' blocks side by side, one after the other: only one of them is in memory besides.

    Their lines are means over the chains.
    """
    n_chains = len(stacked.parts)
    width = rank - 1 if stacked.draws else rank  # a draw's bias is one more factor
    for n, part in enumerate(stacked.parts):
        block = fetch(part, folder, width)
        if n == 0:
            factors, biases = (
                aligned_empty(len(block.biases), padded_rank(n_chains * rank)),
                np.zeros_like(block.biases),
            )
            factors[:, n_chains * rank :] = 0
            lines = np.zeros((len(biases), LINE_FLOATS), dtype=np.float32)
        place = factors[:, n * rank : (n + 1) * rank]
        if stacked.draws:
            place[:, :-1], place[:, -1] = block.factors[:, :width], block.biases
        else:
            assert block.mean is not None
            place[:] = block.mean.factors[:, :rank] * np.float32(1 / math.sqrt(n_chains))
            biases += block.mean.biases * np.float32(1 / n_chains)
        assert block.lines is not None
        lines += block.lines * np.float32(1 / n_chains)
    return frozen(FactorBlock(factors, biases, lines=lines))


def read(saved: Saved, folder: Folder, rank: int) -> FactorBlock:
    """Read a factor block from its file, as `fetch` does when it is not in memory."""
    n_rows = saved.n_rows
    n_floats = n_rows * ((2 * (rank + 1) + LINE_FLOATS if saved.has_mean else rank + 1) + saved.has_shares)
    data = empty_bytes(FLOAT_BYTES * n_floats)
    folder.read_into(saved.name, 0, data)
    if zlib.crc32(data.data) != saved.checksum:
        raise StoreError(f"{folder}: {saved.name} does not match its checksum: the file is damaged")
    floats = np.frombuffer(data, dtype=np.float32)

    def block(begin: int) -> FactorBlock:
        factors, end = aligned_empty(n_rows, padded_rank(rank)), begin + n_rows * rank
        factors[:, rank:] = 0
        factors[:, :rank] = floats[begin:end].reshape(n_rows, rank)
        return FactorBlock(factors, floats[end : end + n_rows].copy())

    found = block(0)
    if saved.has_mean:
        lines = floats[n_floats - n_rows * LINE_FLOATS :].reshape(n_rows, LINE_FLOATS).copy()
        found = found._replace(mean=block(n_rows * (rank + 1)), lines=lines)
    return frozen(found._replace(shares=floats[n_floats - n_rows :].copy()) if saved.has_shares else found)


def save(side: FactorBlock, folder: Folder, name: str, rank: int, *, keep: bool) -> Saved:
    """Write a factor block to a file, all or nothing; `keep` it in memory too if it will be fetched next."""
    is_factors = [array.ndim == 2 and array is not side.lines for array in side.arrays()]
    arrays = [
        np.ascontiguousarray(array[:, :rank]) if cut else array
        for array, cut in zip(side.arrays(), is_factors, strict=True)
    ]
    folder.write(name, arrays)
    if keep:
        forget(folder, all_but=posixpath.dirname(name))
        with _lock:
            _kept[str(folder), name] = side
    checksum = functools.reduce(lambda checksum, array: zlib.crc32(array.data, checksum), arrays, 0)
    return Saved(name, len(side.biases), checksum, side.mean is not None, side.shares is not None)


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
        side = side._replace(
            factors=aligned_copy(side.factors),
            biases=aligned_copy(side.biases),
            mean=side.mean and thawed(side.mean),
            lines=None if side.lines is None else aligned_copy(side.lines),
        )
    for array in side.arrays()[: 5 if side.mean else 2]:
        array.setflags(write=True)
    return side


def frozen(side: FactorBlock) -> FactorBlock:
    """Make the arrays read-only: a tripwire for tasks that change what they were given."""
    for array in side.arrays():
        array.setflags(write=False)
    return side
