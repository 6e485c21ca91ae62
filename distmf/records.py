"""Ratings on their way to their blocks: a place in a block and a value, in as few whole bytes as they need.

A *cell* is a place in a block, numbered tile by tile, and row by row within a tile. A record is a value, as a number
that sorts as it does, and above it the cell; together one little-endian number, of as many bytes as that needs. Records
lie in *sections*: those to train on of a block, then those held out of it; blocks go row by row. Those of a block,
sorted, become the groups that the kernel takes. Pure: no files, no Dask.
"""

from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from distmf.blocks import Layout
from distmf.compiled import compiled
from distmf.grid import BlockKey, offset_dtype
from distmf.kernel import GROUP_SIZES

Cells = npt.NDArray[np.uint64]
Records = npt.NDArray[np.uint8]

WORD_BYTES = 8  # of the integers that are sorted
SIGN = np.uint32(1 << 31)
HALF = np.uint64(32)


class Format(NamedTuple):
    """What the records of a grid look like.

    Attributes
    ----------
    row_bits, col_bits : int
        Of the offsets within a tile.
    cell_bytes : int
        Of a cell.
    value_dtype : dtype
        Of the values, as the blocks hold them; with weights, of `pack`.
    """

    row_bits: int
    col_bits: int
    cell_bytes: int
    value_dtype: np.dtype[Any]

    @classmethod
    def of(cls, layout: Layout) -> Self:
        """Return the format for a layout."""
        row_bits, col_bits = (side.bit_length() - 1 for side in layout.tile_shape)
        n_tile_rows = max(layout.tiles(BlockKey(row, 0))[0] for row in range(layout.shape.rows))
        n_tile_cols = max(layout.tiles(BlockKey(0, col))[1] for col in range(layout.shape.cols))
        cell_bytes = -(-(row_bits + col_bits + (n_tile_rows * n_tile_cols - 1).bit_length()) // 8)
        return cls(row_bits, col_bits, cell_bytes, np.dtype(np.uint64) if layout.is_weighted else layout.encoding.dtype)

    @property
    def n_bytes(self) -> int:
        """Of a record."""
        return self.cell_bytes + self.value_dtype.itemsize


class Lines(NamedTuple):
    """The block of each row, or of each column.

    Attributes
    ----------
    cuts : uint64, shape (n_blocks + 1,)
        Where each block begins.
    blocks : uint16, shape (n_lines,)
        Number of a line's block.
    """

    cuts: npt.NDArray[np.uint64]
    blocks: npt.NDArray[np.uint16]

    @classmethod
    def of(cls, cuts: tuple[int, ...]) -> Self:
        """Return the blocks that cuts make: 2 bytes a line."""
        return cls(np.array(cuts, dtype=np.uint64), np.repeat(np.arange(len(cuts) - 1, dtype=np.uint16), np.diff(cuts)))


class Sorter:
    """Sorts ratings into the sections of a grid; holds the memory for it, so that it is not asked for again and again.

    Parameters
    ----------
    lines : tuple of Lines
        The blocks of the rows and of the columns.
    layout : Layout
        Of the grid.
    """

    def __init__(self, lines: tuple[Lines, Lines], layout: Layout) -> None:
        self._lines, self._format = lines, Format.of(layout)
        n_tile_cols = [layout.tiles(BlockKey(0, col))[1] for col in range(layout.shape.cols)]
        self._n_tile_cols = np.array(n_tile_cols, dtype=np.uint64)
        self._n_sections = 2 * layout.shape.rows * layout.shape.cols
        self._space = self._allocate(0)

    def _allocate(self, n: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32], Records]:
        return np.empty(n, dtype=np.uint64), np.empty(n, dtype=np.uint32), np.empty(n * self._format.n_bytes, np.uint8)

    def sort(
        self,
        rows: npt.NDArray[np.unsignedinteger[Any]],
        cols: npt.NDArray[np.unsignedinteger[Any]],
        values: npt.NDArray[Any],
        is_train: npt.NDArray[np.bool_],
    ) -> tuple[npt.NDArray[np.uint64], Records]:
        """Return where each section begins, and the end, in records; and the records, which the next call changes.

        Parameters
        ----------
        rows, cols : uint32 or uint64, shape (n,)
            Numbers of users and items.
        values : array, shape (n,)
            As the blocks hold them; with weights, as `pack` makes them.
        is_train : bool, shape (n,)
            Whether to train on a rating.
        """
        n, form = len(values), self._format
        if n > len(self._space[0]):
            self._space = self._allocate(n)
        cells, sections, records = self._space
        bounds = np.zeros(self._n_sections + 2, dtype=np.uint64)
        bits = np.uint64(form.row_bits), np.uint64(form.col_bits)
        _locate((rows, cols), self._lines, is_train, self._n_tile_cols, bits, bounds, sections, cells)
        widths = np.uint64(form.value_dtype.itemsize), np.uint64(form.cell_bytes)
        _sort(cells, sections, _sortable(values), widths, bounds, records)
        return bounds[:-1], records[: n * form.n_bytes]


