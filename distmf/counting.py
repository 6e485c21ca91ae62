"""The first pass over ratings: which ids there are, how often each is rated, and which ratings occur.

Every span of the input is counted by itself, into sorted files that are cut by the leading bits of the ids' hashes.
Then all counts of a range of hashes are merged at a time. Memory is bounded by the batches and by what is merged at a
time, not by the number of ids.

    counts/00012-0-users.arrow   hash, count, and the id if it is a string; one record batch for each bucket of hashes
"""

import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from dask._task_spec import Task
from dask.typing import Key

from distmf.buffers import give_back_idle_memory
from distmf.engine import Engine, Graph, new_token, run_through_losses
from distmf.filesystem import opened
from distmf.ids import MAX_SPREAD, CloseCounts, IdCounts, Ids, mix, salt
from distmf.jobs import run_stage
from distmf.memory import Portions
from distmf.moments import Moments
from distmf.ratings import Batch, Ratings
from distmf.reading import Reading
from distmf.store import Folder
from distmf.tiles import Duplicates

logger = logging.getLogger(__name__)

MAX_CODES = 256  # distinct ratings that fit in one byte
MAX_BUCKETS = 256
COUNTS = "counts"
Side = Literal["users", "items"]
SIDES: tuple[Side, Side] = ("users", "items")


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

    def ids(self, batch: Batch) -> tuple[Ids, Ids]:
        """Return the users and the items of some ratings."""
        return Ids(batch.user, self.user_salt), Ids(batch.item, self.item_salt)

    def is_train(self, users: Ids, items: Ids) -> npt.NDArray[np.bool_]:
        """Return which ratings are trained on: a hash of (seed, user, item) decides."""
        if self.holdout == 0:
            return np.ones(len(users), dtype=np.bool_)
        draws = mix(users.hashes + mix(items.hashes ^ salt(self.seed, "holdout")))
        return draws >= np.uint64(min(int(self.holdout * 2**64), 2**64 - 1))


