"""Blocks and hyperparameters -> trained factor blocks: the driver of the epochs.

Epochs run in generations of several, as if nothing would happen in them, and are judged one by one as they pass. If the
third of them reached the target, or diverged, the generation ends there: training goes on from the factors that were
saved when that epoch ended, or, if they were not, the generation is run again up to there. So the result depends
neither on the length of a generation nor on when training was interrupted and resumed.
"""

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dask._task_spec import Task
from dask.typing import Key

from distmf import factors, kernel, langevin
from distmf.blocks import forget
from distmf.buffers import give_back_idle_memory
from distmf.checkpoint import Checkpoint, Progress
from distmf.engine import MAX_LOSSES, SGD_NAMES, Engine, EnoughError, Graph, new_token, run_through_losses
from distmf.errors import DivergedError, GraphLostError
from distmf.factors import Saved, Source
from distmf.graph import (
    Generation,
    ReadAhead,
    State,
    build_generation,
    build_measurement,
    first_state,
    of_all_chains,
    with_next_chain,
)
from distmf.grid import Shape
from distmf.history import Baselines, Epoch, Stopped
from distmf.progress import SHOWN, Trained, tell
from distmf.residuals import Residuals
from distmf.run import Run, counts_of, machine, now, sampled_residuals, timetable
from distmf.stepsize import StepRule
from distmf.store import Folder
from distmf.tasks import Cost, Training, Visit

logger = logging.getLogger(__name__)

EPOCHS_PER_GENERATION = 20
EPOCHS_IN_MEMORY = 5  # of a generation that saves nothing on its way
TASKS_PER_GENERATION = 20_000  # a scheduler's memory grows with them, by about 10 kB each
STEADY_EPOCHS = 3  # in a row, whose changes of the cost must all be small
DIVERGED = 2.0  # a cost this many times the lowest has diverged …
NEGLIGIBLE = 0.01  # … unless both are below this share of the ratings' variance
BIAS_EPOCHS, BIAS_STEP, BIAS_REG = 3, 0.1, 0.02  # of the short training without factors
ROLLBACKS_BEFORE_RESTART = 3
MAX_ROLLBACKS = 60


