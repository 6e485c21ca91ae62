"""A block is the same bytes for any order of its ratings, and holds just these ratings."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distmf import tiles
from distmf.blocks import Layout, Moments
from distmf.grid import BlockKey
from distmf.tiles import Duplicates, record_dtype, sort_part

LAYOUTS = [
    Layout((0, 700, 1300), (0, 300), (256, 256), (1.0, 2.0, 4.5)),
    Layout((0, 3, 5), (0, 2), (256, 256), ()),
    Layout((0, 3000), (0, 70_000), (512, 512), ()),
]


def draw(layout: Layout, n: int, seed: int, n_places: int) -> npt.NDArray[np.void]:
    """Return n ratings at up to n_places places of block (0, 0)."""
    rng = np.random.default_rng(seed)
    records = np.empty(n, dtype=record_dtype(layout))
    where = rng.integers(n_places, size=n)
    for name, cuts in ("row", layout.row_cuts), ("col", layout.col_cuts):
        records[name] = rng.integers(cuts[1], size=n_places)[where]
    values = rng.integers(3, size=n) if layout.table else rng.normal(0, 1, n).round(1) + 0.0  # ratings know one zero
    records["value"] = values
    return records


def read(data: bytes, layout: Layout, n: int) -> list[tuple[int, int, float]]:
    """Return row, column and rating of every rating in a part's bytes, in their order."""
    key, begin, arrays = BlockKey(0, 0), 0, []
    n_tiles = int(np.prod(layout.tiles(key)))
    for dtype, length in zip((np.dtype(np.uint32), *layout.dtypes), (n_tiles, n, n, n), strict=True):
        arrays.append(np.frombuffer(data, dtype, length, begin))
        begin += -(-dtype.itemsize * length // 8) * 8
    ratings = layout.ratings(arrays[0], arrays[1:], key)
    tile = np.repeat(np.arange(n_tiles), np.diff(ratings.offsets))
    rows = tile // ratings.n_tile_cols * layout.tile_shape[0] + ratings.rows
    cols = tile % ratings.n_tile_cols * layout.tile_shape[1] + ratings.cols
    values = ratings.table[ratings.values] if layout.table else ratings.values
    return list(zip(rows.tolist(), cols.tolist(), values.tolist(), strict=True))


def triples(records: npt.NDArray[np.void], layout: Layout) -> list[tuple[int, int, float]]:
    values = np.array(layout.table)[records["value"]] if layout.table else records["value"]
    return list(zip(records["row"].tolist(), records["col"].tolist(), values.tolist(), strict=True))


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
        layout = layout._replace(table=())
    records = draw(layout, n, seed, n_places)
    part = sort_part(records, BlockKey(0, 0), layout, duplicates)
    again = sort_part(records[np.random.default_rng(seed).permutation(n)], BlockKey(0, 0), layout, duplicates)
    assert part == again
    found, given_ratings = read(part.data, layout, part.moments.n), triples(records, layout)
    pairs = {rating[:2] for rating in given_ratings}
    assert part.n_duplicates == n - len(pairs)
    assert (part.duplicate is None) == (part.n_duplicates == 0)
    if duplicates == "mean":
        means = {pair: np.mean([r for *other, r in given_ratings if tuple(other) == pair]) for pair in pairs}
        assert {rating[:2] for rating in found} == pairs
        for row, col, rating in found:
            assert rating == pytest.approx(means[row, col], rel=1e-6)
    else:
        assert sorted(found) == sorted(given_ratings)
    if part.duplicate:
        assert [rating[:2] for rating in given_ratings].count(part.duplicate) > 1


def test_sort_part__sorts_cells_too_far_apart_for_one_integer(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = LAYOUTS[2]
    records = draw(layout, 500, 1, 300)
    expected = sort_part(records, BlockKey(0, 0), layout, "keep")
    calls = []
    argsort = np.argsort
    monkeypatch.setattr(tiles.np, "argsort", lambda *args: calls.append(args) or argsort(*args))
    monkeypatch.setattr(tiles, "SORT_BITS", 20)
    assert sort_part(records, BlockKey(0, 0), layout, "keep") == expected
    assert calls


def test_sort_part__sorts_by_tile_row_and_column() -> None:
    layout = LAYOUTS[0]
    part = sort_part(draw(layout, 400, 0, 400), BlockKey(0, 0), layout, "keep")
    found = read(part.data, layout, 400)
    assert found == sorted(found, key=lambda rating: (rating[0] // 256, rating[1] // 256, *rating))


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
