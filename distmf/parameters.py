"""The hyperparameters of the estimator: checked, and made plain numbers. Pure: no files, no Dask."""

import math
import numbers
from typing import Any

from distmf.arguments import check_choice, check_whole
from distmf.choices import MAX_RANK, MAX_SAMPLES
from distmf.errors import ParameterError
from distmf.kernel import Pair
from distmf.losses import LOSSES

WHOLE = {
    "rank": (1, MAX_RANK),
    "epochs": (1, 2**31),
    "patience": (0, 2**31),
    "posterior_samples": (0, MAX_SAMPLES),
    "seed": (0, 2**63 - 1),
}
REAL = "step_decay", "tol", "target_cost", "max_seconds"  # from 0 on; the last two may be None
OPTIONAL = "target_cost", "max_seconds"
REGS = "reg", "bias_reg", "l1_reg"
OF_POSTERIORS = {"loss": "squared", "bounds": None, "nonnegative": False, "l1_reg": 0.0}


def checked(given: dict[str, Any]) -> dict[str, Any]:
    """Return hyperparameters as plain numbers, and refuse those out of their range.

    Raises
    ------
    ParameterError
        If one is out of its range, or two do not go together.
    """
    found = dict(given)
    for name, (low, high) in WHOLE.items():
        check_whole(name, given[name], low, high)
        found[name] = int(given[name])
    for name in REAL:
        if name not in OPTIONAL or given[name] is not None:
            found[name] = _number(name, given[name])
    for name in REGS:
        found[name] = _regs(name, given[name])
    if given["step_size"] != "auto":
        if not is_number(given["step_size"]) or given["step_size"] <= 0:
            raise ParameterError(f"step_size is {given['step_size']!r}; it can be 'auto' or a positive number")
        found["step_size"] = float(given["step_size"])
    if not isinstance(given["nonnegative"], bool):
        raise ParameterError(f"nonnegative is {given['nonnegative']!r}; it can be True or False")
    found["bounds"] = _bounds(given["bounds"])
    _check_loss(found)
    return found


def is_number(value: Any) -> bool:
    """Return whether something is a finite number."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def pair(value: float | Pair) -> Pair:
    """Return a number for users and one for items."""
    return (value[0], value[1]) if isinstance(value, tuple | list) else (value, value)


def _number(name: str, value: Any) -> float:
    if not is_number(value) or value < 0:
        raise ParameterError(f"{name} is {value!r}; it can be a number from 0 on")
    return float(value)


def _regs(name: str, value: Any) -> float | Pair | str:
    """Return a number, or one for users and one for items, or "auto"."""
    if name == "reg" and isinstance(value, str) and value == "auto":
        return "auto"
    is_pair = isinstance(value, tuple | list) and len(value) == 2
    regs = list(value) if is_pair else [value]
    if not all(is_number(reg) and reg >= 0 for reg in regs):
        auto = "'auto', " if name == "reg" else ""
        raise ParameterError(
            f"{name} is {value!r}; it can be {auto}a number from 0 on, or two of them, for users and for items"
        )
    return (float(regs[0]), float(regs[1])) if is_pair else float(value)


def _bounds(value: Any) -> Pair | None:
    if value is None:
        return None
    is_pair = isinstance(value, tuple | list) and len(value) == 2
    if not (is_pair and all(map(is_number, value))):
        raise ParameterError(f"bounds is {value!r}; it can be two numbers, the lower one first")
    if value[0] >= value[1]:
        raise ParameterError(f"bounds are {value[0]:g} and {value[1]:g}; give two numbers, the lower one first")
    return float(value[0]), float(value[1])


def _check_loss(found: dict[str, Any]) -> None:
    loss = found["loss"]
    check_choice("loss", loss, LOSSES)
    if found["bounds"] is not None and not LOSSES[loss].may_be_bounded:
        fitting = ", ".join(repr(name) for name, other in LOSSES.items() if other.may_be_bounded)
        raise ParameterError(f"bounds are for the losses {fitting}; loss is {loss!r}, so leave them out")
    if found["posterior_samples"]:
        for name, value in OF_POSTERIORS.items():
            if found[name] != value and (name != "l1_reg" or any(pair(found[name]))):
                raise ParameterError(
                    f"{name} is {found[name]!r} with posterior_samples, which are of squared errors and free factors; "
                    f"leave out {name} (--{name.replace('_', '-')}) or posterior_samples (--posterior-samples)"
                )
