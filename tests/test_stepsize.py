"""How the step size goes on from cost to cost."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distmf.stepsize import CUT, GROWTH, LARGEST, START, StepRule, StepState, reg_for, share_of_step, start_for


def steps(rule: StepRule, costs: list[float | None]) -> list[float]:
    """Return the step sizes of the epochs from the second on."""
    state, found = rule.first(), []
    for cost in costs:
        state = rule.next(state, cost)
        found.append(rule.step_size(state))
    return found


def test_next__of_a_constant_step_is_constant() -> None:
    assert steps(StepRule(0.3), [None, 5.0, 1.0, math.nan]) == [0.3] * 4


def test_next__of_a_decaying_step_decays() -> None:
    assert steps(StepRule(1.0, 0.5), [None, 5.0, 9.0]) == [0.5, 0.25, 0.125]


def test_next__of_the_bold_driver_grows_while_the_cost_falls_and_goes_to_zero_in_a_straight_line() -> None:
    rule = StepRule(START, epochs=10)
    found = steps(rule, [None, 5.0, 4.0, 3.0])
    expected = [START * (1 - t / 10) * GROWTH ** max(0, t - 1) for t in range(1, 5)]
    assert found == pytest.approx(expected, rel=1e-12)
    assert steps(rule, [None] + [1.0] * 9)[-1] == 0


@pytest.mark.parametrize("cost", [5.2, math.inf, math.nan])
def test_next__of_the_bold_driver_cuts_when_the_cost_rises_or_is_not_finite(cost: float) -> None:
    state = StepState(3, 0.1, 5.0)
    assert StepRule(START, epochs=1000).next(state, cost).base == pytest.approx(CUT * 0.1, rel=1e-12)


def test_next__of_the_bold_driver_takes_a_small_rise_for_noise() -> None:
    assert StepRule(START, epochs=1000).next(StepState(3, 0.1, 5.0), 5.05).base > 0.1


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=60), st.integers(1, 100))
def test_next__of_the_bold_driver_stays_in_bounds(costs: list[float], more: int) -> None:
    rule = StepRule(START, epochs=len(costs) + more)
    assert all(0 < step <= LARGEST for step in steps(rule, [None, *costs[1:]]))


def test_share_of_step__is_less_than_all_only_where_lines_have_many_ratings() -> None:
    assert share_of_step(10**6, 3_000) == share_of_step(5, 10) == 1
    assert share_of_step(3 * 10**6, 40) == pytest.approx(1 / 30)


def test_start_for_and_reg_for__grow_with_sparsity_up_to_a_bound() -> None:
    assert start_for(10**6, 10**4) == pytest.approx(0.04)
    assert reg_for(10**6, 10**4) == pytest.approx(0.04)
    assert start_for(10**6, 4 * 10**4) == pytest.approx(0.08)
    assert reg_for(10**6, 3 * 10**4) == pytest.approx(0.04 * 3**0.5)
    assert (start_for(16 * 10**6, 10**4), reg_for(16 * 10**6, 10**4)) == pytest.approx((0.02, 0.02))
    assert (start_for(5, 10), reg_for(5, 10)) == (0.1, 0.08)
