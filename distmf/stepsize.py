"""Costs of past epochs -> the next step size. Pure: no files, no Dask.

The cost that decides the step of epoch t is that of epoch t − 2: epoch t − 1 may still be under way on some blocks when
the first blocks of epoch t start, and waiting for it would put a barrier between epochs.
"""

import math
from typing import NamedTuple

DENSE = 100  # ratings per user and item, at which …
START, REG = 0.04, 0.04  # … these are best
MOST_START, MOST_REG = 0.1, 0.08
GROWTH = 1.02
CUT = 0.5
LARGEST = 0.2
RISE = 1.02  # a cost that rises by less is noise: cutting for it would end in steps of nothing


MOST_RATINGS = 2_500  # of a user or an item in an epoch, in the mean: those with more take a share of the step


def start_for(n_ratings: int, n_lines: int) -> float:
    """Return the step size to begin with, for so many ratings of so many users and items together.

    Few ratings each make few steps, which must be larger; many do with smaller ones, which are less noisy.
    `docs/steps.md` has what is best for 17 to 1,180 ratings per user and item, real and made up ones.
    """
    return min(MOST_START, START * _by_sparsity(n_ratings, n_lines))


def reg_for(n_ratings: int, n_lines: int) -> float:
    """Return λ per rating, for so many ratings of so many users and items together.

    A prior on the factors would count once for each of them, the same λ once for each rating; the best values lie
    between the two, and where ratings are many, nearer to the latter.
    """
    return min(MOST_REG, REG * _by_sparsity(n_ratings, n_lines))


def _by_sparsity(n_ratings: int, n_lines: int) -> float:
    sparsity = DENSE * n_lines / n_ratings
    return math.pow(sparsity, 1 / 2 if sparsity > 1 else 1 / 4)


def share_of_step(n_ratings: int, n_lines: int) -> float:
    """Return the share of the step size that so many users, or items, take.

    With few items, for example, each has so many ratings in a block that it ends wherever this block alone wants it.
    The users of each row block then agree with the items as they were during their visit, but not with one another: the
    errors seen on the way are small, and the model is useless. So items may move no faster than the mean of an epoch.
    """
    return min(1.0, MOST_RATINGS * n_lines / n_ratings)


class StepState(NamedTuple):
    """What the next step size is computed from.

    Attributes
    ----------
    epoch : int
        Epochs done.
    base : float
        η of the next epoch before `StepRule.step_size` anneals it.
    cost : float or None
        The last cost that has been seen, None before the first.
    """

    epoch: int
    base: float
    cost: float | None


class StepRule(NamedTuple):
    """How the step size goes on from epoch to epoch.

    Attributes
    ----------
    start : float
        η of the first epoch.
    decay : float
        Factor from epoch to epoch.
    epochs : int or None
        For the bold driver: it grows the step while the cost falls, cuts it when the cost rises, and lets all of it go
        to zero in a straight line towards the end of so many epochs. None for a step that only decays.

    References
    ----------
    .. [1] R. Battiti, "Accelerated Backpropagation Learning: Two Optimization Methods", Complex Systems, 1989.
    .. [2] R. Gemulla, E. Nijkamp, P. Haas, Y. Sismanis, "Large-Scale Matrix Factorization with Distributed Stochastic
       Gradient Descent", KDD 2011.
    .. [3] M. Li, E. Yumer, D. Ramanan, "Budgeted Training", ICLR 2020: the straight line.
    """

    start: float
    decay: float = 1.0
    epochs: int | None = None

    def first(self) -> StepState:
        """Return the state of the first epoch."""
        return StepState(0, self.start, None)

    def planned(self, epochs: int) -> float:
        """Return the sum of the step sizes of so many epochs, as far as it is known at the beginning."""
        return sum(self.step_size(StepState(n, self.start * self.decay**n, None)) for n in range(epochs))

    def step_size(self, state: StepState) -> float:
        """Return η of the epoch that `state` is of: on the straight line to zero, if there is one.

        The state does not know the line, so a training that goes on with more `epochs` goes on along a longer one.
        """
        return state.base if self.epochs is None else state.base * (1 - state.epoch / self.epochs)

    def next(self, state: StepState, cost: float | None) -> StepState:
        """Return the state of the epoch after `state`, given the cost of the epoch before it, if there was one.

        A cost that is not a finite number counts as one that rose.
        """
        epoch, base = state.epoch + 1, state.base * self.decay
        if self.epochs is None or cost is None:
            return StepState(epoch, base, state.cost)
        factor = GROWTH if cost < RISE * (math.inf if state.cost is None else state.cost) else CUT
        return StepState(epoch, min(factor * base, LARGEST), cost)
