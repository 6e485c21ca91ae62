"""The ratings of one block, in any order -> its bytes on disk, in tiles. Pure: no files, no Dask."""

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from distmf.blocks import Layout, Moments, padded
from distmf.grid import BlockKey

Duplicates = Literal["keep", "mean", "error"]

SORT_BITS = 64  # of the integer in which a cell and a position are sorted together


class SortedPart(NamedTuple):
    """One part of a block as it lies on disk, and what it holds."""

    data: bytes
    moments: Moments
    n_duplicates: int
    duplicate: tuple[int, int] | None
    """Row and column number of a pair that occurs more than once."""


def record_dtype(layout: Layout) -> np.dtype[Any]:
    """Return the dtype of a rating on its way to its block: its place in the block and its value or code."""
    tallest, widest = np.diff(layout.row_cuts).max(), np.diff(layout.col_cuts).max()
    return np.dtype(
        [("row", np.min_scalar_type(tallest - 1)), ("col", np.min_scalar_type(widest - 1)), ("value", layout.dtypes[2])]
    )


def sort_part(records: npt.NDArray[Any], key: BlockKey, layout: Layout, duplicates: Duplicates) -> SortedPart:
    """Sort ratings by tile, row, column and value, and cut them into the arrays of a block.

    Parameters
    ----------
    records : structured array, shape (n,), dtype `record_dtype(layout)`
        Ratings of one part of one block, in any order; the result does not depend on it.
    key : BlockKey
        Of the block.
    layout : Layout
        Of the grid.
    duplicates : {"keep", "mean", "error"}
        "mean" makes one rating of those of a pair; the others keep all.
    """
    row_bits, col_bits = (side.bit_length() - 1 for side in layout.tile_shape)
    n_tile_rows, n_tile_cols = layout.tiles(key)
    row, col = records["row"].astype(np.uint64), records["col"].astype(np.uint64)
    tile = (row >> _u64(row_bits)) * _u64(n_tile_cols) + (col >> _u64(col_bits))
    place = ((row & _mask(row_bits)) << _u64(col_bits)) | (col & _mask(col_bits))
    cell = (tile << _u64(row_bits + col_bits)) | place

    position_bits = len(records).bit_length()
    if (n_tile_rows * n_tile_cols) << (row_bits + col_bits + position_bits) <= 1 << SORT_BITS:
        # Cell and position in one integer: a direct sort is many times faster than an indirect one.
        packed = np.sort((cell << _u64(position_bits)) | np.arange(len(records), dtype=np.uint64))
        cell, values = packed >> _u64(position_bits), records["value"][packed & _mask(position_bits)]
    else:
        order = np.argsort(cell)
        cell, values = cell[order], records["value"][order]
    repeats = np.flatnonzero(cell[1:] == cell[:-1])
    duplicate = None
    if len(repeats):
        at_tile, at_place = divmod(int(cell[repeats[0]]), 1 << (row_bits + col_bits))
        duplicate = (
            layout.row_cuts[key.row] + (at_tile // n_tile_cols << row_bits) + (at_place >> col_bits),
            layout.col_cuts[key.col] + (at_tile % n_tile_cols << col_bits) + (at_place & ((1 << col_bits) - 1)),
        )
        cell, values = _settle(cell, values, repeats, duplicates)

    tile_counts = np.bincount((cell >> _u64(row_bits + col_bits)).view(np.int64), minlength=n_tile_rows * n_tile_cols)
    row_dtype, col_dtype, _ = layout.dtypes
    rows = ((cell >> _u64(col_bits)) & _mask(row_bits)).astype(row_dtype)
    cols = (cell & _mask(col_bits)).astype(col_dtype)
    arrays = tile_counts.astype(np.uint32), rows, cols, values
    ratings = np.array(layout.table, dtype=np.float32)[values] if layout.table else values
    data = b"".join(array.tobytes().ljust(padded(array.nbytes), b"\0") for array in arrays)
    return SortedPart(data, Moments.of(ratings), len(repeats), duplicate)


def _settle(
    cell: npt.NDArray[np.uint64], values: npt.NDArray[Any], repeats: npt.NDArray[np.int64], duplicates: Duplicates
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[Any]]:
    """Put ratings of the same cell, which arrive in the order of the input, in ascending order, or take their mean."""
    touched = np.unique(np.concatenate([repeats, repeats + 1]))
    values[touched] = values[touched][np.lexsort((values[touched], cell[touched]))]
    if duplicates != "mean":
        return cell, values
    starts = np.flatnonzero(np.append(True, cell[1:] != cell[:-1]))
    sums = np.add.reduceat(values.astype(np.float64), starts)
    means = sums / np.diff(np.append(starts, len(values)))
    return cell[starts], means.astype(np.float32)


def _u64(number: int) -> np.uint64:
    return np.uint64(number)


def _mask(bits: int) -> np.uint64:
    return np.uint64((1 << bits) - 1)
