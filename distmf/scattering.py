"""The first half of the second pass over ratings: every piece becomes a run, sorted by block."""

import logging
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from dask._task_spec import DataNode, Task, TaskRef
from dask.typing import Key

from distmf.blocks import KIND, Layout
from distmf.counting import Counts, Settings
from distmf.engine import Engine, Graph, new_token, run_through_losses
from distmf.errors import RatingsError
from distmf.ids import IdMap, hash_ids
from distmf.progress import progress_of_tasks
from distmf.ratings import Batch, Piece, Ratings, read_piece
from distmf.store import Folder
from distmf.tiles import record_dtype

logger = logging.getLogger(__name__)


class Ids(NamedTuple):
    """The numberings of both sides."""

    users: IdMap
    items: IdMap

    @classmethod
    def of_counts(cls, counts: Counts, types: tuple[pa.DataType, pa.DataType], settings: Settings) -> Self:
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


class Run(NamedTuple):
    """Where the ratings of one batch lie in a file, sorted by block and part; or a stretch of them."""

    name: str
    offset: int
    sections: npt.NDArray[np.int64]


def scatter_ratings(
    engine: Engine, ratings: Ratings, settings: Settings, layout: Layout, ids: Ids, folder: Folder
) -> list[Run]:
    """Write every piece as runs that are sorted by block, and return these, by piece.

    Raises
    ------
    RatingsError
        If an id comes up that was not counted.
    """
    token = new_token()
    scatter, read_ids = f"scatter-{token}", f"ids-{token}"
    # What other processes need of the ids they read themselves: a graph is no place for it.
    there = Task(read_ids, Ids.read, folder, folder.checksums(KIND.tables), settings)
    tasks: dict[Key, Any] = {read_ids: DataNode(read_ids, ids) if engine.shares_memory else there}
    keys: list[Key] = [(scatter, n) for n in range(len(ratings.pieces))]
    for key, piece in zip(keys, ratings.pieces, strict=True):
        name = f"runs/{len(tasks) - 1:06d}"
        tasks[key] = Task(key, _scatter_piece, ratings, piece, settings, layout, TaskRef(read_ids), folder, name)
    on_done = progress_of_tasks(logger, "scattering", scatter, [piece.n_rows for piece in ratings.pieces])
    return [run for runs in run_through_losses(engine, Graph(tasks), keys, on_done) for run in runs]


def _scatter_piece(
    ratings: Ratings, piece: Piece, settings: Settings, layout: Layout, ids: Ids, folder: Folder, name: str
) -> list[Run]:
    """Write the ratings of one piece as runs, one for each batch, into one file."""
    offset, runs = 0, []
    with folder.create(name) as file:
        for batch in read_piece(ratings, piece):
            run, data = sort_into_run(batch, settings, layout, ids, name, offset)
            file.write(data)
            offset += data.nbytes
            runs.append(run)
    return runs


def sort_into_run(
    batch: Batch, settings: Settings, layout: Layout, ids: Ids, name: str, offset: int
) -> tuple[Run, npt.NDArray[Any]]:
    """Return the ratings of a batch as a run in the file `name` from `offset` on, and what to write there."""
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
