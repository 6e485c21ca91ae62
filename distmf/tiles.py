"""The ratings of one block, in any order -> its bytes on disk, in tiles. Pure: no files, no Dask."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numba as nb
import numpy as np
import numpy.typing as npt

from distmf.blocks import Layout, Moments, padded
from distmf.encoding import Encoding
from distmf.grid import BlockKey, offset_dtype
from distmf.kernel import GROUP_SIZES

Duplicates = Literal["keep", "mean", "error"]

SORT_BITS = 64  # of the integer in which a cell and a position are sorted together


class SortedPart(NamedTuple):
    """One part of a block as it lies on disk, and what it holds."""

    data: bytearray
    moments: Moments
    n_duplicates: int
    duplicate: tuple[int, int] | None
    """Row and column number of a pair that occurs more than once."""


def sort_part(
    cells: npt.NDArray[np.uint64],
    values: npt.NDArray[Any],
    key: BlockKey,
    layout: Layout,
    duplicates: Duplicates,
) -> SortedPart:
    """Sort ratings by tile, size of the group, row, column and value, and cut them into the arrays of a block.

    Parameters
    ----------
    cells : uint64, shape (n,)
        Places of the ratings of one part of one block, as in `records`, in any order; the result does not depend on it.
    values : array, shape (n,)
        The ratings in the layout's encoding.
    key : BlockKey
        Of the block.
    layout : Layout
        Of the grid.
    duplicates : {"keep", "mean", "error"}
        "mean" makes one rating of those of a pair; the others keep all.
    """
    row_bits, col_bits = (side.bit_length() - 1 for side in layout.tile_shape)
    n_tile_rows, n_tile_cols = layout.tiles(key)
    # A cell and its value, or else its position, in one integer: to sort these is many times faster.
    low_bits = 8 * values.itemsize if layout.encoding.is_coded else len(cells).bit_length()
    if (n_tile_rows * n_tile_cols) << (row_bits + col_bits + low_bits) <= 1 << SORT_BITS:
        packed = cells << _u64(low_bits)
        packed |= values if layout.encoding.is_coded else np.arange(len(cells), dtype=np.uint64)
        packed.sort()
        cells, low = packed >> _u64(low_bits), packed & _mask(low_bits)
        values = low.astype(values.dtype) if layout.encoding.is_coded else values[low]
    else:
        order = np.argsort(cells)
        cells, values = cells[order], values[order]
    repeats = np.flatnonzero(cells[1:] == cells[:-1])
    duplicate = None
    if len(repeats):
        at_tile, at_place = divmod(int(cells[repeats[0]]), 1 << (row_bits + col_bits))
        duplicate = (
            layout.row_cuts[key.row] + (at_tile // n_tile_cols << row_bits) + (at_place >> col_bits),
            layout.col_cuts[key.col] + (at_tile % n_tile_cols << col_bits) + (at_place & ((1 << col_bits) - 1)),
        )
        cells, values = _settle(cells, values, repeats, duplicates)

    arrays = group(cells, values, layout.tile_shape, n_tile_rows * n_tile_cols)
    return SortedPart(_side_by_side(arrays), _moments(values, layout.encoding), len(repeats), duplicate)


def _side_by_side(arrays: Sequence[npt.NDArray[Any]]) -> bytearray:
    data, begin = bytearray(sum(padded(array.nbytes) for array in arrays)), 0
    for array in arrays:
        np.frombuffer(data, array.dtype, array.size, begin)[:] = array.ravel()  # other threads go on meanwhile
        begin += padded(array.nbytes)
    return data


def group(
    cells: npt.NDArray[np.uint64], values: npt.NDArray[Any], tile_shape: tuple[int, int], n_tiles: int
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the arrays that `kernel.Ratings` begins with: groups of each size per tile, rows, columns, values.

    Parameters
    ----------
    cells : uint64, shape (n,)
        Places of the ratings, ascending: the tile, the row in it and the column in it as one number.
    values : array, shape (n,)
        The ratings.
    tile_shape : tuple of int
        Powers of two.
    n_tiles : int
        Of the block.
    """
    row_bits, col_bits = (side.bit_length() - 1 for side in tile_shape)
    counts, ends = np.zeros((n_tiles, len(GROUP_SIZES)), dtype=np.uint32), np.empty(len(cells), dtype=np.uint64)
    bits = _u64(row_bits + col_bits), _u64(col_bits)
    ends = ends[: _count_groups(cells, *bits, counts, ends)]
    row_dtype, col_dtype = map(offset_dtype, tile_shape)
    rows, cols = np.empty(int(counts.sum()), row_dtype), np.empty(len(cells), col_dtype)
    grouped = np.empty_like(values)
    sizes = np.array(GROUP_SIZES, dtype=np.uint64)
    groups, ratings = (np.cumsum(n).astype(np.uint64) - n.ravel() for n in (counts, counts * sizes))
    _group(cells, values, ends, *bits, groups, ratings, rows, cols, grouped)
    return counts, rows, cols, grouped


