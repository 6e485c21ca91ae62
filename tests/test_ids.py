"""Hashes, counts and numbers of ids."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distmf.counting import _Counter
from distmf.ids import IdCounts, Ids, fingerprint, hash_ids, integers_of, mix, salt, unmix
from distmf.numbering import CloseNumbering, IdMap, number_ids

WIDTHS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
SALT = salt(3, "user")
words = st.lists(st.text(max_size=20) | st.sampled_from(["", "a", "ä", "\0", "\0\0", "a" * 8, "a" * 9]), max_size=40)


def strings(values: list[str]) -> pa.Array:
    return pa.array(values, type=pa.large_string())


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1))
def test_unmix__inverts_mix(numbers: list[int]) -> None:
    array = np.array(numbers, dtype=np.uint64)
    np.testing.assert_array_equal(unmix(mix(array)), array)


def test_mix__is_the_published_finaliser() -> None:
    # The first outputs of splitmix64 from state 0 are those of its finaliser at multiples of its increment.
    states = (np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    assert [hex(x) for x in mix(states)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


def test_salt__differs_by_seed_and_purpose() -> None:
    assert len({int(salt(seed, purpose)) for seed in range(10) for purpose in ("user", "item", "holdout")}) == 30


@given(words)
def test_hash_ids__tells_strings_apart_and_ignores_how_they_are_sliced(values: list[str]) -> None:
    whole = hash_ids(strings(values), SALT)
    assert len(set(whole.tolist())) == len(set(values))
    padded = strings(["x", *values, "y"])
    np.testing.assert_array_equal(hash_ids(padded.slice(1, len(values)), SALT), whole)


def test_hash_ids__tells_zeros_at_the_end_from_the_length() -> None:
    letters = [chr(n) for n in range(97, 123)]
    values = [letter + "\0" * n for letter in ("", *letters, "user-0001", "vser-0001") for n in range(20)]
    for seed in range(20):
        assert len(set(hash_ids(strings(values), salt(seed, "user")).tolist())) == len(values)


@pytest.mark.parametrize("width", WIDTHS, ids=str)
def test_id_map__round_trips_integers_of_every_width(width: pa.DataType) -> None:
    limits = np.iinfo(str(width))
    ids = pa.array([limits.min, limits.max, 0, 1, limits.max - 1, 0], type=width)
    counts = IdCounts.of(Ids(ids, SALT), np.ones(6, dtype=np.bool_))
    id_map = IdMap(pa.array(integers_of(counts.hashes, SALT).astype(str(width))), SALT)
    assert id_map.ids.type == width
    assert set(id_map.ids.to_pylist()) == set(ids.to_pylist())
    assert id_map.ids.take(pa.array(id_map.numbers(ids))).equals(ids)
    unknown = pa.array([77], type=width)
    assert id_map.numbers(unknown).tolist() == [-1]


@given(words, st.integers(0, 5))
def test_id_counts__do_not_depend_on_order_or_partitioning(values: list[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = ["a", *values, "a"]

    def count(some: list[str]) -> IdCounts:
        ids = Ids(strings(some), SALT)
        return IdCounts.of(ids, ids.hashes % np.uint64(3) != 0)

    whole = count(values)
    shuffled = [values[n] for n in rng.permutation(len(values))]
    cut = int(rng.integers(len(values) + 1))
    parts = [count(shuffled[:cut]), count(shuffled[cut:])]
    sources = IdCounts.merge(parts).sources(parts)
    for left, right in zip(whole, IdCounts.merge(parts), strict=True):
        np.testing.assert_array_equal(left, right)
    names = {int(hash_ids(strings([name]), SALT)[0]): name for name in values}
    assert len(whole.hashes) == len(names)
    for hash_, n, source in zip(whole.hashes.tolist(), whole.counts.tolist(), sources.tolist(), strict=True):
        assert n == values.count(names[hash_]) * (hash_ % 3 != 0)
        assert source == (names[hash_] not in shuffled[:cut])


@given(
    st.lists(
        st.lists(st.integers(-40, 90) | st.sampled_from([-(2**63), 2**63 - 1, 10**12]), min_size=1, max_size=30),
        min_size=1,
        max_size=4,
    )
)
def test_counter__counts_integers_close_together_as_all_others(batches: list[list[int]]) -> None:
    counter, parts = _Counter(SALT, 16), []  # an array of 64
    for batch in batches:
        ids = Ids(pa.array(batch, type=pa.int64()), SALT)
        is_train = ids.hashes % np.uint64(3) != 0
        counter.add(ids, is_train)
        parts.append(IdCounts.of(ids, is_train))
    n = len(counter)
    found, expected = counter.take(), IdCounts.merge(parts)
    for left, right in zip(found, expected, strict=True):
        np.testing.assert_array_equal(left, right)
    assert len(found.hashes) <= n <= sum(len(part.hashes) for part in parts)
    assert len(counter) == 0


@pytest.mark.parametrize("spread", [1, 2, 3, 50])
def test_number_ids__gives_the_same_numbers_to_integers_near_and_far(spread: int) -> None:
    integers = np.random.default_rng(0).permutation(2000)[:1000] * spread - 900
    hashes = hash_ids(pa.array(integers), SALT)
    ids = pa.array(integers[np.argsort(hashes)])
    numbering = number_ids(np.sort(hashes), ids.type, SALT)
    assert isinstance(numbering, CloseNumbering) == (spread < 3)
    assert numbering.numbers(Ids(ids, SALT)).tolist() == list(range(1000))
    others = pa.array([-901, 2**63 - 1, -(2**63), 1999 * spread - 899, int(integers.min()) - 1])
    assert numbering.numbers(Ids(others, SALT)).tolist() == [1000] * 5
    assert len(numbering) == 1000


def test_id_counts__hold_many_ids() -> None:
    ids = Ids(pa.array(np.repeat(np.arange(100_000) * 2**40, 2)), SALT)
    counts = IdCounts.of(ids, np.ones(len(ids), dtype=np.bool_))
    assert len(counts.hashes) == 100_000
    assert (counts.counts == 2).all()
    assert (np.diff(counts.hashes.astype(np.float64)) > 0).all()


def test_id_map__is_a_random_permutation() -> None:
    ids = pa.array(np.arange(10_000))
    counts = IdCounts.of_range(np.arange(10_000), 10_000, SALT)
    numbers = IdMap(pa.array(integers_of(counts.hashes, SALT)), SALT).numbers(ids)
    assert sorted(numbers.tolist()) == list(range(10_000))
    assert abs(np.corrcoef(np.arange(10_000), numbers)[0, 1]) < 0.05  # 5 standard errors


def test_id_map__finds_ids_in_the_order_in_which_they_were_given() -> None:
    ids = strings(["b", "a", "c"])
    assert IdMap(ids, SALT).numbers(strings(["c", "a", "d", "b"])).tolist() == [2, 1, -1, 0]


def test_id_map__knows_no_strings_among_integers() -> None:
    assert IdMap(pa.array([1, 2]), SALT).numbers(strings(["1"])).tolist() == [-1]
    assert IdMap(pa.array([], type=pa.int64()), SALT).numbers(pa.array([1])).tolist() == [-1]


@given(words, st.integers(0, 5))
def test_fingerprint__is_that_of_the_counts(values: list[str], seed: int) -> None:
    names = sorted(set(values))
    counts = np.array([values.count(name) for name in names], dtype=np.int64)
    shuffled = strings([values[n] for n in np.random.default_rng(seed).permutation(len(values))])
    found = fingerprint(shuffled, np.ones(len(values), dtype=np.bool_), SALT)
    assert found == fingerprint(strings(names), counts, SALT)
    if len(names) > 1:  # one taken for the other
        assert found != fingerprint(strings([names[0], *names[:-1]]), counts, SALT)


def test_id_map__tells_negative_from_large_numbers() -> None:
    signed, unsigned = pa.array([-1, 5], pa.int64()), pa.array([2**64 - 1, 5], pa.uint64())
    assert IdMap(signed, SALT).numbers(unsigned).tolist() == [-1, 1]
    assert IdMap(unsigned, SALT).numbers(signed).tolist() == [-1, 1]
    assert IdMap(unsigned, SALT).numbers(unsigned).tolist() == [0, 1]
    assert IdMap(signed, SALT).numbers(pa.array([-1, 5], pa.int8())).tolist() == [0, 1]
