"""What a prediction costs, and how it pulls: every loss written once, for NumPy and for machine code. Pure.

A formula works on normalised numbers: the rating is v = (r − μ) / σ, and the score is s = b_u + b_i + p_u·q_i. It
returns the cost ℓ, which is reported, and the pull on the score, with which SGD steps: b_u += η (pull − λ_b b_u),
p_u += η (pull · q_i − λ p_u), and so on. It is −∂ℓ/∂s, and half of it where ℓ is like a square. Losses are normalised
so that about the mean, cost and curvature are near 1, and one step size and one λ do for all.

Its first argument has the functions: the module `numpy`, or `lanes.Functions`.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Self, get_args

LossName = Literal["squared", "absolute", "huber", "poisson", "logistic", "hinge", "squared_hinge"]

HUBER = 1.345  # standard deviations, beyond which errors count as much as their size (P. Huber, 1964)
LEAST_RATE = 0.1  # of the mean, for Poisson's: the cost is as at this below it, and a step there no steeper


class Constants(NamedTuple):
    """Numbers that formulas need; every loss has a use for some of them.

    Attributes
    ----------
    low, width : float
        Of the interval that predictions are in, on normalised ratings.
    offset, slope : float
        The sigmoid is that of offset + slope · score. For Poisson's loss, `offset` is the mean over the standard
        deviation.
    """

    low: float = 0.0
    width: float = 1.0
    offset: float = 0.0
    slope: float = 1.0


class Loss(NamedTuple):
    """A loss function.

    Attributes
    ----------
    formula : callable
        Of functions, normalised ratings, what is predicted and constants; returns costs and pulls.
    measure : str
        What the mean cost is called.
    is_binary : bool
        Whether it is for two values only: they are normalised to −1 and 1.
    is_robust : bool
        Whether it is for ratings with outliers: they are normalised by their median and median deviation.
    may_be_bounded : bool
        Whether predictions may be bounded by a sigmoid.
    """

    formula: Callable[[Any, Any, Any, Any], tuple[Any, Any]]
    measure: str
    is_binary: bool = False
    is_robust: bool = False
    may_be_bounded: bool = False


def squared(m: Any, value: Any, predicted: Any, at: Constants) -> tuple[Any, Any]:
    """ℓ = e²."""
    error = value - predicted
    return error * error, error


def absolute(m: Any, value: Any, predicted: Any, at: Constants) -> tuple[Any, Any]:
    """ℓ = |e|."""
    error = value - predicted
    return m.abs(error), m.sign(error)


def huber(m: Any, value: Any, predicted: Any, at: Constants) -> tuple[Any, Any]:
    """ℓ = e² up to `HUBER`, and beyond it a straight line that goes on with the same slope."""
    error = value - predicted
    pull = m.minimum(m.maximum(error, -HUBER), HUBER)
    return pull * (2 * error - pull), pull


def poisson(m: Any, value: Any, predicted: Any, at: Constants) -> tuple[Any, Any]:
    """ℓ = 2 (r log(r / r̂) − r + r̂), the Poisson deviance or twice the generalised Kullback-Leibler divergence.

    It is divided by the variance over the mean, which would be 1 for numbers that are really drawn so.
    """
    rating = m.maximum(value + at.offset, 0)
    rate = m.maximum(predicted + at.offset, LEAST_RATE * at.offset)
    ratio = m.maximum(rating, 1e-30) / rate
    return 2 * at.offset * (rating * m.log(ratio) - rating + rate), (value - predicted) * (at.offset / rate)


def logistic(m: Any, value: Any, predicted: Any, at: Constants) -> tuple[Any, Any]:
    """ℓ = log(1 + e^−z), z = v (offset + slope · s)."""
    margin = value * (at.offset + at.slope * predicted)
    power = m.exp(-m.abs(margin))
    chance = m.where(margin < 0, power * 0 + 1, power) / (1 + power)  # of the other value
    return m.maximum(-margin, 0) + m.log(1 + power), at.slope * value * chance


def hinge(m: Any, value: Any, predicted: Any, at: Constants) -> tuple[Any, Any]:
    """ℓ = max(0, 1 − v s)."""
    gap = 1 - value * predicted
    return m.maximum(gap, 0), m.where(gap < 0, value * 0, value)


def squared_hinge(m: Any, value: Any, predicted: Any, at: Constants) -> tuple[Any, Any]:
    """ℓ = max(0, 1 − v s)²."""
    gap = m.maximum(1 - value * predicted, 0)
    return gap * gap, value * gap


LOSSES: dict[LossName, Loss] = {
    "squared": Loss(squared, "RMSE", may_be_bounded=True),
    "absolute": Loss(absolute, "MAE", is_robust=True, may_be_bounded=True),
    "huber": Loss(huber, "Huber loss", is_robust=True, may_be_bounded=True),
    "poisson": Loss(poisson, "Poisson deviance"),
    "logistic": Loss(logistic, "log loss", is_binary=True),
    "hinge": Loss(hinge, "hinge loss", is_binary=True),
    "squared_hinge": Loss(squared_hinge, "squared hinge loss", is_binary=True),
}
assert set(LOSSES) == set(get_args(LossName))


def sigmoid(m: Any, score: Any, at: Constants) -> tuple[Any, Any]:
    """Return the predictions of scores within the interval, low + width / (1 + e^−z), and their derivatives."""
    power = m.exp(-(at.offset + at.slope * score))
    share = 1 / (1 + power)
    return at.low + at.width * share, at.width * at.slope * share * (1 - share)


class Objective(NamedTuple):
    """What training minimises besides the regularisation.

    Attributes
    ----------
    loss : str
        A key of `LOSSES`.
    is_bounded : bool
        Whether predictions are sigmoids of scores; else they are the scores.
    nonnegative : bool
        Whether factors are kept from falling below zero.
    constants : Constants
        Of the formulas.
    """

    loss: LossName = "squared"
    is_bounded: bool = False
    nonnegative: bool = False
    constants: Constants = Constants()

    @property
    def details(self) -> Loss:
        """What is known of the loss."""
        return LOSSES[self.loss]

    @property
    def is_plain(self) -> bool:
        """Whether these are squared errors of scores without bounds, which posteriors and ridge solutions are of."""
        return self._replace(constants=Constants()) == Objective()

    def unit(self, scale: float) -> float:
        """Return what a cost of 1 is in ratings, whose spread is `scale`: in their square, or as the loss has it."""
        if self.loss == "poisson":
            return scale / self.constants.offset
        return {"squared": scale**2, "huber": scale**2, "absolute": scale}.get(self.loss, 1.0)

    def noise(self, scale: float) -> float:
        """Return which share of the ratings' variance is noise, where the loss implies that; else 1.

        The variance of numbers that are drawn from Poisson's distribution is their mean: the rest is there to be found.
        """
        return min(1.0, self.constants.offset / scale) if self.loss == "poisson" else 1.0

    def error(self, cost: float, scale: float) -> float:
        """Return a mean cost in the way in which it is reported: of squared errors the root, in units of ratings."""
        mean = cost * self.unit(scale)
        return math.sqrt(mean) if self.loss == "squared" else mean

    def costs(self, m: Any, value: Any, score: Any, at: Any = None) -> tuple[Any, Any]:
        """Return the cost of each rating and the pull on its score, given normalised ratings and scores."""
        at, formula = at or self.constants, self.details.formula
        if not self.is_bounded:
            return formula(m, value, score, at)
        predicted, slope = sigmoid(m, score, at)
        cost, pull = formula(m, value, predicted, at)
        return cost, pull * slope


class Normalisation(NamedTuple):
    """How ratings become numbers about zero, of unit spread: (rating − mean) / scale; and what is minimised on them."""

    mean: float
    scale: float
    objective: Objective = Objective()

    @property
    def _has_sigmoid(self) -> bool:
        return self.objective.is_bounded or self.objective.loss == "logistic"

    @property
    def interval(self) -> tuple[float, float] | None:
        """Between what ratings the loss or a sigmoid has all of them, None if they may be any."""
        if not (self.objective.is_bounded or self.objective.details.is_binary):
            return None
        low, width = self.objective.constants[:2] if self.objective.is_bounded else (-1.0, 2.0)
        return self.mean + self.scale * low, self.mean + self.scale * (low + width)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Between what ratings a sigmoid predicts, None if predictions are scores."""
        return self.interval if self._has_sigmoid else None

    @property
    def unit_of_scores(self) -> float:
        """What a score of 1 is for who predicts: so many ratings, or the argument of a sigmoid."""
        return self.objective.constants.slope if self._has_sigmoid else self.scale

    @property
    def score_of_mean(self) -> float:
        """What is added to biases and products by who predicts."""
        return self.objective.constants.offset if self._has_sigmoid else self.mean

    def to_json(self) -> dict[str, Any]:
        """Return it for a JSON file."""
        objective = {**self.objective._asdict(), "constants": self.objective.constants._asdict()}
        return {"mean": self.mean, "scale": self.scale, **objective}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Self:
        """Return what `to_json` wrote."""
        mean, scale, constants = (saved[name] for name in ("mean", "scale", "constants"))
        objective = {name: saved[name] for name in ("loss", "is_bounded", "nonnegative")}
        return cls(mean, scale, Objective(**objective, constants=Constants(**constants)))
