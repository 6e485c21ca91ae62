"""A model and ratings that it has not seen -> its errors on them, in one pass, in bounded memory."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, TypedDict

import numpy as np
import numpy.typing as npt

from distmf.arguments import names_checked
from distmf.blocks import Blocks
from distmf.engines import open_engine
from distmf.errors import RatingsError
from distmf.factorization import MatrixFactorization
from distmf.heldout import Places, known_items, on_engine, open_heldout, places_of, read
from distmf.loading import model_of
from distmf.model import Model
from distmf.ratings import Ratings
from distmf.residuals import COUNTS, Bucket, Residuals, buckets, buckets_of
from distmf.sizes import counted

INTERVALS = {"within_50": 0.6745, "within_90": 1.6449}  # standard deviations to either side of the prediction
TENTHS = 10
LEAST_PROBABILITY = 1e-7  # of what did happen, in the log loss: float32 does not tell smaller ones from 0


class Chance(TypedDict):
    """Pairs whose probability of the higher value was predicted to be much the same: in the mean, and what came."""

    n: int
    predicted: float
    observed: float


class Evaluation(TypedDict):
    """Errors of predictions, in units of the ratings; see `evaluate`."""

    rmse: float
    mae: float
    n: int
    n_unseen: int
    log_loss: float | None
    calibration: list[Chance] | None
    within_50: float | None
    within_90: float | None
    by_user_count: list[Bucket]
    by_item_count: list[Bucket]


@names_checked
def evaluate(
    mf: MatrixFactorization | str | Path,
    source: Any,
    *,
    user: str | None = None,
    item: str | None = None,
    rating: str | None = None,
    clip: bool = True,
    client: Any = None,
    threads: int | None = None,
) -> Evaluation:
    """Compare predictions with ratings that the model has not been trained on; each counts the same, whatever weight.

    Parameters
    ----------
    mf : MatrixFactorization, str or Path
        A trained model, or the folder or URL of one: on a cluster, workers then read it by themselves.
    source : Blocks, str, Path, table or matrix
        Ratings, as for `block_ratings`; or blocks, of which those held out are taken.
    user, item, rating : str, optional
        Names of the columns; by default those that can be nothing else, as user_id, userId or user.
    clip : bool
        Whether to clip predictions to the range of the ratings that were trained on.
    client, threads
        Where to run, as in `MatrixFactorization.fit`. The workers of a cluster must see the ratings.

    Returns
    -------
    dict
        `rmse` and `mae` over all `n` ratings. `n_unseen` of them have a user or an item that was not trained on; they
        count too, with what is known: the mean, and the bias of the other. `by_user_count` and `by_item_count` have
        the same errors for users and for items of few ratings and of many: each a list of `Bucket`, cold to warm.
        `log_loss`, of a model of that loss: the mean of −log of the probability of what was rated; and `calibration`,
        for each tenth of the probabilities that were predicted, how often it came so. `within_50` and
        `within_90`, of a model with `posterior_samples`: shares of the ratings that lie in the interval that is to
        hold 50 % and 90 % of them. What a model has not is None.

    Raises
    ------
    NotFittedError
        Before training.
    RatingsError
        If the ratings do not hold what they should, or ids are of another type than those trained on; if blocks hold
        none out; if a model of two values is given others.
    """
    model, names = model_of(mf, client), {"user": user, "item": item, "rating": rating}
    known = known_items(model)
    with open_engine(client, threads) as engine, open_heldout(source, names, client) as heldout:
        calls = [(heldout.source, part, clip) for part in heldout.parts]
        prepare = partial(_prepared, heldout.source)
        parts = on_engine(engine, model, "evaluating", prepare, _sums, calls, heldout.sizes)
    found = _Sums.none()
    for part in parts:
        found = _Sums(*(own + more for own, more in zip(found, part, strict=True)))
    residuals, (n_unseen, log_loss, *n_within) = found.residuals, found.others.tolist()
    within_50, within_90 = (None if known.noise_std is None else count / residuals.n for count in n_within)
    return {
        "rmse": residuals.rmse,
        "mae": residuals.mae,
        "n": residuals.n,
        "n_unseen": int(n_unseen),
        "log_loss": log_loss / residuals.n if _is_logistic(known) else None,
        "calibration": _calibration(found.chances) if _is_logistic(known) else None,
        "within_50": within_50,
        "within_90": within_90,
        "by_user_count": buckets(residuals.by_user),
        "by_item_count": buckets(residuals.by_item),
    }


def in_words(found: Evaluation) -> str:
    """Return errors as lines of text, those by the ratings trained on as a table."""
    return "\n".join([*_errors(found), *_by_count(found)])


def _errors(found: Evaluation) -> list[str]:
    measures = {"RMSE": found["rmse"], "MAE": found["mae"], "log loss": found["log_loss"]}
    shares = {50: found["within_50"], 90: found["within_90"]}
    lines = [
        "  ".join(f"{name} {value:.4f}" for name, value in measures.items() if value is not None)
        + f"  over {counted(found['n'], 'rating')}, {found['n_unseen']:,} of them with a user or an item that was not "
        "trained on",
        ", ".join(
            f"{100 * share:.1f} % within the {width} % interval" for width, share in shares.items() if share is not None
        ),
        "predicted and observed: "
        + ", ".join(f"{chance['predicted']:.2f} {chance['observed']:.2f}" for chance in found["calibration"])
        if found["calibration"]
        else "",
    ]
    return [line for line in lines if line]


def _by_count(found: Evaluation) -> list[str]:
    """Return the errors by the number of ratings trained on as the lines of a table."""
    sides = [{bucket["at_least"]: bucket for bucket in found[key]} for key in ("by_user_count", "by_item_count")]
    lines = ["trained on ratings    of the user: RMSE  ratings    of the item: RMSE  ratings"]
    for n, at_least in enumerate(COUNTS):
        if any(at_least in side for side in sides):
            upper = f" to {COUNTS[n + 1] - 1:,}" if n + 1 < len(COUNTS) else " or more"
            name = f"{at_least:,}" + (upper if at_least else "")
            cells = [
                f"{side[at_least]['rmse']:20.4f}{side[at_least]['n']:11,}" if at_least in side else " " * 31
                for side in sides
            ]
            lines.append(f"{name:>18}{''.join(cells)}".rstrip())
    return lines


def _calibration(chances: npt.NDArray[np.float64]) -> list[Chance]:
    return [
        {"n": int(n), "predicted": predicted / n, "observed": observed / n}
        for n, predicted, observed in chances.tolist()
        if n
    ]


class _Sums(NamedTuple):
    """Sums over ratings.

    Attributes
    ----------
    residuals : Residuals
        Of all.
    others : float64, shape (4,)
        How many are unseen, the log loss, how many are within each interval.
    chances : float64, shape (10, 3)
        By the probability that was predicted: number, sum of the probabilities, and how many were of the higher value.
    """

    residuals: Residuals
    others: npt.NDArray[np.float64]
    chances: npt.NDArray[np.float64]

    @classmethod
    def none(cls) -> Self:
        return cls(Residuals.none(), np.zeros(2 + len(INTERVALS)), np.zeros((TENTHS, 3)))


class _Prepared(NamedTuple):
    """Of a model and ratings: where blocks have what, and the buckets of users and of items."""

    places: Places | None
    buckets: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


def _prepared(source: Ratings | Blocks, model: Model) -> _Prepared:
    return _Prepared(places_of(source, model), (buckets_of(model.users.counts), buckets_of(model.items.counts)))


def _sums(model: Model, prepared: _Prepared, source: Ratings | Blocks, part: Any, clip: bool) -> _Sums:
    """Return the sums over a part of the ratings."""
    residuals, others, chances = found = _Sums.none()
    for batch in read(model, prepared.places, source, part):
        predicted = model.predict_at(batch.rows, batch.cols, clip=clip, with_stds=model.noise_std is not None)
        residuals.add(batch.ratings, predicted.ratings, batch[:2], prepared.buckets, model.rating_range)
        others[0] += np.count_nonzero(predicted.is_unseen)
        if _is_logistic(model):
            is_high, predicted_chances = _chances(model, batch.ratings, predicted.ratings)
            right = np.where(is_high, predicted_chances, 1 - predicted_chances)
            others[1] -= np.log(np.maximum(right, LEAST_PROBABILITY)).sum()
            tenths = np.minimum((TENTHS * predicted_chances).astype(np.int64), TENTHS - 1)
            for column, values in enumerate((None, predicted_chances, is_high)):
                chances[:, column] += np.bincount(tenths, values, TENTHS)
        if predicted.stds is not None:
            errors = np.abs(batch.ratings - predicted.ratings)
            others[2:] += [np.count_nonzero(errors <= width * predicted.stds) for width in INTERVALS.values()]
    return found


def _is_logistic(model: Model) -> bool:
    return model.normalisation.objective.loss == "logistic"


def _chances(
    model: Model, ratings: npt.NDArray[np.float32], predicted: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Return which ratings are the higher of two values, and the probability of it that was predicted."""
    assert model.normalisation.interval is not None
    low, high = model.normalisation.interval
    shares = (ratings.astype(np.float64) - low) / (high - low)
    is_high = np.rint(shares)
    if not np.allclose(shares, is_high, atol=1e-6) or (np.abs(is_high - 0.5) > 1).any():
        other = float(ratings[np.argmax(np.abs(shares - np.clip(is_high, 0, 1)))])
        raise RatingsError(
            f"the model tells {low:g} from {high:g}, but there is a rating of {other:g}; test it with these two"
        )
    return is_high == 1, (predicted.astype(np.float64) - low) / (high - low)
