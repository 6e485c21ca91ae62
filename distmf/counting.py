"""The first pass over ratings: which ids there are, how often each is rated, and which ratings occur.

Every piece of the input is counted by itself, then the counts are merged in groups.
"""

import logging
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from dask._task_spec import Task, TaskRef
from dask.typing import Key

from distmf.engine import Engine, Graph, new_token, run_through_losses
from distmf.errors import RatingsError
from distmf.ids import Hashes, IdCounts, hash_ids, mix, salt
from distmf.progress import progress_of_tasks
from distmf.ratings import Batch, Piece, Ratings, read_piece
from distmf.tiles import Duplicates

logger = logging.getLogger(__name__)

MAX_CODES = 256  # distinct ratings that fit in one byte
FAN_IN = 8  # counts merged at once


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

    def is_train(self, user_hashes: Hashes, item_hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Return which ratings are trained on: a hash of (seed, user, item) decides."""
        if self.holdout == 0:
            return np.ones(len(user_hashes), dtype=np.bool_)
        draws = mix(user_hashes + mix(item_hashes ^ salt(self.seed, "holdout")))
        return draws >= np.uint64(min(int(self.holdout * 2**64), 2**64 - 1))


class Counts(NamedTuple):
    """What the first pass finds in a part of the input."""

    users: IdCounts
    items: IdCounts
    distinct: npt.NDArray[np.float32]
    """Distinct ratings, ascending; empty if there are more than fit in a code."""
    rating_range: tuple[float, float]
    n_ratings: int


def count_ratings(engine: Engine, ratings: Ratings, settings: Settings) -> Counts:
    """Return the counts of all ratings.

    Raises
    ------
    RatingsError
        If a piece does not hold what it should, or all ratings are held out.
    """
    token = new_token()
    count, done = f"count-{token}", f"counted-{token}"
    tasks: dict[Key, Any] = {
        (count, 0, n): Task((count, 0, n), _count_piece, ratings, piece, settings)
        for n, piece in enumerate(ratings.pieces)
    }
    level, keys = 0, list(tasks)
    tasks |= {(done, n): Task((done, n), _is_there, TaskRef(key)) for n, key in enumerate(keys)}
    while len(keys) > 1 or level == 0:
        level += 1
        groups = [keys[n : n + FAN_IN] for n in range(0, len(keys), FAN_IN)]
        keys = [(count, level, n) for n in range(len(groups))]
        for key, group in zip(keys, groups, strict=True):
            tasks[key] = Task(key, _merge_counts, *[TaskRef(part) for part in group])
    on_done = progress_of_tasks(logger, "counting", done, [piece.n_rows for piece in ratings.pieces])
    wanted = [*keys, *((done, n) for n in range(len(ratings.pieces)))]
    counts: Counts = run_through_losses(engine, Graph(tasks), wanted, on_done)[0]
    if not counts.users.counts.any():
        raise RatingsError(f"all {counts.n_ratings:,} ratings are held out; lower holdout from {settings.holdout}")
    return counts


def _is_there(counts: Counts) -> bool:
    """Tell that a piece is counted, without what was counted."""
    return True


def _count_piece(ratings: Ratings, piece: Piece, settings: Settings) -> Counts:
    return _merge_counts(*[_count_batch(batch, settings) for batch in read_piece(ratings, piece)])


def _count_batch(batch: Batch, settings: Settings) -> Counts:
    user_hashes, item_hashes = hash_ids(batch.user, settings.user_salt), hash_ids(batch.item, settings.item_salt)
    is_train = settings.is_train(user_hashes, item_hashes)
    sample = np.unique(batch.rating[:: max(1, len(batch.rating) // 1024)])
    distinct = np.unique(batch.rating) if len(sample) <= MAX_CODES else sample
    return Counts(
        IdCounts.of(batch.user, user_hashes, is_train, settings.user_salt),
        IdCounts.of(batch.item, item_hashes, is_train, settings.item_salt),
        _codes(distinct),
        (float(batch.rating.min()), float(batch.rating.max())),
        len(batch.rating),
    )


def _merge_counts(*parts: Counts) -> Counts:
    lows, highs = zip(*[part.rating_range for part in parts], strict=True)
    every_code = all(len(part.distinct) for part in parts)
    return Counts(
        IdCounts.merge([part.users for part in parts]),
        IdCounts.merge([part.items for part in parts]),
        _codes(np.unique(np.concatenate([part.distinct for part in parts])) if every_code else parts[0].distinct[:0]),
        (min(lows), max(highs)),
        sum(part.n_ratings for part in parts),
    )


def _codes(distinct: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return distinct if len(distinct) <= MAX_CODES else distinct[:0]
