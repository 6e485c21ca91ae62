"""Says every few seconds in the log how far a long pass over ratings is."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Counts ratings that are done, and logs their share and the time left; a pass that is quick says nothing.

    Parameters
    ----------
    logger : logging.Logger
        Of the module that does the work.
    verb : str
        What is done with the ratings, such as "counting".
    total : int
        Ratings in all.
    """

    def __init__(self, logger: logging.Logger, verb: str, total: int) -> None:
        self._logger, self._verb, self._total = logger, verb, total
        self._done = 0
        self._start = self._said = time.perf_counter()

    def advance(self, n_ratings: int) -> None:
        """Add to what is done."""
        self._done += n_ratings
        now = time.perf_counter()
        if now - self._said >= SECONDS_BETWEEN_LINES and 0 < self._done < self._total:
            self._said = now
            left = (now - self._start) * (self._total - self._done) / self._done
            share = 100 * self._done / self._total
            self._logger.info("%s: %.0f %% of %s ratings, %.0f s left", self._verb, share, f"{self._total:,}", left)


def progress_of_tasks(logger: logging.Logger, verb: str, sizes: Mapping[int, int]) -> Callable[[Any, Any], None]:
    """Return a callback that counts the ratings of tasks as they end; these are keyed (any name, key in sizes)."""
    progress, left = Progress(logger, verb, sum(sizes.values())), dict(sizes)

    def on_done(key: Any, value: Any) -> None:
        progress.advance(left.pop(key[1], 0))  # a graph that was lost is sent again

    return on_done
