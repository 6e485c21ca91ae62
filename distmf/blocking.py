"""Ratings -> the grid of blocks on disk, in two passes over the input.

1. *Count*: ids, their numbers of ratings and the distinct ratings of every piece of the input, merged in groups. They
   give the numbering, the cut points and the layout.
2. *Scatter, then merge*: every piece becomes a run, sorted by block; then every row block is put together from its
   stretches of all runs, sorted by tile, row, column and rating.

Nothing here depends on the order or the partitioning of the input: counts add up, numbers and the holdout come from
hashes, and the sort decides all ties.
"""

import logging
import numbers
import posixpath
import uuid
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from dask._task_spec import DataNode, Task, TaskRef
from dask.typing import Key

from distmf.blocks import KIND, BlockEntry, Blocks, Layout, open_blocks, row_file, save_manifest
from distmf.engine import Engine, Graph, run_through_losses
from distmf.engines import check_storage, open_engine
from distmf.errors import RatingsError
from distmf.grid import BlockKey, Shape, choose_shape, cut, tile_shape
from distmf.ids import Hashes, IdCounts, IdMap, hash_ids, mix, salt
from distmf.progress import Progress
from distmf.ratings import LARGEST, Batch, Columns, Piece, Ratings, open_ratings, read_piece
from distmf.sizes import parse_bytes
from distmf.store import Folder, new_folder
from distmf.tiles import Duplicates, record_dtype, sort_part

logger = logging.getLogger(__name__)

MAX_CODES = 256  # distinct ratings that fit in one byte
FAN_IN = 8  # counts merged at once


