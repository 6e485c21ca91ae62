"""The history of a training -> what it says about the model, in words. Pure: no files, no Dask.

Every rule has its threshold here, with a name. Rules look at the error on the holdout where there is one, else at that
on the ratings trained on.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from distmf.history import Epoch, History, best_on_holdout
from distmf.sizes import counted

RISE = 1.005  # of the training error from one epoch to the next, from which on it has risen: less is noise
FALL = 0.002  # of the error per epoch, over the last few, with which it is still falling
COMES_TO_REST = 0.0005  # of the error per epoch, below which more epochs do not pay
LEAST_EPOCHS = 10  # that tell something
LAST = 3  # epochs, in the mean of which it falls
OVERFIT = 1.002  # the error on the holdout at the end over the best one, from which on the model overfits
BIASES = 1.01  # times the error with biases only, above which a model has not come as far as these
NO_SIGNAL = 0.99  # of the error with biases only; a model that is no better has found next to nothing
AT_NOISE = 1.05  # times the noise of ratings that repeat a pair, up to which an error is as low as it can be
MOST_EPOCHS = 10  # times those that were done, that are ever advised

Code = Literal[
    "interrupted",
    "converged",
    "still falling",
    "overfitting",
    "step too large",
    "step too small",
    "no signal",
    "at the noise",
]


class Finding(NamedTuple):
    """One thing that a history says: a code for programs, and words for people."""

    code: Code
    text: str


class Diagnosis(NamedTuple):
    """All that a history says.

    Attributes
    ----------
    findings : tuple of Finding
        What was found, the most important first.
    baselines : str
        How simpler models do, in words.
    """

    findings: tuple[Finding, ...]
    baselines: str

    @property
    def codes(self) -> list[Code]:
        """The codes of the findings."""
        return [finding.code for finding in self.findings]

    def __str__(self) -> str:
        return "\n".join([*(finding.text for finding in self.findings), self.baselines])


def diagnose(history: History, *, adapts_step: bool, draws: bool) -> Diagnosis:
    """Return what a history says.

    Parameters
    ----------
    history : History
        Of a training.
    adapts_step : bool
        Whether the step size was "auto".
    draws : bool
        Whether the posterior was drawn from: then errors go up and down, and only the end says something.
    """
    found = [_no_signal(history) or _at_the_noise(history)]
    if not draws:
        found = [_step_too_large(history, adapts_step), _overfitting(history), _step_too_small(history), *found]
        if not any(found[:3]) and (found[3] is None or found[3].code != "no signal"):
            found.append(_still_falling(history))
    if not any(found):
        found.append(_came_to_an_end(history))
    return Diagnosis(tuple(finding for finding in found if finding), _baselines(history))


def _step_too_large(history: History, adapts_step: bool) -> Finding | None:
    rises = [
        after.epoch
        for before, after in itertools.pairwise(history)
        if after.train_error > RISE * before.train_error and after.epoch > 2  # noise in the first epochs
    ]
    if not history.rollbacks and (adapts_step or len(rises) < 2):  # a step that adapts grows until the error rises
        return None
    seen = [f"the training error rose in epochs {_listed(rises)}"] if rises else []
    if history.rollbacks:
        seen.append(f"{counted(history.rollbacks, 'time')} an epoch was undone and done again with half the step")
    way_out = (
        "ratings of very different sizes are the likely reason" if adapts_step else 'take a smaller one, or "auto"'
    )
    return Finding("step too large", f"The step size was too large: {', and '.join(seen)}; {way_out}.")


def _overfitting(history: History) -> Finding | None:
    best, last = best_on_holdout(history), history[-1]
    if best is None or best.holdout_error is None or last.holdout_error is None:
        return None
    if last.holdout_error <= OVERFIT * best.holdout_error:
        return None
    kept = "; the model is that of this epoch" if history.best_epoch else ""
    return Finding(
        "overfitting",
        f"It overfits since epoch {best.epoch}: from then to epoch {last.epoch} the error on the holdout rose from "
        f"{best.holdout_error:.4f} to {last.holdout_error:.4f}, while that on the ratings trained on went on to "
        f"{last.train_error:.4f}{kept}. "
        "Raise reg or lower rank.",
    )


def _step_too_small(history: History) -> Finding | None:
    baselines, fall = history.baselines, _fall(_errors(history))
    if baselines is None or fall is None or history.stopped not in ("epochs", "time"):
        return None
    # At rest, even without factors, it would come as far as biases alone.
    if fall < COMES_TO_REST or history[-1].train_error < BIASES * baselines.bias_train:
        return None
    return Finding(
        "step too small",
        f"The step size was too small: after {len(history)} epochs the error is {history[-1].train_error:.4f}, more "
        f"than with biases only ({baselines.bias_train:.4f}), and falls by {100 * fall:.2g} % per epoch. "
        'Take a larger one, or "auto"; or many more epochs.',
    )


def _still_falling(history: History) -> Finding | None:
    errors = _errors(history)
    fall = _fall(errors)
    if history.stopped not in ("epochs", "time"):
        return None
    if fall is None:
        return Finding(
            "still falling", f"{counted(len(history), 'epoch')} cannot tell: give it at least {LEAST_EPOCHS}."
        )
    if fall < FALL:
        return None
    if history.holdout_error is None:
        return Finding(
            "still falling",
            f"The error on the ratings trained on still falls, by {100 * fall:.2g} % per epoch. Whether more epochs "
            "make the model better, only ratings that are held out can tell: give it a holdout of 0.1.",
        )
    before = _fall(errors[:-LAST]) or 2 * fall
    ratio = min(0.99, max(0.5, (fall / before) ** (1 / LAST) if before > 0 else 0.5))
    more = math.ceil(math.log(COMES_TO_REST / fall) / math.log(ratio))
    n_epochs = min(len(history) + max(1, more), MOST_EPOCHS * len(history))
    return Finding(
        "still falling",
        f"It is still getting better, by {100 * fall:.2g} % per epoch: give it about {_rounded(n_epochs)} epochs.",
    )


def _no_signal(history: History) -> Finding | None:
    baselines, errors = history.baselines, (history.train_error, history.holdout_error)
    if baselines is None:
        return None
    error, bias = (errors[1], baselines.bias_holdout) if errors[1] is not None else (errors[0], baselines.bias_train)
    if error is None or bias is None or error < NO_SIGNAL * bias:
        return None
    return Finding(
        "no signal",
        f"There is almost nothing in the ratings beyond the biases: the error is {error:.4f}, and {bias:.4f} with "
        "biases only. A model of biases does as well, unless the step was too small or reg is too large.",
    )


def _at_the_noise(history: History) -> Finding | None:
    noise, error = history.noise, history.holdout_error if history.holdout_error is not None else history.train_error
    if not noise or error is None or history.measure != "RMSE" or error > AT_NOISE * noise:
        return None
    if history.holdout_error is None and error < noise:
        return Finding(
            "at the noise",
            f"It fits noise: the error on the ratings trained on is {error:.4f}, but ratings that repeat a pair differ "
            f"by {noise:.4f}, and no model can know by which. Hold some ratings out to see how good it is.",
        )
    return Finding(
        "at the noise",
        f"The error is {error:.4f}, as low as it can be: ratings that repeat a pair differ by {noise:.4f}, and no "
        "model can know by which.",
    )


def _came_to_an_end(history: History) -> Finding:
    if history.stopped == "interrupted":
        return Finding("interrupted", f"It was interrupted after {counted(len(history), 'epoch')}.")
    fall = _fall(_errors(history))
    by = "" if fall is None else f", and falls by no more than {100 * max(fall, 0):.2g} % per epoch"
    return Finding("converged", f"It has converged: the error came to rest in {counted(len(history), 'epoch')}{by}.")


def _baselines(history: History) -> str:
    if history.baselines is None:
        return "Simpler models were not tried."
    train, holdout = history.baselines[::2], history.baselines[1::2]
    kind, errors = ("the holdout", holdout) if history.holdout_error is not None else ("the ratings trained on", train)
    error = history.holdout_error if history.holdout_error is not None else history.train_error
    own = "" if error is None else f", and {error:.4f} with this model"
    return (
        f"On {kind} the {history.measure} is {errors[0]:.4f} with the mean only, {errors[1]:.4f} with biases only{own}"
        f"{_noise(history)}."
    )


def _noise(history: History) -> str:
    return f"; {history.noise:.4f} is the noise in ratings that repeat a pair" if history.noise else ""


def _errors(history: Sequence[Epoch]) -> list[float]:
    """Return the errors that tell how good the model is."""
    holdouts = [epoch.holdout_error for epoch in history if epoch.holdout_error is not None]
    return holdouts or [epoch.train_error for epoch in history]


def _fall(errors: Sequence[float]) -> float | None:
    """Return the share by which errors fell per epoch at last, None if they are too few to tell."""
    if len(errors) <= LAST or not errors[-1 - LAST]:
        return None
    return 1 - math.pow(errors[-1] / errors[-1 - LAST], 1 / LAST)


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    return f"{shown} and {len(numbers) - 5} more" if len(numbers) > 5 else shown


def _rounded(n: int) -> int:
    """Return a number of two digits that count."""
    step: int = 10 ** max(0, len(str(n)) - 2)
    return -(-n // step) * step
