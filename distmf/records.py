"""Ratings on their way to their blocks: a place in a block and a value, in as few whole bytes as they need.

A *cell* is a place in a block, numbered tile by tile, and row by row within a tile. A record is a cell, little-endian,
and a value as its block will hold it. Records lie in *sections*: those to train on of a block, then those held out of
it; blocks go row by row. Those of a block, sorted, become the groups that the kernel takes. Pure: no files, no Dask.
"""

from typing import Any, NamedTuple, Self

import numba as nb
import numpy as np
import numpy.typing as npt

from distmf.blocks import Layout
from distmf.grid import BlockKey, offset_dtype
from distmf.ids import CloseNumbering, Hashes, Numbering
from distmf.kernel import GROUP_SIZES

Cells = npt.NDArray[np.uint64]
Records = npt.NDArray[np.void]


class Format(NamedTuple):
    """What the records of a grid look like.

    Attributes
    ----------
    row_bits, col_bits : int
        Of the offsets within a tile.
    words : tuple of tuple
        The fields of the cell, and by how many bits each is shifted, the lowest first.
    dtype : dtype
        Of a record, packed: the fields of the cell, then "value".
    """

    row_bits: int
    col_bits: int
    words: tuple[tuple[str, int], ...]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, layout: Layout) -> Self:
        """Return the format for a layout."""
        row_bits, col_bits = (side.bit_length() - 1 for side in layout.tile_shape)
        n_tile_rows = max(layout.tiles(BlockKey(row, 0))[0] for row in range(layout.shape.rows))
        n_tile_cols = max(layout.tiles(BlockKey(0, col))[1] for col in range(layout.shape.cols))
        cell_bytes = -(-(row_bits + col_bits + (n_tile_rows * n_tile_cols - 1).bit_length()) // 8)
        sizes = [size for size in (8, 4, 2, 1) if cell_bytes & size]
        words = [(f"cell{n}", 8 * sum(sizes[:n])) for n in range(len(sizes))]
        fields = [(name, f"<u{size}") for (name, _), size in zip(words, sizes, strict=True)]
        return cls(row_bits, col_bits, tuple(words), np.dtype([*fields, ("value", layout.encoding.dtype)]))


class Lines(NamedTuple):
    """The block of each row, or of each column.

    Attributes
    ----------
    cuts : int64, shape (n_blocks + 1,)
        Where each block begins.
    blocks : uint16, shape (n_lines,)
        Number of a line's block.
    """

    cuts: npt.NDArray[np.int64]
    blocks: npt.NDArray[np.uint16]

    @classmethod
    def of(cls, cuts: tuple[int, ...]) -> Self:
        """Return the blocks that cuts make: 2 bytes a line."""
        return cls(np.array(cuts), np.repeat(np.arange(len(cuts) - 1, dtype=np.uint16), np.diff(cuts)))


class Sorter:
    """Sorts ratings into the sections of a grid; holds the memory for it, so that it is not asked for again and again.

    Parameters
    ----------
    users, items : Numbering or CloseNumbering
        Numbers of the ids.
    lines : tuple of Lines
        The blocks of the rows and of the columns.
    layout : Layout
        Of the grid.
    """

    def __init__(
        self,
        users: Numbering | CloseNumbering,
        items: Numbering | CloseNumbering,
        lines: tuple[Lines, Lines],
        layout: Layout,
    ) -> None:
        self._sides, self._format = tuple(zip((users, items), lines, strict=True)), Format.of(layout)
        n_tile_cols = [layout.tiles(BlockKey(0, col))[1] for col in range(layout.shape.cols)]
        self._n_tile_cols, self._n_sections = (
            np.array(n_tile_cols, dtype=np.uint64),
            2 * layout.shape.rows * layout.shape.cols,
        )
        self._space = self._allocate(0)

    def _allocate(self, n: int) -> tuple[npt.NDArray[Any], ...]:
        places = np.empty((2, n), dtype=np.uint32), np.empty((2, n), dtype=np.uint16)
        dtypes = np.uint32, np.uint32, np.uint64, np.uint64, self._format.dtype
        return *places, *(np.empty(n, dtype=dtype) for dtype in dtypes)

    def sort(
        self, user_keys: Hashes, item_keys: Hashes, values: npt.NDArray[Any], is_train: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.uint64], Records] | None:
        """Return where each section begins, and the end, in records; and the records, which the next call changes.

        It is None if a key is not that of an id.

        Parameters
        ----------
        user_keys, item_keys : uint64, shape (n,)
            What the numberings know the ids by.
        values : array, shape (n,)
            As the blocks hold them.
        is_train : bool, shape (n,)
            Whether to train on a rating.
        """
        n = len(values)
        if n > self._space[0].shape[1]:
            self._space = self._allocate(n)
        lines, blocks, sections, order, cells, sorted_cells, records = (array[..., :n] for array in self._space)
        for (numbering, side), keys, line, block in zip(
            self._sides, (user_keys, item_keys), lines, blocks, strict=True
        ):
            if not _locate(numbering.position, numbering.table, side, keys, line, block):
                return None
        bounds = np.zeros(self._n_sections + 2, dtype=np.uint64)
        bits = np.uint64(self._format.row_bits), np.uint64(self._format.col_bits)
        _sort(lines, blocks, is_train, self._n_tile_cols, bits, bounds, sections, cells, order, sorted_cells)
        for name, shift in self._format.words:
            records[name] = sorted_cells >> np.uint64(shift)
        records["value"] = values[order]
        return bounds[:-1], records


