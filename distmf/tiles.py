"""The ratings of one block, in any order -> its bytes on disk, in tiles. Pure: no files, no Dask."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from distmf.blocks import Layout, Moments, padded
from distmf.encoding import Encoding
from distmf.grid import BlockKey
from distmf.records import group

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
