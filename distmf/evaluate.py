"""A model and ratings that it has not seen -> its errors on them, in one pass, in bounded memory."""

import logging
import math
import tempfile
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from distmf.factorization import MatrixFactorization
from distmf.model import Model
from distmf.pairs import in_threads
from distmf.progress import Progress
from distmf.ratings import Piece, Ratings, open_ratings, read_piece
from distmf.sources import as_parquet

logger = logging.getLogger(__name__)


INTERVALS = {"within_50": 0.6745, "within_90": 1.6449}  # standard deviations to either side of the prediction


class Evaluation(TypedDict):
    """Errors of predictions, in units of the ratings: their root mean square and their mean size, and over how many.

    For draws from the posterior also the shares of ratings in the central intervals of 50 % and 90 %, else None.
    """

    rmse: float
    mae: float
    n: int
    n_unseen: int
    within_50: float | None
    within_90: float | None


def evaluate(
    mf: MatrixFactorization,
    source: Any,
    *,
    user: str | None = None,
    item: str | None = None,
    rating: str | None = None,
    clip: bool = True,
) -> Evaluation:
    """Compare predictions with ratings that the model has not been trained on.

    Parameters
    ----------
    mf : MatrixFactorization
        A trained model.
    source : str, Path, table or matrix
        Ratings, as for `block_ratings`.
    user, item, rating : str, optional
        Names of the columns; by default those that can be nothing else, as user_id, userId or user.
    clip : bool
        Whether to clip predictions to the range of the ratings that were trained on.

    Returns
    -------
    dict
        `rmse` and `mae` over all `n` ratings. `n_unseen` of them have a user or an item that was not trained on; they
        count too, with what is known: the mean, and the bias of the other. `within_50` and `within_90`, of a model with
        `posterior_samples`: shares of the ratings that lie in the interval that is to hold 50 % and 90 % of them.

    Raises
    ------
    NotFittedError
        Before training.
    RatingsError
        If the ratings do not hold what they should, or ids are of another type than those trained on.
    """
    model = mf.model_
    has_draws = model.noise_std is not None
    names = {"user": user, "item": item, "rating": rating}
    with as_parquet(source, Path(tempfile.gettempdir()) / "distmf-ratings", names) as (parquet, columns):
        total = _sums(model, open_ratings(parquet, columns), clip=clip)
    squared, absolute, n, n_unseen, *n_within = total.tolist()
    within_50, within_90 = (count / n if has_draws else None for count in n_within)
    return {
        "rmse": math.sqrt(squared / n),
        "mae": absolute / n,
        "n": int(n),
        "n_unseen": int(n_unseen),
        "within_50": within_50,
        "within_90": within_90,
    }


def _sums(model: Model, ratings: Ratings, *, clip: bool) -> npt.NDArray[np.float64]:
    """Return over all ratings: sums of squared and of absolute errors; how many there are, unseen, in each interval."""
    progress, has_draws = Progress(logger, "evaluating", ratings.n_rows), model.noise_std is not None

    def of_piece(piece: Piece) -> npt.NDArray[np.float64]:
        found = np.zeros(4 + len(INTERVALS))
        for batch in read_piece(ratings, piece):
            predicted = model.predict(batch.user, batch.item, clip=clip, with_stds=has_draws)
            errors, stds = np.abs(batch.rating - predicted.ratings.astype(np.float64)), predicted.stds
            within = [] if stds is None else [errors <= width * stds for width in INTERVALS.values()]
            counts = [len(errors), np.count_nonzero(predicted.is_unseen), *map(np.count_nonzero, within)]
            found[: 2 + len(counts)] += [errors @ errors, errors.sum(), *counts]
        return found

    total = np.zeros(4 + len(INTERVALS))
    for found in in_threads(of_piece, ratings.pieces):
        total += found
        progress.advance(int(found[2]))
    return total
