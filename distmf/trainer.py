"""Blocks and hyperparameters -> trained factor blocks: the driver of the epochs.

Epochs run in generations of several, as if nothing would happen in them. What does happen is decided epoch by epoch
when a generation has ended: if its third epoch reached the target, or diverged, the generation is run again up to the
epoch that counts. So the result does not depend on the length of a generation.
"""

import itertools
import logging
import math
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from distmf import kernel
from distmf.engine import ThreadEngine
from distmf.errors import DivergedError
from distmf.graph import Cost, State, Training, build_generation, build_measurement, first_state
from distmf.grid import BlockKey
from distmf.history import Epoch, Stopped

logger = logging.getLogger(__name__)

EPOCHS_PER_GENERATION = 5
STEADY_EPOCHS = 3  # in a row, whose changes of the cost must all be small
DIVERGED = 2.0  # a cost this many times the lowest has diverged …
NEGLIGIBLE = 0.01  # … unless both are below this share of the ratings' variance
ROLLBACKS_BEFORE_RESTART = 3
MAX_ROLLBACKS = 60


class StopRules(NamedTuple):
    """When to end.

    Attributes
    ----------
    epochs : int
        At the latest.
    tol : float
        When the cost has changed by less than this share in each of the last few epochs; 0 never.
    target_cost : float or None
        When the exact mean squared error over the ratings, in their units squared, is below this.
    """

    epochs: int
    tol: float
    target_cost: float | None


class Verdict(NamedTuple):
    """What the costs of a generation say: how many of its epochs count, and what happened then."""

    n_epochs: int
    event: Stopped | None
    diverged: bool = False


class Outcome(NamedTuple):
    """What a generation leaves: the state at its end, and cost and step size of each of its epochs."""

    state: State
    costs: list[Cost]
    step_sizes: list[float]


