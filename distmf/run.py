"""A training that has ended -> what a report tells of it besides the model: where, when, how fast, and its errors.

It differs from run to run where the model does not, so it lies in a file of its own, which no checksum counts.
"""

import datetime
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from distmf.blocks import Blocks, Part
from distmf.factors import fetch
from distmf.graph import State
from distmf.grid import BlockKey
from distmf.normalisation import ratings_of
from distmf.pairs import scores_of_pairs
from distmf.residuals import Residuals, buckets_of
from distmf.schedule import strata
from distmf.tasks import Training, Visit

SAMPLED = 1 << 18  # ratings, whose errors are taken
PACKAGES = "distmf", "dask", "numba", "numpy", "pyarrow"


class Run(NamedTuple):
    """Of a training.

    Attributes
    ----------
    ended : str
        When, in UTC.
    seconds : float
        In epochs.
    ratings_per_second : float or None
        Updates per second of these.
    n_threads, is_cluster : int, bool
        How many blocks at once; whether on a cluster.
    utilizations : list of float or None
        Of each epoch; see `Epoch`.
    machine : dict
        Versions, processor and number of cores of the driver.
    blocks : dict
        What tells the blocks from others, and where they lay.
    counts : list of list of int
        Ratings to train on of each block of the grid.
    visits : list of dict
        Of the last epoch: `subepoch`, `row`, `col`, `begin` and `end` in seconds, `process` and `thread`.
    residuals : Residuals or None
        Of a sample of the ratings held out, or, if there are none, of those trained on.
    """

    ended: str
    seconds: float
    ratings_per_second: float | None
    n_threads: int
    is_cluster: bool
    utilizations: list[float | None]
    machine: dict[str, str]
    blocks: dict[str, Any]
    counts: list[list[int]]
    visits: list[dict[str, Any]]
    residuals: Residuals | None

    def to_json(self) -> dict[str, Any]:
        """Return it for a JSON file."""
        residuals = self.residuals and self.residuals.to_json()
        columns = {name: [visit[name] for visit in self.visits] for name in (self.visits or [{}])[0]}
        return {**self._asdict(), "residuals": residuals, "visits": columns}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Self:
        """Return what `to_json` wrote."""
        residuals, columns = saved["residuals"], saved["visits"]
        visits = [dict(zip(columns, visit, strict=True)) for visit in zip(*columns.values(), strict=True)]
        return cls(**{**saved, "residuals": residuals and Residuals.from_json(residuals), "visits": visits})


def now() -> str:
    """Return the time in UTC, as in `Run.ended`."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def machine() -> dict[str, str]:
    """Return versions, processor and number of cores."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return {**versions, "processor": platform.processor() or platform.machine(), "cores": str(os.cpu_count())}


def counts_of(blocks: Blocks) -> list[list[int]]:
    """Return the ratings to train on of each block of the grid."""
    rows, cols = blocks.shape
    return [[blocks.entries[BlockKey(row, col)].n_train for col in range(cols)] for row in range(rows)]


def timetable(training: Training, epoch: int, visits: Sequence[Visit]) -> list[dict[str, Any]]:
    """Return the visits of an epoch, by time, with their sub-epochs; the first begins at 0."""
    subepochs = {
        key: number
        for number, stratum in enumerate(strata(training.blocks.shape, epoch, training.seed))
        for key in stratum
    }
    start = min((visit.begin for visit in visits), default=0.0)
    return [
        {
            "subepoch": subepochs[BlockKey(visit.row, visit.col)],
            "row": visit.row,
            "col": visit.col,
            "begin": round(visit.begin - start, 6),
            "end": round(visit.begin - start + visit.seconds, 6),
            "process": visit.process,
            "thread": visit.thread,
        }
        for visit in sorted(visits, key=lambda visit: visit.begin)
    ]


def sampled_residuals(training: Training, state: State) -> Residuals:
    """Return the errors on some blocks of the ratings held out, or, if there are none, of those trained on."""
    blocks, layout, found = training.blocks, training.blocks.layout, Residuals.none()
    part: Part = "holdout" if blocks.n_holdout else "train"
    sizes = {key: entry.n_holdout if blocks.n_holdout else entry.n_train for key, entry in blocks.entries.items()}
    order = [sorted(sizes)[n] for n in np.random.default_rng(0).permutation(len(sizes))]
    reached = np.cumsum([sizes[key] for key in order])
    order = order[: int(np.searchsorted(reached, SAMPLED)) + 1]
    step = 1 + int(reached[len(order) - 1]) // SAMPLED
    of_users, of_items = buckets_of(blocks.counts("user")), buckets_of(blocks.counts("item"))
    for row in sorted({key.row for key in order}):
        rows = fetch(state.rows[row], training.folder, training.rank)
        warm_rows = of_users[layout.row_cuts[row] : layout.row_cuts[row + 1]]
        for key in (key for key in order if key.row == row):
            cols = fetch(state.cols[key.col], training.folder, training.rank)
            warm_cols = of_items[layout.col_cuts[key.col] : layout.col_cuts[key.col + 1]]
            ratings = blocks.read(key, part)
            users, items = (np.ascontiguousarray(places[::step]) for places in ratings.places())
            predicted = _predicted(training, scores_of_pairs(rows, cols, users, items, 0.0))
            actual = ratings.encoding.decode(ratings.values[::step])
            found.add(actual, predicted, (users, items), (warm_rows, warm_cols), blocks.rating_range)
    return found


def _predicted(training: Training, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    normalisation = training.hyper.normalisation
    scores *= np.float32(normalisation.unit_of_scores)
    scores += np.float32(normalisation.score_of_mean)
    return np.clip(ratings_of(normalisation, scores), *training.blocks.rating_range)