def generation_epochs(shape: Shape, *, saves: bool = True) -> int:
    """Return how many epochs a generation has on a grid of that shape, unless fewer are left."""
    at_most = EPOCHS_PER_GENERATION if saves else EPOCHS_IN_MEMORY
    return max(1, min(at_most, TASKS_PER_GENERATION // (2 * shape.rows * shape.cols)))


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
    patience : int
        When the holdout has not got better for so many epochs; 0 never.
    max_seconds : float or None
        When so many seconds of training are over.
    """

    epochs: int
    tol: float
    target_cost: float | None
    patience: int = 0
    max_seconds: float | None = None


class Reached(NamedTuple):
    """What the costs of some epochs say: how many epochs count in all, and what happened then."""

    epoch: int
    event: Stopped | None = None
    diverged: bool = False


def let_go(blocks: str, folder: Folder | None) -> None:
    """Free what a process keeps of a training: ratings of the blocks at a path, factors that lie in a folder."""
    forget(blocks)
    if folder:
        factors.forget(folder)


@dataclass
class Trainer:
    """Runs one training; `progress` is the last good state at any time.

    Attributes
    ----------
    training : Training
        What stays the same.
    rules : StopRules
        When to end.
    engine : Engine
        Runs the graphs.
    checkpoint : Checkpoint or None
        Where progress is kept, and where it is taken up; needed if `training` has a folder.
    save_every : int
        Epochs from one checkpoint to the next.
    start : State or None
        Before the first epoch; None for new factors.
    has_baselines : bool
        Whether simpler models are trained first, to compare with.
    """

    training: Training
    rules: StopRules
    engine: Engine
    checkpoint: Checkpoint | None = None
    save_every: int = 1
    start: State | None = None
    has_baselines: bool = True
    progress: Progress = field(init=False)
    seconds: float = field(init=False, default=0.0)
    best_epoch: int | None = field(init=False, default=None)
    cooled: int = field(init=False, default=0)
    n_slots: int = field(init=False, default=0)  # of the last graph
    last_visits: tuple[int, tuple[Visit, ...]] = field(init=False, default=(0, ()))  # of which epoch
    baselines: Baselines | None = field(init=False, default=None)
    _cost_at_first: float = field(init=False, default=1.0)

    def __post_init__(self) -> None:
        first = self._first = self.start or first_state(self.training)
        give_back_idle_memory()  # of the tables of counts
        self.progress = (self.checkpoint and self.checkpoint.restore(first, self._is_whole)) or Progress(
            first, first, first
        )
        self._first_epoch = self.progress.state.epoch
        if self._first_epoch:
            logger.info("going on after epoch %d", self._first_epoch)

    @property
    def ratings_per_second(self) -> float | None:
        """Updates that count per second of wall time in epochs."""
        n_epochs = max(0, len(self.progress.epochs) - self._first_epoch)
        return n_epochs * self.training.blocks.n_ratings / self.seconds if self.seconds else None

    def residuals(self) -> Residuals:
        """Return the errors of the result on a sample of the ratings."""
        return sampled_residuals(*self._result())

    def told(self, residuals: Residuals | None) -> Run:
        """Return what a report tells of the training, with the errors of its result; it may have lost its cluster."""
        epochs, blocks = self.progress.epochs, self.training.blocks
        return Run(
            now(),
            self.seconds,
            self.ratings_per_second,
            self.n_slots,
            not self.engine.shares_memory,
            [epoch.utilization for epoch in epochs],
            machine(),
            {"path": blocks.path, "weights": blocks.layout.is_weighted, **blocks.identity()},
            counts_of(blocks),
            timetable(self.training, *self.last_visits),
            residuals,
        )

    def run(self) -> tuple[Stopped, Cost]:
        """Train until a stop rule holds; return which, and the exact cost at the end.

        Raises
        ------
        DivergedError
            If no step size keeps the cost finite.
        """
        training = self.training
        kind = training.blocks.layout.no_ratings(), training.rank, training.hyper, training.shape_of_shares
        self.engine.everywhere(kernel.compile_for, *kind)
        if training.chain_rule is not None:
            self.engine.everywhere(langevin.compile_moves)
        self.baselines = self._baselines() if self.has_baselines else None
        if self.start is not None:  # ratings may be far from what a model expects that has not seen them
            self._cost_at_first = max(1.0, self._measure(training, self.start).train)
        event = self.progress.event
        if event == "time":  # that a training had does not count for the one that goes on with it
            event = None
        while True:
            event = event or self._train()
            cost = self._measure(*self._result())
            if self._has_diverged(
                cost, self.progress.costs
            ):  # in the last epoch, whose cost was seen before its updates
                self._undo_epoch()
                self._roll_back()
            elif event != "target" or self._is_on_target(cost):
                return event, (cost if event == "target" else self._with_best_epoch(cost, event))
            event = None

    def _baselines(self) -> Baselines | None:
        """Return the errors with the mean only, and of a short training of biases without factors."""
        training = self.training._replace(rank=1, rule=StepRule(BIAS_STEP, epochs=BIAS_EPOCHS))
        hyper = training.hyper._replace(reg=(0.0, 0.0), bias_reg=(BIAS_REG, BIAS_REG), l1_reg=(0.0, 0.0))
        training = training._replace(hyper=hyper)
        first = first_state(training, has_factors=False)
        state = self._later_state(training, first, BIAS_EPOCHS)
        mean, biases = (self._measure(training, at) for at in (first, state))
        costs = mean.train, mean.holdout, biases.train, biases.holdout
        mean_train, mean_holdout, bias_train, bias_holdout = map(self.error, costs)
        if mean_train is None or bias_train is None:  # not finite; training will say why
            return None
        self._cost_at_first = max(1.0, mean.train)
        return Baselines(mean_train, mean_holdout, bias_train, bias_holdout)

    def _later_state(self, training: Training, state: State, n_epochs: int) -> State:
        """Return the state so many epochs later, without taking it for progress."""
        owners, end = self.engine.owners(training.blocks.shape.rows), state.epoch + n_epochs
        begin = training, state, n_epochs, new_token(), owners, end, self._read_ahead(owners)
        generation = build_generation(*begin)
        keys = [generation.snapshots[end], generation.steps[end]]
        (rows, cols), step = run_through_losses(self.engine, generation.graph, keys)
        return State(end, rows, cols, step, None)

    def _with_best_epoch(self, cost: Cost, event: Stopped) -> Cost:
        """Take the epoch that was best on the holdout for the result, if early stopping is asked for; return its cost.

        Where patience ran out on the way to steps of zero, the best epoch still had large ones: as many epochs more, on
        a line that ends there, make its model better, or are dropped. The checkpoint stays as it is: a training that
        goes on goes on from the last epoch.
        """
        best, anchor, rule = self.progress.best_epoch, self.progress.anchor, self.training.rule
        if not self.rules.patience or self.training.chain_rule or not 0 < best < self.progress.state.epoch:
            return cost
        state = self._later_state(self.training, anchor, best - anchor.epoch) if anchor.epoch < best else anchor
        cost = self._measure(self.training, state)
        if event == "early" and isinstance(rule, StepRule) and rule.epochs is not None:
            n_epochs = self.rules.patience
            cooling = self.training._replace(rule=rule._replace(epochs=best + n_epochs))
            cooled = self._later_state(cooling, state._replace(cost=None), n_epochs)  # wherever it was taken up
            cost_of_cooled = self._measure(self.training, cooled)
            if cost_of_cooled.holdout < cost.holdout:
                state, cost, self.cooled = cooled, cost_of_cooled, n_epochs
        self.best_epoch, self.progress = best, self.progress._replace(state=state)
        return cost

    def error(self, cost: float) -> float | None:
        """Return a cost as it is reported; None for the cost of no ratings."""
        hyper = self.training.hyper
        return None if math.isnan(cost) else hyper.objective.error(cost, hyper.scale)

    def _train(self) -> Stopped:
        """Run generations until a stop rule holds by the costs seen on the way."""
        while (left := self.rules.epochs - self.progress.state.epoch) > 0:
            shape, saves = self.training.blocks.shape, self.training.folder is not None
            n_epochs = min(left, generation_epochs(shape, saves=saves), self._left_of_chain())
            reached = self._run_generation(self.progress.state.epoch + n_epochs, say=True)
            if reached.epoch > self.progress.state.epoch:
                self._run_generation(reached.epoch, say=False)
            if reached.diverged:
                self._roll_back()
            elif reached.event:
                return reached.event
        return "epochs"

    def _left_of_chain(self) -> int:
        """Return the epochs that are left of the chain of draws, or of all if none are drawn."""
        rule, epoch = self.training.chain_rule, self.progress.state.epoch
        return self.rules.epochs if rule is None else rule.epochs - epoch % rule.epochs

    def _is_whole(self, state: State) -> bool:
        """Return whether all files of a state can be read; those who read them keep them for the next generation."""
        owners = self.engine.owners(self.training.blocks.shape.rows)
        token = new_token()
        tasks: dict[Key, Task] = {}
        homes: dict[Key, Hashable] = {}
        keep = not self.training.rows_on_disk
        ended = [source for chain in state.chains for source in (*chain.rows, *chain.cols)]
        for n, source in enumerate((*state.rows, *state.cols, *ended)):
            if isinstance(source, Saved):
                key, keep_this = (f"verify-{token}", n), keep and n < len(state.rows) + len(state.cols)
                tasks[key] = Task(key, factors.verify, source, self.training.folder, self.training.rank, keep_this)
                homes[key] = owners[n % len(owners)]
        found = run_through_losses(self.engine, Graph(tasks, homes), list(tasks))
        problems = [problem for problem in found if problem]
        for problem in problems:
            logger.warning("%s", problem)
        return not problems

    def _result(self) -> tuple[Training, State]:
        """Return the training and the state that predictions are made with: for draws, of all chains together."""
        training, state = self.training, self.progress.state
        return of_all_chains(training, state) if training.chain_rule else (training, state)

    def _measure(self, training: Training, state: State) -> Cost:
        """Return the exact mean squared errors at a state, in units of the ratings' scale squared."""
        owners = self.engine.owners(training.blocks.shape.rows)
        graph, key = build_measurement(training, state, new_token(), owners)
        cost: Cost = run_through_losses(self.engine, graph, [key])[0]
        return cost

    def _run_generation(self, until: int, *, say: bool) -> Reached:
        """Run epochs up to `until`, accept those that count and were saved; log them if `say`."""
        losses = 0  # without an epoch that was saved in between
        while True:
            begin = self.progress.state.epoch
            if begin == until:
                return Reached(until, self.progress.event)
            try:
                return self._run_graph(until, say=say)
            except GraphLostError as err:
                losses = losses + 1 if self.progress.state.epoch == begin else 1
                if losses == MAX_LOSSES:
                    raise
                logger.warning("%s; going on after epoch %d", err, self.progress.state.epoch)

    def _run_graph(self, until: int, *, say: bool) -> Reached:
        state = with_next_chain(self.training, self.progress.state)
        owners = self.engine.owners(self.training.blocks.shape.rows)
        token = new_token()
        generation = build_generation(
            self.training, state, until - state.epoch, token, owners, self.save_every, self._read_ahead(owners)
        )
        watch = _Watch(self, generation, self.progress._replace(state=state), say)
        start = time.perf_counter()
        try:
            with contextlib.suppress(EnoughError):
                self.engine.run(generation.graph, generation.keys, watch.on_done, watch.on_change, watch.on_task)
        finally:
            self.seconds += time.perf_counter() - start
        if self.checkpoint:
            self.checkpoint.sweep()
        return watch.reached

    def _read_ahead(self, owners: Sequence[Hashable]) -> ReadAhead:
        readers = [None] * len(owners) if self.engine.shares_memory else owners
        return ReadAhead(readers, max(1, self.engine.n_slots // len(set(readers))))

    def judge(self, costs: Sequence[float], holdouts: Sequence[float | None], cost: Cost, seconds: float) -> Reached:
        """Return what happens in an epoch.

        Parameters
        ----------
        costs, holdouts : sequence of float
            Of the epochs before: the cost, and the error on the holdout, None without one.
        cost : Cost
            Its own.
        seconds : float
            Since the graph with it began.
        """
        after, rule, rules = [*costs, cost.train], self.training.chain_rule, self.rules
        is_late = rules.max_seconds is not None and self.seconds + seconds > rules.max_seconds
        if rule:
            diverged = self._has_diverged(cost, costs)
            return Reached(len(costs) if diverged else len(after), "time" if is_late else None, diverged)
        if self._has_diverged(cost, costs):
            return Reached(len(costs), diverged=True)
        events: dict[Stopped, bool] = {
            "target": self._is_on_target(cost),
            "converged": rules.tol > 0 and _is_steady(after[-STEADY_EPOCHS - 1 :], rules.tol),
            "early": rules.patience > 0 and _is_over(rules.patience, [*holdouts, self.error(cost.holdout)]),
            "time": is_late,
        }
        return Reached(len(after), next((event for event, holds in events.items() if holds), None))

    def accept(self, progress: Progress, in_use: State) -> None:
        """Take a later state for the last good one, while tasks may still use the files of `in_use`."""
        if self.checkpoint:
            self.checkpoint.commit(progress, in_use)
        self.progress = progress

    def _has_diverged(self, cost: Cost, before: Sequence[float]) -> bool:
        """Return whether a cost is not finite, or far above the lowest of those before, or that at first.

        The costs of draws go up and down: only the first, of the mean alone, tells.
        """
        lowest = self._cost_at_first if self.training.chain_rule else min(before, default=self._cost_at_first)
        return not cost.train <= DIVERGED * max(lowest, NEGLIGIBLE)

    def _undo_epoch(self) -> None:
        """Go back by one epoch: to a state before, and on to the last epoch but one."""
        now, before = self.progress, self.progress.before
        anchor = now.anchor if now.anchor.epoch <= before.epoch else before
        epochs, costs = now.epochs[: before.epoch], now.costs[: before.epoch]
        self.progress = now._replace(state=before, anchor=anchor, epochs=epochs, costs=costs, event=None)
        if now.state.epoch - before.epoch > 1:
            self._run_generation(now.state.epoch - 1, say=False)

    def _roll_back(self) -> None:
        """Halve the step size and go on from the last good state, or from the start if that did not help."""
        now = self.progress
        rule, step = self.training.rule, now.state.step._replace(base=now.state.step.base / 2)
        step_size = self.training.step_size(step)
        rollbacks, in_a_row, state = now.rollbacks + 1, now.rollbacks_in_a_row + 1, now.state
        if rollbacks > MAX_ROLLBACKS:
            raise DivergedError(
                f"the cost grows even with a step size of {step_size:.3g}; look for ratings of very "
                "different sizes, a reg or bias_reg far above 1, or a step_decay above 1"
            )
        if in_a_row > ROLLBACKS_BEFORE_RESTART and state.epoch:
            state, in_a_row = self._first, 0
            step = rule.first()._replace(base=step.base)
        n_epochs = state.epoch
        self.progress = Progress(
            state._replace(step=step),
            now.before,
            now.anchor if state.epoch else state,
            now.epochs[:n_epochs],
            now.costs[:n_epochs],
            rollbacks,
            in_a_row,
        )
        logger.info("cost grew: back to the end of epoch %d, step size %.3g", n_epochs, step_size)

    def _is_on_target(self, cost: Cost) -> bool:
        target, hyper = self.rules.target_cost, self.training.hyper
        return target is not None and cost.train * hyper.objective.unit(hyper.scale) < target

    def log(self, epoch: Epoch, seconds: float) -> None:
        """Log an epoch that ended `seconds` after its graph began; epochs overlap: rates are those since the first."""
        seconds += self.seconds
        n_epochs = max(1, epoch.epoch - self._first_epoch)  # fewer than at first after a roll-back
        measure = self.training.hyper.objective.details.measure
        holdout = "" if epoch.holdout_error is None else f"  holdout {measure} {epoch.holdout_error:.4f}"
        rate = n_epochs * self.training.blocks.n_ratings / seconds
        left = seconds / n_epochs * (self.rules.epochs - epoch.epoch)
        tell(Trained(epoch.epoch, self.rules.epochs, epoch.train_error, epoch.holdout_error, measure, rate, left))
        logger.info(
            "epoch %*d/%d  train %s %.4f%s  step %.4f  %.1f M ratings/s  %.0f s left",
            len(str(self.rules.epochs)),
            epoch.epoch,
            self.rules.epochs,
            measure,
            epoch.train_error,
            holdout,
            epoch.step_size,
            rate / 1e6,
            left,
            extra=SHOWN,
        )


class _Watch:
    """Takes the results of a generation as they come, in any order: judges its epochs, and accepts what was saved.

    It ends the generation when nothing that is still to come counts.

    Attributes
    ----------
    reached : Reached
        What has happened so far.
    """

    def __init__(self, trainer: Trainer, generation: Generation, begin: Progress, say: bool) -> None:
        self.trainer, self.generation, self.begin, self.say = trainer, generation, begin, say
        self.reached = Reached(begin.state.epoch)
        self.epochs, self.costs = list(begin.epochs), list(begin.costs)
        self.values: dict[Any, Any] = {}
        self.snapshots = dict(generation.snapshots)
        self.n_slots = trainer.n_slots = trainer.engine.n_slots
        self.n_visits = 0
        self.start = self.passed = time.perf_counter()

    def on_done(self, key: Any, value: Any) -> None:
        self.values[key] = value
        while self._next_is_there():
            self._judge()
        for n, snapshot in list(self.snapshots.items()):
            if n <= self.reached.epoch and snapshot in self.values and self._step(n):
                self._accept(n, *self.values.pop(self.snapshots.pop(n)))
        if self._is_over and not any(n <= self.reached.epoch for n in self.snapshots):
            raise EnoughError

    def on_task(self, key: Any) -> None:
        """Tell those who watch how many blocks were visited."""
        if self.say and key[0].startswith(SGD_NAMES):
            self.n_visits += 1
            shape = self.trainer.training.blocks.shape
            tell(Trained(self.begin.state.epoch + self.n_visits / math.prod(shape), self.trainer.rules.epochs))

    def on_change(self) -> None:
        """Go on from the last state if it is a later one than the graph began with."""
        if self.trainer.progress.state.epoch > self.begin.state.epoch:
            raise GraphLostError("workers have joined or left the cluster")

    @property
    def _is_over(self) -> bool:
        return self.reached.diverged or self.reached.event is not None

    def _next_is_there(self) -> bool:
        n = self.reached.epoch
        return not self._is_over and self.generation.epochs.get(n) in self.values and self._step(n) is not None

    def _step(self, n: int) -> Any:
        """Return the step size state after `n` epochs, if it is known already."""
        is_first = n == self.begin.state.epoch
        return self.begin.state.step if is_first else self.values.get(self.generation.steps[n])

    def _judge(self) -> None:
        """Judge the next epoch and add it to the history if it counts."""
        n, trainer = self.reached.epoch, self.trainer
        cost, visits = self.values[self.generation.epochs[n]]
        trainer.last_visits = n, visits
        holdouts = [epoch.holdout_error for epoch in self.epochs]
        self.reached = trainer.judge(self.costs, holdouts, cost, time.perf_counter() - self.start)
        if self.reached.diverged:
            return
        step = self._step(n)
        assert step is not None
        now = time.perf_counter()
        kernel_seconds = sum(visit.seconds for visit in visits)
        utilization = min(1.0, kernel_seconds / ((now - self.passed) * self.n_slots))
        self.passed = now
        train_error = trainer.error(cost.train)
        assert train_error is not None
        self.epochs.append(
            Epoch(n + 1, train_error, trainer.error(cost.holdout), trainer.training.step_size(step), utilization)
        )
        self.costs.append(cost.train)
        if self.say:
            trainer.log(self.epochs[-1], now - self.start)

    def _accept(self, n: int, rows: tuple[Source, ...], cols: tuple[Source, ...]) -> None:
        """Accept the state after `n` epochs."""
        cost = self.values[self.generation.epochs[n - 1]].cost
        step = self._step(n)
        assert step is not None
        state = State(n, rows, cols, step, cost, self.begin.state.chains)
        event = self.reached.event if n == self.reached.epoch else None
        now, rollbacks = self.trainer.progress, self.begin.rollbacks
        history = tuple(self.epochs[:n]), tuple(self.costs[:n])
        progress = Progress(state, now.state, now.anchor, *history, rollbacks, 0, event)
        anchors = [past for past in (state, now.state, now.anchor) if past.epoch <= progress.best_epoch]
        progress = progress._replace(anchor=max(anchors, key=lambda past: past.epoch, default=now.anchor))
        self.trainer.accept(progress, self.begin.state)


def _is_over(patience: int, holdouts: list[float | None]) -> bool:
    """Return whether the last so many errors on the holdout were all no better than one before them."""
    seen = [holdout for holdout in holdouts if holdout is not None]
    return len(seen) > patience and min(seen[:-patience]) <= min(seen[-patience:])


def _is_steady(costs: list[float], tol: float) -> bool:
    """Return whether every cost but the first differs from the one before by a share of at most `tol`."""
    changes = [abs(after - before) <= tol * before for before, after in itertools.pairwise(costs)]
    return len(changes) == STEADY_EPOCHS and all(changes)
