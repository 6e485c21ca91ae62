"""Counts of ratings and a memory budget -> the shape of the grid, its cut points, the bytes a task needs.

Pure: no files, no Dask.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from distmf.choices import MAX_BLOCKS
from distmf.errors import MemoryBudgetError

LANES = 16
FEW_SLOTS = 8
RATINGS_PER_BLOCK = 500_000  # below this, the cost of a task shows beside its work
RATINGS_PER_LINE = 12  # of a block's users and items: below this, copying their factors shows beside the kernel
RATINGS_PER_TILE = 600  # above this, a tile's rows are reused while they are in the cache
LEAST_PER_TILE = 32  # below this, the table of tiles and the way from tile to tile cost too much
BYTES_PER_RATING = 8  # two offsets within a tile and a float32, at their widest in a dense enough matrix


class Shape(NamedTuple):
    """Numbers of row blocks and column blocks."""

    rows: int
    cols: int


class BlockKey(NamedTuple):
    """Position of a block in the grid."""

    row: int
    col: int


def bytes_per_line(rank: int) -> int:
    """Return the bytes of the factors and the bias of a user or an item."""
    return 4 * (math.ceil(rank / LANES) * LANES + 1)


def projected_bytes(n_ratings: int, n_rows: int, n_cols: int, rank: int) -> int:
    """Return the memory that one SGD task needs for its data.

    Parameters
    ----------
    n_ratings : int
        Ratings in the largest block, held out ones included.
    n_rows, n_cols : int
        Users in the tallest row block, items in the widest column block.
    rank : int
        Number of latent factors.

    Returns
    -------
    int
        Bytes held at once, without the interpreter and its libraries: the factors and biases that come in, their copies
        that go out, and the ratings.
    """
    return 2 * bytes_per_line(rank) * (n_rows + n_cols) + BYTES_PER_RATING * n_ratings


def choose_shape(
    n_users: int, n_items: int, n_ratings: int, rank: int, memory_per_task: int, n_slots: int = 1
) -> Shape:
    """Return the coarsest square grid whose tasks fit in `memory_per_task` and that still has work for all threads.

    Up to `FEW_SLOTS` threads it depends on the ratings and the other arguments alone, so that the same ratings train to
    the same model wherever they are blocked; for `n_slots` more than that, it has two row blocks for each.

    Raises
    ------
    MemoryBudgetError
        If no grid is fine enough.
    """
    per_task, per_copy = math.sqrt(n_ratings / RATINGS_PER_BLOCK), n_ratings / (n_users + n_items) / RATINGS_PER_LINE
    n_blocks = min(2 * FEW_SLOTS, max(4, round(min(per_task, per_copy))))
    if n_slots > FEW_SLOTS:
        n_blocks = min(2 * n_slots, MAX_BLOCKS)
    while True:
        shape = Shape(min(n_blocks, n_users), min(n_blocks, n_items))
        # Blocks are balanced by a random permutation: a fifth more than the mean is left for chance.
        largest = math.ceil(1.2 * n_ratings / (shape.rows * shape.cols))
        needed = projected_bytes(largest, -(-n_users // shape.rows), -(-n_items // shape.cols), rank)
        if needed <= memory_per_task:
            return shape
        if n_blocks >= MAX_BLOCKS or n_blocks >= max(n_users, n_items):
            raise MemoryBudgetError(
                f"an SGD task at rank {rank} needs {needed:,} bytes even on the finest grid of {shape.rows} × "
                f"{shape.cols} blocks, but memory_per_task is {memory_per_task:,}; raise it (--memory-per-task) or "
                "lower the rank"
            )
        n_blocks = min(2 * n_blocks, MAX_BLOCKS)


def cut(counts: npt.NDArray[np.int64], n_blocks: int) -> npt.NDArray[np.int64]:
    """Cut lines (rows or columns) into consecutive blocks of nearly equal numbers of ratings, none without a line.

    Parameters
    ----------
    counts : int64, shape (n_lines,)
        Ratings of each line.
    n_blocks : int
        From 1 to n_lines.

    Returns
    -------
    int64, shape (n_blocks + 1,)
        Where each block begins, and n_lines.
    """
    total = np.append(0, np.cumsum(counts))
    targets = total[-1] * np.arange(1, n_blocks, dtype=np.float64) / n_blocks
    cuts = np.searchsorted(total, targets)
    inner = np.arange(1, n_blocks)
    # Line numbers minus block numbers must not fall: every block then keeps a line of its own.
    cuts = np.clip(np.maximum.accumulate(cuts - inner), 0, len(counts) - n_blocks) + inner
    return np.concatenate([[0], cuts, [len(counts)]]).astype(np.int64)


def tile_shape(n_users: int, n_items: int, n_ratings: int) -> tuple[int, int]:
    """Return rows and columns of a tile: 256 × 256, or wider, and last higher, powers of two where ratings are sparse.

    A tile's rows of P and Q are reused while they lie in the cache if the tile is small, and only if it holds enough
    ratings. Where both cannot be had, the rows of P stay small enough for the cache, as all tiles of a row of tiles are
    visited one after the other; and an offset of one byte is enough for them.
    """
    density = n_ratings / (n_users * n_items)
    height = width = 256
    while width < 65_536 and density * height * width < RATINGS_PER_TILE and width < n_items:
        width *= 2
    while height < 65_536 and density * height * width < LEAST_PER_TILE and height < n_users:
        height *= 2
    return height, width


def offset_dtype(side: int) -> np.dtype[Any]:
    """Return the narrowest dtype of an offset within a tile of that many rows or columns."""
    return np.dtype(np.uint8 if side <= 256 else np.uint16)
