"""Blocks and a loss -> how ratings become the numbers that the kernel works on, and the constants of its formulas."""

import math

import numpy as np

from distmf.blocks import Blocks
from distmf.errors import RatingsError
from distmf.losses import LOSSES, Constants, LossName, Normalisation, Objective

SAMPLED = 1 << 20  # ratings, of which median and deviation are taken
STD_OF_DEVIATION = 1.4826  # of a normal distribution, over its median deviation
LEAST_SHARE = 0.01  # of the interval on either side of the mean, for the slope of the sigmoid there


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
        if lowest < 0 or mean <= 0:
            raise RatingsError(f"loss 'poisson' is for counts and other amounts, but ratings are from {lowest:g} on")
        return _with(loss, mean, scale, Constants(offset=mean / scale), nonnegative=nonnegative)
    if kind.is_robust:
        mean, scale = _robust(blocks, mean, scale)
    if bounds is None:
        return _with(loss, mean, scale, Constants(), nonnegative=nonnegative)
    low, high = bounds
    if not low <= lowest <= highest <= high:
        raise RatingsError(
            f"bounds are {low:g} and {high:g}, but there are ratings from {lowest:g} to {highest:g}; all must be within"
        )
    share = min(1 - LEAST_SHARE, max(LEAST_SHARE, (mean - low) / (high - low)))
    width = (high - low) / scale
    offset, slope = math.log(share / (1 - share)), 1 / (width * share * (1 - share))
    return _with(
        loss, mean, scale, Constants((low - mean) / scale, width, offset, slope), True, nonnegative=nonnegative
    )


def _with(
    loss: LossName, mean: float, scale: float, constants: Constants, is_bounded: bool = False, *, nonnegative: bool
) -> Normalisation:
    return Normalisation(mean, scale, Objective(loss, is_bounded, nonnegative, constants))


def _refuse_values(blocks: Blocks, loss: LossName) -> None:
    values = blocks.layout.encoding.table
    if len(values) != 2 or not blocks.rating_range[0] < blocks.moments.mean < blocks.rating_range[1]:
        shown = ", ".join(f"{value:g}" for value in values[:3]) + (", …" if len(values) > 3 else "")
        there = f"{len(values)} values: {shown}" if values else "more than 256 values, or means of duplicates"
        raise RatingsError(f"loss {loss!r} is for ratings of two values, as 0 and 1, or -1 and 1; here are {there}")


def _robust(blocks: Blocks, mean: float, scale: float) -> tuple[float, float]:
    """Return median and spread of ratings in the largest block, which are drawn at random; outliers do not show."""
    key = max(sorted(blocks.entries), key=lambda key: blocks.entries[key].n_train)
    ratings = blocks.read(key, "train")
    values = ratings.encoding.decode(ratings.values[:: 1 + len(ratings.values) // SAMPLED]).astype(np.float64)
    median = float(np.median(values))
    deviation = float(np.median(np.abs(values - median))) * STD_OF_DEVIATION
    return median, deviation or float(np.mean(np.abs(values - median))) or scale
