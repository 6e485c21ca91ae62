"""A dense matrix of ratings -> which of its entries are set."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from distmf.errors import ParameterError, RatingsError

logger = logging.getLogger(__name__)

NUMBERS = "biuf"  # kinds of types of NumPy
FAR_ABOVE = 2  # times the highest rating; numbers of a user or an item that are more are no ratings

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
        If it is no matrix, or its entries are not numbers.
    ParameterError
        If `is_set` is no function, or does not return one value for each entry.
    """
    if not callable(is_set):
        raise ParameterError(f"is_set is {is_set!r}; it is a function of an array of values, as distmf.non_negative")
    later = ", which .collect() makes a table of" if hasattr(ratings, "collect") else ""
    later = "; give its train or its test" if hasattr(ratings, "n_test") else later
    kinds = f"give a path, a glob, a table or a matrix as ratings; this is of type {type(ratings).__name__}{later}"
    try:
        matrix = np.asarray(ratings)
    except ValueError as err:
        raise RatingsError(f"{kinds}, with rows of different lengths") from err
    if matrix.ndim != 2:
        raise RatingsError(kinds if not matrix.ndim else f"{kinds}, a matrix has 2 dimensions, this has {matrix.ndim}")
    if matrix.dtype.kind not in NUMBERS:
        raise RatingsError(f"the matrix has entries of type {matrix.dtype.name}; a matrix of numbers is needed")
    matrix = matrix.astype(np.float64)
    mask = np.asarray(is_set(matrix), dtype=np.bool_)
    if mask.shape != matrix.shape:
        raise ParameterError(
            f"is_set returned shape {mask.shape} for a matrix of shape {matrix.shape}; it says of each value "
            "whether it is set"
        )
    if isinstance(ratings, np.ma.MaskedArray):
        mask &= ~np.ma.getmaskarray(ratings)
    if _may_be_triples(matrix) and mask.all():
        logger.warning(
            "the matrix is taken for all ratings of %s users and %s items; if its rows are a user, an item and a "
            "rating, give them as a table with these columns",
            *map("{:,}".format, matrix.shape),
        )
    return matrix, mask


def _may_be_triples(matrix: npt.NDArray[np.float64]) -> bool:
    """Return whether rows look like a user, an item and a rating."""
    if matrix.shape[1] not in (3, 4) or len(matrix) < 2:
        return False
    ids, ratings = matrix[:, :2], matrix[:, 2]
    return bool((ids == np.floor(ids)).all() and (ids >= 0).all() and ids.max() > FAR_ABOVE * np.abs(ratings).max())
