"""Costs of past epochs -> the next step size. Pure: no files, no Dask.

The cost that decides the step of epoch t is that of epoch t − 2: epoch t − 1 may still be under way on some blocks when
the first blocks of epoch t start, and waiting for it would put a barrier between epochs.
"""

import math
from typing import NamedTuple

START = 0.05
GROWTH = 1.05
CUT = 0.5


class StepState(NamedTuple):
    """What the next step size is computed from.

    Attributes
    ----------
    step_size : float
        η of the epoch that the state belongs to.
    cost : float
        The lowest cost that has been seen, infinite before the first.
    """

    step_size: float
    cost: float


class StepRule(NamedTuple):
    """How the step size goes on from epoch to epoch.

    Attributes
    ----------
    start : float
        η of the first epoch.
    decay : float
        Factor from epoch to epoch.
    is_bold : bool
        Whether to grow while the cost falls and to cut when it rises: the bold driver.

    References
    ----------
    .. [1] R. Battiti, "Accelerated Backpropagation Learning: Two Optimization Methods", Complex Systems, 1989.
    .. [2] R. Gemulla, E. Nijkamp, P. Haas, Y. Sismanis, "Large-Scale Matrix Factorization with Distributed Stochastic
       Gradient Descent", KDD 2011.
    """

    start: float
    decay: float
    is_bold: bool

    def first(self) -> StepState:
        """Return the state of the first epoch."""
        return StepState(self.start, math.inf)

    def next(self, state: StepState, cost: float | None) -> StepState:
        """Return the state of the epoch after `state`, given the cost of the epoch before it, if there was one.

        A cost that is not a finite number counts as one that rose.
        """
        step_size = state.step_size * self.decay
        if not self.is_bold or cost is None:
            return state._replace(step_size=step_size)
        if cost < state.cost:
            return StepState(step_size * GROWTH, cost)
        return StepState(step_size * CUT, state.cost)
