"""Every block once per epoch, no line twice in a stratum, and column blocks that move to a neighbour."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from distmf.grid import BlockKey, Shape
from distmf.schedule import strata

shapes = st.builds(Shape, st.integers(1, 12), st.integers(1, 12))
numbers = st.integers(0, 2**31)


@given(shapes, numbers, numbers)
def test_strata__visit_every_block_once_and_no_line_twice(shape: Shape, epoch: int, seed: int) -> None:
    found = strata(shape, epoch, seed)
    assert sorted(itertools.chain(*found)) == [
        BlockKey(*key) for key in itertools.product(range(shape.rows), range(shape.cols))
    ]
    for stratum in found:
        assert len({block.row for block in stratum}) == len({block.col for block in stratum}) == len(stratum)


@given(st.integers(2, 12), numbers, numbers)
def test_strata__move_a_column_block_to_a_neighbouring_row_block(size: int, epoch: int, seed: int) -> None:
    rows = [{block.col: block.row for block in stratum} for stratum in strata(Shape(size, size), epoch, seed)]
    steps = {(after[col] - before[col]) % size for before, after in itertools.pairwise(rows) for col in range(size)}
    assert steps in ({1}, {size - 1})


@given(st.integers(2, 12), st.integers(1, 12), numbers, numbers)
def test_strata__visit_a_row_block_without_a_break_where_columns_are_few(
    n_rows: int, n_cols: int, epoch: int, seed: int
) -> None:
    n_cols = min(n_rows, n_cols)
    visits = [
        (block.row, subepoch)
        for subepoch, stratum in enumerate(strata(Shape(n_rows, n_cols), epoch, seed))
        for block in stratum
    ]
    breaks = 0
    for row in range(n_rows):
        at = sorted(subepoch for visited, subepoch in visits if visited == row)
        breaks += at != list(range(at[0], at[0] + n_cols))
    assert breaks < n_cols  # but for those with which the epoch begins, and ends


def test_strata__differ_from_epoch_to_epoch_and_from_seed_to_seed() -> None:
    found = {str(strata(Shape(8, 8), epoch, seed)) for epoch in range(10) for seed in range(10)}
    assert len(found) == 100
