"""Says every few seconds in the log how far a long pass over ratings is."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

SECONDS_BETWEEN_LINES = 5.0


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
        now = time.perf_counter()
        if now - self._said >= SECONDS_BETWEEN_LINES and 0 < self._done < self._total:
            self._said = now
            left = (now - self._start) * (self._total - self._done) / self._done
            share = 100 * self._done / self._total
            self._logger.info(
                "%s: %.0f %% of %s %s, %.0f s left", self._verb, share, f"{self._total:,}", self._what, left
            )


def progress_of_tasks(
    logger: logging.Logger, verb: str, sizes: Mapping[int, int], what: str = "ratings"
) -> Callable[[Any, Any], None]:
    """Return a callback that counts what tasks have done as they end; these are keyed (any name, key in sizes)."""
    progress, left = Progress(logger, verb, sum(sizes.values()), what), dict(sizes)

    def on_done(key: Any, value: Any) -> None:
        progress.advance(left.pop(key[1], 0))  # a graph that was lost is sent again

    return on_done
