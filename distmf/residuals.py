"""Ratings and their predictions -> where the errors lie: by size, by rating, by how much is known of user and item."""

import math
from typing import Any, NamedTuple, Self, TypedDict

import numpy as np
import numpy.typing as npt

from distmf.compiled import compiled

# Ratings trained on, from which on a user or an item is in the next bucket: cold to warm.
COUNTS = (0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000, 1_000_000)
RATING_BINS = 21  # from the lowest to the highest rating; steps of whole or half stars have bins of their own
ERROR_BINS = 80  # from −1 to 1 times the range of the ratings

Floats = npt.NDArray[np.float64]


class Bucket(TypedDict):
    """Errors for users, or items, with some numbers of ratings trained on: `at_least` so many, up to the next bucket.

    `rmse` and `mae` are over the `n` ratings that were predicted, in their units.
    """

    at_least: int
    n: int
    rmse: float
    mae: float


class Residuals(NamedTuple):
    """Sums over ratings, which add up.

    Attributes
    ----------
    by_user, by_item : float64, shape (len(COUNTS), 3)
        Number, sum of sizes and sum of squares of the errors, by the ratings that user or item was trained on.
    by_rating : float64, shape (RATING_BINS, 4)
        Number, sum of ratings, of errors (rating less prediction), and of their squares, by rating.
    by_error : float64, shape (ERROR_BINS,)
        Number, by error; those beyond the ends are in the outermost bins.
    """

    by_user: Floats
    by_item: Floats
    by_rating: Floats
    by_error: Floats

    @classmethod
    def none(cls) -> Self:
        """Return the sums over no ratings."""
        counts = np.zeros((len(COUNTS), 3))
        return cls(counts, counts.copy(), np.zeros((RATING_BINS, 4)), np.zeros(ERROR_BINS))

    def __add__(self, other: Self) -> Self:  # type: ignore[override]
        return type(self)(*(own + others for own, others in zip(self, other, strict=True)))

    def add(
        self,
        ratings: npt.NDArray[np.float32],
        predicted: npt.NDArray[np.float32],
        places: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
        buckets: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]],
        rating_range: tuple[float, float],
    ) -> None:
        """Add some ratings, in place.

        Parameters
        ----------
        ratings, predicted : float32, shape (n,)
            The ratings and their predictions.
        places : pair of int64, shape (n,)
            Positions of user and item in `buckets`; -1 for those that were not trained on.
        buckets : pair of uint8
            `buckets_of` the users and of the items.
        rating_range : pair of float
            Lowest and highest rating that was trained on.
        """
        low, high = rating_range
        _add(ratings, predicted, *places, *buckets, np.float64(low), np.float64(high - low or 1), *self)

    @property
    def n(self) -> int:
        """Number of ratings."""
        return int(self.by_user[:, 0].sum())

    @property
    def rmse(self) -> float:
        """Root of the mean squared error."""
        return math.sqrt(self.by_user[:, 2].sum() / self.by_user[:, 0].sum())

    @property
    def mae(self) -> float:
        """Mean size of the errors."""
        return float(self.by_user[:, 1].sum() / self.by_user[:, 0].sum())

    def to_json(self) -> dict[str, Any]:
        """Return them for a JSON file."""
        return {name: sums.tolist() for name, sums in self._asdict().items()}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Self:
        """Return what `to_json` wrote."""
        return cls(**{name: np.array(sums) for name, sums in saved.items()})


def buckets_of(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Return the bucket of `COUNTS` that each number of ratings is in."""
    return (np.searchsorted(COUNTS, counts, side="right") - 1).astype(np.uint8)


def buckets(sums: Floats) -> list[Bucket]:
    """Return the errors of each bucket that has ratings, cold to warm."""
    return [
        {"at_least": at_least, "n": int(n), "rmse": math.sqrt(squares / n), "mae": sizes / n}
        for at_least, (n, sizes, squares) in zip(COUNTS, sums.tolist(), strict=True)
        if n
    ]


@compiled()
def _add(ratings, predicted, rows, cols, of_users, of_items, low, width, by_user, by_item, by_rating, by_error):
    n_ratings, n_errors = len(by_rating), len(by_error)
    for t in range(len(ratings)):
        rating = np.float64(ratings[t])
        error = rating - np.float64(predicted[t])
        u, i = rows[t], cols[t]
        for sums, bucket in ((by_user, of_users[u] if u >= 0 else 0), (by_item, of_items[i] if i >= 0 else 0)):
            sums[bucket, 0] += 1
            sums[bucket, 1] += abs(error)
            sums[bucket, 2] += error * error
        place = int(min(max((rating - low) / width, 0.0), 1.0) * (n_ratings - 1) + 0.5)
        by_rating[place, 0] += 1
        by_rating[place, 1] += rating
        by_rating[place, 2] += error
        by_rating[place, 3] += error * error
        by_error[int(min(max(error / width / 2 + 0.5, 0.0), 1.0) * n_errors * (1 - 1e-12))] += 1
