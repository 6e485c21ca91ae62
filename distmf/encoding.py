"""How ratings are stored: as few bytes each as keep what matters. Pure: no files, no Dask."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

N_STEPS = 1 << 16
LEAST_RATINGS = 1 << 20  # for steps: fewer ratings take no space worth saving
FINEST = 1e-3  # of the ratings' standard deviation: steps that are no larger do not show beside any noise


class Encoding(NamedTuple):
    """What a stored value stands for: a code into a table of the distinct ratings, a 16-bit step, or the rating itself.

    Attributes
    ----------
    table : tuple of float
        The distinct ratings, ascending, if they are stored as codes (uint8); else empty.
    low, step : float
        Otherwise value v (uint16) stands for low + step · v; if step is 0, it is the rating (float32).
    """

    table: tuple[float, ...] = ()
    low: float = 0.0
    step: float = 0.0

    @classmethod
    def choose(cls, distinct: tuple[float, ...], low: float, high: float, std: float, n: int) -> "Encoding":
        """Return the narrowest encoding that loses nothing that counts.

        Parameters
        ----------
        distinct : tuple of float
            All distinct ratings, ascending, or none if they are too many for codes.
        low, high, std : float
            Range and standard deviation of the ratings.
        n : int
            Number of ratings.
        """
        if distinct:
            return cls(distinct)
        step = (high - low) / (N_STEPS - 1)
        return cls((), low, step) if n >= LEAST_RATINGS and 0 < step <= FINEST * std else cls()

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""
        return np.dtype(np.uint8 if self.table else np.uint16 if self.step else np.float32)

    @property
    def is_coded(self) -> bool:
        """Whether values are whole numbers that stand for ratings."""
        return self.dtype.kind == "u"

    def __str__(self) -> str:
        if self.table:
            return f"codes for {len(self.table)} distinct values"
        return f"16-bit steps of {self.step:.2g}" if self.step else "float32"

    def encode(self, ratings: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """Return the values that ratings are stored as; a rating between two steps goes to the nearer one."""
        if self.table:
            return np.searchsorted(np.array(self.table, dtype=np.float32), ratings).astype(np.uint8)
        if not self.step:
            return ratings
        steps = ratings - np.float32(self.low)
        steps *= np.float32(1 / self.step)
        return np.clip(np.rint(steps, out=steps), 0, N_STEPS - 1, out=steps).astype(np.uint16)

    def decode(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return the ratings that values stand for."""
        if self.table:
            return np.asarray(np.array(self.table, dtype=np.float32)[values])
        return np.asarray(self.low + self.step * values if self.step else values, dtype=np.float32)
