"""The update of biased matrix factorization, slow and obvious, in float64. Imports nothing from distmf.

r̂ = μ + b_u + b_i + p_u · q_i                    e = (r − μ) / σ − b_u − b_i − p_u · q_i
b_u += s_u η (e − λ_b b_u)        p_u += s_u η (e q_i − λ p_u)
b_i += s_i η (e − λ_b b_i)        q_i += s_i η (e p_u − λ q_i)

Ratings come in groups; all updates of a group use the values from before it.
"""

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


def error(parameters: Parameters, u: int, i: int, rating: float, mean: float, scale: float) -> float:
    """Return the error of one prediction, in units of the scale."""
    P, Q, b_u, b_i = parameters
    return float((rating - mean) / scale - b_u[u] - b_i[i] - P[u] @ Q[i])


def sgd(
    groups: list[list[tuple[int, int, float]]],
    parameters: Parameters,
    *,
    mean: float,
    scale: float,
    step_size: float,
    reg: float,
    bias_reg: float,
    row_shares: Floats | None = None,
    col_shares: Floats | None = None,
) -> float:
    """Train on groups one after the other, in place, and return the sum of the squared errors from before each."""
    P, Q, b_u, b_i = parameters
    s_u = np.ones(len(P)) if row_shares is None else row_shares
    s_i = np.ones(len(Q)) if col_shares is None else col_shares
    squared = 0.0
    for ratings in groups:
        old = Parameters(*(array.copy() for array in parameters))
        for u, i, rating in ratings:
            e = error(old, u, i, rating, mean, scale)
            b_u[u] += s_u[u] * step_size * (e - bias_reg * old.b_u[u])
            b_i[i] += s_i[i] * step_size * (e - bias_reg * old.b_i[i])
            P[u] += s_u[u] * step_size * (e * old.Q[i] - reg * old.P[u])
            Q[i] += s_i[i] * step_size * (e * old.P[u] - reg * old.Q[i])
            squared += e**2
    return squared


def mse(ratings: list[tuple[int, int, float]], parameters: Parameters, mean: float, scale: float) -> float:
    """Return the mean squared error at fixed factors, in units of the ratings."""
    errors = [error(parameters, u, i, rating, mean, scale) for u, i, rating in ratings]
    return float(np.mean(np.square(errors)) * scale**2)
