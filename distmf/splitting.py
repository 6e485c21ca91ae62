"""Ratings -> a part to train on and a part to test with, as Parquet, on any engine, in bounded memory.

parts/
    train/part-00000.parquet, test/part-00000.parquet, …
    _distmf.json              what was split, and how; no reader of Parquet folders looks at it

At random, each rating is decided on by itself. By user, the ratings are first sorted into parts that have all ratings
of their users, and then decided on part by part.
"""

import contextlib
import itertools
import numbers
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distmf.arguments import check_choice, check_whole, names_checked
from distmf.choices import WAYS, By
from distmf.engines import check_storage, open_engine
from distmf.errors import ParameterError, RatingsError
from distmf.ids import hash_ids, mix, salt
from distmf.jobs import job_folder, run_stage
from distmf.ratings import Batch, Columns, Ratings, open_ratings, read_piece
from distmf.sizes import counted
from distmf.sources import as_parquet
from distmf.store import Folder, Kind, refuse_nested

KIND = Kind("distmf split", 1, "_distmf.json", (), r"(train|test)/part-\d+\.parquet")
SORTED = "sorted"
ROWS_AT_ONCE = 1 << 20


class Split(NamedTuple):
    """The two parts: their folders, and how many ratings they have."""

    train: str
    test: str
    n_train: int
    n_test: int


class _Way(NamedTuple):
    """How to split: see `split`; and how many ratings there are.

    The draws differ with that number: of what one split has left to train on, another draws anew.
    """

    by: By
    test_size: float
    seed: int
    n: int = 0


