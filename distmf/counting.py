"""The first pass over ratings: which ids there are, how often each is rated, and which ratings occur.

Every span of the input is counted by itself, into sorted files that are cut by the leading bits of the ids' hashes.
Then all counts of a range of hashes are merged at a time. Memory is bounded by the batches and by what is merged at a
time, not by the number of ids.

    counts/00012-users.arrow   hash, count; one record batch for each bucket of hashes
"""

import contextlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distmf.engine import Engine, run_in_order
from distmf.ids import MAX_SPREAD, CloseCounts, IdCounts, Ids, fingerprint, mix, salt
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
HALF = np.uint64(32)
SCHEMA = pa.schema({"high": pa.uint32(), "low": pa.uint32(), "count": pa.uint32()})
COUNTS = "counts"
Side = Literal["users", "items"]
SIDES: tuple[Side, Side] = ("users", "items")


class Settings(NamedTuple):
    """What decides which block a rating lies in, and how it is kept."""

    seed: int
    holdout: float
    duplicates: Duplicates

    @property
    def salts(self) -> tuple[np.uint64, np.uint64]:
        """Salts of the hashes of user ids and of item ids."""
        return salt(self.seed, "user"), salt(self.seed, "item")

    @property
    def check_salt(self) -> np.uint64:
        """Salt of fingerprints."""
        return salt(self.seed, "check")

    def ids(self, batch: Batch) -> tuple[Ids, Ids]:
        """Return the users and the items of some ratings."""
        user_salt, item_salt = self.salts
        return Ids(batch.user, user_salt), Ids(batch.item, item_salt)

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
    n_counts : tuple of int
        Counts of users and of items that it wrote.
    fingerprints : tuple of int
        Of the users and of the items of its ratings to train on, if they are strings.
    """

    values: Values
    n_counts: tuple[int, int]
    fingerprints: tuple[int, int]

    @classmethod
    def of_json(cls, found: list[Any]) -> "Counted":
        """Return what `run_stage` returns for one."""
        (distinct, low, high, moments), n_counts, fingerprints = found
        return cls(Values(tuple(distinct), low, high, Moments(*moments)), tuple(n_counts), tuple(fingerprints))


def count_ratings(
    engine: Engine,
    spans: Sequence[Ratings],
    reading: Reading,
    settings: Settings,
    folder: Folder,
    n_buckets: int,
    portions: Portions,
) -> list[Counted]:
    """Count all ratings, span by span, into files of so many buckets.

    Raises
    ------
    RatingsError
        If a piece does not hold what it should.
    """
    calls = [(_count_span, span, reading, settings, folder, n, n_buckets, portions) for n, span in enumerate(spans)]
    found = run_stage(engine, folder, "counting", calls, [span.n_rows for span in spans])
    return [Counted.of_json(counted) for counted in found]


def count_buckets(n_ratings: int, portions: Portions) -> int:
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
    counters = [_Counter(salt, portions.counts) for salt in settings.salts]
    fingerprints = [0, 0]
    flushed: list[list[str]] = [[], []]  # files of users and of items that had to be written meanwhile

    def flush() -> None:
        for side, counter, names in zip(SIDES, counters, flushed, strict=True):
            names.append(f"{_file(span, side)}-{len(names)}")
            _write(folder, names[-1], _buckets(counter.take(), n_buckets))

    for batch in reading.first(span, ratings, portions.batch):
        n_counts = sum(map(len, counters))
        if n_counts > portions.counts // 2 and n_counts + 2 * len(batch.rating) > portions.counts:
            flush()
        values.append(Values.of(batch.rating))
        sides = settings.ids(batch)
        is_train = settings.is_train(*sides)
        for n, (counter, ids) in enumerate(zip(counters, sides, strict=True)):
            counter.add(ids, is_train)
            if not ids.are_integers:
                fingerprints[n] += fingerprint(ids.array, is_train, settings.check_salt)
    n_written = []
    for side, counter, names in zip(SIDES, counters, flushed, strict=True):
        rest = _buckets(counter.take(), n_buckets) if len(counter) or not names else None
        n_written.append(_write(folder, _file(span, side), _merged(folder, names, rest, n_buckets)))
        for name in names:
            folder.remove(name)
    users, items = (found % 2**64 for found in fingerprints)
    return Counted(sum(values[1:], values[0]), (n_written[0], n_written[1]), (users, items))


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


def _buckets(counts: IdCounts, n_buckets: int) -> Iterator[IdCounts]:
    """Yield the counts of each bucket: those whose hashes begin with the same bits."""
    edges = np.arange(n_buckets, dtype=np.uint64) << np.uint64(65 - n_buckets.bit_length())
    bounds = np.append(np.searchsorted(counts.hashes, edges), len(counts.hashes)).tolist()
    for begin, end in itertools.pairwise(bounds):
        yield IdCounts(counts.hashes[begin:end], counts.counts[begin:end])


def _merged(
    folder: Folder, names: Sequence[str], rest: Iterator[IdCounts] | None, n_buckets: int
) -> Iterator[IdCounts]:
    """Yield the counts of each bucket in some files and in `rest`."""
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(folder.batches(name)) for name in names]
        for bucket in range(n_buckets):
            parts = [_counts([reader.get_batch(bucket)]) for reader in readers] + ([next(rest)] if rest else [])
            yield parts[0] if len(parts) == 1 else IdCounts.merge(parts)


def _write(folder: Folder, name: str, buckets: Iterator[IdCounts]) -> int:
    """Write counts, each bucket as a record batch; return how many there are.

    Hashes are written as the gaps between them, in halves: those that are mostly zeros are compressed.
    """
    n_counts = 0
    with folder.new_batches(name, SCHEMA) as out:
        for counts in buckets:
            gaps = np.diff(counts.hashes, prepend=np.uint64(0))
            columns = gaps >> HALF, gaps & (1 << HALF) - 1, counts.counts
            out.write_batch(pa.record_batch([column.astype(np.uint32) for column in columns], schema=SCHEMA))
            n_counts += len(gaps)
    return n_counts


def merge_counts(
    engine: Engine, folder: Folder, counted: Sequence[Counted], side: Side, n_buckets: int, portions: Portions
) -> Iterator[tuple[IdCounts, npt.NDArray[np.uint8]]]:
    """Yield the counts of one side of all spans together, by ascending hash: as much at a time as is merged at once.

    And the span that each id comes up in first.
    """
    n_counts = sum(span.n_counts[SIDES.index(side)] for span in counted)
    n_groups = min(n_buckets, -(-n_counts // portions.counts))
    edges = np.linspace(0, n_buckets, n_groups + 1).astype(int).tolist()
    names = [_file(span, side) for span in range(len(counted))]
    calls = [(_merge_buckets, folder, names, *some) for some in itertools.pairwise(edges)]
    yield from run_in_order(engine, f"merge-{side}", calls)


def _merge_buckets(
    folder: Folder, names: Sequence[str], begin: int, end: int
) -> tuple[IdCounts, npt.NDArray[np.uint8]]:
    parts = []
    for name in names:
        with folder.batches(name) as reader:
            parts.append(_counts([reader.get_batch(n) for n in range(begin, end)]))
    merged = IdCounts.merge(parts)
    return merged, merged.sources(parts)


def _counts(batches: Sequence[pa.RecordBatch]) -> IdCounts:
    """Return the counts of some buckets."""
    gaps = [batch["high"].to_numpy().astype(np.uint64) << HALF | batch["low"].to_numpy() for batch in batches]
    counts = np.concatenate([batch["count"].to_numpy() for batch in batches])
    return IdCounts(np.concatenate([np.cumsum(some) for some in gaps]), counts.astype(np.int64))


def _file(span: int, side: Side) -> str:
    return f"{COUNTS}/{span:05d}-{side}.arrow"
