"""Ratings -> the grid of blocks on disk, in two passes over the input.

1. *Count*: ids, their numbers of ratings and the distinct ratings of every piece of the input, merged in groups. They
   give the numbering, the cut points and the layout.
2. *Scatter, then merge*: every piece becomes a run, sorted by block; then every row block is put together from its
   stretches of all runs, sorted by tile, row, column and rating.

Nothing here depends on the order or the partitioning of the input: counts add up, numbers and the holdout come from
hashes, and the sort decides all ties.
"""

import contextlib
import logging
import math
import numbers
import posixpath
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distmf.arguments import check_choice, check_whole, names_checked, said
from distmf.blocks import KIND, Blocks, Layout, is_blocks, open_blocks, save_manifest
from distmf.choices import MAX_BLOCKS
from distmf.counting import COUNTS, SIDES, Counted, Settings, Values, count_buckets, count_ratings, merge_counts
from distmf.engine import Engine
from distmf.engines import check_storage, open_engine
from distmf.errors import ParameterError, RatingsError
from distmf.fitting import Fitting
from distmf.frames import is_ratings
from distmf.grid import BlockKey, Shape, choose_shape
from distmf.ids import IdCounts
from distmf.jobs import DONE, decide, job_folder
from distmf.matrix import IsSet, not_nan, set_entries
from distmf.memory import Portions, blocking_bytes, finer_shapes, portions_for, usable_memory
from distmf.merging import RowBlock, merge_runs
from distmf.names import NAMES, checked, collect_names, count_ranges
from distmf.ratings import LARGEST, Batch, Ratings, open_ratings
from distmf.reading import Reading
from distmf.scattering import RUNS, Places, scatter_ratings, write_runs
from distmf.sizes import parse_bytes
from distmf.sources import as_parquet
from distmf.store import Folder, new_folder, temporary_folder
from distmf.tables import NUMBERS, integer_ids, read_counts, read_numbers, write_ids, write_numbers
from distmf.tiles import Duplicates

SPANS = 16  # of the input, if it is large enough: each is a task of either pass, which a restart need not do again
SMALLEST_SPAN = 1 << 20  # ratings
ENOUGH_DUPLICATES = 100  # to tell the noise of ratings by
TRANSIENT = COUNTS, NUMBERS, NAMES, RUNS  # in the folder while it is written

logger = logging.getLogger(__name__)


