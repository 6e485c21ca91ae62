"""Users who were not trained on: their ratings and the items' factors -> theirs, each by one ridge regression.

With the items fixed, the best p_u and b_u of a user solve, for z = (q_i, 1) and the errors y = r − μ − b_i so far,

    (Σ w z zᵀ + Λ) (p_u, b_u) = Σ w y z

where Λ is that of training, λ σ on the factors and λ_b on the bias, for each of the n ratings; and, as few ratings say
little, that of a prior, the squared error of training over the mean squares of the factors and biases of all users.
That counts 1/(1 + n/5) times: users of many ratings differ more than these mean squares tell.

For draws from the posterior, every chain has a solution of its own, with its prior and the precision of the noise; and
what is drawn is drawn from the normal distribution of that mean and precision. Each rating counts the less, the noisier
those of its item are.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distmf.blocks import Blocks
from distmf.grid import BlockKey
from distmf.model import Model
from distmf.progress import Progress
from distmf.sides import Float32, Side

FEW = 5  # ratings of a user, with which the prior counts half
JITTER = 1e-9  # of the diagonal: without any λ, users of few ratings have many solutions

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Regressor:
    """Items as they are fixed for one solution.

    Attributes
    ----------
    items : float64, shape (n_items, rank + 1)
        q_i, and 1.
    biases : float64, shape (n_items,)
        b_i.
    each, once : float64, shape (rank + 1,)
        The diagonal of Λ: for each rating, and once for a user.
    few : float
        Ratings with which what counts once counts half.
    """

    items: Floats
    biases: Floats
    each: Floats
    once: Floats
    few: float = math.inf

    @classmethod
    def of(cls, factors: Any, biases: Any, each: Any, once: Any, few: float = math.inf) -> "Regressor":
        """Return the items with those factors and biases."""
        items = np.ones((len(biases), factors.shape[1] + 1))
        items[:, :-1] = factors
        diagonal = np.zeros(items.shape[1])
        return cls(items, np.asarray(biases, dtype=np.float64), diagonal + each, diagonal + once, few)

    def system(self, cols: npt.NDArray[np.int64], ratings: Floats, weights: Floats) -> tuple[Floats, Floats]:
        """Return the matrix and the right side for one user, whose ratings are less their mean."""
        z = self.items[cols]
        weighted = z * weights[:, None]
        matrix = z.T @ weighted
        diagonal = np.diag_indices_from(matrix)
        matrix[diagonal] += self.each * weights.sum() + self.once / (1 + weights.sum() / self.few)
        matrix[diagonal] += JITTER * matrix[diagonal] + np.finfo(np.float64).tiny
        return matrix, weighted.T @ (ratings - self.biases[cols])


def fold_in(model: Model, blocks: Blocks, reg: float, bias_reg: float, seed: int) -> Model:
    """Return a model that also has the users of some ratings; of items that it does not have, the ratings do not count.

    Parameters
    ----------
    model : Model
        Of squared errors.
    blocks : Blocks
        The ratings.
    reg, bias_reg : float
        λ and λ_b of users, per rating, as in training.
    seed : int
        Of draws.
    """
    all_ids = model.users.cast(blocks.ids("user")["id"], "user")
    cols_of = model.items.positions(blocks.ids("item")["id"], "item")
    solver = _Draws(model, seed) if model.users.draws is not None else _Ridge(model, reg, bias_reg)
    ids, n_left_out = [], 0
    progress = Progress(logger, "folding in", blocks.n_ratings)
    for row in range(blocks.shape.rows):
        rows, cols, ratings, weights = _ratings_of(blocks, row)
        known = cols_of[cols] >= 0
        n_left_out += int(np.count_nonzero(~known))
        order = np.flatnonzero(known)[np.argsort(rows[known], kind="stable")]
        for some in np.split(order, np.flatnonzero(np.diff(rows[order])) + 1):
            if len(some):
                ids.append(int(rows[some[0]]))
                solver.add(cols_of[cols[some]], ratings[some] - model.global_bias, weights[some])
        progress.advance(len(rows))
    logger.info(
        "folded in: %s users; %s of %s ratings are of items that were not trained on, and left out",
        *(f"{n:,}" for n in (len(ids), n_left_out, blocks.n_ratings)),
    )
    if not ids:
        return model
    return model._replace(users=model.users.updated(solver.side(all_ids.take(pa.array(ids)))))


def _ratings_of(blocks: Blocks, row: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats, Floats]:
    """Return row and column numbers, ratings and weights, whose mean is 1, of a row block."""
    mean_weight = blocks.train_weight / blocks.n_ratings

    def parts() -> Iterator[tuple[Any, Any, Any, Any]]:
        for col in range(blocks.shape.cols):
            key = BlockKey(row, col)
            found = blocks.read(key, "train")
            weights = np.ones(len(found.values)) if found.weights is None else found.weights / mean_weight
            yield *blocks.numbers(key, "train"), found.encoding.decode(found.values), weights

    rows, cols, ratings, weights = (np.concatenate(arrays) for arrays in zip(*parts(), strict=True))
    return rows, cols, ratings.astype(np.float64), weights.astype(np.float64)


class _Solver:
    """Solves for one user after the other."""

    def __init__(self) -> None:
        self.factors: list[Float32] = []
        self.biases: list[float] = []
        self.counts: list[int] = []
        self.draws: list[Float32] = []

    def side(self, ids: pa.Array) -> Side:
        """Return all users so far."""
        draws = np.array(self.draws, dtype=np.float32) if self.draws else None
        noises = None if draws is None else np.ones(len(draws), dtype=np.float32)
        factors, biases = np.array(self.factors, dtype=np.float32), np.array(self.biases, dtype=np.float32)
        return Side(ids, factors, biases, np.array(self.counts, dtype=np.int64), draws, noises)


class _Ridge(_Solver):
    """One regression for each user."""

    def __init__(self, model: Model, reg: float, bias_reg: float) -> None:
        super().__init__()
        each = [*[reg * model.normalisation.scale] * model.items.factors.shape[1], bias_reg]
        users, is_known = model.users, model.users.counts > 0
        rows = np.column_stack([users.factors[is_known], users.biases[is_known]]).astype(np.float64)
        once = _noise(model) / np.maximum(np.square(rows).mean(axis=0), np.finfo(np.float32).tiny)
        self._items = Regressor.of(model.items.factors, model.items.biases, each, once, FEW)

    def add(self, cols: npt.NDArray[np.int64], ratings: Floats, weights: Floats) -> None:
        found = np.linalg.solve(*self._items.system(cols, ratings, weights))
        self.factors.append(found[:-1])
        self.biases.append(float(found[-1]))
        self.counts.append(len(cols))


def _noise(model: Model) -> float:
    """Return the mean squared error of training."""
    error = model.history.train_error
    return float(np.square(error if error is not None else model.history[-1].train_error))


class _Draws(_Solver):
    """A regression on the mean of each chain, for the predictions, and one on its last draw, to draw from."""

    def __init__(self, model: Model, seed: int) -> None:
        super().__init__()
        assert model.users.draws is not None
        assert model.items.draws is not None
        assert model.items.noises is not None
        assert model.noise_std is not None
        self._rng, self._tau = np.random.default_rng([seed, len(model.users.ids)]), model.noise_std**-2
        n_chains, width = model.items.draws.shape[1:]
        self._root = np.sqrt(n_chains)
        means = model.items.factors.reshape(len(model.items.ids), n_chains, width - 1) * self._root
        priors = 1 / np.maximum(model.users.squares, np.finfo(np.float32).tiny) / self._tau
        of_draws = model.items.draws
        self._means = [Regressor.of(means[:, n], model.items.biases, 0.0, priors[n]) for n in range(n_chains)]
        self._noises = model.items.noises
        self._lasts = [Regressor.of(of_draws[:, n, :-1], of_draws[:, n, -1], 0.0, priors[n]) for n in range(n_chains)]

    def add(self, cols: npt.NDArray[np.int64], ratings: Floats, weights: Floats) -> None:
        weights = weights / self._noises[cols]
        means = np.array([np.linalg.solve(*items.system(cols, ratings, weights)) for items in self._means])
        self.factors.append((means[:, :-1] / self._root).ravel())
        self.biases.append(float(means[:, -1].mean()))
        draws = []
        for items in self._lasts:
            matrix, right = items.system(cols, ratings, weights)
            noise = self._rng.standard_normal(len(right)) / np.sqrt(self._tau)
            lower = np.linalg.cholesky(matrix)
            draws.append(np.linalg.solve(lower.T, np.linalg.solve(lower, right) + noise))
        self.draws.append(np.array(draws))
        self.counts.append(len(cols))
