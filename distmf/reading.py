"""Spans of ratings, read in batches of an even size, and twice, as blocking does."""

import threading
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distmf.buffers import give_back_idle_memory
from distmf.ratings import BATCH_ROWS, Batch, Ratings, read_piece


def read_batches(ratings: Ratings, n_rows: int) -> Iterator[Batch]:
    """Yield all ratings in batches of up to `n_rows`, which are not small because row groups are.

    Raises
    ------
    RatingsError
        As `read_piece`.
    """
    waiting: list[Batch] = []
    for piece in ratings.pieces:
        for batch in read_piece(ratings, piece, n_rows):
            if waiting and sum(len(other.rating) for other in waiting) + len(batch.rating) > n_rows:
                yield _joined(waiting)
                waiting = []
                if n_rows < BATCH_ROWS:  # memory is scarce; allocators would keep twice what a batch needs
                    give_back_idle_memory()
            waiting.append(batch)
    yield _joined(waiting)


class Reading:
    """Reads spans of ratings twice, and keeps in between what there is room for; in another process it keeps nothing.

    Parameters
    ----------
    room : int
        Bytes that batches may take.
    """

    def __init__(self, room: int = 0) -> None:
        self._room = room
        self._kept: dict[int, list[Batch]] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["Reading"], tuple[()]]:
        return Reading, ()

    def first(self, number: int, span: Ratings, n_rows: int) -> Iterator[Batch]:
        """Yield the batches of a span for the first time; its `number` is its own."""
        kept: list[Batch] | None = []
        for batch in read_batches(span, n_rows):
            if kept is not None:
                narrow = narrowed(batch)
                if self._take(narrow.n_bytes):
                    kept.append(narrow)
                else:
                    self._take(-sum(other.n_bytes for other in kept))
                    kept = None
            yield batch
        if kept:
            self._kept[number] = kept

    def again(self, number: int, span: Ratings, n_rows: int) -> Iterator[Batch]:
        """Yield them once more, for the last time."""
        kept = self._kept.pop(number, None)
        if kept is None:
            yield from read_batches(span, n_rows)
            return
        kept.reverse()
        while kept:
            yield kept.pop()

    def shrink(self, room: int) -> int:
        """Drop spans until the others fit in `room`, and return the bytes that are kept."""
        sizes = {number: sum(batch.n_bytes for batch in batches) for number, batches in self._kept.items()}
        while sizes and sum(sizes.values()) > room:
            number, _ = sizes.popitem()
            del self._kept[number]
        return sum(sizes.values())

    def _take(self, n_bytes: int) -> bool:
        """Take a part of the room, if it is there."""
        with self._lock:
            fits = n_bytes <= self._room
            self._room -= n_bytes if fits else 0
        return fits


def narrowed(batch: Batch) -> Batch:
    """Return the same ratings, with ids in 32 bits if they fit: fresh memory takes longer than the copy into it."""
    return batch._replace(user=_narrow(batch.user), item=_narrow(batch.item))


def _narrow(ids: pa.Array) -> pa.Array:
    if not pa.types.is_int64(ids.type):
        return ids
    low, high = (limit.as_py() for limit in pc.min_max(ids).values())
    limits = np.iinfo(np.int32)
    return ids.cast(pa.int32()) if limits.min <= low and high <= limits.max else ids


def _joined(batches: list[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    users, items, ratings, weights, _ = zip(*batches, strict=True)
    joined = None if weights[0] is None else np.concatenate(weights)
    return Batch(pa.concat_arrays(users), pa.concat_arrays(items), np.concatenate(ratings), joined)
