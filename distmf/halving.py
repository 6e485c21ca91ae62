"""Candidate hyperparameters on blocks -> what each of them comes to on the holdout, by successive halving.

    tuning.json   what is tuned on what, and every result so far
    candidates/3  the checkpoint of a candidate that may go on, and in the end that of the best
    driver.json   the driver at work, while there is one

A candidate pauses where it is compared, in the middle of its line of steps to zero; when it goes on, it is the training
that never paused. So nothing is trained twice, and the best is what `fit` makes of its settings.
"""

import contextlib
import json
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from distmf.blocks import Blocks
from distmf.errors import DivergedError, StoreError
from distmf.lock import DriverLock, driver_lock
from distmf.losses import LOSSES
from distmf.preparing import Place, open_trainer
from distmf.sizes import counted
from distmf.store import Folder, Kind, free_folder, refuse_nested, temporary_folder

logger = logging.getLogger(__name__)

KIND = Kind("distmf tuning", 2, "tuning.json", (), r"candidates/\d+/.*")
RUNGS = 2, 1  # candidates are compared after half of their epochs, and at the end; docs/tuning.md says why
KEPT = 3  # one of so many goes on

Reg = float | Literal["auto"]


class Settings(NamedTuple):
    """What is chosen of the hyperparameters of `MatrixFactorization`."""

    rank: int
    reg: Reg
    epochs: int

    def __str__(self) -> str:
        return f"rank {self.rank}, reg {self.reg}, {counted(self.epochs, 'epoch')}"


class Result(NamedTuple):
    """What a candidate came to at a rung.

    Attributes
    ----------
    until : int
        The epoch of the rung.
    done : int
        Epochs that were done: fewer if the holdout got no better.
    holdout_error : float or None
        Of the best epoch so far; None if training diverged.
    seconds : float
        Since the rung before, or since training went on that was interrupted.
    """

    until: int
    done: int
    holdout_error: float | None
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
    def holdout_error(self) -> float | None:
        """Error on the holdout, of the best epoch; None if training diverged."""
        return self.results[-1].holdout_error

    @property
    def seconds(self) -> float:
        """How long it was trained."""
        return sum(result.seconds for result in self.results)

    @property
    def is_whole(self) -> bool:
        """Whether it was trained to the end."""
        return bool(self.results) and self.results[-1].until == self.settings.epochs and self.holdout_error is not None

    def error(self, rung: int = -1) -> float:
        """Return the error on the holdout at a rung, for comparisons: infinite if training diverged."""
        error = self.results[rung].holdout_error
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
    parameters : dict
        All hyperparameters, checked; those in `settings` do not count.
    place : Place
        Where to train.

    Raises
    ------
    StoreError
        If the folder holds the tuning of something else.
    """

    def __init__(
        self,
        blocks: Blocks,
        lock: DriverLock,
        settings: Sequence[Settings],
        parameters: dict[str, Any],
        place: Place,
    ) -> None:
        self.blocks, self.lock, self.parameters, self.place = blocks, lock, parameters, place
        self.folder = folder = lock.folder
        self.candidates = [Candidate(each) for each in settings]
        tried = {name: list(dict.fromkeys(getattr(each, name) for each in settings[1:])) for name in Settings._fields}
        self._what = json.loads(json.dumps({**blocks.identity(), **parameters, **tried}))  # as it is read again
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
    def measure(self) -> str:
        """What errors are: "RMSE", or the mean of another loss."""
        return LOSSES[self.parameters["loss"]].measure

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
        parameters, done, error = {**self.parameters, **candidate.settings._asdict()}, 0, None
        place, start = self.place._replace(checkpoint=self.checkpoint(n), resume=True), time.perf_counter()
        with contextlib.suppress(DivergedError), open_trainer(parameters, self.blocks, place) as trainer:
            trainer.rules, trainer.has_baselines = trainer.rules._replace(epochs=until), False
            _, cost = trainer.run()
            done, error = len(trainer.progress.epochs), trainer.error(cost.holdout)
        result = Result(until, done, error, time.perf_counter() - start)
        self.candidates[n] = candidate._replace(results=(*candidate.results, result))
        self._write()
        found = "diverged" if error is None else f"holdout {self.measure} {error:.4f}"
        logger.info("%s: %s: %s after epoch %d", label, candidate.settings, found, done)

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
        settings = [each.settings for each in self.candidates]
        self.folder.write_manifest(KIND, {"what": self._what, "settings": settings, "results": results})


def read_tuning(folder: Folder) -> tuple[dict[str, Any], list[Candidate]]:
    """Return what is tuned on what, and the candidates that have come to something so far."""
    manifest = folder.read_manifest(KIND)
    settings = [Settings(*each) for each in manifest["settings"]]
    found = [
        Candidate(each, tuple(Result(*result) for result in results))
        for each, results in zip(settings, manifest["results"], strict=True)
    ]
    return manifest["what"], [each for each in found if each.results]


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
