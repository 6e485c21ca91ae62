"""Functions on lanes beside those of NumPy, and what the losses promise."""

from collections.abc import Callable

import numba as nb
import numpy as np
import numpy.typing as npt
import pytest
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from distmf.lanes import FLOAT32, Functions, Lanes
from distmf.losses import LOSSES, Constants, LossName, Objective
from distmf.vectors import Code

Floats = npt.NDArray[np.float32]


def on_lanes(function: Callable[[Lanes], Lanes], values: Floats) -> Floats:
    """Return a function of values, four at a time, in machine code."""

    @intrinsic
    def four(typing_context, source, target):
        def codegen(context, builder, signature, arguments):
            code = Code(builder)
            lanes = Lanes(builder, code.load(arguments[0], ir.VectorType(FLOAT32, 4)))
            code.store(function(lanes).value, arguments[1])

        return types.void(source, target), codegen

    @nb.njit
    def run(values, found):
        for n in range(0, len(values), 4):
            four(np.uint64(values[n:].ctypes.data), np.uint64(found[n:].ctypes.data))

    found = np.empty_like(values)
    run(values, found)
    return found


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("exp", np.linspace(-86, 86, 4000)),
        ("exp", np.linspace(-1e-3, 1e-3, 400)),
        ("log", np.geomspace(1e-37, 1e38, 4000)),
        ("log", np.linspace(0.5, 2, 4000)),
        ("abs", np.linspace(-3, 3, 40)),
        ("sign", np.array([-2.0, -0.0, 0.0, 3.0])),
    ],
)
def test_functions__agree_with_numpy(name: str, values: npt.NDArray[np.float64]) -> None:
    single = values.astype(np.float32)
    found, expected = on_lanes(getattr(Functions, name), single), getattr(np, name)(single.astype(np.float64))
    np.testing.assert_allclose(found, expected, rtol=3e-7, atol=1e-7 if name == "log" else 0)


@pytest.mark.parametrize("name", ["exp", "log", "abs", "sign"])
def test_functions__do_not_hide_what_is_not_a_number(name: str) -> None:
    assert np.isnan(on_lanes(getattr(Functions, name), np.full(4, np.nan, dtype=np.float32))).all()


def test_functions__of_two_agree_with_numpy() -> None:
    values = np.linspace(-2, 2, 40, dtype=np.float32)
    np.testing.assert_array_equal(on_lanes(lambda x: Functions.maximum(x, 0.5), values), np.maximum(values, 0.5))
    np.testing.assert_array_equal(on_lanes(lambda x: Functions.minimum(x, 0.5), values), np.minimum(values, 0.5))
    found = on_lanes(lambda x: Functions.where(x < 0, x, 2 / (1 - 3 * x)), values)
    np.testing.assert_allclose(found, np.where(values < 0, values, 2 / (1 - 3 * values)), rtol=1e-6)


def test_exp__has_no_overflow() -> None:
    values = np.array([-1e30, -100, 100, 1e30], dtype=np.float32)
    found = on_lanes(Functions.exp, values)
    assert np.isfinite(found).all()
    assert (found[:2] < 1e-37).all()
    assert (found[2:] > 1e37).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("is_bounded", [False, True])
def test_costs__pull_towards_the_rating(name: LossName, is_bounded: bool) -> None:
    at = Constants(low=-1.5, width=3.0, offset=1.0, slope=1.3)
    objective = Objective(name, is_bounded, constants=at)
    scores = np.linspace(-3, 3, 601)
    for value in (-1.0, 1.0):
        cost, pull = objective.costs(np, value, scores)
        assert (cost >= 0).all()
        slope = np.gradient(cost, scores)
        assert (slope * pull <= 1e-9).all(), name  # downhill, or level
