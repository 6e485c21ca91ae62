"""Stochastic gradient Langevin dynamics on blocks: draws of factors and biases from their posterior. No files, no Dask.

The model is Gaussian: ratings have noise of precision τ around r̂, and every latent dimension k has a prior precision
λ_k on either side, as have the biases; all are drawn once an epoch from their Gamma conditionals, so there is no λ to
choose. An epoch of SGD without decay moves a row by η/τ times the gradient of the log likelihood; what makes draws of
it is, at the end of an epoch, the pull of the prior, and noise.

Steps are large, so the two are what an epoch as a whole needs. With T = η/τ, x = η n h for a row of n ratings and
h = E[q_k²], and y = T λ, an epoch keeps a = e^(−x) of a deviation from what its ratings want. The mean is to be
x/(x + y) of that, so the prior leaves k = 1/(1 + y (1 − a)/x). The variance is to be T/(x + y); the random order of the
ratings, of which the last count most, adds T ((1 − a²)/2 − (1 − a)²/x) by itself; so the noise has the variance

    T ((1 − k² a²)/(x + y) − k² ((1 − a²)/2 − (1 − a)²/x))

The noise is not the same everywhere: the precision of a rating is τ α_u β_i, and the n above are n α_u and n β_i.
With S, the sum of β_i e² over the n ratings of a user, in units of its mean, α_u is (ν + n)/(ν + S), and ν follows
from how much more the S differ than sums of squares of one variance would. Where they do not, as of ratings that are
all equally noisy, ν is large and all α are 1.

Rows with so many ratings that x would be above 1 take a share of the step. The scales of p_k and q_k may be traded for
one another without changing r̂; as steps are the same on both sides, they are kept in balance.

Everything that an epoch needs of all blocks (τ, λ, ν, E[q²]) is from the epoch before the last, as the step size is.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from distmf.kernel import FactorBlock
from distmf.moves import move_all
from distmf.vectors import Line

HOT = 0.05  # η at the beginning of a chain
STEP, RANK_OF_STEP = 0.02, 32  # η while draws are taken, up to this rank; with its square root less beyond
MOST_CONTRACTION = 1.0  # x of an epoch, at most
BALANCING = 1 / 12  # of (E[q²] / E[p²]) in an epoch: a third of what would balance them at once, as it acts late
ROWS_OF_ZERO = 0.08  # of the rows: so many more, with factors of zero, are the prior of λ; it tells on ranks too high
MOST_FREEDOM = 1e6  # of the prior of the precisions of rows: as good as no differences between them
CAUTION = 10  # times ν for the precisions to train with: those as different as the errors are make predictions worse
FIRST_PRECISION = 10.0  # of the factors' priors, before there are factors to tell
SIDES: tuple[Literal["user", "item"], ...] = "user", "item"

Floats = npt.NDArray[np.float64]


class ChainState(NamedTuple):
    """What the next epoch of a chain is drawn with; plain numbers, for a JSON file.

    Attributes
    ----------
    epoch : int
        Epochs done in this chain.
    base : float
        Factor on all step sizes.
    noise_precision : float
        τ, on ratings of unit standard deviation.
    precisions : lists of float, shape (2, rank + 1)
        λ of the users' and the items' factors, and of their biases at the end.
    energies : lists of float, shape (2, rank)
        E[p_k²] and E[q_k²], means over the ratings.
    errors : list of float, shape (3,)
        E[β_i e²] and E[α_u e²], alike, and E[e²].
    freedoms : list of float, shape (2,)
        ν of the priors of α_u and β_i.
    """

    epoch: int
    base: float
    noise_precision: float
    precisions: Sequence[Sequence[float]]
    energies: Sequence[Sequence[float]]
    errors: Sequence[float]
    freedoms: Sequence[float]


class LangevinRule(NamedTuple):
    """How a chain goes on from epoch to epoch.

    Attributes
    ----------
    chains, epochs : int
        How many chains there are, one after the other, and how many epochs each has.
    rank, seed : int
        Number of latent factors; of all draws.
    n_ratings : int
        Ratings to train on.
    n_rated : tuple of int
        Users, and items, with ratings to train on.

    References
    ----------
    .. [1] S. Ahn, A. Korattikara, N. Liu, S. Rajan, M. Welling, "Large-Scale Distributed Bayesian Matrix Factorization
       using Stochastic Gradient MCMC", KDD 2015.
    .. [2] M. Welling, Y. W. Teh, "Bayesian Learning via Stochastic Gradient Langevin Dynamics", ICML 2011.
    .. [3] R. Salakhutdinov, A. Mnih, "Bayesian Probabilistic Matrix Factorization using Markov Chain Monte Carlo", ICML
       2008: the priors.
    .. [4] B. Lakshminarayanan, G. Bouchard, C. Archambeau, "Robust Bayesian Matrix Factorisation", AISTATS 2011: noise
       that differs from user to user and from item to item.
    """

    chains: int
    epochs: int
    rank: int
    seed: int
    n_ratings: int
    n_rated: tuple[int, int]

    @property
    def burn_in(self) -> int:
        """Epochs of a chain before draws are taken: it begins with large steps, which find a good place sooner."""
        return self.epochs // 2

    def first(self) -> ChainState:
        """Return the state of the first epoch of a chain."""
        precisions = [*[FIRST_PRECISION] * self.rank, 1.0]
        energies = [1 / FIRST_PRECISION] * self.rank
        return ChainState(0, 1.0, 1.0, [precisions] * 2, [energies] * 2, [1.0] * 3, [MOST_FREEDOM] * 2)

    def step_size(self, state: ChainState) -> float:
        """Return η of the epoch that `state` is of."""
        last = STEP * math.sqrt(min(1.0, RANK_OF_STEP / self.rank))
        return state.base * HOT * math.pow(last / HOT, min(1.0, state.epoch / max(1, self.burn_in)))

    def next(self, state: ChainState, cost: float, spread: Floats, epoch: int) -> ChainState:
        """Return the state of the epoch after `state`.

        Parameters
        ----------
        state : ChainState
            Of the last epoch.
        cost : float
            Mean squared error seen in the epoch before it.
        spread : float64, shape (2, 2, rank + 3)
            `end_epoch` of all users and all items, in that epoch.
        epoch : int
            Number of the last epoch, counted over all chains.
        """
        rng = np.random.default_rng([self.seed, epoch, len(SIDES)])

        def drawn(n: float, squares: float) -> float:
            return float(rng.gamma(1 + n / 2, 1 / (1 + squares / 2)))

        tau = drawn(self.n_ratings, spread[0, 0, -2])
        precisions = [
            [*(drawn((1 + ROWS_OF_ZERO) * n, x) for x in squares[:-3]), drawn(n, squares[-3])]
            for n, (squares, _) in zip(self.n_rated, spread.tolist(), strict=True)
        ]
        means = np.maximum(spread[:, 1] / self.n_ratings, np.finfo(np.float32).tiny)
        energies, errors = means[:, :-3].tolist(), [*means[:, -2].tolist(), cost]
        freedoms = (2 / np.maximum(spread[:, 0, -1] / spread[:, 1, -1], 2 / MOST_FREEDOM)).tolist()
        return ChainState(state.epoch + 1, state.base, tau, precisions, energies, errors, freedoms)

    def share(self, block: FactorBlock, side: Literal["user", "item"], state: ChainState) -> None:
        """Give each row of a block its share of the step size of an epoch."""
        assert block.lines is not None
        line, energy = Line(*block.lines.T), max(state.energies[1 - SIDES.index(side)])
        most = np.float32(MOST_CONTRACTION / (energy * self.step_size(state)))
        line.share[:] = np.minimum(np.float32(1), most / np.maximum(line.precision * line.count, np.float32(1)))


def end_epoch(
    block: FactorBlock, side: Literal["user", "item"], state: ChainState, rule: LangevinRule, seed: int
) -> Floats:
    """Do to a block, in place, what an epoch does besides its gradients, and return sums over its rows.

    That is balance, the pull of the prior, and noise; after burn-in, what was drawn is then taken into the mean.

    Parameters
    ----------
    block : FactorBlock
        After the last of its visits.
    side : {"user", "item"}
        What its rows are.
    state : ChainState
        Of this epoch.
    rule : LangevinRule
        Of the chain.
    seed : int
        Of the noise; from 0 to 2**63 - 1.

    Returns
    -------
    float64, shape (2, rank + 3)
        Sums of squares, and of squares times ratings, of factors and biases; then those of squared errors, times
        both precisions, and times that of the other side only; at the end those of variety.
    """
    assert block.mean is not None
    assert block.lines is not None
    own, rank = SIDES.index(side), rule.rank
    energies, inverse_tau = np.array(state.energies), 1 / state.noise_precision
    balance = (energies[1] / energies[0]) ** (-BALANCING if own else BALANCING)
    others = energies[1 - own] * balance**2
    pulls = np.array(state.precisions[own]) * inverse_tau
    of_factors, of_biases = (balance, others, pulls[:-1] / balance**2), ([1.0], [1.0], pulls[-1:])
    line = Line(*block.lines.T)
    counts, steps = line.precision * line.count, np.float32(rule.step_size(state)) * line.share
    of_mean = 1 / max(1, 1 + state.epoch - rule.burn_in)  # the first draw starts it anew
    numbers = np.float32(inverse_tau), np.float32(of_mean)
    sums, of_bias = np.zeros((2, rank)), np.zeros((2, 1))
    move_all(block.factors, block.mean.factors, counts, steps, _columns(of_factors), numbers, np.uint64(seed), sums)
    biases, means = block.biases[:, None], block.mean.biases[:, None]
    move_all(biases, means, counts, steps, _columns(of_biases), numbers, np.uint64(seed + 1), of_bias)
    columns = [sums, of_bias, *(column[:, None] for column in _learned_precisions(line, state, rule, own))]
    return np.hstack(columns)


def _learned_precisions(line: Line, state: ChainState, rule: LangevinRule, own: int) -> tuple[Floats, Floats]:
    """Give rows the precisions that follow from the errors of an epoch, and return sums: of errors, and of variety.

    Those of errors are as `end_epoch` returns them. Those of variety are (S − n)² − 2 n and n², for n ratings of a row
    with errors of S together, in units of the noise: the variance of a sum of n squares is 2 n, and what it is beyond
    that, n² · 2/ν, tells how different the noise of rows is.
    """
    count, squares = line.count.astype(np.float64), line.squares.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows makes the cost infinite, and that is seen
        errors = np.array([(line.precision * squares).sum(), squares.sum()])
        squares /= state.errors[own]
        variety = np.array([(np.square(squares - count) - 2 * count).sum(), np.square(count).sum()])
        if state.epoch >= rule.burn_in // 2:  # before, errors are of what is not learned yet
            freedom, cautious = state.freedoms[own], CAUTION * state.freedoms[own]
            for column, wanted in (
                (line.noise, (freedom + squares) / (freedom + count)),
                (line.precision, (cautious + count) / (cautious + squares)),
            ):  # a quarter of the way, by logarithms: both sides and τ act upon one another, and late
                column[:] = np.sqrt(np.sqrt(column * column * column * wanted))
        line.squares[:] = 0
    return errors, variety


def compile_moves() -> None:
    """Compile what moves blocks, so that no task has to wait for it."""
    nothing = FactorBlock(np.empty((0, 1), np.float32), np.empty(0, np.float32))
    rule = LangevinRule(1, 1, rank=1, seed=0, n_ratings=1, n_rated=(1, 1))
    end_epoch(
        nothing._replace(mean=nothing, lines=np.empty((0, len(Line._fields)), np.float32)),
        "user",
        rule.first(),
        rule,
        0,
    )


def _columns(columns: Sequence[npt.ArrayLike]) -> tuple[npt.NDArray[np.float32], ...]:
    return tuple(np.array(column, dtype=np.float32) for column in columns)
