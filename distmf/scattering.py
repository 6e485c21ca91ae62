"""The first half of the second pass over ratings: every span becomes runs, sorted by block.

runs/00012    the runs of a span, one after the other: where each section of records begins (uint32), the records
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np
from dask._task_spec import DataNode, Task, TaskRef

from distmf.blocks import KIND, Layout
from distmf.counting import Settings
from distmf.engine import Engine, new_token
from distmf.errors import RatingsError
from distmf.jobs import run_stage
from distmf.memory import Portions
from distmf.numbering import Numbering, number_ids
from distmf.ratings import Batch, Ratings
from distmf.reading import Reading
from distmf.records import Lines, Sorter
from distmf.store import Folder
from distmf.tables import read_ids

RUNS = "runs"


class Places(NamedTuple):
    """Where each id's ratings go: the numbers of users and items, and the blocks that these lie in.

    About 12 bytes for each id; at most 18.
    """

    users: Numbering
    items: Numbering
    rows: Lines
    cols: Lines

    @classmethod
    def read(cls, folder: Folder, checksums: dict[str, int], settings: Settings, layout: Layout) -> Self:
        """Return the places that the ids in a folder have in a layout."""

        def numbering(name: str, salt: np.uint64) -> Numbering:
            return number_ids(read_ids(folder, name, checksums[name]), salt)

        users, items = map(numbering, KIND.tables, settings.salts)
        return cls(users, items, Lines.of(layout.row_cuts), Lines.of(layout.col_cuts))


def scatter_ratings(
    engine: Engine,
    spans: Sequence[Ratings],
    reading: Reading,
    settings: Settings,
    layout: Layout,
    folder: Folder,
    portions: Portions,
) -> list[tuple[str, int]]:
    """Write every span as runs that are sorted by block; return the file of each run, and where it begins there.

    Raises
    ------
    RatingsError
        If an id comes up that was not counted.
    """
    read = f"places-{new_token()}"
    args = folder, folder.checksums(KIND.tables), settings, layout
    # What other processes need they read themselves: a graph is no place for it.
    places = DataNode(read, Places.read(*args)) if engine.shares_memory else Task(read, Places.read, *args)
    calls = [
        (_scatter_span, n, span, reading, settings, layout, TaskRef(read), folder, portions)
        for n, span in enumerate(spans)
    ]
    found = run_stage(engine, folder, "scattering", calls, [span.n_rows for span in spans], {read: places})
    return [(_file(n), offset) for n, offsets in enumerate(found) for offset in offsets]


def _scatter_span(
    span: int,
    ratings: Ratings,
    reading: Reading,
    settings: Settings,
    layout: Layout,
    places: Places,
    folder: Folder,
    portions: Portions,
) -> list[int]:
    batches = reading.again(span, ratings, portions.batch)
    return write_runs(batches, settings, layout, places, folder, _file(span))


def write_runs(
    batches: Iterator[Batch], settings: Settings, layout: Layout, places: Places, folder: Folder, name: str
) -> list[int]:
    """Write each batch as a run, all into one file, and return where they begin."""
    sorter = Sorter((places.rows, places.cols), layout)
    offset, offsets = 0, []
    with folder.create(name) as file:
        for batch in batches:
            users, items = settings.ids(batch)
            rows, cols = places.users.numbers(users), places.items.numbers(items)
            if rows.max() == len(places.users) or cols.max() == len(places.items):
                raise RatingsError(
                    "the ratings changed while they were blocked: an id came up that was not counted; try again"
                )
            values = layout.encoding.encode(batch.rating)
            bounds, records = sorter.sort(rows, cols, values, settings.is_train(users, items))
            offsets.append(offset)
            for data in bounds.astype(np.uint32), records:
                file.write(data)
                offset += data.nbytes
    return offsets


def _file(span: int) -> str:
    return f"{RUNS}/{span:05d}"
