"""The update of biased matrix factorization, slow and obvious, in float64. Imports nothing from distmf.

r̂ = μ + b_u + b_i + p_u · q_i                    e = (r − μ) / σ − b_u − b_i − p_u · q_i
b_u += s_u w η (e − λ_b b_u)        p_u += s_u w η (e q_i − λ p_u)
b_i += s_i w η (e − λ_b b_i)        q_i += s_i w η (e p_u − λ q_i)

Ratings come in groups; all updates of a group use the values from before it. For another loss, e is the derivative of
its cost by the prediction, of opposite sign; half of it where the cost is like a square. λ_1, of the sum of |p_uk| and
|q_ik|, then takes s w η λ_1 off the size of each factor, but no more than there is.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Parameters(NamedTuple):
    """Factors and biases; changed in place."""

    P: Floats
    Q: Floats
    b_u: Floats
    b_i: Floats


Cost = Callable[[float, float], float]  # of a normalised rating and a score


def score(parameters: Parameters, u: int, i: int) -> float:
    """Return what is predicted, in units of the scale, from the mean on."""
    P, Q, b_u, b_i = parameters
    return float(b_u[u] + b_i[i] + P[u] @ Q[i])


def error(parameters: Parameters, u: int, i: int, rating: float, mean: float, scale: float) -> float:
    """Return the error of one prediction, in units of the scale."""
    return (rating - mean) / scale - score(parameters, u, i)


def square(value: float, score: float) -> float:
    """Return the cost that is minimised by default."""
    return (value - score) ** 2


def huber(value: float, score: float) -> float:
    """Return the cost that is square up to 1.345 and goes straight on from there."""
    size = abs(value - score)
    return size**2 if size <= 1.345 else 1.345**2 + 2 * 1.345 * (size - 1.345)


def deviance(mean: float) -> Cost:
    """Return the Poisson deviance for ratings of that mean and unit variance, times the mean."""

    def cost(value: float, score: float) -> float:
        rating, rate = value + mean, max(score + mean, 0.1 * mean)
        return 2 * mean * ((rating * math.log(rating / rate) if rating > 0 else 0) - rating + rate)

    return cost


def log_loss(offset: float, slope: float) -> Cost:
    """Return the negative logarithm of the probability that a logistic model gives to a value of -1 or 1."""
    return lambda value, score: math.log1p(math.exp(-value * (offset + slope * score)))


def hinge(value: float, score: float) -> float:
    """Return by how much a score is short of 1 on the right side."""
    return max(0.0, 1 - value * score)


def bounded(cost: Cost, low: float, width: float, offset: float, slope: float) -> Cost:
    """Return a cost of the prediction that a sigmoid makes of the score."""
    return lambda value, score: cost(value, low + width / (1 + math.exp(-(offset + slope * score))))


def pull(cost: Cost, value: float, score: float, *, is_square: bool) -> float:
    """Return the derivative by differences."""
    h = 1e-6
    return (cost(value, score - h) - cost(value, score + h)) / (2 * h * (2 if is_square else 1))


def sgd(
    groups: list[list[tuple[int, int, float, float]]],
    parameters: Parameters,
    *,
    mean: float,
    scale: float,
    step_size: float,
    reg: tuple[float, float],
    bias_reg: tuple[float, float],
    l1_reg: tuple[float, float] = (0.0, 0.0),
    row_shares: Floats | None = None,
    col_shares: Floats | None = None,
    cost: Cost = square,
    is_square: bool = True,
    nonnegative: bool = False,
) -> float:
    """Train on groups of (row, column, rating, weight) one after the other, in place.

    Return the sum of the weighted costs from before each.
    """
    P, Q, b_u, b_i = parameters
    s_u = np.ones(len(P)) if row_shares is None else row_shares
    s_i = np.ones(len(Q)) if col_shares is None else col_shares
    total = 0.0
    for ratings in groups:
        old = Parameters(*(array.copy() for array in parameters))
        for u, i, rating, weight in ratings:
            value, predicted = (rating - mean) / scale, score(old, u, i)
            e = pull(cost, value, predicted, is_square=is_square)
            of_row, of_col = s_u[u] * weight * step_size, s_i[i] * weight * step_size
            b_u[u] += of_row * (e - bias_reg[0] * old.b_u[u])
            b_i[i] += of_col * (e - bias_reg[1] * old.b_i[i])
            P[u] += of_row * (e * old.Q[i] - reg[0] * old.P[u])
            Q[i] += of_col * (e * old.P[u] - reg[1] * old.Q[i])
            Q[i] = settled(Q[i], of_col * l1_reg[1], nonnegative=nonnegative)
            total += weight * cost(value, predicted)
        rows = {u for u, *_ in ratings}
        for u in rows:
            weight = sum(weight for row, _, _, weight in ratings if row == u)
            P[u] = settled(P[u], s_u[u] * weight * step_size * l1_reg[0], nonnegative=nonnegative)
    return total


def settled(values: Floats, threshold: float, *, nonnegative: bool) -> Floats:
    """Return values, nearer to zero by the threshold, and not below zero if that is asked for."""
    values = np.sign(values) * np.maximum(np.abs(values) - threshold, 0)
    return np.maximum(values, 0) if nonnegative else values


def mse(ratings: list[tuple[int, int, float]], parameters: Parameters, mean: float, scale: float) -> float:
    """Return the mean squared error at fixed factors, in units of the ratings."""
    errors = [error(parameters, u, i, rating, mean, scale) for u, i, rating in ratings]
    return float(np.mean(np.square(errors)) * scale**2)
