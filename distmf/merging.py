"""The second half of the second pass over ratings: every row block is put together from its stretches of all runs."""

import logging
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from dask._task_spec import Task
from dask.typing import Key

from distmf.blocks import BlockEntry, Layout, row_file, save_manifest
from distmf.counting import Counts, Settings
from distmf.engine import Engine, Graph, new_token, run_through_losses
from distmf.errors import RatingsError
from distmf.grid import BlockKey
from distmf.progress import progress_of_tasks
from distmf.scattering import Ids, Run
from distmf.store import Folder
from distmf.tiles import record_dtype, sort_part

logger = logging.getLogger(__name__)


class RowBlock(NamedTuple):
    """The blocks of one row block, written."""

    entries: dict[BlockKey, BlockEntry]
    n_duplicates: int
    duplicate: tuple[int, int] | None


def merge_runs(
    engine: Engine, folder: Folder, settings: Settings, layout: Layout, counts: Counts, runs: list[Run], ids: Ids
) -> None:
    """Put the row blocks together, sorted by tile, row, column and rating, and write the manifest.

    Raises
    ------
    RatingsError
        If ratings repeat a pair of user and item and the settings do not allow it.
    """
    merge = f"merge-{new_token()}"
    tasks: dict[Key, Any] = {}
    per_row = 2 * layout.shape.cols
    for row in range(layout.shape.rows):
        stretches = [run._replace(sections=run.sections[row * per_row : (row + 1) * per_row + 1]) for run in runs]
        tasks[merge, row] = Task((merge, row), _merge_row_block, row, stretches, layout, settings, folder)
    share = counts.n_ratings // layout.shape.rows
    on_done = progress_of_tasks(logger, "merging", merge, [share] * layout.shape.rows)
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
