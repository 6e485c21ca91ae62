"""Number, mean and spread of ratings, part by part."""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from distmf.compiled import compiled


class Moments(NamedTuple):
    """Number, or sum of weights, mean and sum of squared deviations of some ratings; adds up without cancellation.

    References
    ----------
    .. [1] T. Chan, G. Golub, R. LeVeque, "Algorithms for Computing the Sample Variance", American Statistician, 1983.
    """

    n: float
    mean: float
    deviations: float

    @classmethod
    def of(cls, ratings: npt.NDArray[np.float32], counts: npt.NDArray[Any] | None = None) -> "Moments":
        """Return the moments of an array, of which each rating may count several times; its order decides last bits."""
        if counts is not None:
            n = counts.sum(dtype=np.float64 if counts.dtype.kind == "f" else np.int64).item()
            mean = float((counts * ratings).sum(dtype=np.float64)) / n if n else 0.0
            return cls(n, mean, float((counts * np.square(ratings - np.float64(mean))).sum()))
        return cls(len(ratings), *_moments(ratings)) if len(ratings) else cls(0, 0.0, 0.0)

    def __add__(self, other: "Moments") -> "Moments":  # type: ignore[override]
        n = self.n + other.n
        if n == 0:
            return self
        difference = other.mean - self.mean
        mean = self.mean + difference * (other.n / n)
        return Moments(n, mean, self.deviations + other.deviations + difference**2 * (self.n * (other.n / n)))

    @property
    def std(self) -> float:
        """Standard deviation; 0 for no ratings, and for ratings that float32 cannot tell from their mean."""
        std = math.sqrt(self.deviations / self.n) if self.n else 0.0
        return std if std > 1e-7 * abs(self.mean) else 0.0


@compiled()
def _moments(ratings):
    """Return the mean and the sum of squared deviations."""
    mean, deviations = 0.0, 0.0
    for rating in ratings:
        mean += np.float64(rating)
    mean /= len(ratings)
    for rating in ratings:
        deviation = np.float64(rating) - mean
        deviations += deviation * deviation
    return mean, deviations
