"""The first half of the second pass over ratings: every span becomes runs, sorted by block.

runs/00012    the runs of a span, one after the other: where each section of records begins (uint32), the records
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from dask._task_spec import Task, TaskRef

from distmf.blocks import KIND, Layout
from distmf.counting import SIDES, Settings
from distmf.engine import Engine, new_token
from distmf.errors import RatingsError
from distmf.jobs import run_stage
from distmf.memory import Portions
from distmf.names import Names, names_of_span
from distmf.numbering import Numbering, number_ids
from distmf.ratings import Batch, Ratings
from distmf.reading import Reading
from distmf.records import Lines, Sorter, pack
from distmf.store import Folder
from distmf.tables import read_numbers

RUNS = "runs"
WAITING = 4  # strings wait to be written down until they are this part of a batch


class Places(NamedTuple):
    """Where each id's ratings go: the numbers of users and items, and the blocks that these lie in.

    And, of strings, the spans that they come up in first. About 12 bytes for each id; at most 19.
    """

    users: Numbering
    items: Numbering
    rows: Lines
    cols: Lines
    spans: tuple[npt.NDArray[np.uint8] | None, ...]

    @classmethod
    def read(cls, folder: Folder, id_types: Sequence[pa.DataType], settings: Settings, layout: Layout) -> Self:
        """Return the places that the ids in a folder, of users and of items of these types, have in a layout."""

        def numbering(name: str, id_type: pa.DataType, salt: np.uint64) -> Numbering:
            return number_ids(read_numbers(folder, name, "hash"), id_type, salt)

        def spans(name: str, id_type: pa.DataType) -> npt.NDArray[np.uint8] | None:
            return None if pa.types.is_integer(id_type) else read_numbers(folder, name, "span")

        users, items = map(numbering, KIND.tables, id_types, settings.salts)
        lines = Lines.of(layout.row_cuts), Lines.of(layout.col_cuts)
        return cls(users, items, *lines, tuple(map(spans, KIND.tables, id_types)))


def scatter_ratings(
    engine: Engine,
    spans: Sequence[Ratings],
    reading: Reading,
    settings: Settings,
    layout: Layout,
    folder: Folder,
    n_ranges: int,
    portions: Portions,
) -> list[tuple[str, int]]:
    """Write every span as runs that are sorted by block; return the file of each run, and where it begins there.

    Strings are written down as well, in so many ranges of their numbers.

    Raises
    ------
    RatingsError
        If an id comes up that was not counted.
    """
    read = f"places-{new_token()}"
    places = Task(read, Places.read, folder, tuple(spans[0].id_types.values()), settings, layout)
    calls = [
        (_scatter_span, n, span, reading, settings, layout, TaskRef(read), folder, n_ranges, portions)
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
    n_ranges: int,
    portions: Portions,
) -> list[int]:
    batches = reading.again(span, ratings, portions.batch)
    with contextlib.ExitStack() as stack:
        names: list[Names | None] = [None, None]
        for n, (side, first) in enumerate(zip(SIDES, places.spans, strict=True)):
            if first is not None:
                enough = portions.batch // WAITING
                names[n] = stack.enter_context(names_of_span(folder, side, first, span, n_ranges, enough))
        return write_runs(batches, settings, layout, places, folder, _file(span), names)


def write_runs(
    batches: Iterator[Batch],
    settings: Settings,
    layout: Layout,
    places: Places,
    folder: Folder,
    name: str,
    names: Sequence[Names | None] = (None, None),
) -> list[int]:
    """Write each batch as a run, all into one file, and return where they begin; `names` take the strings."""
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
            for some, numbers, ids in zip(names, (rows, cols), (users, items), strict=True):
                if some is not None:
                    some.add(numbers, ids.array)
            values = layout.encoding.encode(batch.rating)
            if layout.is_weighted:
                values = pack(values, batch.weight)
            bounds, records = sorter.sort(rows, cols, values, settings.is_train(users, items))
            offsets.append(offset)
            for data in bounds.astype(np.uint32), records:
                file.write(data)
                offset += data.nbytes
    return offsets


def _file(span: int) -> str:
    return f"{RUNS}/{span:05d}"