@dataclass
class Trainer:
    """Runs one training; `state` is the last good one at any time.

    Attributes
    ----------
    training : Training
        What stays the same.
    rules : StopRules
        When to end.
    engine : ThreadEngine
        Runs the graphs.
    """

    training: Training
    rules: StopRules
    engine: ThreadEngine
    state: State = field(init=False)
    epochs: list[Epoch] = field(init=False, default_factory=list)
    rollbacks: int = field(init=False, default=0)
    seconds: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.state = self._before = first_state(self.training)
        self._costs: list[float] = []
        self._rollbacks_in_a_row = 0

    @property
    def ratings_per_second(self) -> float | None:
        """Updates that count per second of wall time in epochs."""
        return len(self.epochs) * self.training.blocks.n_ratings / self.seconds if self.seconds else None

    def run(self) -> tuple[Stopped, Cost]:
        """Train until a stop rule holds; return which, and the exact cost at the end.

        Raises
        ------
        DivergedError
            If no step size keeps the cost finite.
        """
        self.engine.call(kernel.compile_for, self.training.blocks.read(BlockKey(0, 0), "train"), self.training.rank)
        while True:
            event = self._train()
            cost = self._measure()
            if _has_diverged(cost, self._costs):  # in the last epoch, whose cost was seen before its updates
                self._undo_epoch()
                self._roll_back()
            elif event != "target" or self._is_on_target(cost):
                return event, cost

    def _train(self) -> Stopped:
        """Run generations until a stop rule holds by the costs seen on the way."""
        while self.state.epoch < self.rules.epochs:
            n_epochs = min(EPOCHS_PER_GENERATION, self.rules.epochs - self.state.epoch)
            outcome = self._run_generation(n_epochs, is_first=True)
            verdict = self._judge(outcome.costs)
            if 0 < verdict.n_epochs < n_epochs:
                outcome = self._run_generation(verdict.n_epochs, is_first=False)
            if verdict.n_epochs:
                self._accept(outcome)
            if verdict.diverged:
                self._roll_back()
            elif verdict.event:
                return verdict.event
        return "epochs"

    def _measure(self) -> Cost:
        """Return the exact mean squared errors at the state as it is, in units of the ratings' scale squared."""
        graph, key = build_measurement(self.training, self.state, uuid.uuid4().hex[:8])
        cost: Cost = self.engine.run(graph, [key])[0]
        return cost

    @property
    def is_finite(self) -> bool:
        """Whether every factor and bias of the state is a number."""
        sides = [*(visited.rows for visited in self.state.rows), *(column.side for column in self.state.cols)]
        return all(bool(np.isfinite(array).all()) for side in sides for array in side)

    def rmse(self, cost: float) -> float | None:
        """Return the root of a cost in units of the ratings; None for the cost of no ratings."""
        return None if math.isnan(cost) else math.sqrt(cost) * self.training.hyper.scale

    def _run_generation(self, n_epochs: int, *, is_first: bool) -> Outcome:
        """Run epochs from `state`; the first time, log those that count as they pass."""
        token = uuid.uuid4().hex[:8]
        generation = build_generation(self.training, self.state, n_epochs, token)
        seen: list[Cost] = []
        goes_on = True
        steps = {self.state.epoch: self.state.step.step_size}
        start = time.perf_counter()

        def on_done(key: tuple[str, int], value: Any) -> None:
            nonlocal goes_on
            if key[0] == f"step-{token}":
                steps[key[1]] = value.step_size
            elif key[0] == f"epoch-{token}" and goes_on:
                seen.append(value)
                verdict = self._judge(seen)
                goes_on = verdict.event is None and not verdict.diverged
                if not verdict.diverged:
                    self._log(self._epoch(key[1], value, steps[key[1]]), self.seconds + time.perf_counter() - start)

        groups = generation.epochs, generation.steps, generation.rows, generation.cols
        results = self.engine.run(
            generation.tasks, [key for group in groups for key in group], on_done if is_first else None
        )
        self.seconds += time.perf_counter() - start
        epochs, step_states, rows, cols = ([results.pop(0) for _ in group] for group in groups)
        state = State(self.state.epoch + n_epochs, tuple(rows), tuple(cols), step_states[-1], epochs[-1])
        return Outcome(state, epochs, [step.step_size for step in step_states])

    def _epoch(self, epoch: int, cost: Cost, step_size: float) -> Epoch:
        train_rmse = self.rmse(cost.train)
        assert train_rmse is not None
        return Epoch(epoch + 1, train_rmse, self.rmse(cost.holdout), step_size)

    def _judge(self, costs: list[Cost]) -> Verdict:
        """Return what happens first in the epochs after `state`, given their costs."""
        trained = [*self._costs]
        for n, cost in enumerate(costs):
            if _has_diverged(cost, trained):
                return Verdict(n, None, diverged=True)
            trained.append(cost.train)
            if self._is_on_target(cost):
                return Verdict(n + 1, "target")
            if self.rules.tol > 0 and _is_steady(trained[-STEADY_EPOCHS - 1 :], self.rules.tol):
                return Verdict(n + 1, "converged")
        return Verdict(len(costs), None)

    def _accept(self, outcome: Outcome) -> None:
        for n, (cost, step_size) in enumerate(zip(outcome.costs, outcome.step_sizes, strict=False)):
            self.epochs.append(self._epoch(self.state.epoch + n, cost, step_size))
            self._costs.append(cost.train)
        self._before, self.state = self.state, outcome.state
        self._rollbacks_in_a_row = 0

    def _undo_epoch(self) -> None:
        """Go back by one epoch: to the state before the last generation, and on to its last epoch but one."""
        n_epochs = self.state.epoch - self._before.epoch
        self.state = self._before
        del self.epochs[-n_epochs:], self._costs[-n_epochs:]
        if n_epochs > 1:
            self._accept(self._run_generation(n_epochs - 1, is_first=False))

    def _roll_back(self) -> None:
        """Halve the step size and go on from the last good state, or from the start if that did not help."""
        self.rollbacks += 1
        self._rollbacks_in_a_row += 1
        step = self.state.step._replace(step_size=self.state.step.step_size / 2)
        if self.rollbacks > MAX_ROLLBACKS:
            raise DivergedError(
                f"the cost grows even with a step size of {step.step_size:.3g}; look for ratings of very different "
                "sizes, a reg or bias_reg far above 1, or a step_decay above 1"
            )
        if self._rollbacks_in_a_row > ROLLBACKS_BEFORE_RESTART and self.state.epoch:
            self.state, self.epochs, self._costs = first_state(self.training), [], []
            self._rollbacks_in_a_row = 0
            step = self.training.rule.first()._replace(step_size=step.step_size)
        self.state = self.state._replace(step=step)
        logger.info("cost grew: back to the end of epoch %d, step size %.3g", self.state.epoch, step.step_size)

    def _is_on_target(self, cost: Cost) -> bool:
        target = self.rules.target_cost
        return target is not None and cost.train * self.training.hyper.scale**2 < target

    def _log(self, epoch: Epoch, seconds: float) -> None:
        """Log an epoch that ended `seconds` after the first began; epochs overlap, so rates are those since then."""
        holdout = "" if epoch.holdout_rmse is None else f"  holdout RMSE {epoch.holdout_rmse:.4f}"
        logger.info(
            "epoch %*d/%d  train RMSE %.4f%s  step %.4f  %.1f M ratings/s  %.0f s left",
            len(str(self.rules.epochs)),
            epoch.epoch,
            self.rules.epochs,
            epoch.train_rmse,
            holdout,
            epoch.step_size,
            epoch.epoch * self.training.blocks.n_ratings / seconds / 1e6,
            seconds / epoch.epoch * (self.rules.epochs - epoch.epoch),
        )


def _has_diverged(cost: Cost, before: list[float]) -> bool:
    """Return whether a cost is not finite, or far above the lowest of those before."""
    return not cost.train <= DIVERGED * max(min(before, default=1.0), NEGLIGIBLE)


def _is_steady(costs: list[float], tol: float) -> bool:
    """Return whether every cost but the first differs from the one before by a share of at most `tol`."""
    changes = [abs(after - before) <= tol * before for before, after in itertools.pairwise(costs)]
    return len(changes) == STEADY_EPOCHS and all(changes)
