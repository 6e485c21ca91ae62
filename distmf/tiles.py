"""The ratings of one block, in any order -> its bytes on disk, in tiles. Pure: no files, no Dask."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from distmf.blocks import Layout, padded
from distmf.encoding import Encoding
from distmf.grid import BlockKey
from distmf.moments import Moments
from distmf.records import Records, group, pack, sort_records, unpack

Duplicates = Literal["keep", "mean", "error"]


class SortedPart(NamedTuple):
    """One part of a block as it lies on disk, and what it holds."""

    data: bytearray
    n_ratings: int
    moments: Moments
    n_duplicates: int
    spread: float
    """Sum of squared deviations of ratings from the mean of those of the same pair."""
    duplicate: tuple[int, int] | None
    """Row and column number of a pair that occurs more than once."""


def sort_part(records: Records, key: BlockKey, layout: Layout, duplicates: Duplicates) -> SortedPart:
    """Sort ratings by tile, size of the group, row, column and value, and cut them into the arrays of a block.

    Parameters
    ----------
    records : uint8, shape (n * n_bytes,)
        Those of one part of one block, as in `records`, in any order; the result does not depend on it.
    key : BlockKey
        Of the block.
    layout : Layout
        Of the grid.
    duplicates : {"keep", "mean", "error"}
        "mean" makes one rating of those of a pair; the others keep all.
    """
    row_bits, col_bits = (side.bit_length() - 1 for side in layout.tile_shape)
    n_tile_rows, n_tile_cols = layout.tiles(key)
    cells, values = sort_records(records, layout)
    repeats = np.flatnonzero(cells[1:] == cells[:-1])
    duplicate, spread = None, 0.0
    if len(repeats):
        at_tile, at_place = divmod(int(cells[repeats[0]]), 1 << (row_bits + col_bits))
        duplicate = (
            layout.row_cuts[key.row] + (at_tile // n_tile_cols << row_bits) + (at_place >> col_bits),
            layout.col_cuts[key.col] + (at_tile % n_tile_cols << col_bits) + (at_place & ((1 << col_bits) - 1)),
        )
        spread = _spread(cells, values, repeats, layout)
        if duplicates == "mean":
            cells, values = _means(cells, values, layout)
    counts, rows, cols, values = group(cells, values, layout.tile_shape, n_tile_rows * n_tile_cols)
    weights = None
    if layout.is_weighted:
        values, weights = unpack(values, layout.encoding.dtype)
    data = _side_by_side([counts, rows, cols, values, *([] if weights is None else [weights])])
    return SortedPart(data, len(values), _moments(values, weights, layout.encoding), len(repeats), spread, duplicate)


def _side_by_side(arrays: Sequence[npt.NDArray[Any]]) -> bytearray:
    data, begin = bytearray(sum(padded(array.nbytes) for array in arrays)), 0
    for array in arrays:
        np.frombuffer(data, array.dtype, array.size, begin)[:] = array.ravel()  # other threads go on meanwhile
        begin += padded(array.nbytes)
    return data


def _moments(values: npt.NDArray[Any], weights: npt.NDArray[np.float32] | None, encoding: Encoding) -> Moments:
    """Return the moments of stored ratings; of codes, from the number of each."""
    if weights is not None:
        return Moments.of(encoding.decode(values), weights)
    if not encoding.is_coded:
        return Moments.of(values)
    counts = np.bincount(values)
    return Moments.of(encoding.decode(np.arange(len(counts))), counts)


def _spread(
    cells: npt.NDArray[np.uint64], values: npt.NDArray[Any], repeats: npt.NDArray[np.int64], layout: Layout
) -> float:
    """Return the sum of squared deviations of ratings from the mean of their cell, which the next one repeats."""
    is_repeated = np.zeros(len(cells), dtype=np.bool_)
    is_repeated[repeats] = is_repeated[repeats + 1] = True
    cells, values = cells[is_repeated], values[is_repeated]
    if layout.is_weighted:
        values, _ = unpack(values, layout.encoding.dtype)
    ratings = layout.encoding.decode(values).astype(np.float64)
    starts = np.flatnonzero(np.append(True, cells[1:] != cells[:-1]))
    counts = np.diff(np.append(starts, len(cells)))
    means = np.add.reduceat(ratings, starts) / counts
    return float(np.square(ratings - np.repeat(means, counts)).sum())


def _means(
    cells: npt.NDArray[np.uint64], values: npt.NDArray[Any], layout: Layout
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[Any]]:
    """Return each cell once, with the mean of its ratings, which come in ascending order, and the sum of weights."""
    starts, dtype = np.flatnonzero(np.append(True, cells[1:] != cells[:-1])), layout.encoding.dtype
    weights = np.ones(len(values), dtype=np.float32)
    if layout.is_weighted:
        values, weights = unpack(values, dtype)
    totals = np.add.reduceat(weights.astype(np.float64), starts)
    sums = np.add.reduceat(values.astype(np.float64) * weights, starts)
    means = sums / totals
    means = (np.rint(means) if dtype == np.uint16 else means).astype(dtype)
    return cells[starts], pack(means, totals.astype(np.float32)) if layout.is_weighted else means
