"""Candidate hyperparameters on blocks -> what each of them comes to on the holdout, by successive halving.

    tuning.json   what is tuned on what, and every result so far
    candidates/3  the checkpoint of a candidate that may go on, and in the end that of the best
    driver.json   the driver at work, while there is one

A candidate pauses where it is compared, in the middle of its line of steps to zero; when it goes on, it is the training
that never paused. So nothing is trained twice, and the best is what `fit` makes of its settings.
"""

import contextlib
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from distmf.blocks import Blocks
from distmf.checkpoint import Checkpoint
from distmf.engine import Engine
from distmf.errors import ClusterError, DivergedError, StoreError
from distmf.factorization import MatrixFactorization
from distmf.lock import DriverLock, driver_lock
from distmf.model import Model
from distmf.store import Kind, free_folder, refuse_nested, temporary_folder
from distmf.tasks import Training
from distmf.trainer import StopRules, Trainer, let_go

logger = logging.getLogger(__name__)

KIND = Kind("distmf tuning", 1, "tuning.json", (), r"candidates/\d+/.*")
RUNGS = 2, 1  # candidates are compared after half of their epochs, and at the end; docs/tuning.md says why
KEPT = 3  # one of so many goes on

Reg = float | Literal["auto"]


class Settings(NamedTuple):
    """What is chosen of the hyperparameters of `MatrixFactorization`."""

    rank: int
    reg: Reg
    epochs: int

    def __str__(self) -> str:
        return f"rank {self.rank}, reg {self.reg}, {self.epochs} epochs"


class Result(NamedTuple):
    """What a candidate came to at a rung.

    Attributes
    ----------
    until : int
        The epoch of the rung.
    done : int
        Epochs that were done: fewer if the holdout got no better.
    holdout_rmse : float or None
        Of the best epoch so far; None if training diverged.
    seconds : float
        Since the rung before, or since training went on that was interrupted.
    """

    until: int
    done: int
    holdout_rmse: float | None
    seconds: float


class Candidate(NamedTuple):
    """Settings, and what they came to at each rung that they reached."""

    settings: Settings
    results: tuple[Result, ...] = ()

    @property
    def done(self) -> int:
        """Epochs that were done."""
        return self.results[-1].done

    @property
    def holdout_rmse(self) -> float | None:
        """Error on the holdout, of the best epoch; None if training diverged."""
        return self.results[-1].holdout_rmse

    @property
    def seconds(self) -> float:
        """How long it was trained."""
        return sum(result.seconds for result in self.results)

    @property
    def is_whole(self) -> bool:
        """Whether it was trained to the end."""
        return bool(self.results) and self.results[-1].until == self.settings.epochs and self.holdout_rmse is not None

    def error(self, rung: int = -1) -> float:
        """Return the error on the holdout at a rung, for comparisons: infinite if training diverged."""
        error = self.results[rung].holdout_rmse
        return math.inf if error is None else error


