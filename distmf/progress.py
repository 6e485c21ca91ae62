"""Says how far long work is: every few seconds in the log, and at once to who watches."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

SECONDS_BETWEEN_LINES = 5.0
SHOWN = {"is_shown": True}  # marks a line of the log for those who are told the same at once


class Share(NamedTuple):
    """How much of a pass is done, such as "counting", and of how many what."""

    verb: str
    done: int
    total: int
    what: str


class Trained(NamedTuple):
    """How many epochs of how many are done; parts of the next count.

    Attributes
    ----------
    train_error, holdout_error : float or None
        Of an epoch that is over: `measure` says what errors are.
    ratings_per_second, seconds_left : float
        Of all epochs since training began; 0 if not one is over.
    """

    epochs: float
    of: int
    train_error: float | None = None
    holdout_error: float | None = None
    measure: str = ""
    ratings_per_second: float = 0.0
    seconds_left: float = 0.0


class Dashboard(NamedTuple):
    """Where Dask shows the tasks."""

    url: str


Event = Share | Trained | Dashboard
_watchers: list[Callable[[Event], None]] = []


def tell(event: Event) -> None:
    """Tell those who watch."""
    for watcher in _watchers:
        watcher(event)


@contextlib.contextmanager
def told(watcher: Callable[[Event], None]) -> Iterator[None]:
    """Have a function be told all events."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


class Progress:
    """Counts what is done, and logs its share of all and the time left; a pass that is quick says nothing.

    Parameters
    ----------
    logger : logging.Logger
        Of the module that does the work.
    verb : str
        What is done with the ratings, such as "counting".
    total : int
        Of all.
    what : str
        That is counted.
    """

    def __init__(self, logger: logging.Logger, verb: str, total: int, what: str = "ratings") -> None:
        self._logger, self._verb, self._total, self._what = logger, verb, total, what
        self._done = 0
        self._start = self._said = time.perf_counter()

    def advance(self, n: int) -> None:
        """Add to what is done."""
        self._done += n
        tell(Share(self._verb, self._done, self._total, self._what))
        now = time.perf_counter()
        if now - self._said >= SECONDS_BETWEEN_LINES and 0 < self._done < self._total:
            self._said = now
            left = (now - self._start) * (self._total - self._done) / self._done
            share = 100 * self._done / self._total
            self._logger.info(
                "%s: %.0f %% of %s %s, %.0f s left",
                self._verb,
                share,
                f"{self._total:,}",
                self._what,
                left,
                extra=SHOWN,
            )


def progress_of_tasks(
    logger: logging.Logger, verb: str, sizes: Mapping[int, int], what: str = "ratings"
) -> Callable[[Any, Any], None]:
    """Return a callback that counts what tasks have done as they end; these are keyed (any name, key in sizes)."""
    progress, left = Progress(logger, verb, sum(sizes.values()), what), dict(sizes)

    def on_done(key: Any, value: Any) -> None:
        progress.advance(left.pop(key[1], 0))  # a graph that was lost is sent again

    return on_done
