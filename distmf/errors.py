"""Errors raised by distmf.

DistMFError
├── RatingsError        (ValueError)       the input does not hold what it should
├── ParameterError      (ValueError)       an option is out of its range, or two of them do not go together
├── MemoryBudgetError   (ValueError)       a task would not fit; raised before any task is sent
├── DivergedError       (ArithmeticError)  no step size keeps the cost finite
├── ClusterError        (RuntimeError)     a Dask cluster is not there, is gone, or cannot do the work
│   └── GraphLostError  (RuntimeError)     tasks under way were lost, though the cluster is there
├── NotFittedError      (ValueError, AttributeError)  a model is asked for what only training gives
└── StoreError          (OSError)          something on disk is missing, damaged, of another version, or refused
"""

import functools
import sys
from typing import Any, Self


class DistMFError(Exception):
    """Base of every error that distmf raises on purpose."""


class RatingsError(DistMFError, ValueError):
    """The ratings do not hold what they should: a missing column, a null id, a rating that is no number."""


class ParameterError(DistMFError, ValueError):
    """A hyperparameter or an option is out of its range, or does not go together with another."""


class MemoryBudgetError(DistMFError, ValueError):
    """A task would need more memory than it may have."""


class DivergedError(DistMFError, ArithmeticError):
    """No step size keeps the cost finite."""


class ClusterError(DistMFError, RuntimeError):
    """A Dask cluster cannot be reached, was lost, or keeps losing its workers."""


class GraphLostError(ClusterError):
    """Tasks under way were lost, though the cluster is there; they can be sent again."""


class NotFittedError(DistMFError, ValueError, AttributeError):
    """The model has not been trained yet. Where scikit-learn is imported, its error of that name catches this, too."""

    def __new__(cls, *args: object) -> Self:
        """Return an error that is scikit-learn's as well."""
        theirs: Any = sys.modules.get("sklearn.exceptions")
        ours: Any = cls
        kind = ours if theirs is None else _both(ours, theirs.NotFittedError)
        found: Self = super().__new__(kind, *args)
        return found

    def __reduce__(self) -> tuple[type["NotFittedError"], tuple[object, ...]]:
        return NotFittedError, self.args  # there may be no scikit-learn in the other process


@functools.cache
def _both(ours: Any, theirs: Any) -> Any:
    """Return what `except` takes for either."""
    return type(ours.__name__, (ours, theirs), {"__module__": ours.__module__})


class StoreError(DistMFError, OSError):
    """Something on disk is missing, damaged or of another version, or a file system refuses.

    Parameters
    ----------
    message : str
        What happened, where, and what to do.
    errno : int, optional
        The error number of the system, if it was the system that refused.
    """

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno

    def __reduce__(self) -> tuple[type["StoreError"], tuple[str, int | None]]:
        return type(self), (str(self), self.errno)  # OSError would lose the number on the way to another process