@names_checked
def split(
    ratings: Any,
    out: str | Path,
    *,
    by: By = "random",
    test_size: float | None = None,
    user: str | None = None,
    item: str | None = None,
    rating: str | None = None,
    weight: str | None = None,
    time: str | None = None,
    seed: int = 0,
    client: Any = None,
    threads: int | None = None,
) -> Split:
    """Split ratings into those to train on and those to test with.

    The split depends on the ratings and the seed only, not on their order or their files. Several ratings of a pair are
    on the same side, but for "last".

    Parameters
    ----------
    ratings : str, Path, table or matrix
        As for `block_ratings`.
    out : str or Path
        Folder or fsspec URL to write `train/` and `test/` to; a split that is there is replaced.
    by : {"random", "user", "last"}
        Test with ratings drawn from all; with some of each user; or with the last of each user by time.
    test_size : float or int, optional
        Share of the ratings to test with, of all or of each user, below 1, by default 0.1; or, by user, how many of
        each: an int, by default 1 for "last". By user and for "last", one rating of each at least stays to train on.
    user, item, rating : str, optional
        Names of the columns; by default those that can be nothing else, as user_id, userId or user. No others are
        written, but for the next two.
    weight : str, optional
        Name of a column of weights.
    time : str, optional
        For "last", the name of a column of times, of any type with an order, as text in
        ISO 8601; by default as user, item and rating.
    seed : int
        Of what is drawn.
    client, threads
        Where to run, as in `MatrixFactorization.fit`.

    Returns
    -------
    Split
        Paths of both parts, for `fit` and `evaluate`, and their numbers of ratings.

    Raises
    ------
    ParameterError
        If `by` or `test_size` is out of its range.
    RatingsError
        If the ratings do not hold what they should, or one of the parts would be empty.
    StoreError
        If there is something else at `out`.
    """
    way = _checked(by, test_size, seed)
    if by != "last" and time is not None:
        raise ParameterError(f"time is {time!r}, but it is for by='last' only (--by last)")
    if isinstance(ratings, str | Path):
        refuse_nested(Folder.at(out), Folder.at(ratings))
    names = {"user": user, "item": item, "rating": rating, "weight": weight, **({"time": time} if by == "last" else {})}
    with open_engine(client, threads) as engine, as_parquet(ratings, out, names, client=client) as (parquet, columns):
        source = open_ratings(parquet, columns)
        spans, n_parts = source.spans(ROWS_AT_ONCE), -(-source.n_rows // ROWS_AT_ONCE)
        way = way._replace(n=source.n_rows)
        what = {"ratings": source.fingerprint(), **way._asdict(), "columns": columns._asdict()}
        with job_folder(out, KIND, what, (SORTED,)) as folder:
            check_storage(engine, folder, {})
            sizes = [span.n_rows for span in spans]
            if by == "random":
                calls: list[tuple[Any, ...]] = [(_split_span, n, span, way, folder) for n, span in enumerate(spans)]
            else:
                sorting = [(_sort, n, span, n_parts, folder) for n, span in enumerate(spans)]
                n_batches = run_stage(engine, folder, "sorting", sorting, sizes)
                calls = [(_split_part, n, n_parts, n_batches, columns, way, folder) for n in range(n_parts)]
                sizes = [source.n_rows // n_parts] * n_parts
            found = run_stage(engine, folder, "splitting", calls, sizes)
            n_train, n_test = (sum(counts) for counts in zip(*found, strict=True))
            if not (n_train and n_test):
                source_name = ratings if isinstance(ratings, str | Path) else "the ratings"
                raise RatingsError(
                    f"{source_name}: of {counted(source.n_rows, 'rating')} none would be to "
                    f"{'test with' if n_train else 'train on'}; take another test_size (--test-size)"
                )
            folder.write_manifest(KIND, {**what, "n_train": n_train, "n_test": n_test})
    stem = str(out).rstrip("/")
    return Split(f"{stem}/train", f"{stem}/test", n_train, n_test)


def _checked(by: By, test_size: float | None, seed: int) -> _Way:
    check_choice("by", by, WAYS)
    check_whole("seed", seed, 0)
    size: Any = (1 if by == "last" else 0.1) if test_size is None else test_size
    is_count = isinstance(size, numbers.Integral) and not isinstance(size, bool) and by != "random"
    if not (int(size) >= 1 if is_count else isinstance(size, float) and 0 < size < 1):
        counts = "" if by == "random" else ", or how many of each user, a whole number"
        raise ParameterError(f"test_size is {size!r}; it can be a share between 0 and 1{counts}")
    return _Way(by, int(size) if is_count else float(size), seed)


def _split_span(n: int, span: Ratings, way: _Way, folder: Folder) -> tuple[int, int]:
    """Split some ratings, each by itself."""
    limit = np.uint64(way.test_size * 2**64)

    def parts() -> Iterator[tuple[pa.RecordBatch, npt.NDArray[np.bool_]]]:
        for piece in span.pieces:
            for batch in read_piece(span, piece, ROWS_AT_ONCE):
                yield _rows(batch, span.columns), _draws(batch.user, batch.item, way) < limit

    return _write(folder, n, parts())


def _sort(n: int, span: Ratings, n_parts: int, folder: Folder) -> int:
    """Write some ratings by the part that has all those of their users; return how many batches of each part."""
    batches = (_rows(batch, span.columns) for piece in span.pieces for batch in read_piece(span, piece, ROWS_AT_ONCE))
    first, count = next(batches), 0
    with folder.new_batches(f"{SORTED}/{n}", first.schema) as writer:
        for rows in itertools.chain([first], batches):
            part = hash_ids(rows[span.columns.user], salt(0, "part")) % np.uint64(n_parts)
            ends = np.cumsum(np.bincount(part.astype(np.int64), minlength=n_parts)).tolist()
            ordered = rows.take(pa.array(np.argsort(part, kind="stable")))
            for begin, end in itertools.pairwise([0, *ends]):
                writer.write_batch(ordered.slice(begin, end - begin))
            count += 1
    return count


def _split_part(
    n: int, n_parts: int, n_batches: list[int], columns: Columns, way: _Way, folder: Folder
) -> tuple[int, int]:
    """Split the ratings of some users: of each those that come first, by the draw, or by time from the end."""
    found = []
    for span, count in enumerate(n_batches):
        with folder.batches(f"{SORTED}/{span}") as reader:
            found += [reader.get_batch(number * n_parts + n) for number in range(count)]
    joined = pa.Table.from_batches(found).combine_chunks().to_batches()  # concat_batches is not in pyarrow 18
    rows = joined[0] if joined else found[0]
    users, items = (rows[name] for name in columns.ids)
    codes = users.dictionary_encode().indices.to_numpy()
    keys = [rows[columns.rating].to_numpy(), _draws(users, items, way)]  # equal draws are of one pair
    if columns.time is not None:
        keys.append(pc.rank(rows[columns.time], "descending", tiebreaker="dense").to_numpy())
    order = np.lexsort([*keys, codes])
    counts = np.bincount(codes)
    place = np.empty(len(codes), dtype=np.int64)
    places = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts)
    if columns.time is None:  # ratings of one pair, which have one draw, are all at the place of the last
        draws = keys[-1][order]
        is_last = np.append((draws[1:] != draws[:-1]) | (np.diff(codes[order]) != 0), True)
        places = places[np.flatnonzero(is_last)[np.cumsum(is_last) - is_last]]
    place[order] = places
    n_test = np.full(len(counts), way.test_size)
    if isinstance(way.test_size, float):  # a part of a rating is one or none, so that the share is right in the mean
        of_users = hash_ids(users.dictionary_encode().dictionary, salt(way.seed, "rounding"))
        n_test = np.floor(n_test * counts + of_users / 2**64)
    return _write(folder, n, [(rows, place < np.minimum(n_test, counts - 1)[codes])])


def _draws(users: pa.Array, items: pa.Array, way: _Way) -> npt.NDArray[np.uint64]:
    """Return a random number for each pair of a user and an item."""
    of_users, of_items = hash_ids(users, salt(way.seed, "user")), hash_ids(items, salt(way.seed, "item"))
    return mix(of_users + mix(of_items ^ salt(way.seed, "split") ^ salt(way.n, "ratings")))


def _rows(batch: Batch, columns: Columns) -> pa.RecordBatch:
    arrays = {
        "user": batch.user,
        "item": batch.item,
        "rating": batch.rating,
        "weight": batch.weight,
        "time": batch.time,
    }
    return pa.record_batch({getattr(columns, what): array for what, array in arrays.items() if array is not None})


def _write(folder: Folder, n: int, parts: Iterable[tuple[pa.RecordBatch, npt.NDArray[np.bool_]]]) -> tuple[int, int]:
    """Write rows, each to what it is for; return how many are to train on and to test with."""
    counts = np.zeros(2, dtype=np.int64)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(folder.create(f"{name}/part-{n:05d}.parquet")) for name in ("train", "test")]
        writers: list[Any] = []
        for rows, is_test in parts:
            writers = writers or [stack.enter_context(pq.ParquetWriter(file, rows.schema)) for file in files]
            for writer, mask in zip(writers, (~is_test, is_test), strict=True):
                writer.write_batch(rows.filter(pa.array(mask)))
            counts += [np.count_nonzero(~is_test), np.count_nonzero(is_test)]
    return int(counts[0]), int(counts[1])
