"""A block is the same bytes for any order of its ratings, and holds just these ratings."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import distmf.records
from distmf.blocks import Layout
from distmf.encoding import Encoding
from distmf.grid import BlockKey
from distmf.kernel import GROUP_SIZES
from distmf.moments import Moments
from distmf.records import Format, Lines, Records, Sorter
from distmf.tiles import Duplicates, sort_part

LAYOUTS = [
    Layout((0, 700, 1300), (0, 300), (256, 256), Encoding((1.0, 2.0, 4.5))),
    Layout((0, 3, 5), (0, 2), (256, 256), Encoding()),
    Layout((0, 3000), (0, 70_000), (256, 32_768), Encoding((), -3.0, 1e-4)),
]

Rating = tuple[int, int, float]


def draw(layout: Layout, n: int, seed: int, n_places: int) -> tuple[Records, list[Rating]]:
    """Return n ratings at up to n_places places of block (0, 0): a record in each row, and row, column and value."""
    rng = np.random.default_rng(seed)
    where = rng.integers(n_places, size=n)
    rows, cols = (rng.integers(cuts[1], size=n_places)[where] for cuts in (layout.row_cuts, layout.col_cuts))
    ratings = rng.choice(layout.encoding.table, n) if layout.encoding.table else rng.normal(0, 0.5, n).round(1) + 0.0
    values = layout.encoding.encode(ratings.astype(np.float32))
    sorter = Sorter((Lines.of(layout.row_cuts), Lines.of(layout.col_cuts)), layout)
    bounds, records = sorter.sort(rows.astype(np.uint32), cols.astype(np.uint32), values, np.ones(n, dtype=np.bool_))
    assert bounds.tolist() == [0, *[n] * (2 * layout.shape.rows * layout.shape.cols)]
    ratings = zip(rows.tolist(), cols.tolist(), layout.encoding.decode(values).tolist(), strict=True)
    return records.reshape(n, Format.of(layout).n_bytes), list(ratings)


def read(data: bytes, layout: Layout, n: int) -> list[tuple[int, int, float]]:
    """Return row, column and rating of every rating in a part's bytes, in their order."""
    return [rating for group in read_groups(data, layout, n) for rating in group]


