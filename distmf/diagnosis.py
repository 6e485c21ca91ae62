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
FAR_ABOVE = 2  # times the automatic reg, from which on it is told that this may be too much
UNUSED = 0.97  # of the training error with biases only; factors that bring it no lower are held down near zero
AT_NOISE = 1.05  # times the noise of ratings that repeat a pair, up to which an error is as low as it can be
MOST_EPOCHS = 10  # times those that were done, that are ever advised
LONGER_LINE = 2  # times those that were done, that are advised where steps go to zero with the last
SMALL_STEP = 0.005  # η at first, below which a model that does no better than biases says nothing of the ratings
SHORT_CHAIN = 100  # epochs of a chain of draws, below which it has hardly come to where it draws from

Code = Literal[
    "interrupted",
    "converged",
    "on target",
    "still falling",
    "overfitting",
    "step too large",
    "step too small",
    "no signal",
    "reg too large",
    "off target",
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
        How simpler models do, in words; empty if they were not tried.
    """

    findings: tuple[Finding, ...]
    baselines: str

    @property
    def codes(self) -> list[Code]:
        """The codes of the findings."""
        return [finding.code for finding in self.findings]

    def __repr__(self) -> str:
        return "\n".join([*(finding.text for finding in self.findings), *filter(None, [self.baselines])])


def diagnose(
    history: History, *, adapts_step: bool, chain: int = 0, over_auto: float = 1.0, target: float | None = None
) -> Diagnosis:
    """Return what a history says.

    Parameters
    ----------
    history : History
        Of a training.
    adapts_step : bool
        Whether the step size was "auto".
    chain : int
        Epochs of a chain, if the posterior was drawn from: then errors go up and down, and only the end says something.
    over_auto : float
        How many times the automatic one the reg was.
    target : float, optional
        The cost at which training was to stop.
    """
    if chain:
        found = _of_draws(history, chain)
    else:
        steps = _step_too_large(history, adapts_step) or _step_too_small(history, adapts_step)
        found = [steps or _no_signal(history, over_auto, adapts_step=adapts_step) or _reg_too_large(history, over_auto)]
        if not any(found):
            found = [_overfitting(history), _at_the_noise(history)]
        if not any(found):
            found = [_still_falling(history, adapts_step)]
        found.append(_off_target(history, target))
    findings = [finding for finding in found if finding] or [_came_to_an_end(history, chain)]
    return Diagnosis(tuple(findings), _baselines(history))


def _of_draws(history: History, chain: int) -> list[Finding | None]:
    """Return what the history of chains of so many epochs says."""
    short = min(chain, len(history))
    if short < SHORT_CHAIN or history.stopped == "time":
        ended = f"the time was over after {counted(len(history), 'epoch')} of chains of {chain}"
        why = ended if history.stopped == "time" else f"chains of {counted(chain, 'epoch')} are short"
        return [Finding("still falling", f"It can get better: {why}; 200 epochs each are the default.")]
    return [_no_signal(history, 1.0, adapts_step=True) or _at_the_noise(history)]


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
        "ratings of very different sizes, or a reg or bias_reg far above 1, are the likely reason"
        if adapts_step
        else 'take a smaller one, or "auto"'
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


def _step_too_small(history: History, adapts_step: bool) -> Finding | None:
    baselines, fall = history.baselines, _fall(_errors(history))
    if baselines is None or fall is None or history.stopped not in ("epochs", "time", "converged"):
        return None
    # At rest, even without factors, it would come as far as biases alone.
    error, is_small = history[-1].train_error, not adapts_step and history[0].step_size < SMALL_STEP
    is_behind = error >= BIASES * baselines.bias_train and (fall >= COMES_TO_REST or not adapts_step)
    if not is_behind and not (is_small and error >= NO_SIGNAL * baselines.bias_train):
        return None
    return Finding(
        "step too small",
        f"The step size was too small: after {counted(len(history), 'epoch')} the error is {error:.4f}, and "
        f"{baselines.bias_train:.4f} with biases only, and falls by {100 * max(fall, 0):.2g} % per epoch. "
        'Take a larger one, or "auto"; or many more epochs.',
    )


def _still_falling(history: History, adapts_step: bool) -> Finding | None:
    errors = _errors(history)
    fall = _fall(errors)
    if history.stopped not in ("epochs", "time"):
        return None
    if fall is None:
        return Finding(
            "still falling", f"{counted(len(history), 'epoch')} cannot tell: give it at least {LEAST_EPOCHS}."
        )
    if fall < (FALL if adapts_step else COMES_TO_REST):  # a step that adapts has gone to zero
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
    at_most = LONGER_LINE if adapts_step else MOST_EPOCHS
    n_epochs = min(len(history) + max(1, more), at_most * len(history))
    return Finding(
        "still falling",
        f"It is still getting better, by {100 * fall:.2g} % per epoch: try about {_rounded(n_epochs)} epochs.",
    )


def _no_signal(history: History, over_auto: float, *, adapts_step: bool) -> Finding | None:
    found, fall = history.compared, _fall(_errors(history))
    if found is None or found.model is None or fall is None or (not adapts_step and fall >= COMES_TO_REST):
        return None
    mean, bias, error = found.mean, found.biases, found.model
    best = best_on_holdout(history)  # an epoch that was better tells of a signal, and of what came after it
    least = error if best is None or best.holdout_error is None else min(error, best.holdout_error)
    if least < NO_SIGNAL * min(mean, bias):
        return None
    if mean < NO_SIGNAL * bias:
        simpler, beyond = f"{mean:.4f} with the mean only. The mean alone", "the mean"
    else:
        simpler, beyond = f"{bias:.4f} with biases only. A model of biases", "the biases"
    reg = "reg" if over_auto < FAR_ABOVE else f"reg, which is {over_auto:.2g} times the automatic one,"
    outliers = "" if history.measure == "RMSE" else ", or a few outliers make up most of the error"
    return Finding(
        "no signal",
        f"There is almost nothing in the ratings beyond {beyond}: the error is {error:.4f}, and {simpler} does as "
        f"well, unless {reg} is too large{outliers}.",
    )


def _reg_too_large(history: History, over_auto: float) -> Finding | None:
    error = history.train_error
    if history.baselines is None or error is None or over_auto < FAR_ABOVE:
        return None
    if error < UNUSED * history.baselines.bias_train:
        return None
    return Finding(
        "reg too large",
        f"The factors are hardly used: on the ratings trained on the error is {error:.4f}, and "
        f"{history.baselines.bias_train:.4f} with biases only. reg is {over_auto:.2g} times the automatic one; lower "
        'it, or take "auto".',
    )


def _off_target(history: History, target: float | None) -> Finding | None:
    error = history.train_error
    if target is None or error is None or history.stopped in ("target", "interrupted"):
        return None
    what, cost = ("mean squared error", error**2) if history.measure == "RMSE" else (history.measure, error)
    fall = _fall([epoch.train_error for epoch in history])
    if fall is None or fall >= FALL:
        way_out = f"the {what} is {cost:.4g}, and not at rest yet. Give it more epochs"
    else:
        way_out = f"the {what} came to rest at {cost:.4g}. Lower reg and bias_reg, or raise rank"
    return Finding("off target", f"The target cost of {target:.4g} was not reached: {way_out}.")


def _at_the_noise(history: History) -> Finding | None:
    noise, error = history.noise, history.holdout_error if history.holdout_error is not None else history.train_error
    if not noise or error is None or history.measure != "RMSE" or error > AT_NOISE * noise:
        return None
    if (simpler := history.compared) is not None and min(simpler.mean, simpler.biases) < error:  # so it is not
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


def _came_to_an_end(history: History, chain: int) -> Finding:
    if history.stopped == "interrupted":
        return Finding("interrupted", f"It was interrupted after {counted(len(history), 'epoch')}.")
    if history.stopped == "target":
        return Finding("on target", f"It reached the target cost in {counted(len(history), 'epoch')}.")
    if chain:
        chains = counted(len(history) // chain, "chain")
        return Finding("converged", f"The draws are done: {chains} of {counted(chain, 'epoch')}.")
    fall = _fall(_errors(history))
    by = "" if fall is None else f", and falls by no more than {100 * max(fall, 0):.2g} % per epoch"
    return Finding("converged", f"It has converged: the error came to rest in {counted(len(history), 'epoch')}{by}.")


def _baselines(history: History) -> str:
    found = history.compared
    if found is None:
        return ""
    kind = "the holdout" if found.on == "holdout" else "the ratings trained on"
    own = "" if found.model is None else f", and {found.model:.4f} with this model"
    return (
        f"On {kind} the {history.measure} is {found.mean:.4f} with the mean only, {found.biases:.4f} with biases only"
        f"{own}{_noise(history)}."
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
