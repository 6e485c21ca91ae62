"""Strings of ids: each is written down once, in the span that it comes up in first, and all come back in order."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distmf.engines import open_engine
from distmf.errors import RatingsError
from distmf.ids import fingerprint
from distmf.names import checked, collect_names, count_ranges, names_of_span
from distmf.store import Folder

FOLDER = "memory://names"


def written(folder: Folder, spans: list[int], ratings: list[list[list[int]]], n_ranges: int, enough: int) -> None:
    """Write down the strings of ratings by span and batch, each id being its number in words."""
    for span, batches in enumerate(ratings):
        with names_of_span(folder, "users", np.array(spans, dtype=np.uint8), span, n_ranges, enough) as names:
            for numbers in batches:
                names.add(np.array(numbers, dtype=np.uint32), strings(numbers))


def strings(numbers: list[int]) -> pa.Array:
    return pa.array([f"user {n}" for n in numbers], pa.large_string())


batches = st.lists(st.integers(0, 30), min_size=1, max_size=40)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(batches, min_size=1, max_size=4), min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(0, 20),
    st.booleans(),
)
def test_collect_names__gives_all_in_order(
    ratings: list[list[list[int]]], n_ranges: int, enough: int, again: bool
) -> None:
    numbers = sorted({n for span in ratings for batch in span for n in batch})
    numbered = [[[numbers.index(n) for n in batch] for batch in span] for span in ratings]
    spans = [
        next(k for k, span in enumerate(numbered) if any(n in batch for batch in span)) for n in range(len(numbers))
    ]
    folder = Folder.at(FOLDER)
    try:
        for _ in range(1 + again):  # a task may run twice
            written(folder, spans, numbered, n_ranges, enough)
        with open_engine(threads=2) as engine:
            found = list(collect_names(engine, folder, "users", len(ratings), len(numbers), n_ranges))
        assert len(found) == n_ranges
        assert pa.concat_arrays(found).equals(strings(list(range(len(numbers)))))
    finally:
        folder.delete()


def test_names__are_written_once() -> None:
    folder = Folder.at(FOLDER)
    try:
        written(folder, [0] * 50 + [1] * 50, [[list(range(50))] * 20, [list(range(100))] * 20], 2, 10)
        sizes = []
        for span in range(2):
            with pa.ipc.open_file(pa.BufferReader(folder.read(f"names/{span:05d}-users.arrow"))) as reader:
                sizes.append(sum(reader.get_batch(n).num_rows for n in range(reader.num_record_batches)))
        assert sizes == [50, 50]
    finally:
        folder.delete()


def test_collect_names__refuses_ratings_that_changed() -> None:
    folder = Folder.at(FOLDER)
    try:
        written(folder, [0, 0, 0], [[[0, 2, 2]]], 1, 10)
        with open_engine(threads=1) as engine, pytest.raises(RatingsError, match="an id did not come up again; try"):
            list(collect_names(engine, folder, "users", 1, 3, 1))
    finally:
        folder.delete()


def test_checked__finds_ids_that_were_taken_for_one() -> None:
    salt, counts = np.uint64(5), np.array([2, 1])
    expected = fingerprint(strings([0, 1, 0]), np.ones(3), salt)
    parts = [strings([0]), strings([1])]
    assert list(checked(parts, counts, salt, expected)) == parts
    with pytest.raises(RatingsError, match="two of the ids have the same 64-bit hash; choose another seed"):
        list(checked([strings([0]), strings([2])], counts, salt, expected))


def test_count_ranges__is_enough() -> None:
    assert [count_ranges(n, 10) for n in (0, 1, 10, 11, 10**9)] == [0, 1, 1, 2, 1024]
