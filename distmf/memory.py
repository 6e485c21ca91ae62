"""What training in one process needs, in named amounts of bytes, and what to do where that is too much.

Amounts are those at the peak; the plan for the workers of a cluster is in `footprint`.
"""

from typing import NamedTuple

import numpy as np

from distmf.blocks import Blocks
from distmf.errors import MemoryBudgetError
from distmf.grid import MAX_BLOCKS, Shape, bytes_per_line
from distmf.process import memory_limit
from distmf.sizes import format_bytes, parse_bytes

LIBRARIES = 350 << 20  # Python, Arrow, Dask, the compiler and what it made
IN_PASSING = 5  # row blocks from the disk, besides one for each column block: those to come, and those to be saved
ID_BYTES = 48  # of an integer id while a model is put in the order of the ids
GATHERED_BYTES = 256 << 20  # of factors on disk, put in that order at once
DEFAULT_SHARE = 0.75  # of the memory that the process may use: the rest is for files that are read and written
BALANCE = 1.2  # the largest block over the mean: blocks are balanced by a random permutation


class Sizes(NamedTuple):
    """What is to be trained.

    Attributes
    ----------
    n_users, n_items, rank : int
        The model.
    shape : Shape
        Of the grid.
    row_lines, col_lines : int
        Users of the tallest row block, items of the widest column block.
    largest_block, all_blocks : int
        Bytes of ratings.
    """

    n_users: int
    n_items: int
    rank: int
    shape: Shape
    row_lines: int
    col_lines: int
    largest_block: int
    all_blocks: int

    @classmethod
    def of(cls, blocks: Blocks, rank: int) -> "Sizes":
        """Return the sizes of a training on blocks."""
        lengths = [entry.length for entry in blocks.entries.values()]
        tallest, widest = (int(np.diff(cuts).max()) for cuts in blocks.layout[:2])
        return cls(blocks.n_users, blocks.n_items, rank, blocks.shape, tallest, widest, max(lengths), sum(lengths))

    @classmethod
    def expected(cls, n_users: int, n_items: int, rank: int, shape: Shape, all_blocks: int) -> "Sizes":
        """Return the sizes on a grid that is not made yet."""
        return cls(
            n_users,
            n_items,
            rank,
            shape,
            int(BALANCE * -(-n_users // shape.rows)),
            int(BALANCE * -(-n_items // shape.cols)),
            int(BALANCE * all_blocks) // (shape.rows * shape.cols),
            all_blocks,
        )


class TrainingBytes(NamedTuple):
    """Memory of a process that trains, in bytes.

    Attributes
    ----------
    libraries : int
        Python and what it imports.
    rows : int
        P and b_u: as they are trained, and the state to go back to; or, if they are on disk, the row blocks in passing.
    columns : int
        Q and b_i, alike.
    copies : int
        P_i and Q_j that tasks at work write to, and as many idle buffers.
    reading : int
        Blocks of ratings of the tasks at work, and of those to come.
    cache : int
        Blocks of ratings kept from epoch to epoch: what is left, but no more than there are.
    model : int
        What the model takes at the end, when copies and ratings are gone.
    """

    libraries: int
    rows: int
    columns: int
    copies: int
    reading: int
    cache: int
    model: int

    @property
    def total(self) -> int:
        """The peak."""
        return self.libraries + max(self.rows + self.columns + self.copies + self.reading + self.cache, self.model)


class MemoryPlan(NamedTuple):
    """How to train within an amount of memory.

    Attributes
    ----------
    limit : int
        Bytes that may be used.
    needs : TrainingBytes
        Bytes that are.
    rows_on_disk : bool
        Whether row blocks are in memory only while they are visited.
    """

    limit: int
    needs: TrainingBytes
    rows_on_disk: bool


def training_bytes(sizes: Sizes, threads: int, limit: int, *, rows_on_disk: bool) -> TrainingBytes:
    """Return what training needs; the cache of blocks takes what is left of `limit`."""
    line, shape = bytes_per_line(sizes.rank), sizes.shape
    at_work = min(threads, *shape)
    row_block, col_block = line * sizes.row_lines, line * sizes.col_lines
    users, items = line * sizes.n_users, line * sizes.n_items
    if rows_on_disk:
        rows, columns = min(shape.rows, shape.cols + IN_PASSING) * row_block, items
        model = min(users, GATHERED_BYTES) + row_block + items
    else:
        rows, columns = 2 * users, 2 * items
        model = 2 * (users + items)
    model += ID_BYTES * max(sizes.n_users, sizes.n_items)
    needs = TrainingBytes(
        LIBRARIES,
        rows,
        columns,
        2 * at_work * (row_block + col_block),
        2 * at_work * sizes.largest_block,
        0,
        model,
    )
    left = limit - sum(needs[:-1])
    return needs._replace(cache=max(0, min(left, sizes.all_blocks)))


def usable_memory(memory: int | str | None) -> int:
    """Return the bytes that a job may use: what is given, else a share of what the process may use."""
    return int(DEFAULT_SHARE * memory_limit()) if memory is None else parse_bytes(memory)


def plan_memory(sizes: Sizes, threads: int, limit: int) -> MemoryPlan:
    """Return how to train in `limit` bytes: with all factors in memory if they fit, else with the row blocks on disk.

    Raises
    ------
    MemoryBudgetError
        If neither fits; the message says what would.
    """
    found = [
        MemoryPlan(limit, training_bytes(sizes, threads, limit, rows_on_disk=on_disk), on_disk)
        for on_disk in (False, True)
    ]
    for plan in found:
        if plan.needs.total <= limit:
            return plan
    needs = found[-1].needs
    raise MemoryBudgetError(
        f"training at rank {sizes.rank} on {sizes.shape.rows} × {sizes.shape.cols} blocks needs "
        f"{format_bytes(found[0].needs.total)}, or {format_bytes(needs.total)} with the user factors on disk "
        f"({_in_words(needs)}), but it may use {format_bytes(limit)}; {_way_out(sizes, threads, limit)}"
    )


def _in_words(needs: TrainingBytes) -> str:
    parts = sorted(needs._asdict().items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {format_bytes(n_bytes)}" for name, n_bytes in parts if n_bytes)


def _way_out(sizes: Sizes, threads: int, limit: int) -> str:
    """Return what would fit."""
    finer = finer_rows(sizes, threads, limit)
    grids = "" if finer is None else f"block again with --grid {finer.rows}x{finer.cols}, "
    return f"{grids}take a lower rank or fewer threads, or allow more (--memory)"


def finer_rows(sizes: Sizes, threads: int, limit: int) -> Shape | None:
    """Return the grid with the fewest more row blocks on which training fits in `limit`, None if none does."""
    shape = sizes.shape
    while True:
        there = Sizes.expected(sizes.n_users, sizes.n_items, sizes.rank, shape, sizes.all_blocks)
        for on_disk in (False, True):
            if training_bytes(there, threads, limit, rows_on_disk=on_disk).total <= limit:
                return shape
        if shape.rows >= min(MAX_BLOCKS, sizes.n_users):
            return None
        shape = Shape(min(2 * shape.rows, MAX_BLOCKS, sizes.n_users), shape.cols)