@compiled()
def _locate(numbers, lines, is_train, n_tile_cols, bits, bounds, sections, cells):
    """Find the section and the cell of each rating, and in `bounds` where each section begins, one place further on.

    Unsigned: an index that may be negative costs a comparison, here a fourth of the time.
    """
    (rows, cols), (row_lines, col_lines), (row_bits, col_bits) = numbers, lines, bits
    one = np.uint64(1)
    row_mask, col_mask = (one << row_bits) - one, (one << col_bits) - one
    for t in range(len(rows)):
        i, j = np.uint64(row_lines.blocks[rows[t]]), np.uint64(col_lines.blocks[cols[t]])
        row, col = np.uint64(rows[t]) - row_lines.cuts[i], np.uint64(cols[t]) - col_lines.cuts[j]
        tile = (row >> row_bits) * n_tile_cols[j] + (col >> col_bits)
        cells[t] = ((tile << row_bits | row & row_mask) << col_bits) | col & col_mask
        section = ((i * np.uint64(len(n_tile_cols)) + j) << one) + one - np.uint64(is_train[t])
        sections[t] = section
        bounds[section + one + one] += one
    for section in range(2, len(bounds)):
        bounds[section] += bounds[section - 1]


@compiled()
def _sort(cells, sections, values, widths, bounds, records):
    """Put the records into their sections; `bounds` ends up one place back."""
    one, byte = np.uint64(1), np.uint64(8)
    value_bytes, cell_bytes = widths
    for t in range(len(values)):
        section = np.uint64(sections[t]) + one
        place = bounds[section] * (value_bytes + cell_bytes)
        bounds[section] += one
        value, cell = np.uint64(values[t]), cells[t]
        for _ in range(value_bytes):
            records[place] = value
            value >>= byte
            place += one
        for _ in range(cell_bytes):
            records[place] = cell
            cell >>= byte
            place += one


def sort_records(records: Records, layout: Layout) -> tuple[Cells, npt.NDArray[Any]]:
    """Return the cells and the values of records, sorted by cell and value."""
    form = Format.of(layout)
    value_bytes, n = form.value_dtype.itemsize, len(records) // form.n_bytes
    dtype, bits = np.dtype(f"u{value_bytes}"), np.uint64(8 * value_bytes)
    if form.n_bytes <= WORD_BYTES:  # to sort integers is many times faster
        whole = _integers(records, form.n_bytes, 0, form.n_bytes, n)
        whole.sort()
        return whole >> bits, _unsortable(whole.astype(dtype), form.value_dtype)
    values = _integers(records, form.n_bytes, 0, value_bytes, n).astype(dtype)
    cells = _integers(records, form.n_bytes, value_bytes, form.cell_bytes, n)
    order = np.lexsort((values, cells))
    return cells[order], _unsortable(values[order], form.value_dtype)


def _integers(records: Records, n_bytes: int, offset: int, width: int, n: int) -> npt.NDArray[np.uint64]:
    """Return the number of so many bytes at an offset in each of n records."""
    integers = np.empty(n, dtype=np.uint64)
    _gather(records, np.uint64(n_bytes), np.uint64(offset), np.uint64(width), integers)
    return integers


@compiled()
def _gather(records, n_bytes, offset, width, integers):
    one, byte = np.uint64(1), np.uint64(8)
    for t in range(len(integers)):
        place = np.uint64(t) * n_bytes + offset + width
        integer = np.uint64(0)
        for _ in range(width):
            place -= one
            integer = integer << byte | np.uint64(records[place])
        integers[t] = integer


def _sortable(values: npt.NDArray[Any]) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Return integers that sort as the values do."""
    if values.dtype.kind == "u":
        return values
    bits = values.view(np.uint32)
    return np.where(bits < SIGN, bits | SIGN, ~bits)


def _unsortable(integers: npt.NDArray[np.unsignedinteger[Any]], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return the values that `_sortable` makes these of."""
    if dtype.kind == "u":
        return integers
    return np.where(integers < SIGN, ~integers, integers ^ SIGN).astype(np.uint32).view(dtype)


def pack(values: npt.NDArray[Any], weights: npt.NDArray[np.float32]) -> npt.NDArray[np.uint64]:
    """Return values and weights as one number each, which sorts by the values first."""
    return _sortable(values).astype(np.uint64) << HALF | weights.view(np.uint32)


def unpack(packed: npt.NDArray[np.uint64], dtype: np.dtype[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
    """Return the values, of a dtype, and the weights that `pack` made one number of."""
    weights = (packed & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.float32)
    return _unsortable((packed >> HALF).astype(f"u{dtype.itemsize}"), dtype), weights


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


@compiled()
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


@compiled()
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