def read_groups(data: bytes, layout: Layout, n: int) -> list[list[tuple[int, int, float]]]:
    """Return the groups in a part's bytes, in their order, read as the format says."""
    n_tile_rows, n_tile_cols = layout.tiles(BlockKey(0, 0))
    arrays, begin = [], 0

    def take(dtype: npt.DTypeLike, length: int) -> list[Any]:
        nonlocal begin
        array = np.frombuffer(data, dtype, length, begin)
        begin += -(-array.nbytes // 8) * 8
        return list(array)

    counts = take(np.uint32, n_tile_rows * n_tile_cols * len(GROUP_SIZES))
    for dtype, length in zip(layout.dtypes, (int(sum(counts)), n, n), strict=True):
        arrays.append(iter(take(dtype, length)))
    assert begin == len(data)
    rows, cols, values = arrays
    groups = []
    for place, count in enumerate(counts):
        tile, kind = divmod(place, len(GROUP_SIZES))
        first_row, first_col = (tile // n_tile_cols * layout.tile_shape[0], tile % n_tile_cols * layout.tile_shape[1])
        for _ in range(count):
            row = first_row + int(next(rows))
            group = []
            for _ in range(GROUP_SIZES[kind]):
                value = layout.encoding.decode(np.array([next(values)], dtype=layout.encoding.dtype))
                group.append((row, first_col + int(next(cols)), float(value[0])))
            groups.append(group)
    return groups


@given(
    st.sampled_from(LAYOUTS),
    st.integers(0, 200),
    st.integers(0, 2**31),
    st.integers(1, 100),
    st.sampled_from(["keep", "mean", "error"]),
)
def test_sort_part__does_not_depend_on_the_order(
    layout: Layout, n: int, seed: int, n_places: int, duplicates: Duplicates
) -> None:
    if duplicates == "mean":
        layout = layout._replace(encoding=layout.encoding._replace(table=()))
    records, given_ratings = draw(layout, n, seed, n_places)
    part = sort_part(records.ravel(), BlockKey(0, 0), layout, duplicates)
    order = np.random.default_rng(seed).permutation(n)
    assert sort_part(records[order].ravel(), BlockKey(0, 0), layout, duplicates) == part
    found = read(part.data, layout, part.moments.n)
    pairs = {rating[:2] for rating in given_ratings}
    assert part.n_duplicates == n - len(pairs)
    assert (part.duplicate is None) == (part.n_duplicates == 0)
    if duplicates == "mean":
        means = {pair: np.mean([r for *other, r in given_ratings if tuple(other) == pair]) for pair in pairs}
        assert {rating[:2] for rating in found} == pairs
        for row, col, rating in found:
            assert rating == pytest.approx(means[row, col], rel=1e-6, abs=layout.encoding.step)
    else:
        assert sorted(found) == sorted(given_ratings)
    if part.duplicate:
        assert [rating[:2] for rating in given_ratings].count(part.duplicate) > 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sort_part__sorts_records_too_wide_for_one_integer(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    records, ratings = draw(layout, 500, 1, 300)
    expected = sort_part(records.ravel(), BlockKey(0, 0), layout, "keep")
    assert sorted(read(expected.data, layout, 500)) == sorted(ratings)
    calls = []
    lexsort = np.lexsort
    monkeypatch.setattr(np, "lexsort", lambda *args: calls.append(args) or lexsort(*args))
    monkeypatch.setattr(distmf.records, "WORD_BYTES", 3)
    assert sort_part(records.ravel(), BlockKey(0, 0), layout, "keep") == expected
    assert calls


@pytest.mark.parametrize("n_places", [400, 4000])
def test_sort_part__makes_groups_of_one_row_and_different_columns(n_places: int) -> None:
    layout = Layout((0, 30), (0, 300), (16, 128), Encoding((1.0, 2.0, 4.5)))
    part = sort_part(draw(layout, 1000, 0, n_places)[0].ravel(), BlockKey(0, 0), layout, "keep")
    groups = read_groups(part.data, layout, 1000)
    order = []
    for group in groups:
        (row,) = {row for row, _, _ in group}
        cols = [col for _, col, _ in group]
        assert cols == sorted(set(cols))
        (tile,) = {(row // 16, col // 128) for col in cols}
        order.append((tile, -len(group), row, cols))
    assert order == sorted(order)
    assert {len(group) for group in groups} == set(GROUP_SIZES)


def test_sort_part__makes_groups_as_large_as_can_be() -> None:
    layout = Layout((0, 2), (0, 300), (256, 256), Encoding((1.0,)))
    pairs = [(0, col) for col in range(11)] + [(1, 7)] * 3 + [(1, 8)]
    assert Format.of(layout).n_bytes == 4  # three of the cell, of which tiles take two, and one of the value
    cells = np.array([row << 8 | col for row, col in pairs])
    part = sort_part((cells << 8).astype("<u4").view(np.uint8), BlockKey(0, 0), layout, "keep")
    sizes = [(group[0][0], len(group)) for group in read_groups(part.data, layout, len(pairs))]
    assert sizes == [(0, 4), (0, 4), (0, 2), (1, 2), (0, 1), (1, 1), (1, 1)]


@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), max_size=20), min_size=1, max_size=5))
def test_moments__add_up(parts: list[list[float]]) -> None:
    arrays = [np.array(part, dtype=np.float32) for part in parts]
    total = sum((Moments.of(array) for array in arrays), Moments(0, 0.0, 0.0))
    whole = np.concatenate(arrays).astype(np.float64)
    assert total.n == len(whole)
    if len(whole):
        assert total.mean == pytest.approx(whole.mean(), rel=1e-9, abs=1e-9 * np.abs(whole).max())
        # Values near 1e6 have squares near 1e12; float64 keeps 16 digits of them.
        assert total.std == pytest.approx(whole.std(), rel=1e-6, abs=1e-6)