class Halving:
    """Trains candidates as far as they come; the first is trained to the end in any case.

    Parameters
    ----------
    blocks : Blocks
        With a holdout.
    lock : DriverLock
        Of the folder for checkpoints and results; what is done already is not done again.
    settings : sequence of Settings
        Of the candidates, all different.
    seed : int
        Of all trainings.
    where : dict
        How to train: arguments of `fit`.

    Raises
    ------
    StoreError
        If the folder holds the tuning of something else.
    """

    def __init__(
        self, blocks: Blocks, lock: DriverLock, settings: Sequence[Settings], seed: int, where: dict[str, Any]
    ) -> None:
        self.blocks, self.lock, self.seed, self.where = blocks, lock, seed, where
        self.folder = folder = lock.folder
        self.candidates = [Candidate(each) for each in settings]
        tried = {name: list(dict.fromkeys(getattr(each, name) for each in settings[1:])) for name in Settings._fields}
        self._what = {**blocks.identity(), "seed": seed, **tried}
        if folder.is_a(KIND):
            manifest = folder.read_manifest(KIND)
            for name, here in self._what.items():
                if (there := manifest["what"][name]) != here:
                    raise StoreError(
                        f"{folder} is another tuning, with {name} {there!r} and not {here!r}; use what it was begun "
                        "with, or another folder"
                    )
            results = [tuple(Result(*result) for result in each) for each in manifest["results"]]
            self.candidates = list(map(Candidate, settings, results))
            logger.info("%s: %d results are there already", folder, sum(map(len, results)))
        self._write()

    @property
    def best(self) -> Candidate | None:
        """The best of those that are trained to the end so far."""
        return min((each for each in self.candidates if each.is_whole), key=Candidate.error, default=None)

    def run(self) -> None:
        """Train until every candidate is trained to the end or dropped.

        Those of the same number of epochs are compared with one another.

        Raises
        ------
        DivergedError
            If all diverge.
        """
        self._train(0, 0, self.candidates[0].settings.epochs, "the defaults")
        for n_epochs in dict.fromkeys(each.settings.epochs for each in self.candidates[1:]):
            going = [n for n, each in enumerate(self.candidates) if n and each.settings.epochs == n_epochs]
            rungs = sorted({math.ceil(n_epochs / part) for part in RUNGS})
            for rung, until in enumerate(rungs):
                for place, n in enumerate(going, 1):
                    label = f"rung {rung + 1} of {len(rungs)}, candidate {place} of {len(going)}"
                    self._train(n, rung, until, label)
                if until < n_epochs:
                    going = self._best_share(going, rung)
        if self.best is None:
            raise DivergedError("all candidates diverge; look for ratings of very different sizes")
        self._remove(n for n, each in enumerate(self.candidates) if each is not self.best)

    def checkpoint(self, n: int) -> str:
        """Return the path or URL of the checkpoint of a candidate."""
        return str(self.folder._replace(path=self.folder.child(f"candidates/{n}")))

    def _train(self, n: int, rung: int, until: int, label: str) -> None:
        """Train a candidate on to a rung, unless that is done."""
        candidate = self.candidates[n]
        if rung < len(candidate.results):
            return
        training, start = _Training(candidate.settings, self.seed, until), time.perf_counter()
        with contextlib.suppress(DivergedError):
            training.fit(self.blocks, checkpoint=self.checkpoint(n), resume=True, **self.where)
        result = Result(until, training.done, training.holdout_rmse, time.perf_counter() - start)
        self.candidates[n] = candidate._replace(results=(*candidate.results, result))
        self._write()
        found = "diverged" if result.holdout_rmse is None else f"holdout RMSE {result.holdout_rmse:.4f}"
        logger.info("%s: %s: %s after epoch %d", label, candidate.settings, found, result.done)

    def _best_share(self, going: list[int], rung: int) -> list[int]:
        """Return those of the candidates at a rung that go on; the checkpoints of the others are removed."""
        ranked = sorted(going, key=lambda n: self.candidates[n].error(rung))
        kept = [n for n in ranked[: math.ceil(len(ranked) / KEPT)] if self.candidates[n].error(rung) < math.inf]
        self._remove(set(going) - set(kept))
        return kept

    def _remove(self, numbers: Iterable[int]) -> None:
        for n in numbers:
            self.folder.remove(f"candidates/{n}")

    def _write(self) -> None:
        self.lock.check()
        results = [each.results for each in self.candidates]
        self.folder.write_manifest(KIND, {"what": self._what, "results": results})


class _Training(MatrixFactorization):
    """A training that pauses at an epoch, as if it were killed there, and tells its error; it makes no model."""

    def __init__(self, settings: Settings, seed: int, until: int) -> None:
        super().__init__(**settings._asdict(), seed=seed)
        self.until = until
        self.done = 0
        self.holdout_rmse: float | None = None

    def _train(
        self,
        training: Training,
        engine: Engine,
        checkpoint: Checkpoint | None,
        save_every: int,
        warm: Model | None = None,
    ) -> None:
        rules = StopRules(self.until, self.tol, self.target_cost, self.patience)
        trainer = Trainer(training, rules, engine, checkpoint, save_every, has_baselines=False)
        try:
            cost = trainer.run()[1]
            self.done, self.holdout_rmse = len(trainer.progress.epochs), trainer.error(cost.holdout)
        finally:
            with contextlib.suppress(ClusterError):
                engine.everywhere(let_go, training.blocks.path, training.folder)


@contextlib.contextmanager
def locked_folder(blocks: Blocks, path: str | Path | None) -> Iterator[DriverLock]:
    """Yield the lock of the folder of a tuning: at `path`, or a temporary one beside the blocks.

    Raises
    ------
    StoreError
        If there is something else at `path`, it is in the folder of the blocks, or another driver works on it.
    """
    with contextlib.ExitStack() as stack:
        if path is None:
            folder = stack.enter_context(temporary_folder(f"{blocks.path}.tuning"))
        else:
            folder = free_folder(path, KIND)
            refuse_nested(blocks.folder, folder)
        folder.fs.makedirs(folder.path, exist_ok=True)
        yield stack.enter_context(driver_lock(folder))