class Values(NamedTuple):
    """Which ratings occur in a part of the input, held out ones included.

    Attributes
    ----------
    distinct : tuple of float
        Ascending; empty if there are more than fit in a code.
    low, high : float
        The smallest and the largest.
    moments : Moments
        Their number, mean and spread.
    """

    distinct: tuple[float, ...]
    low: float
    high: float
    moments: Moments

    @classmethod
    def of(cls, ratings: npt.NDArray[np.float32]) -> "Values":
        """Return what is in an array."""
        sample = np.unique(ratings[:: max(1, len(ratings) // 1024)])
        distinct = np.unique(ratings) if len(sample) <= MAX_CODES else sample
        return cls(_codes(distinct.tolist()), float(ratings.min()), float(ratings.max()), Moments.of(ratings))

    def __add__(self, other: "Values") -> "Values":  # type: ignore[override]
        every_code = self.distinct and other.distinct
        distinct = _codes(sorted({*self.distinct, *other.distinct})) if every_code else ()
        low, high = min(self.low, other.low), max(self.high, other.high)
        return Values(distinct, low, high, self.moments + other.moments)


def _codes(distinct: list[float]) -> tuple[float, ...]:
    return tuple(distinct) if len(distinct) <= MAX_CODES else ()


class Counted(NamedTuple):
    """What counting a span found.

    Attributes
    ----------
    values : Values
        Of its ratings.
    files : list of tuple
        Numbers of counts of users and of items in each pair of files that it wrote.
    """

    values: Values
    files: list[tuple[int, int]]

    @classmethod
    def of_json(cls, found: list[Any]) -> "Counted":
        """Return what `run_stage` returns for one."""
        (distinct, low, high, moments), files = found
        return cls(Values(tuple(distinct), low, high, Moments(*moments)), files)


def count_ratings(
    engine: Engine,
    spans: Sequence[Ratings],
    reading: Reading,
    settings: Settings,
    folder: Folder,
    portions: Portions,
) -> list[Counted]:
    """Count all ratings, span by span, into files.

    Raises
    ------
    RatingsError
        If a piece does not hold what it should.
    """
    n_buckets = _n_buckets(sum(span.n_rows for span in spans), portions)
    calls = [(_count_span, span, reading, settings, folder, n, n_buckets, portions) for n, span in enumerate(spans)]
    found = run_stage(engine, folder, "counting", calls, [span.n_rows for span in spans])
    return [Counted.of_json(counted) for counted in found]


def _n_buckets(n_ratings: int, portions: Portions) -> int:
    """Return a power of two: so many that the counts of a bucket can be merged at once, were each id rated once."""
    return min(MAX_BUCKETS, 1 << (n_ratings // portions.counts).bit_length())


def _count_span(
    ratings: Ratings,
    reading: Reading,
    settings: Settings,
    folder: Folder,
    span: int,
    n_buckets: int,
    portions: Portions,
) -> Counted:
    values: list[Values] = []
    files: list[tuple[int, int]] = []
    counters = [_Counter(salt, portions.counts) for salt in (settings.user_salt, settings.item_salt)]

    def write() -> None:
        counts = [counter.take() for counter in counters]
        for name, side in zip(SIDES, counts, strict=True):
            _write(folder, _file(span, len(files), name), side, n_buckets)
        files.append((len(counts[0].hashes), len(counts[1].hashes)))

    for batch in reading.first(span, ratings, portions.batch):
        values.append(Values.of(batch.rating))
        sides = settings.ids(batch)
        is_train = settings.is_train(*sides)
        for counter, ids in zip(counters, sides, strict=True):
            counter.add(ids, is_train)
        if sum(map(len, counters)) > portions.counts:
            write()
    if any(map(len, counters)):
        write()
    return Counted(sum(values[1:], values[0]), files)


class _Counter:
    """Counts the ids of one side: integers that lie close together in an array, all others by sorting.

    Parameters
    ----------
    salt : np.uint64
        Of the hashes.
    most : int
        Counts that there is memory for.
    """

    def __init__(self, salt: np.uint64, most: int) -> None:
        self._salt, self._size = salt, MAX_SPREAD * most
        self._close: CloseCounts | None = None
        # Each at least twice as long as the next, so that every id is merged few times.
        self._parts: list[IdCounts] = []

    def __len__(self) -> int:
        return sum(len(part.hashes) for part in self._parts) + (self._close.n if self._close else 0)

    def add(self, ids: Ids, is_train: npt.NDArray[np.bool_]) -> None:
        """Count the ids of some ratings."""
        if ids.are_integers:
            if self._close is None:
                low = int(ids.integers.min()) // self._size * self._size
                self._close = CloseCounts(max(low, np.iinfo(np.int64).min), self._size)
            if self._close.add(ids.integers, is_train):
                return
        parts = self._parts
        parts.append(IdCounts.of(ids, is_train))
        while len(parts) > 1 and len(parts[-2].hashes) < 2 * len(parts[-1].hashes):
            parts[-2:] = [IdCounts.merge(parts[-2:])]

    def take(self) -> IdCounts:
        """Return all counts, and begin again."""
        parts = self._parts + ([self._close.take(self._salt)] if self._close and self._close.n else [])
        self._parts, self._close = [], None
        return IdCounts.merge(parts)


def _write(folder: Folder, name: str, counts: IdCounts, n_buckets: int) -> None:
    columns = {"hash": counts.hashes, "count": counts.counts.astype(np.uint32)}
    batch = pa.record_batch(columns if counts.ids is None else {**columns, "id": counts.ids})
    edges = np.arange(n_buckets, dtype=np.uint64) << np.uint64(65 - n_buckets.bit_length())
    bounds = np.append(np.searchsorted(counts.hashes, edges), len(batch)).tolist()
    with folder.create(name) as file, pa.ipc.new_file(pa.PythonFile(file), batch.schema) as out:
        for begin, end in itertools.pairwise(bounds):
            out.write_batch(batch.slice(begin, end - begin))


def merge_counts(
    engine: Engine, folder: Folder, counted: Sequence[Counted], side: Side, portions: Portions
) -> Iterator[IdCounts]:
    """Yield the counts of one side of all spans together, by ascending hash: as much at a time as is merged at once."""
    n_buckets = _n_buckets(sum(span.values.moments.n for span in counted), portions)
    n_counts = sum(file[SIDES.index(side)] for span in counted for file in span.files)
    n_groups = min(n_buckets, -(-n_counts // portions.counts))
    edges = np.linspace(0, n_buckets, n_groups + 1).astype(int).tolist()
    names = [_file(span, number, side) for span, found in enumerate(counted) for number in range(len(found.files))]
    ranges = list(itertools.pairwise(edges))
    for first in range(0, n_groups, engine.n_slots):
        token, some = new_token(), ranges[first : first + engine.n_slots]
        keys: list[Key] = [(f"merge-{side}-{token}", n) for n in range(len(some))]
        tasks: dict[Key, Any] = {
            key: Task(key, _merge_buckets, folder, names, *edges) for key, edges in zip(keys, some, strict=True)
        }
        yield from run_through_losses(engine, Graph(tasks), keys)
        give_back_idle_memory()


def _merge_buckets(folder: Folder, names: Sequence[str], begin: int, end: int) -> IdCounts:
    return IdCounts.merge([_read(folder, name, begin, end) for name in names])


def _read(folder: Folder, name: str, begin: int, end: int) -> IdCounts:
    with opened(folder.fs, folder.child(name)) as file, pa.ipc.open_file(pa.PythonFile(file, mode="r")) as reader:
        table = pa.Table.from_batches([reader.get_batch(n) for n in range(begin, end)]).combine_chunks()
    ids = table["id"].combine_chunks() if "id" in table.column_names else None
    return IdCounts(table["hash"].to_numpy(), table["count"].to_numpy().astype(np.int64), ids)


def _file(span: int, number: int, side: str) -> str:
    return f"{COUNTS}/{span:05d}-{number}-{side}.arrow"
