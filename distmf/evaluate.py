"""A model and ratings that it has not seen -> its errors on them, in one pass, in bounded memory."""

import logging
import math
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from distmf.factorization import MatrixFactorization
from distmf.pairs import in_threads
from distmf.progress import Progress
from distmf.ratings import Columns, Piece, open_ratings, read_piece

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
    source: str | Path,
    *,
    user: str = "user_id",
    item: str = "item_id",
    rating: str = "rating",
    clip: bool = True,
) -> Evaluation:
    """Compare predictions with ratings that the model has not been trained on.

    Parameters
    ----------
    mf : MatrixFactorization
        A trained model.
    source : str or Path
        Parquet: a file, a folder, a glob or an fsspec URL.
    user, item, rating : str
        Names of the columns.
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
    ratings = open_ratings(source, Columns(user, item, rating))
    progress = Progress(logger, "evaluating", ratings.n_rows)
    clip_to = {"clip": clip, "with_stds": has_draws}

    def sums(piece: Piece) -> npt.NDArray[np.float64]:
        found = np.zeros(4 + len(INTERVALS))
        for batch in read_piece(ratings, piece):
            predicted = model.predict(batch.user, batch.item, **clip_to)
            errors = np.abs(batch.rating - predicted.ratings.astype(np.float64))
            stds = predicted.stds
            within = [] if stds is None else [errors <= width * stds for width in INTERVALS.values()]
            counts = [len(errors), np.count_nonzero(predicted.is_unseen), *map(np.count_nonzero, within)]
            found[: 2 + len(counts)] += [errors @ errors, errors.sum(), *counts]
        return found

    total = np.zeros(4 + len(INTERVALS))
    for found in in_threads(sums, ratings.pieces):
        total += found
        progress.advance(int(found[2]))
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