@names_checked
def block_ratings(
    source: Any,
    path: str | Path,
    *,
    user: str | None = None,
    item: str | None = None,
    rating: str | None = None,
    weight: str | None = None,
    is_set: IsSet = not_nan,
    holdout: float = 0.0,
    grid: tuple[int, int] | None = None,
    memory_per_task: int | str = "1 GiB",
    rank: int = 64,
    seed: int = 0,
    duplicates: Duplicates = "keep",
    client: Any = None,
    threads: int | None = None,
    memory: int | str | None = None,
) -> Blocks:
    """Block ratings once into a grid on disk, ready for training.

    On the same grid, the blocks depend on the ratings and the options, not on the order of the ratings, their
    partitioning into files, or the number of threads or workers.

    Parameters
    ----------
    source : str, Path, table or matrix
        Parquet: a file, a folder, a glob or an fsspec URL. Or text, with the extension .csv, .tsv, .txt, .dat or .data
        (and .gz, .bz2, .zst), with names in the first line, or users, items and ratings first. Or an Arrow table,
        reader or dataset; a DataFrame of pandas, polars or Dask, or what else exports an Arrow stream; a SciPy sparse
        matrix; a dense matrix. All but Parquet is written as Parquet first, beside `path`.
    path : str or Path
        Folder or fsspec URL to write; blocks that are there are replaced.
    user, item, rating : str, optional
        Names of the columns; by default those that can be nothing else, as user_id, userId or user.
    weight : str, optional
        Name of a column of weights, above 0: a rating counts as often as its weight says, over the mean of all.
    is_set : callable
        For a dense matrix: takes an array of values and returns which are set, as `not_nan` (the default),
        `non_negative` or `always`.
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
    memory : int or str, optional
        Bytes that a process may use that trains on the blocks in threads; by default seven eighths of the limit of
        this process, or of the machine. If training would not fit, the grid gets more row blocks.

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
    if not (isinstance(holdout, numbers.Real) and 0 <= holdout < 1):
        raise ParameterError(f"holdout is {said(holdout)}; it is a share, from 0 up to but not 1")
    check_choice("duplicates", duplicates, ("keep", "mean", "error"))
    check_whole("rank", rank)
    check_whole("seed", seed, 0)
    _check_grid(grid)
    budget, limit = parse_bytes(memory_per_task, "memory_per_task"), usable_memory(memory)
    names = {"user": user, "item": item, "rating": rating, "weight": weight}
    with as_parquet(source, path, names, is_set, client) as (parquet, columns):
        ratings = open_ratings(parquet, columns)
        options = Options(Settings(int(seed), float(holdout), duplicates), grid, budget, limit, int(rank))
        _block(ratings, path, options, client, threads)
    blocks = open_blocks(path)
    logger.info(
        "blocked: %s ratings to train on and %s held out, by %s users of %s items; %s repeat a pair (duplicates: %s)",
        *(f"{n:,}" for n in (blocks.n_ratings, blocks.n_holdout, blocks.n_users, blocks.n_items)),
        f"{blocks.settings['n_duplicates']:,}",
        duplicates,
    )
    return blocks


def _check_grid(grid: Any) -> None:
    is_pair = isinstance(grid, tuple | list) and len(grid) == 2
    if grid is not None and not (is_pair and all(isinstance(n, int) and 1 <= n <= MAX_BLOCKS for n in grid)):
        raise ParameterError(
            f"grid is {grid!r}; it is two numbers from 1 to {MAX_BLOCKS:,}, of row blocks and of columns, as (8, 8)"
        )


class Options(NamedTuple):
    """How ratings are blocked; see `block_ratings`."""

    settings: Settings
    grid: tuple[int, int] | None
    budget: int
    limit: int
    rank: int


def _block(ratings: Ratings, path: str | Path, options: Options, client: Any, threads: int | None) -> None:
    settings, grid, budget, limit, rank = options
    id_types, weight = tuple(ratings.id_types.values()), ratings.columns.weight
    what = {
        "ratings": ratings.fingerprint(),
        **settings._asdict(),
        "grid": grid and list(grid),
        "memory_per_task": budget,
        "memory": limit,
        "rank": rank,
        "distmf": version("distmf"),  # others may write other files on the way
    }
    with open_engine(client, threads) as engine, job_folder(path, KIND, what, TRANSIENT) as folder:
        portions = Portions()
        if engine.shares_memory:
            portions = Portions(string=ratings.string_bytes(), is_weighted=weight is not None)
            portions = portions.within(limit, engine.n_slots, ratings.n_rows)
        first_file, source_folder = ratings.pieces[0].path, posixpath.dirname(ratings.pieces[0].path)
        check_storage(engine, folder, {posixpath.basename(first_file): Folder(ratings.fs, source_folder)})
        spans = ratings.spans(max(ratings.n_rows // SPANS, SMALLEST_SPAN))
        reading = Reading(portions.kept)
        n_buckets = decide(folder, "bucketing", count_buckets, ratings.n_rows, portions)
        counted = count_ratings(engine, spans, reading, settings, folder, n_buckets, portions)
        values = sum((part.values for part in counted[1:]), counted[0].values)
        sides = []
        for name, side in zip(KIND.tables, SIDES, strict=True):
            if (counts := read_counts(folder, name)) is None:
                write_numbers(folder, name, merge_counts(engine, folder, counted, side, n_buckets, portions))
                counts = read_numbers(folder, name, "count")
            sides.append(counts)
        folder.remove(COUNTS)
        if not sides[0].any():
            raise RatingsError(f"holdout is {settings.holdout}, so all ratings are held out; lower it (--holdout)")
        if engine.shares_memory:
            n_ids = sum(map(len, sides))
            portions = portions.within(limit, engine.n_slots, 0, n_ids)
            others = blocking_bytes(portions, n_ids, 0, engine.n_slots)
            portions = portions._replace(kept=reading.shrink(limit - others.total))
        n_strings = [len(counts) for counts, kind in zip(sides, id_types, strict=True) if not pa.types.is_integer(kind)]
        fitting = Fitting(
            (sides[0], sides[1]), values, settings, rank, portions.string * sum(n_strings), weight is not None
        )
        layout, portions = _layout(folder, engine, fitting, grid, budget, limit, portions)
        n_ranges = decide(folder, "naming", count_ranges, max(n_strings, default=0), portions.names)
        del sides, fitting
        runs = scatter_ratings(engine, spans, reading, settings, layout, folder, n_ranges, portions)
        _write_tables(engine, folder, id_types, settings, counted, n_ranges)
        row_blocks = merge_runs(engine, folder, settings, layout, runs, ratings.n_rows, portions)
        _finish(folder, settings, layout, values, row_blocks)


@contextlib.contextmanager
def blocks_of(
    ratings: Any,
    is_set: IsSet,
    settings: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Iterator[Blocks]:
    """Yield the blocks of whatever holds ratings; where it is not blocks yet, they are gone afterwards.

    Parameters
    ----------
    ratings : Blocks, str, Path or array of shape (n_users, n_items)
        Blocks, the path of blocks, the path of raw ratings, or a dense matrix.
    is_set : callable
        For a matrix: which of its entries are set.
    settings : mapping
        Options of `block_ratings` that follow from what the blocks are for.
    options : mapping
        Those that the user gave, for raw ratings only.

    Raises
    ------
    ParameterError
        If something is given that these ratings have no use for.
    """
    has_ratings = is_ratings(ratings) and not (isinstance(ratings, str | Path) and is_blocks(ratings))
    if (isinstance(ratings, Blocks | str | Path) or has_ratings) and is_set is not not_nan:
        raise ParameterError("is_set chooses the entries of a matrix; files, tables and blocks hold only set ratings")
    if has_ratings:
        with temporary_folder(Path(tempfile.gettempdir()) / "distmf-ratings") as folder:
            try:
                blocks = block_ratings(ratings, f"{folder}/blocks", **{**settings, **options})
            except KeyboardInterrupt as interrupt:
                raise KeyboardInterrupt from interrupt  # nothing of this folder is kept
            yield blocks
        return
    if options:
        raise ParameterError(
            f"{', '.join(options)} can only be given with raw ratings; blocks and matrices are as they are"
        )
    if isinstance(ratings, Blocks):
        yield ratings
    elif isinstance(ratings, str | Path):
        yield open_blocks(ratings)
    else:
        if settings["client"] is not None:
            raise ParameterError("a matrix is trained on in threads of this process; client is for ratings in files")
        path = f"memory://distmf-{uuid.uuid4().hex}"
        try:
            yield block_matrix(*set_entries(ratings, is_set), path, settings["seed"])
        finally:
            Folder.at(path).delete()


@contextlib.contextmanager
def blocks_to_exclude(ratings: Any) -> Iterator[Blocks | None]:
    """Yield the blocks of ratings that are not to be recommended again, None if there are none; see `blocks_of`."""
    if ratings is None:
        yield None
        return
    with blocks_of(ratings, not_nan, {"client": None, "seed": 0}, {}) as blocks:
        yield blocks


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
            else f"entries are set that are not finite, or beyond ±{LARGEST:g}: {np.sum(~np.isfinite(values)):,}"
        )
        raise RatingsError(
            f"the matrix of shape {matrix.shape} cannot be trained on: {what}; is_set chooses the entries"
        )
    settings = Settings(seed, 0.0, "keep")
    sides = zip((rows, cols), matrix.shape, settings.salts, strict=True)
    users, items = (IdCounts.of_range(numbers, n, salt) for numbers, n, salt in sides)
    found = Values.of(values)
    layout = Fitting((users.counts, items.counts), found, settings).layout(Shape(1, 1))
    batch = Batch(pa.array(rows), pa.array(cols), values)
    with new_folder(path, KIND) as folder, open_engine(threads=1) as engine:
        for name, side, salt in zip(KIND.tables, (users, items), settings.salts, strict=True):
            write_numbers(folder, name, [(side, np.zeros(len(side.counts), dtype=np.uint8))])
            write_ids(folder, name, pa.int64(), integer_ids(folder, name, pa.int64(), salt), side.counts)
        places = Places.read(folder, (pa.int64(), pa.int64()), settings, layout)
        offsets = write_runs(iter([batch]), settings, layout, places, folder, f"{RUNS}/0")
        runs = [(f"{RUNS}/0", offset) for offset in offsets]
        row_blocks = merge_runs(engine, folder, settings, layout, runs, len(values), Portions())
        _finish(folder, settings, layout, found, row_blocks)
        for name in (NUMBERS, RUNS, DONE):
            folder.remove(name)
    return open_blocks(path)


def _write_tables(
    engine: Engine,
    folder: Folder,
    id_types: Sequence[pa.DataType],
    settings: Settings,
    counted: Sequence[Counted],
    n_ranges: int,
) -> None:
    """Write the tables of users and items, once the strings among them are written down."""
    for n, (name, side, id_type, salt) in enumerate(zip(KIND.tables, SIDES, id_types, settings.salts, strict=True)):
        if folder.fs.isfile(folder.child(name)):
            continue
        counts = read_numbers(folder, name, "count")
        if pa.types.is_integer(id_type):
            ids = integer_ids(folder, name, id_type, salt)
        else:
            names = collect_names(engine, folder, side, len(counted), len(counts), n_ranges)
            ids = checked(names, counts, settings.check_salt, sum(span.fingerprints[n] for span in counted) % 2**64)
        write_ids(folder, name, id_type, ids, counts)
    for name in NAMES, NUMBERS:
        folder.remove(name)


def _layout(
    folder: Folder,
    engine: Engine,
    fitting: Fitting,
    grid: tuple[int, int] | None,
    memory_per_task: int,
    limit: int,
    portions: Portions,
) -> tuple[Layout, Portions]:
    """Return the layout of the blocks, on a grid that is chosen once in the life of the job, if none is given.

    And the portions, with as many records at once as there is memory for beside the largest block.

    Raises
    ------
    MemoryBudgetError
        If this process cannot block into it.
    """

    def choose() -> Shape:
        shape = Shape(*grid) if grid else choose_shape(*fitting.counts, fitting.rank, memory_per_task, engine.n_slots)
        if grid or not engine.shares_memory:
            return shape
        return fitting.choose(finer_shapes(shape, fitting.counts[0]), engine.n_slots, limit, portions)

    shape = Shape(*decide(folder, "fitting", choose))
    if engine.shares_memory:
        portions = portions_for(fitting.sizes(shape), engine.n_slots, limit, portions)
    return fitting.layout(shape), portions


def _finish(folder: Folder, settings: Settings, layout: Layout, values: Values, row_blocks: Sequence[RowBlock]) -> None:
    """Refuse duplicates if they are not wanted, and write the manifest."""
    n_duplicates = sum(row_block.n_duplicates for row_block in row_blocks)
    if n_duplicates and settings.duplicates == "error":
        numbers = next(row_block.duplicate for row_block in row_blocks if row_block.duplicate)
        user, item = (
            folder.read_table(name, checksum, ["id"])["id"][number].as_py()
            for (name, checksum), number in zip(folder.checksums(KIND.tables).items(), numbers, strict=True)
        )
        raise RatingsError(
            f"ratings that repeat a (user, item) pair: {n_duplicates:,}, for example user {user!r} and item {item!r}; "
            "remove them, or take duplicates='keep' or 'mean' (--duplicates)"
        )
    entries = {
        BlockKey(row, col): entry
        for row, row_block in enumerate(row_blocks)
        for col, entry in enumerate(row_block.entries)
    }
    spread = sum(row_block.spread for row_block in row_blocks)
    is_known = settings.duplicates == "keep" and n_duplicates >= ENOUGH_DUPLICATES and not layout.is_weighted
    noise = math.sqrt(spread / n_duplicates) if is_known else None
    found = {**settings._asdict(), "n_duplicates": n_duplicates, "noise": noise}
    save_manifest(folder, layout, entries, (values.low, values.high), found)
