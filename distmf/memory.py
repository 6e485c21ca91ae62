"""What blocking and training in one process need, in named amounts of bytes, and what to do where that is too much.

Amounts are those at the peak, of memory that is really the process's own: the pages of files and of shared libraries do
not count, as the system takes them back when it needs them. The plan for the workers of a cluster is in `footprint`.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np

from distmf.blocks import Blocks
from distmf.buffers import IDLE_SHARE
from distmf.choices import MAX_BLOCKS
from distmf.errors import MemoryBudgetError
from distmf.grid import LANES, Shape, bytes_per_line
from distmf.process import memory_limit
from distmf.sizes import at_least, counted, format_bytes, parse_bytes
from distmf.tables import string_bytes

FLOAT_BYTES = 4
LINE_BYTES = 20  # of a row of a chain of draws, besides factors and biases
COMPILER = 38 << 20  # while it makes the kernel, and that is written down
PANDAS = 24 << 20 if find_spec("pandas") else 0  # which Arrow imports wherever it is
LIBRARIES = (156 << 20) + PANDAS  # Python, Arrow, Dask, the compiler and what it made
IN_PASSING = 2  # row blocks from the disk, besides two for each column block, of one epoch and of the next
ID_BYTES = 48  # of an id while a model is put in the order of the ids, besides the string
GATHERED_BYTES = 256 << 20  # of factors on disk, put in that order at once
SMALLEST_PORTION = 1 << 15
DEFAULT_SHARE = 7 / 8  # of the memory that the process may use: the rest is for files that are read and written
READER_BYTES = 16 << 20  # of a thread that reads Parquet, besides the ratings
BATCH_BYTES = 100  # of a rating on its way through either pass, besides strings: decoded, hashed, located, sorted
BATCH_STRINGS = 4  # times that the strings of a rating are there: decoded, converted, joined, and those written down
KEPT_BYTES = 20  # of a rating that is kept, besides strings: two 64-bit ids, and its value
COUNT_BYTES = 88  # of a count of an id: in parts, and while they are merged
NAME_BYTES = 32  # of an id that is a string, besides the string, while those of a range of numbers are put in order
NAME_STRINGS = 4  # times that the string is there then: read, joined, in order, and on its way to the table
RECORD_BYTES = 8  # of a record, at its widest but for ratings that are far apart
WEIGHTED = 4  # times that a weight is there on its way: decoded, converted, and twice as wide beside its rating
SORT_BYTES = 200  # of a rating of the block that is put in order
NUMBERED_BYTES = 32  # of an id: its hash and its count; later its hash, where the search for it begins, and its block
ID_STRINGS = 3  # times that the string of an id is there while a model is put together
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
    n_ratings : int
        Their number.
    string_bytes : int
        Of the ids of users and items that are strings.
    samples : int
        Of the posterior, 0 where nothing is drawn from it.
    states : int
        Of all factors, in memory at once: as they are trained, that to go back to, and that of the best epoch.
    start : int
        Bytes of a model that training goes on from.
    """

    n_users: int
    n_items: int
    rank: int
    shape: Shape
    row_lines: int
    col_lines: int
    largest_block: int
    all_blocks: int
    n_ratings: int
    string_bytes: int = 0
    samples: int = 0
    states: int = 2
    start: int = 0

    @classmethod
    def of(cls, blocks: Blocks, rank: int, samples: int = 0) -> "Sizes":
        """Return the sizes of a training on blocks."""
        lengths = [entry.length for entry in blocks.entries.values()]
        tallest, widest = (int(np.diff(cuts).max()) for cuts in blocks.layout[:2])
        n_ratings = blocks.n_ratings + blocks.n_holdout
        shape, n_bytes = blocks.shape, sum(lengths)
        sides = blocks.n_users, blocks.n_items
        strings = string_bytes(blocks.folder)
        return cls(*sides, rank, shape, tallest, widest, max(lengths), n_bytes, n_ratings, strings, samples)

    @classmethod
    def expected(
        cls, n_users: int, n_items: int, rank: int, shape: Shape, n_ratings: int, n_bytes: int, string_bytes: int = 0
    ) -> "Sizes":
        """Return the sizes on a grid that is not made yet."""
        row_lines, col_lines = -(-n_users // shape.rows), -(-n_items // shape.cols)
        largest = int(BALANCE * n_bytes) // (shape.rows * shape.cols)
        tallest, widest = int(BALANCE * row_lines), int(BALANCE * col_lines)
        return cls(n_users, n_items, rank, shape, tallest, widest, largest, n_bytes, n_ratings, string_bytes)

    def on(self, shape: Shape) -> "Sizes":
        """Return the sizes that are expected on another grid."""
        there = self.n_ratings, self.all_blocks, self.string_bytes
        sizes = Sizes.expected(self.n_users, self.n_items, self.rank, shape, *there)
        return sizes._replace(samples=self.samples, states=self.states, start=self.start)

    @property
    def n_ids(self) -> int:
        """Number of users and items together."""
        return self.n_users + self.n_items

    @property
    def largest_ratings(self) -> int:
        """Ratings of the largest block."""
        return self.n_ratings * self.largest_block // self.all_blocks


class Portions(NamedTuple):
    """How much a thread takes at once while it blocks.

    Attributes
    ----------
    batch : int
        Ratings that are read.
    counts : int
        Ids that are counted before they are written, and counts that are merged.
    records : int
        Records that are read to be sorted, if a block has no more.
    kept : int
        Bytes of ratings, of all threads, that the first pass keeps for the second.
    string : int
        Bytes of an id that is a string.
    is_weighted : bool
        Whether ratings have weights.
    """

    batch: int = 1 << 20
    counts: int = 1 << 21
    records: int = 1 << 24
    kept: int = 0
    string: int = 0
    is_weighted: bool = False

    @property
    def is_tight(self) -> bool:
        """Whether memory allows less than usual."""
        return self[:3] != Portions()[:3]

    def within(self, limit: int, threads: int, n_ratings: int = 0, n_ids: int = 0) -> "Portions":
        """Return the largest portions of such ratings, up to the usual ones, for which blocking fits in `limit` bytes.

        Where the usual ones do, half of what is left may keep ratings, of which there are `n_ratings`. Of ids there are
        `n_ids`, as far as that is known.

        Raises
        ------
        MemoryBudgetError
            If they would be so small that blocking takes forever.
        """
        least = self._replace(batch=SMALLEST_PORTION, counts=SMALLEST_PORTION, records=SMALLEST_PORTION, kept=0)
        needs = blocking_bytes(least, n_ids, 0, threads)
        if needs.total > limit:
            fewer = _fewer(threads, lambda n: blocking_bytes(least, n_ids, 0, n).total <= limit)
            raise MemoryBudgetError(
                f"blocking in {counted(threads, 'thread')} needs at least {at_least(needs.total)} ({in_words(needs)}), "
                f"but it may use {format_bytes(limit)}; {_ways_out(fewer)}"
            )
        # Batches get a half, or more if they must, and counts the rest; in the second pass that is left to the ids.
        room, usual = (limit - LIBRARIES - needs.ids) // threads - READER_BYTES, Portions()
        batch = max(SMALLEST_PORTION, min(usual.batch, room // 2 // (least.batch_bytes + 16)))
        rest = min(room // 2, room - batch * least.batch_bytes)
        counts = max(SMALLEST_PORTION, min(usual.counts, rest // COUNT_BYTES))
        records = max(SMALLEST_PORTION, min(usual.records, room // 2 // (4 * self.record_bytes)))
        portions = least._replace(batch=batch, counts=counts, records=records)
        left = 0 if portions.is_tight else (limit - blocking_bytes(portions, 0, 0, threads).total) // 2
        return portions._replace(kept=max(0, min(left, (KEPT_BYTES + self.weight_bytes + 2 * self.string) * n_ratings)))

    def fewest_records(self) -> "Portions":
        """Return the same with no more records at once than must be."""
        return self._replace(records=SMALLEST_PORTION)

    @property
    def batch_bytes(self) -> int:
        """Of a rating of a batch."""
        return BATCH_BYTES + WEIGHTED * self.weight_bytes + BATCH_STRINGS * 2 * self.string

    @property
    def weight_bytes(self) -> int:
        """Of a weight."""
        return FLOAT_BYTES if self.is_weighted else 0

    @property
    def record_bytes(self) -> int:
        """Of a record."""
        return RECORD_BYTES + self.weight_bytes

    @property
    def names(self) -> int:
        """Ids that are strings, put in order at once: they take as much as the counts do."""
        return max(1, COUNT_BYTES * self.counts // (NAME_BYTES + NAME_STRINGS * self.string))


class BlockingBytes(NamedTuple):
    """Memory of a process that blocks, in bytes.

    Attributes
    ----------
    libraries : int
        Python and what it imports.
    ids : int
        All ids, and their numbers.
    batches : int
        Ratings on their way through either pass.
    counts : int
        Ids and their counts, while they are counted and merged.
    kept : int
        Ratings that the first pass leaves to the second.
    sorting : int
        Records of the blocks that are put in order.
    """

    libraries: int
    ids: int
    batches: int
    counts: int
    kept: int
    sorting: int

    @property
    def total(self) -> int:
        """The peak: the two passes come one after the other, and so do the two halves of the second."""
        passes = max(self.batches + self.counts, self.ids + max(self.batches, self.counts))
        return self.libraries + max(self.kept + passes, self.sorting)


def blocking_bytes(portions: Portions, n_ids: int, largest_block: int, threads: int) -> BlockingBytes:
    """Return what blocking needs: for so many ids, of users and items together, and ratings in the largest block."""
    return BlockingBytes(
        LIBRARIES,
        NUMBERED_BYTES * n_ids,
        threads * (READER_BYTES + portions.batch_bytes * portions.batch),
        threads * COUNT_BYTES * portions.counts,
        portions.kept,
        threads * (portions.record_bytes * max(portions.records, largest_block) + SORT_BYTES * largest_block),
    )


def portions_for(sizes: Sizes, threads: int, limit: int, portions: Portions) -> Portions:
    """Return the portions with as many records at once as the second pass has memory for, if it fits at all.

    Raises
    ------
    MemoryBudgetError
        If it does not fit in `limit`; the message says what would.
    """

    def needed(shape: Shape, threads: int) -> BlockingBytes:
        largest = sizes.largest_ratings if shape == sizes.shape else sizes.on(shape).largest_ratings
        return blocking_bytes(portions.fewest_records(), sizes.n_ids, largest, threads)

    needs = needed(sizes.shape, threads)
    if needs.total > limit:
        shapes = finer_shapes(sizes.shape, sizes.n_users)
        finer = next((shape for shape in shapes if needed(shape, threads).total <= limit), None)
        grid = f"take --grid {finer.rows}x{finer.cols}" if finer else None
        fewer = _fewer(threads, lambda n: needed(sizes.shape, n).total <= limit)
        raise MemoryBudgetError(
            f"blocking into {sizes.shape.rows} × {sizes.shape.cols} blocks needs {at_least(needs.total)} to sort "
            f"the largest, of {sizes.largest_ratings:,} ratings ({in_words(needs)}), but it may use "
            f"{format_bytes(limit)}; {_ways_out(grid, fewer)}"
        )
    room = (limit - LIBRARIES) // threads - SORT_BYTES * sizes.largest_ratings
    return portions._replace(records=max(SMALLEST_PORTION, min(portions.records, room // portions.record_bytes)))


class TrainingBytes(NamedTuple):
    """Memory of a process that trains, in bytes.

    Attributes
    ----------
    libraries : int
        Python, what it imports, and the compiler at work.
    rows : int
        P and b_u: as they are trained, and the state to go back to; or, if they are on disk, the row blocks in passing.
    columns : int
        Q and b_i, alike.
    copies : int
        P_i and Q_j that tasks at work write to, and idle buffers for the next ones.
    reading : int
        Blocks of ratings of the tasks at work, and of those to come, and idle buffers.
    cache : int
        Blocks of ratings kept from epoch to epoch: what is left, but no more than there are.
    model : int
        What the model takes at the end, when copies and ratings are gone.
    start : int
        The model that training goes on from.
    """

    libraries: int
    rows: int
    columns: int
    copies: int
    reading: int
    cache: int
    model: int
    start: int

    @property
    def total(self) -> int:
        """The peak."""
        return (
            self.libraries
            + self.start
            + max(self.rows + self.columns + self.copies + self.reading + self.cache, self.model)
        )


class MemoryPlan(NamedTuple):
    """How to train within an amount of memory.

    Attributes
    ----------
    limit : int
        Bytes that may be used.
    needs : TrainingBytes
        Bytes that are.
    cached : int
        Bytes of ratings that may be kept: those of the cache, and those that are read ahead.
    rows_on_disk : bool
        Whether row blocks are in memory only while they are visited.
    """

    limit: int
    needs: TrainingBytes
    cached: int
    rows_on_disk: bool


def training_bytes(sizes: Sizes, threads: int, limit: int, *, rows_on_disk: bool) -> TrainingBytes:
    """Return what training needs; the cache of blocks takes what is left of `limit`."""
    line, shape = bytes_per_line(sizes.rank), sizes.shape
    gathered = in_model = line  # gathered at once, and in the model when it is done
    if sizes.samples:  # a chain has its mean as well; a model has the means and then the last draws of all chains
        gathered = sizes.samples * line
        line, in_model = 2 * line + LINE_BYTES, 2 * gathered
    if sizes.start:
        line += FLOAT_BYTES  # the shares of the step
    at_work = min(threads, *shape)
    row_block, col_block = line * sizes.row_lines, line * sizes.col_lines
    users, items = line * sizes.n_users, line * sizes.n_items
    if rows_on_disk:
        rows, columns = min(shape.rows, 2 * shape.cols + IN_PASSING) * row_block, items
        model = min(gathered * sizes.n_users, GATHERED_BYTES) + gathered * sizes.row_lines + in_model * sizes.n_items
    else:
        rows, columns = (
            (sizes.states + sizes.samples) * side for side in (users, items)
        )  # the last also of ended chains
        model = (max(1, sizes.samples) * line + in_model) * sizes.n_ids
        if sizes.samples:  # chains side by side in two blocks, of which one is given back late, one in order, buffers
            model += 3 * gathered * max(sizes.row_lines, sizes.col_lines)
            model += int(IDLE_SHARE * sizes.samples * line * sizes.n_ids)
    model += ID_BYTES * max(sizes.n_users, sizes.n_items) + ID_STRINGS * sizes.string_bytes
    if sizes.start:
        model += sizes.start + line * sizes.n_ids  # of both together
    copies = at_work * (row_block + col_block) + int(IDLE_SHARE * (rows + columns))
    reading = 2 * at_work * sizes.largest_block
    libraries = LIBRARIES + COMPILER
    left = limit - libraries - sizes.start - rows - columns - copies - reading
    cache = max(0, min(int(left / (1 + IDLE_SHARE)), sizes.all_blocks))
    reading += int(IDLE_SHARE * cache)
    return TrainingBytes(libraries, rows, columns, copies, reading, cache, model, sizes.start)


def both_ways(sizes: Sizes, threads: int, limit: int) -> dict[str, TrainingBytes]:
    """Return what training needs with all factors in memory, and with the user factors on disk."""
    return {
        "in_memory": training_bytes(sizes, threads, limit, rows_on_disk=False),
        "users_on_disk": training_bytes(sizes, threads, limit, rows_on_disk=True),
    }


def usable_memory(memory: int | str | None) -> int:
    """Return the bytes that a job may use: what is given, else a share of what the process may use."""
    return int(DEFAULT_SHARE * memory_limit()) if memory is None else parse_bytes(memory, "memory")


def plan_memory(sizes: Sizes, threads: int, limit: int) -> MemoryPlan:
    """Return how to train in `limit` bytes: with all factors in memory if they fit, else with the row blocks on disk.

    Raises
    ------
    MemoryBudgetError
        If neither fits; the message says what would.
    """
    ways = both_ways(sizes, threads, limit)
    for way, needs in ways.items():
        if needs.total <= limit:
            cached = needs.cache + min(threads, *sizes.shape) * sizes.largest_block
            return MemoryPlan(limit, needs, cached, rows_on_disk=way == "users_on_disk")
    needs = ways["users_on_disk"]
    raise MemoryBudgetError(
        f"training at rank {sizes.rank} on {sizes.shape.rows} × {sizes.shape.cols} blocks needs "
        f"{at_least(ways['in_memory'].total)}, or {at_least(needs.total)} with the user factors on disk "
        f"({in_words(needs)}), but it may use {format_bytes(limit)}; {_way_out(sizes, threads, limit)}"
    )


def in_words(needs: BlockingBytes | TrainingBytes) -> str:
    """Return the named amounts, the largest first."""
    parts = sorted(needs._asdict().items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {format_bytes(n_bytes)}" for name, n_bytes in parts if n_bytes)


def _way_out(sizes: Sizes, threads: int, limit: int) -> str:
    """Return what would fit."""
    shapes, ranks = finer_shapes(sizes.shape, sizes.n_users), range((sizes.rank - 1) // LANES * LANES, 0, -LANES)
    finer = next((shape for shape in shapes if training_fits(sizes.on(shape), threads, limit)), None)
    lower = next((rank for rank in ranks if training_fits(sizes._replace(rank=rank), threads, limit)), None)
    return _ways_out(
        f"block again with --grid {finer.rows}x{finer.cols}" if finer else None,
        f"take --rank {lower}" if lower else None,
        _fewer(threads, lambda n: training_fits(sizes, n, limit)),
    )


def _fewer(threads: int, fits: Callable[[int], bool]) -> str | None:
    """Return the most threads with which it fits, as a way out."""
    fewer = next((n for n in range(threads - 1, 0, -1) if fits(n)), None)
    return f"take --threads {fewer}" if fewer else None


def _ways_out(*ways: str | None) -> str:
    return ", ".join([*filter(None, ways), f"{'or ' if any(ways) else ''}allow more (--memory)"])


def finer_shapes(shape: Shape, n_users: int) -> Iterator[Shape]:
    """Yield a grid, and those with more and more row blocks."""
    while True:
        yield shape
        if shape.rows >= min(MAX_BLOCKS, n_users):
            return
        shape = Shape(min(2 * shape.rows, MAX_BLOCKS, n_users), shape.cols)


def training_fits(sizes: Sizes, threads: int, limit: int) -> bool:
    """Return whether training needs no more than `limit`, one way or the other."""
    return any(needs.total <= limit for needs in both_ways(sizes, threads, limit).values())
