"""A model and ratings that it has not seen -> its errors on them, in one pass, in bounded memory."""

import logging
import math
from pathlib import Path
from typing import TypedDict

import numpy as np

from distmf.factorization import MatrixFactorization
from distmf.progress import Progress
from distmf.ratings import Columns, open_ratings, read_piece

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
    squared, absolute, n, n_unseen, n_within = 0.0, 0.0, 0, 0, dict.fromkeys(INTERVALS, 0)
    for piece in ratings.pieces:
        for batch in read_piece(ratings, piece):
            found = model.predict(batch.user, batch.item, clip=clip, with_stds=has_draws)
            errors = batch.rating.astype(np.float64) - found.ratings
            squared += float(np.square(errors).sum())
            absolute += float(np.abs(errors).sum())
            n += len(errors)
            n_unseen += int(found.is_unseen.sum())
            if found.stds is not None:
                for name, width in INTERVALS.items():
                    n_within[name] += int(np.count_nonzero(np.abs(errors) <= width * found.stds))
            progress.advance(len(errors))
    within_50, within_90 = (count / n if has_draws else None for count in n_within.values())
    return {
        "rmse": math.sqrt(squared / n),
        "mae": absolute / n,
        "n": n,
        "n_unseen": n_unseen,
        "within_50": within_50,
        "within_90": within_90,
    }
