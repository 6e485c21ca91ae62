"""The second half of the second pass over ratings: every row block is put together from its stretches of all runs."""

import itertools
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from dask._task_spec import DataNode, TaskRef

from distmf.blocks import BlockEntry, Layout, row_file
from distmf.buffers import give_back_idle_memory
from distmf.counting import Settings
from distmf.engine import Engine, new_token
from distmf.grid import BlockKey
from distmf.jobs import run_stage
from distmf.memory import Portions
from distmf.records import Format, Records
from distmf.store import Folder
from distmf.tiles import sort_part


class RowBlock(NamedTuple):
    """The blocks of one row block, written.

    Attributes
    ----------
    entries : list of BlockEntry
        By column block.
    n_duplicates : int
        Ratings that repeat a pair.
    spread : float
        Sum of their squared deviations from the mean of their pair.
    duplicate : tuple of int or None
        Row and column number of such a pair.
    """

    entries: list[BlockEntry]
    n_duplicates: int
    spread: float
    duplicate: tuple[int, int] | None

    @classmethod
    def of_json(cls, found: list[Any]) -> "RowBlock":
        """Return what `run_stage` returns for one."""
        entries, n_duplicates, spread, duplicate = found
        blocks = [BlockEntry.of_json(entry) for entry in entries]
        return cls(blocks, n_duplicates, spread, duplicate and tuple(duplicate))


def merge_runs(
    engine: Engine,
    folder: Folder,
    settings: Settings,
    layout: Layout,
    runs: Sequence[tuple[str, int]],
    n_ratings: int,
    portions: Portions,
) -> list[RowBlock]:
    """Put the row blocks together, sorted by tile, row, column and rating.

    Parameters
    ----------
    engine, folder, settings, layout, portions
        As everywhere.
    runs : sequence of tuple
        File of each run, and where it begins there.
    n_ratings : int
        In all, for the progress.
    """
    shared = f"runs-{new_token()}"
    calls = [
        (_merge_row_block, row, TaskRef(shared), layout, settings, folder, portions) for row in range(layout.shape.rows)
    ]
    sizes = [n_ratings // layout.shape.rows] * layout.shape.rows
    found = run_stage(engine, folder, "merging", calls, sizes, {shared: DataNode(shared, runs)})
    return [RowBlock.of_json(row_block) for row_block in found]


def _merge_row_block(
    row: int,
    runs: Sequence[tuple[str, int]],
    layout: Layout,
    settings: Settings,
    folder: Folder,
    portions: Portions,
) -> RowBlock:
    bounds = np.array([_bounds(folder, name, offset, row, layout) for name, offset in runs], dtype=np.int64)
    entries: list[BlockEntry] = []
    n_duplicates, spread, duplicate, offset = 0, 0.0, None, 0
    with folder.create(row_file(row)) as file:
        for begin, end in _groups(bounds, portions.records):
            stretches = [
                _records(folder, name, at, layout, stretch)
                for (name, at), stretch in zip(runs, bounds[:, begin : end + 1], strict=True)
            ]
            for section in range(begin, end, 2):
                key = BlockKey(row, section // 2)
                parts = []
                for n in (section, section + 1):
                    records = np.concatenate([stretch[n - begin] for stretch in stretches])
                    parts.append(sort_part(records, key, layout, settings.duplicates))
                train, held_out = parts
                length, checksum = 0, 0
                for part in (train, held_out):
                    file.write(part.data)
                    length, checksum = length + len(part.data), zlib.crc32(part.data, checksum)
                counts = train.n_ratings, held_out.n_ratings
                entries.append(BlockEntry(offset, length, checksum, *counts, train.moments, held_out.moments.n))
                offset += length
                n_duplicates += train.n_duplicates + held_out.n_duplicates
                spread += train.spread + held_out.spread
                duplicate = duplicate or train.duplicate or held_out.duplicate
                del parts, part, train, held_out
                if portions.is_tight:
                    give_back_idle_memory()  # pieces of many sizes: allocators would keep twice what is needed
    return RowBlock(entries, n_duplicates, spread, duplicate)


def _groups(bounds: npt.NDArray[np.int64], n_records: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of sections, of whole blocks, that are read at once: as many as fit, but at least one block."""
    ends = (bounds[:, 2::2] - bounds[:, :1]).sum(axis=0)  # ratings up to the end of each block
    begin = 0
    for col in range(1, len(ends) + 1):
        if col == len(ends) or ends[col] - (ends[begin - 1] if begin else 0) > n_records:
            yield 2 * begin, 2 * col
            begin = col


def _bounds(folder: Folder, name: str, offset: int, row: int, layout: Layout) -> npt.NDArray[np.uint32]:
    """Return where the sections of a row block begin in a run, and where they end, in records."""
    n_sections, itemsize = 2 * layout.shape.cols, np.dtype(np.uint32).itemsize
    data = folder.read(name, offset + row * n_sections * itemsize, (n_sections + 1) * itemsize)
    return np.frombuffer(data, dtype=np.uint32)


def _records(folder: Folder, name: str, offset: int, layout: Layout, bounds: npt.NDArray[np.int64]) -> list[Records]:
    """Return the records of each of some consecutive sections of a run."""
    n_bytes, shape = Format.of(layout).n_bytes, layout.shape
    begin = offset + (2 * shape.rows * shape.cols + 1) * np.dtype(np.uint32).itemsize
    first, last = int(bounds[0]), int(bounds[-1])
    data = folder.read(name, begin + first * n_bytes, (last - first) * n_bytes)
    records = np.frombuffer(data, dtype=np.uint8)
    return [records[n:m] for n, m in itertools.pairwise((n_bytes * (bounds - first)).tolist())]