@nb.njit(nogil=True, error_model="numpy")
def _locate(position, table, lines, keys, line, block):
    """Find the blocks of some ids and the lines within these; return whether all ids are there."""
    cuts, blocks = lines
    for t in range(len(keys)):
        number = position(table, keys[t])
        if number == np.uint64(len(blocks)):
            return False
        block[t] = blocks[number]
        line[t] = number - np.uint64(cuts[block[t]])
    return True


@nb.njit(nogil=True, error_model="numpy")
def _sort(lines, blocks, is_train, n_tile_cols, bits, bounds, sections, cells, order, sorted_cells):
    """Sort by counting. Unsigned: an index that may be negative costs a comparison, here a fourth of the time."""
    (rows, cols), (row_blocks, col_blocks), (row_bits, col_bits) = lines, blocks, bits
    one = np.uint64(1)
    row_mask, col_mask = (one << row_bits) - one, (one << col_bits) - one
    for t in range(len(rows)):
        row, col, i, j = np.uint64(rows[t]), np.uint64(cols[t]), np.uint64(row_blocks[t]), np.uint64(col_blocks[t])
        tile = (row >> row_bits) * n_tile_cols[j] + (col >> col_bits)
        cells[t] = ((tile << row_bits | row & row_mask) << col_bits) | col & col_mask
        section = ((i * np.uint64(len(n_tile_cols)) + j) << one) + one - np.uint64(is_train[t])
        sections[t] = section
        bounds[section + one + one] += one
    for section in range(2, len(bounds)):
        bounds[section] += bounds[section - 1]
    for t in range(len(rows)):
        section = np.uint64(sections[t]) + one
        place = bounds[section]
        sorted_cells[place], order[place] = cells[t], t
        bounds[section] = place + one


def split_records(records: Records, layout: Layout) -> tuple[Cells, npt.NDArray[Any]]:
    """Return the cells and the values of records."""
    cells = np.zeros(len(records), dtype=np.uint64)
    for name, shift in Format.of(layout).words:
        cells |= records[name].astype(np.uint64) << np.uint64(shift)
    return cells, np.ascontiguousarray(records["value"])


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
    bits = np.uint64(row_bits + col_bits), np.uint64(col_bits)
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
