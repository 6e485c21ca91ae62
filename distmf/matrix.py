"""A dense matrix of ratings -> which of its entries are set."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from distmf.errors import RatingsError

IsSet = Callable[[npt.NDArray[Any]], npt.NDArray[np.bool_]]


def non_negative(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which values are set, where negative numbers (and NaN) mark the unset ones."""
    return np.asarray(values >= 0)


def always(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return that every value is set."""
    return np.ones(np.shape(values), dtype=np.bool_)


def not_nan(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which values are set, where NaN marks the unset ones: the default."""
    return np.asarray(~np.isnan(values))


def set_entries(ratings: Any, is_set: IsSet) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return a dense matrix as float64, and which of its entries are set.

    Raises
    ------
    RatingsError
        If the entries are not numbers.
    ValueError
        If it is no matrix, or `is_set` does not return one value for each entry.
    """
    matrix = np.asarray(ratings)
    if matrix.ndim != 2:
        raise ValueError(f"a matrix of ratings has 2 dimensions, this has {matrix.ndim}")
    if matrix.dtype.kind not in "iuf":
        raise RatingsError(f"the matrix has entries of type {matrix.dtype}; a matrix of numbers is needed")
    matrix = matrix.astype(np.float64)
    mask = np.asarray(is_set(matrix), dtype=np.bool_)
    if mask.shape != matrix.shape:
        raise ValueError(f"is_set returned shape {mask.shape} for a matrix of shape {matrix.shape}")
    if isinstance(ratings, np.ma.MaskedArray):
        mask &= ~np.ma.getmaskarray(ratings)
    return matrix, mask
