"""What happened in each epoch of a training, and why it ended."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, overload

from distmf.sizes import counted

Stopped = Literal["converged", "target", "early", "time", "epochs", "interrupted"]


class Epoch(NamedTuple):
    """One epoch.

    Attributes
    ----------
    epoch : int
        From 1.
    train_error, holdout_error : float or None
        Seen on the way through the epoch: the RMSE in units of the ratings, or what `History.measure` names; None
        without held-out ratings.
    step_size : float
        η, on ratings of unit standard deviation.
    utilization : float or None
        Share of the time of all threads or workers that was spent in kernels, from the end of the epoch before to its
        own; epochs overlap, so it is a little off for each of them. Not kept in a saved model.
    """

    epoch: int
    train_error: float
    holdout_error: float | None
    step_size: float
    utilization: float | None = None


def best_on_holdout(epochs: Iterable[Epoch]) -> Epoch | None:
    """Return the first of the epochs with the smallest error on the holdout, None without one."""
    seen = [(epoch.holdout_error, epoch.epoch, epoch) for epoch in epochs if epoch.holdout_error is not None]
    return min(seen)[-1] if seen else None


class Baselines(NamedTuple):
    """Errors of simpler models, as the history measures them; those on the holdout are None without one.

    Attributes
    ----------
    mean_train, mean_holdout : float
        Where every prediction is the mean of the ratings.
    bias_train, bias_holdout : float
        With biases and without factors.
    """

    mean_train: float
    mean_holdout: float | None
    bias_train: float
    bias_holdout: float | None


class Compared(NamedTuple):
    """Errors of simpler models and of the model itself, on the same ratings.

    Attributes
    ----------
    on : str
        "holdout" if the exact error on one is known, else "train".
    mean, biases : float
        Of the mean only, and with biases only.
    model : float or None
        Exact, at the final factors; None if training did not end.
    """

    on: Literal["holdout", "train"]
    mean: float
    biases: float
    model: float | None


@dataclass(frozen=True, slots=True, repr=False)
class History(Sequence[Epoch]):
    """The epochs of a training, and its end.

    Attributes
    ----------
    epochs : tuple of Epoch
        Those that count; epochs that were rolled back are not among them.
    stopped : str
        Why it ended: "converged" (the cost changed less than `tol`), "target" (`target_cost` was reached), "early" (the
        holdout got no better for `patience` epochs), "time" (`max_seconds` were over), "epochs" (all were done),
        "interrupted".
    train_error, holdout_error : float or None
        Exact, at the final factors; predictions are not clipped.
    rollbacks : int
        How often the cost grew or was not finite, and an epoch was done again with a smaller step.
    best_epoch : int or None
        The epoch that the model is of, if it is not that of the last: the best on the holdout.
    cooled : int
        Epochs that were trained after `best_epoch`, with steps that go to zero, because that made the model better.
    baselines : Baselines or None
        Errors of simpler models on the same ratings.
    noise : float or None
        RMSE that no model gets below: the standard deviation of ratings that repeat a pair; None if there are too few,
        or errors are no RMSE.
    measure : str
        What errors are: "RMSE" in units of the ratings, or the mean of another loss.
    ratings_per_second : float or None
        Updates that count per second of wall time in epochs; not kept in a saved model, so that equal models are equal
        files.
    """

    epochs: tuple[Epoch, ...]
    stopped: Stopped
    train_error: float | None = None
    holdout_error: float | None = None
    rollbacks: int = 0
    best_epoch: int | None = None
    cooled: int = 0
    baselines: Baselines | None = None
    noise: float | None = None
    measure: str = "RMSE"
    ratings_per_second: float | None = None

    @property
    def train_rmse(self) -> float | None:
        """The exact error on the ratings trained on, if it is an RMSE."""
        return self.train_error if self.measure == "RMSE" else None

    @property
    def holdout_rmse(self) -> float | None:
        """The exact error on the holdout, if it is an RMSE."""
        return self.holdout_error if self.measure == "RMSE" else None

    @property
    def compared(self) -> Compared | None:
        """The errors beside those of simpler models, on the holdout if there is one; None if these were not tried."""
        if self.baselines is None:
            return None
        mean_train, mean_holdout, bias_train, bias_holdout = self.baselines
        if self.holdout_error is None or mean_holdout is None or bias_holdout is None:
            return Compared("train", mean_train, bias_train, self.train_error)
        return Compared("holdout", mean_holdout, bias_holdout, self.holdout_error)

    @overload
    def __getitem__(self, index: int) -> Epoch: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Epoch]: ...
    def __getitem__(self, index: int | slice) -> Epoch | Sequence[Epoch]:
        return self.epochs[index]

    def __len__(self) -> int:
        return len(self.epochs)

    def __iter__(self) -> Iterator[Epoch]:
        return iter(self.epochs)

    def __repr__(self) -> str:
        return f"<History: {self.summary()}>"

    def summary(self) -> str:
        """Return in words how the training ended."""
        reasons = {
            "converged": "the cost has stopped changing (tol)",
            "target": "the target cost is reached",
            "early": "the holdout gets no better (patience)",
            "time": "the time is over (max_seconds)",
            "epochs": "all epochs are done",
            "interrupted": "interrupted",
        }
        errors = {"train": self.train_error, "holdout": self.holdout_error}
        found = [f"{name} {self.measure} {error:.4f}" for name, error in errors.items() if error is not None]
        best = []
        if self.best_epoch is not None:
            cooled = f", and {counted(self.cooled, 'epoch')} with steps to zero" if self.cooled else ""
            best = [f"the model is that of epoch {self.best_epoch}, the best on the holdout{cooled}"]
        return "; ".join([f"stopped after {counted(len(self), 'epoch')}: {reasons[self.stopped]}", *best, *found])

    def to_json(self) -> dict[str, Any]:
        """Return what does not depend on the clock, for a JSON file."""
        return {
            "stopped": self.stopped,
            "train_error": self.train_error,
            "holdout_error": self.holdout_error,
            "rollbacks": self.rollbacks,
            "best_epoch": self.best_epoch,
            "cooled": self.cooled,
            "baselines": self.baselines and self.baselines._asdict(),
            "noise": self.noise,
            "measure": self.measure,
            "epochs": [dict(zip(Epoch._fields[:-1], epoch, strict=False)) for epoch in self.epochs],
        }

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "History":
        """Return the history that `to_json` wrote."""
        epochs, baselines = (Epoch(**epoch) for epoch in saved["epochs"]), saved["baselines"]
        return cls(**{**saved, "epochs": tuple(epochs), "baselines": baselines and Baselines(**baselines)})