class Settings(NamedTuple):
    """What decides which block a rating lies in, and how it is kept."""

    seed: int
    holdout: float
    duplicates: Duplicates

    @property
    def user_salt(self) -> np.uint64:
        """Salt of the user ids' hashes."""
        return salt(self.seed, "user")

    @property
    def item_salt(self) -> np.uint64:
        """Salt of the item ids' hashes."""
        return salt(self.seed, "item")

    def is_train(self, user_hashes: Hashes, item_hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Return which ratings are trained on: a hash of (seed, user, item) decides."""
        if self.holdout == 0:
            return np.ones(len(user_hashes), dtype=np.bool_)
        draws = mix(user_hashes + mix(item_hashes ^ salt(self.seed, "holdout")))
        return draws >= np.uint64(min(int(self.holdout * 2**64), 2**64 - 1))


class Ids(NamedTuple):
    """The numberings of both sides."""

    users: IdMap
    items: IdMap

    @classmethod
    def of_counts(cls, counts: "Counts", types: tuple[pa.DataType, pa.DataType], settings: Settings) -> Self:
        """Return the numberings of the ids that were counted, of these types."""
        return cls(
            IdMap.of_counts(counts.users, types[0], settings.user_salt),
            IdMap.of_counts(counts.items, types[1], settings.item_salt),
        )

    @classmethod
    def read(cls, folder: Folder, checksums: dict[str, int], settings: Settings) -> Self:
        """Return the numberings that were written to a folder."""
        users, items = (folder.read_table(name, checksums[name])["id"].combine_chunks() for name in KIND.tables)
        return cls(IdMap(users, settings.user_salt), IdMap(items, settings.item_salt))


class Counts(NamedTuple):
    """What the first pass finds in a part of the input."""

    users: IdCounts
    items: IdCounts
    distinct: npt.NDArray[np.float32]
    """Distinct ratings, ascending; empty if there are more than fit in a code."""
    rating_range: tuple[float, float]
    n_ratings: int


class Run(NamedTuple):
    """Where the ratings of one batch lie in a file, sorted by block and part; or a stretch of them."""

    name: str
    offset: int
    sections: npt.NDArray[np.int64]


class RowBlock(NamedTuple):
    """The blocks of one row block, written."""

    entries: dict[BlockKey, BlockEntry]
    n_duplicates: int
    duplicate: tuple[int, int] | None


def block_ratings(
    source: str | Path,
    path: str | Path,
    *,
    user: str = "user_id",
    item: str = "item_id",
    rating: str = "rating",
    holdout: float = 0.0,
    grid: tuple[int, int] | None = None,
    memory_per_task: int | str = "1 GiB",
    rank: int = 64,
    seed: int = 0,
    duplicates: Duplicates = "keep",
    client: Any = None,
    threads: int | None = None,
) -> Blocks:
    """Block ratings once into a grid on disk, ready for training.

    The blocks depend on the ratings and the options, not on the order of the ratings, their partitioning into files, or
    the number of threads or workers.

    Parameters
    ----------
    source : str or Path
        Parquet: a file, a folder, a glob or an fsspec URL.
    path : str or Path
        Folder or fsspec URL to write; blocks that are there are replaced.
    user, item, rating : str
        Names of the columns.
    holdout : float
        Share of the ratings kept out for validation, from 0 up to but not 1; a hash of (seed, user, item) decides.
    grid : tuple of int, optional
        Numbers of row blocks and column blocks; by default the coarsest that fits `memory_per_task`.
    memory_per_task : int or str
        Bytes that one task may need for its data, as 2**30 or "1 GiB".
    rank : int
        Number of latent factors that the grid is planned for.
    seed : int
        Of the numbering and the holdout.
    duplicates : {"keep", "mean", "error"}
        What to do with several ratings of one item by one user: train on each, on their mean, or refuse.
    client : distributed.Client, optional
        Block on the workers of its cluster instead of threads of this process. They must see `source` and `path`.
    threads : int, optional
        Threads to use, by default all cores.

    Returns
    -------
    Blocks

    Raises
    ------
    RatingsError
        If the ratings do not hold what they should; the message says where.
    MemoryBudgetError
        If no grid fits `memory_per_task`.
    StoreError
        If there is something else at `path`, or a worker does not see it.
    ClusterError
        If the cluster is lost, or a task keeps killing its workers.
    """
    if not 0 <= holdout < 1:
        raise ValueError(f"holdout is {holdout}; it is a share, from 0 up to but not 1")
    if duplicates not in ("keep", "mean", "error"):
        raise ValueError(f"duplicates is {duplicates!r}; it can be 'keep', 'mean' or 'error'")
    for name, value, least in ("rank", rank, 1), ("seed", seed, 0):
        if not isinstance(value, numbers.Integral) or not least <= value < 2**63:
            raise ValueError(f"{name} is {value!r}; it is a whole number, at least {least}")
    budget = parse_bytes(memory_per_task)
    ratings = open_ratings(source, Columns(user, item, rating))
    settings = Settings(int(seed), float(holdout), duplicates)
    with new_folder(path, KIND) as folder, open_engine(client, threads) as engine:
        first_file, source_folder = ratings.pieces[0].path, posixpath.dirname(ratings.pieces[0].path)
        check_storage(engine, folder, {posixpath.basename(first_file): Folder(ratings.fs, source_folder)})
        counts = _count(engine, ratings, settings)
        ids = Ids.of_counts(counts, (ratings.id_types[user], ratings.id_types[item]), settings)
        shape = grid or choose_shape(len(ids.users), len(ids.items), counts.n_ratings, rank, budget)
        layout = _layout(counts, settings, Shape(*shape))
        _write_ids(folder, ids, counts)
        runs = _scatter(engine, ratings, settings, layout, ids, folder)
        _merge(engine, folder, settings, layout, counts, runs, ids)
    blocks = open_blocks(path)
    logger.info(
        "blocked: %s ratings to train on and %s held out, by %s users of %s items; %s repeat a pair (duplicates: %s)",
        *(f"{n:,}" for n in (blocks.n_ratings, blocks.n_holdout, blocks.n_users, blocks.n_items)),
        f"{blocks.settings['n_duplicates']:,}",
        duplicates,
    )
    return blocks


def block_matrix(matrix: npt.NDArray[Any], is_set: npt.NDArray[np.bool_], path: str, seed: int) -> Blocks:
    """Block the set entries of a dense matrix; all of its row and column indices are ids, set entries or not.

    Parameters
    ----------
    matrix, is_set : array, shape (n_users, n_items)
        Ratings, and which of them are set.
    path : str
        Folder or fsspec URL to write.
    seed : int
        Of the numbering.
    """
    rows, cols = np.nonzero(is_set)
    values = matrix[is_set].astype(np.float32) + np.float32(0)
    values[abs(values) > LARGEST] = np.inf
    if not len(values) or not np.isfinite(values).all():
        what = (
            "no entry is set"
            if not len(values)
            else f"{np.sum(~np.isfinite(values))} set entries are not finite, or beyond ±{LARGEST:g}"
        )
        raise RatingsError(
            f"the matrix of shape {matrix.shape} cannot be trained on: {what}; is_set chooses the entries"
        )
    settings = Settings(seed, 0.0, "keep")
    users = IdCounts.of_range(rows, matrix.shape[0], settings.user_salt)
    items = IdCounts.of_range(cols, matrix.shape[1], settings.item_salt)
    counts = Counts(users, items, values[:0], (float(values.min()), float(values.max())), len(values))
    ids = Ids.of_counts(counts, (pa.int64(), pa.int64()), settings)
    layout = _layout(counts, settings, Shape(1, 1))
    batch = Batch(pa.array(rows), pa.array(cols), values)
    with new_folder(path, KIND) as folder, open_engine(threads=1) as engine:
        _write_ids(folder, ids, counts)
        run, data = _sort_into_run(batch, settings, layout, ids, "runs/0", 0)
        folder.write(run.name, data)
        _merge(engine, folder, settings, layout, counts, [run], ids)
    return open_blocks(path)


def _count(engine: Engine, ratings: Ratings, settings: Settings) -> Counts:
    count, done = _names("count", "counted")
    tasks: dict[Key, Any] = {
        (count, 0, n): Task((count, 0, n), _count_piece, ratings, piece, settings)
        for n, piece in enumerate(ratings.pieces)
    }
    level, keys = 0, list(tasks)
    tasks |= {(done, n): Task((done, n), _is_there, TaskRef(key)) for n, key in enumerate(keys)}
    while len(keys) > 1 or level == 0:
        level += 1
        groups = [keys[n : n + FAN_IN] for n in range(0, len(keys), FAN_IN)]
        keys = [(count, level, n) for n in range(len(groups))]
        for key, group in zip(keys, groups, strict=True):
            tasks[key] = Task(key, _merge_counts, *[TaskRef(part) for part in group])
    on_done = _progress("counting", done, [piece.n_rows for piece in ratings.pieces])
    wanted = [*keys, *((done, n) for n in range(len(ratings.pieces)))]
    counts: Counts = run_through_losses(engine, Graph(tasks), wanted, on_done)[0]
    if not counts.users.counts.any():
        raise RatingsError(f"all {counts.n_ratings:,} ratings are held out; lower holdout from {settings.holdout}")
    return counts


def _names(*names: str) -> list[str]:
    """Return names of tasks that are unique to one graph."""
    token = uuid.uuid4().hex[:8]
    return [f"{name}-{token}" for name in names]


def _is_there(counts: Counts) -> bool:
    """Tell that a piece is counted, without what was counted."""
    return True


def _count_piece(ratings: Ratings, piece: Piece, settings: Settings) -> Counts:
    return _merge_counts(*[_count_batch(batch, settings) for batch in read_piece(ratings, piece)])


def _count_batch(batch: Batch, settings: Settings) -> Counts:
    user_hashes, item_hashes = hash_ids(batch.user, settings.user_salt), hash_ids(batch.item, settings.item_salt)
    is_train = settings.is_train(user_hashes, item_hashes)
    sample = np.unique(batch.rating[:: max(1, len(batch.rating) // 1024)])
    distinct = np.unique(batch.rating) if len(sample) <= MAX_CODES else sample
    return Counts(
        IdCounts.of(batch.user, user_hashes, is_train, settings.user_salt),
        IdCounts.of(batch.item, item_hashes, is_train, settings.item_salt),
        _codes(distinct),
        (float(batch.rating.min()), float(batch.rating.max())),
        len(batch.rating),
    )


def _merge_counts(*parts: Counts) -> Counts:
    lows, highs = zip(*[part.rating_range for part in parts], strict=True)
    every_code = all(len(part.distinct) for part in parts)
    return Counts(
        IdCounts.merge([part.users for part in parts]),
        IdCounts.merge([part.items for part in parts]),
        _codes(np.unique(np.concatenate([part.distinct for part in parts])) if every_code else parts[0].distinct[:0]),
        (min(lows), max(highs)),
        sum(part.n_ratings for part in parts),
    )


def _codes(distinct: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return distinct if len(distinct) <= MAX_CODES else distinct[:0]


def _layout(counts: Counts, settings: Settings, shape: Shape) -> Layout:
    n_users, n_items = len(counts.users.hashes), len(counts.items.hashes)
    if not (1 <= shape.rows <= n_users and 1 <= shape.cols <= n_items):
        raise RatingsError(
            f"grid is {shape.rows} × {shape.cols}, but there are {n_users:,} users and {n_items:,} items; "
            "every block needs at least one of each"
        )
    return Layout(
        tuple(cut(counts.users.counts, shape.rows).tolist()),
        tuple(cut(counts.items.counts, shape.cols).tolist()),
        tile_shape(n_users, n_items, counts.n_ratings),
        # A mean of duplicates need not be one of the ratings.
        () if settings.duplicates == "mean" else tuple(counts.distinct.tolist()),
    )


def _write_ids(folder: Folder, ids: Ids, counts: Counts) -> None:
    for name, id_map, id_counts in zip(KIND.tables, ids, (counts.users, counts.items), strict=True):
        folder.write_table(name, pa.table({"id": id_map.ids, "count": id_counts.counts}))


def _scatter(
    engine: Engine, ratings: Ratings, settings: Settings, layout: Layout, ids: Ids, folder: Folder
) -> list[Run]:
    """Write every piece as runs that are sorted by block, and return these, by piece."""
    scatter, read_ids = _names("scatter", "ids")
    # What other processes need of the ids they read themselves: a graph is no place for it.
    there = Task(read_ids, Ids.read, folder, folder.checksums(KIND.tables), settings)
    tasks: dict[Key, Any] = {read_ids: DataNode(read_ids, ids) if engine.shares_memory else there}
    keys: list[Key] = [(scatter, n) for n in range(len(ratings.pieces))]
    for key, piece in zip(keys, ratings.pieces, strict=True):
        name = f"runs/{len(tasks) - 1:06d}"
        tasks[key] = Task(key, _scatter_piece, ratings, piece, settings, layout, TaskRef(read_ids), folder, name)
    on_done = _progress("scattering", scatter, [piece.n_rows for piece in ratings.pieces])
    return [run for runs in run_through_losses(engine, Graph(tasks), keys, on_done) for run in runs]


def _scatter_piece(
    ratings: Ratings, piece: Piece, settings: Settings, layout: Layout, ids: Ids, folder: Folder, name: str
) -> list[Run]:
    """Write the ratings of one piece as runs, one for each batch, into one file."""
    offset, runs = 0, []
    with folder.create(name) as file:
        for batch in read_piece(ratings, piece):
            run, data = _sort_into_run(batch, settings, layout, ids, name, offset)
            file.write(data)
            offset += data.nbytes
            runs.append(run)
    return runs


def _sort_into_run(
    batch: Batch, settings: Settings, layout: Layout, ids: Ids, name: str, offset: int
) -> tuple[Run, npt.NDArray[Any]]:
    user_hashes, item_hashes = hash_ids(batch.user, settings.user_salt), hash_ids(batch.item, settings.item_salt)
    rows, cols = ids.users.numbers_of_hashes(user_hashes), ids.items.numbers_of_hashes(item_hashes)
    if min(rows.min(), cols.min()) < 0:
        raise RatingsError("the ratings changed while they were blocked: an id came up that was not counted; try again")
    row_cuts, col_cuts = np.array(layout.row_cuts), np.array(layout.col_cuts)
    # The number of a line's block, looked up by line: narrow, so that the lookup stays in the cache.
    row_block = np.repeat(np.arange(len(row_cuts) - 1, dtype=np.uint16), np.diff(row_cuts))[rows]
    col_block = np.repeat(np.arange(len(col_cuts) - 1, dtype=np.uint16), np.diff(col_cuts))[cols]
    n_sections = 2 * layout.shape.rows * layout.shape.cols
    section = (row_block.astype(np.min_scalar_type(n_sections)) * layout.shape.cols + col_block) * 2
    section += ~settings.is_train(user_hashes, item_hashes)
    order = np.argsort(section, kind="stable")  # a radix sort, as the type is narrow
    records = np.empty(len(rows), dtype=record_dtype(layout))
    records["row"] = (rows - row_cuts[row_block])[order]
    records["col"] = (cols - col_cuts[col_block])[order]
    values = np.searchsorted(np.array(layout.table, dtype=np.float32), batch.rating) if layout.table else batch.rating
    records["value"] = values[order]
    ends = np.cumsum(np.bincount(section, minlength=n_sections))
    return Run(name, offset, np.append(0, ends)), records


def _merge(
    engine: Engine, folder: Folder, settings: Settings, layout: Layout, counts: Counts, runs: list[Run], ids: Ids
) -> None:
    """Put the row blocks together from their stretches of all runs and write the manifest."""
    (merge,) = _names("merge")
    tasks: dict[Key, Any] = {}
    per_row = 2 * layout.shape.cols
    for row in range(layout.shape.rows):
        stretches = [run._replace(sections=run.sections[row * per_row : (row + 1) * per_row + 1]) for run in runs]
        tasks[merge, row] = Task((merge, row), _merge_row_block, row, stretches, layout, settings, folder)
    share = counts.n_ratings // layout.shape.rows
    on_done = _progress("merging", merge, [share] * layout.shape.rows)
    merged: list[RowBlock] = run_through_losses(engine, Graph(tasks), list(tasks), on_done)
    folder.remove("runs")
    n_duplicates = sum(part.n_duplicates for part in merged)
    if n_duplicates and settings.duplicates == "error":
        row, col = next(part.duplicate for part in merged if part.duplicate)
        raise RatingsError(
            f"{n_duplicates:,} ratings repeat a (user, item) pair, for example user {ids.users.ids[row].as_py()!r} and "
            f"item {ids.items.ids[col].as_py()!r}; remove them, or take duplicates='keep' or 'mean' (--duplicates)"
        )
    entries = {key: entry for part in merged for key, entry in part.entries.items()}
    found = {**settings._asdict(), "n_duplicates": n_duplicates}
    save_manifest(folder, layout, entries, counts.rating_range, found)


def _merge_row_block(row: int, runs: Sequence[Run], layout: Layout, settings: Settings, folder: Folder) -> RowBlock:
    record, n_cols = record_dtype(layout), layout.shape.cols
    stretches: list[list[npt.NDArray[Any]]] = [[] for _ in range(2 * n_cols)]
    for run in runs:
        bounds = run.sections
        start, length = (int(n) * record.itemsize for n in (bounds[0], bounds[-1] - bounds[0]))
        data = np.frombuffer(folder.read(run.name, run.offset + start, length), dtype=record)
        for stretch, begin, end in zip(stretches, bounds - bounds[0], bounds[1:] - bounds[0], strict=False):
            stretch.append(data[begin:end])
    entries, n_duplicates, duplicate, offset = {}, 0, None, 0
    with folder.create(row_file(row)) as file:
        for col in range(n_cols):
            key = BlockKey(row, col)
            train, held_out = (
                sort_part(np.concatenate(stretches[2 * col + n]), key, layout, settings.duplicates) for n in range(2)
            )
            block = train.data + held_out.data
            file.write(block)
            entries[key] = BlockEntry(
                offset, len(block), zlib.crc32(block), train.moments.n, held_out.moments.n, train.moments
            )
            offset += len(block)
            n_duplicates += train.n_duplicates + held_out.n_duplicates
            duplicate = duplicate or train.duplicate or held_out.duplicate
    return RowBlock(entries, n_duplicates, duplicate)


def _progress(verb: str, name: str, sizes: Sequence[int]) -> Callable[[Any, Any], None]:
    """Return a callback that counts tasks as they end; they are keyed (name, position in sizes)."""
    progress, left = Progress(logger, verb, sum(sizes)), dict(enumerate(sizes))

    def on_done(key: Any, value: Any) -> None:
        if key[0] == name:
            progress.advance(left.pop(key[1], 0))  # a graph that was lost is sent again

    return on_done