@nb.njit(nogil=True)
def _count_groups(cells, tile_bits, col_bits, counts, ends):
    """Count the groups of each size in each tile; return the number of runs, and in `ends` where these end.

    A run is of one row of a tile, each rating of another column: fours as many as fit, then a two and a one.
    """
    n, n_runs, begin, one = np.uint64(len(cells)), np.uint64(0), np.uint64(0), np.uint64(1)
    while begin < n:
        end = begin + one
        while end < n and cells[end] >> col_bits == cells[begin] >> col_bits and cells[end] != cells[end - one]:
            end += one
        left, tile = end - begin, cells[begin] >> tile_bits
        for kind in range(len(GROUP_SIZES)):
            counts[tile, kind] += left // np.uint64(GROUP_SIZES[kind])
            left %= np.uint64(GROUP_SIZES[kind])
        ends[n_runs] = begin = end
        n_runs += one
    return n_runs


@nb.njit(nogil=True)
def _group(cells, values, ends, tile_bits, col_bits, groups, ratings, rows, cols, grouped):
    """Fill in the row of each group, and the columns and values of its ratings.

    `groups` and `ratings` are where those of each size of each tile begin; they are changed.
    """
    one, begin, n_sizes = np.uint64(1), np.uint64(0), np.uint64(len(GROUP_SIZES))
    row_mask, col_mask = (one << (tile_bits - col_bits)) - one, (one << col_bits) - one
    for end in ends:
        kind, row = (cells[begin] >> tile_bits) * n_sizes, cells[begin] >> col_bits & row_mask
        for size in GROUP_SIZES:
            n = np.uint64(size)
            while end - begin >= n:
                rows[groups[kind]] = row
                for k in range(n):
                    to = ratings[kind] + k
                    cols[to], grouped[to] = cells[begin + k] & col_mask, values[begin + k]
                groups[kind] += one
                ratings[kind] += n
                begin += n
            kind += one


def _moments(values: npt.NDArray[Any], encoding: Encoding) -> Moments:
    """Return the moments of stored ratings; of codes, from the number of each."""
    if not encoding.is_coded:
        return Moments.of(values)
    counts = np.bincount(values)
    return Moments.of(encoding.decode(np.arange(len(counts))), counts)


def _settle(
    cells: npt.NDArray[np.uint64], values: npt.NDArray[Any], repeats: npt.NDArray[np.int64], duplicates: Duplicates
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[Any]]:
    """Put ratings of the same cell, which arrive in the order of the input, in ascending order, or take their mean."""
    touched = np.unique(np.concatenate([repeats, repeats + 1]))
    values[touched] = values[touched][np.lexsort((values[touched], cells[touched]))]
    if duplicates != "mean":
        return cells, values
    starts = np.flatnonzero(np.append(True, cells[1:] != cells[:-1]))
    sums = np.add.reduceat(values.astype(np.float64), starts)
    means = sums / np.diff(np.append(starts, len(values)))
    return cells[starts], (np.rint(means) if values.dtype == np.uint16 else means).astype(values.dtype)


def _u64(number: int) -> np.uint64:
    return np.uint64(number)


def _mask(bits: int) -> np.uint64:
    return np.uint64((1 << bits) - 1)
