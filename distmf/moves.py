"""What moves rows of a chain of draws besides their gradients, compiled; `langevin` has the formulas.

Every number is computed alone, in an order that the source says, and with nothing of a mathematical library: so the
compiler may take vectors, and the bits are the same on any machine.
"""

import math

import numpy as np

from distmf.compiled import compiled

LEAST_CONTRACTION = np.float32(1e-3)  # below, the differences of float32 numbers are noise of another kind
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # between what is hashed
MEAN_OF_SUM, INVERSE_STD_OF_SUM = np.float32(131070), np.float32(math.sqrt(3 / (65536**2 - 1)))  # of four of 16 bits


@compiled()
def move_all(values, means, counts, steps, columns, numbers, seed, sums):
    """Balance, pull by the prior, and shake all of one array of factors or biases, in place.

    Parameters
    ----------
    values, means : float32, shape (n, at least rank)
        Factors, and means of those drawn so far.
    counts, steps : float32, shape (n,)
        Ratings of each row, and its step size.
    columns : float32 arrays, shape (rank,)
        Balance, E[q_k²] of what is multiplied with, and λ_k/τ.
    numbers : float32
        1/τ, and the share of the mean that is taken from what is drawn now.
    seed : uint64
        Of the noise.
    sums : float64, shape (2, rank)
        To add squares to, and squares times ratings.
    """
    balance, others, pulls = columns
    inverse_tau, of_mean = numbers
    rank = len(balance)
    for u in range(len(counts)):
        n, eta, first = counts[u], steps[u], np.uint64(u) * np.uint64(rank)
        temperature = eta * inverse_tau if n > 0 else np.float32(0)  # rows without ratings stay at zero
        for k in range(rank):
            kept, variance = prior_and_noise(eta * n * others[k], eta * pulls[k])
            noise = math.sqrt(temperature * variance) * _draw(seed + (first + np.uint64(k)) * GOLDEN)
            value, mean = values[u, k] * balance[k] * kept + noise, means[u, k] * balance[k]
            values[u, k], means[u, k] = value, mean + (value - mean) * of_mean
            square = np.float64(value) * np.float64(value)
            sums[0, k] += square
            sums[1, k] += np.float64(n) * square


@compiled()
def _draw(x):
    """Return a number of mean 0 and variance 1: the sum of the four parts of a hash (splitmix64) as uniform numbers.

    Weak convergence needs no more of noise than the first moments of the normal distribution [1]_.

    References
    ----------
    .. [1] P. E. Kloeden, E. Platen, "Numerical Solution of Stochastic Differential Equations", 1992, section 14.1.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    part = np.uint64(0xFFFF)
    total = (x & part) + ((x >> np.uint64(16)) & part) + ((x >> np.uint64(32)) & part) + (x >> np.uint64(48))
    return (np.float32(np.int32(total)) - MEAN_OF_SUM) * INVERSE_STD_OF_SUM


@compiled()
def prior_and_noise(x, y):
    """Return what the prior leaves, k, and the variance of the noise in units of T, as the formulas above; float32."""
    one, two, half = np.float32(1), np.float32(2), np.float32(0.5)
    x = max(x, LEAST_CONTRACTION)
    lost, term = np.float32(0), min(x, np.float32(4)) * np.float32(0.125)
    h = term
    for n in (2, 3, 4, 5, 6, 7):  # 1 − e^(−x/8); the same on any machine, and in vectors
        lost += term
        term *= -h / np.float32(n)
    for _ in range(3):
        lost *= two - lost  # 1 − a
    kept = one / (one + y * lost / x)
    of_order = lost * (one - half * lost) - lost * lost / x
    left = kept * (one - lost)
    variance = (one - left * left) / (x + y) - kept * kept * of_order
    return kept, max(variance, np.float32(0))
