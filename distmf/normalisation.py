"""Blocks and a loss -> how ratings become the numbers that the kernel works on, and the constants of its formulas."""

import math

import numpy as np
import numpy.typing as npt

from distmf.blocks import Blocks
from distmf.errors import RatingsError
from distmf.losses import LOSSES, Constants, LossName, Normalisation, Objective

SAMPLED = 1 << 20  # ratings, of which median and deviation are taken
STD_OF_DEVIATION = 1.4826  # of a normal distribution, over its median deviation
LEAST_SHARE = 1e-6  # of the interval on either side of the mean, for the slope of the sigmoid there


def normalise(
    blocks: Blocks, loss: LossName, bounds: tuple[float, float] | None, *, nonnegative: bool
) -> Normalisation:
    """Return how ratings are normalised for a loss, such that cost and curvature are near 1 about the mean.

    Raises
    ------
    RatingsError
        If the ratings are none that the loss is for, or beyond the bounds.
    """
    kind, moments, (lowest, highest) = LOSSES[loss], blocks.moments, blocks.rating_range
    mean, scale = moments.mean, moments.std or 1.0
    if kind.is_binary:
        _refuse_values(blocks, loss)
        share = (mean - lowest) / (highest - lowest)
        constants = Constants(offset=math.log(share / (1 - share)), slope=1 / math.sqrt(share * (1 - share)))
        return _with(loss, (lowest + highest) / 2, (highest - lowest) / 2, constants, nonnegative=nonnegative)
    if loss == "poisson":
        _refuse_negative(blocks)
        if mean <= 0:
            raise RatingsError(
                "loss 'poisson' is for counts and other amounts, but all ratings are 0; take another loss"
            )
        return _with(loss, mean, scale, Constants(offset=mean / scale), nonnegative=nonnegative)
    if kind.is_robust:
        mean, scale = _robust(blocks, mean, scale)
    if bounds is None:
        return _with(loss, mean, scale, Constants(), nonnegative=nonnegative)
    low, high = bounds
    if not low <= lowest <= highest <= high:
        raise RatingsError(
            f"bounds are {low:g} and {high:g}, but there are ratings from {lowest:g} to {highest:g}; widen them"
        )
    share = min(1 - LEAST_SHARE, max(LEAST_SHARE, (mean - low) / (high - low)))
    width = (high - low) / scale
    offset, slope = math.log(share / (1 - share)), 1 / (width * share * (1 - share))
    return _with(
        loss, mean, scale, Constants((low - mean) / scale, width, offset, slope), True, nonnegative=nonnegative
    )


def ratings_of(normalisation: Normalisation, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the ratings that scores stand for: the same, or what the sigmoid makes of them."""
    if normalisation.bounds is None:
        return scores
    low, high = normalisation.bounds
    with np.errstate(over="ignore"):  # e^∞ is what it ought to be
        return np.float32(low) + np.float32(high - low) / (np.float32(1) + np.exp(-scores))


def check_ratings(blocks: Blocks, normalisation: Normalisation) -> None:
    """Refuse ratings that a model which training goes on from is not for.

    Raises
    ------
    RatingsError
        If they are beyond its bounds, not its two values, or negative where it is for amounts.
    """
    objective, (lowest, highest) = normalisation.objective, blocks.rating_range
    if normalisation.interval is not None:
        low, high = normalisation.interval
        room, is_binary = 1e-6 * (high - low), objective.details.is_binary
        is_within = low - room <= lowest <= highest <= high + room
        if not is_within or (is_binary and not set(blocks.layout.encoding.table) <= {low, high}):
            raise RatingsError(
                f"the model to start from is for ratings {'of' if is_binary else 'between'} {low:g} and {high:g}, but "
                f"there are ratings from {lowest:g} to {highest:g}; train anew, on all ratings"
            )
    if objective.loss == "poisson":
        _refuse_negative(blocks)


def _with(
    loss: LossName, mean: float, scale: float, constants: Constants, is_bounded: bool = False, *, nonnegative: bool
) -> Normalisation:
    return Normalisation(mean, scale, Objective(loss, is_bounded, nonnegative, constants))


def _refuse_negative(blocks: Blocks) -> None:
    if (lowest := blocks.rating_range[0]) < 0:
        raise RatingsError(f"loss 'poisson' is for counts and other amounts, but there are ratings from {lowest:g} on")


def _refuse_values(blocks: Blocks, loss: LossName) -> None:
    values = blocks.layout.encoding.table
    if len(values) != 2 or not blocks.rating_range[0] < blocks.moments.mean < blocks.rating_range[1]:
        shown = ", ".join(f"{value:g}" for value in values[:3]) + (", …" if len(values) > 3 else "")
        there = f"{len(values)} of them: {shown}" if values else "more than 256 values, or means of duplicates"
        raise RatingsError(f"loss {loss!r} is for ratings of two values, as 0 and 1, or -1 and 1; here are {there}")


def _robust(blocks: Blocks, mean: float, scale: float) -> tuple[float, float]:
    """Return median and spread of ratings in the largest block, which are drawn at random; outliers do not show."""
    key = max(sorted(blocks.entries), key=lambda key: blocks.entries[key].n_train)
    ratings = blocks.read(key, "train")
    some = slice(None, None, 1 + len(ratings.values) // SAMPLED)
    values = ratings.encoding.decode(ratings.values[some]).astype(np.float64)
    weights = np.ones(len(values)) if ratings.weights is None else ratings.weights[some].astype(np.float64)
    median = _median(values, weights)
    deviations = np.abs(values - median)
    return median, _median(deviations, weights) * STD_OF_DEVIATION or float(deviations.mean()) or scale


def _median(values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> float:
    """Return the value at which half of the weight is reached."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(reached, reached[-1] / 2)]])
