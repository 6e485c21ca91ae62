"""Splits: what is to train on and what to test with, against plain loops; the same for all files and engines."""

import datetime
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distmf import split
from distmf.errors import ParameterError, RatingsError, StoreError
from tests.clusters import cluster
from tests.helpers import write
from tests.test_cli import as_json, run


@pytest.fixture(scope="module")
def table() -> pa.Table:
    rng = np.random.default_rng(0)
    users, items = np.divmod(rng.permutation(200 * 90)[:5000], 90)
    users = np.minimum(users, rng.integers(0, 200, 5000))  # some users have few ratings, some many
    return pa.table(
        {
            "userId": users,
            "movieId": items,
            "rating": rng.integers(1, 6, 5000).astype(np.float64),
            "timestamp": rng.integers(0, 500, 5000),
        }
    )


MODULE = sys.modules["distmf.splitting"]
Row = tuple[Any, ...]


def rows_of(path: str | Path) -> Counter[Row]:
    return Counter(tuple(row.values()) for row in pq.read_table(path).to_pylist())


def both(found: Any) -> tuple[Counter[Row], Counter[Row]]:
    train, test = rows_of(found.train), rows_of(found.test)
    assert (train.total(), test.total()) == (found.n_train, found.n_test)
    return train, test


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "ROWS_AT_ONCE", 700)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("by", ["random", "user", "last"])
def test_split__parts_are_all_ratings_whatever_their_order_and_files(by: Any, table: pa.Table, tmp_path: Path) -> None:
    write(tmp_path / "one.parquet", table)
    shuffled = table.take(np.random.default_rng(1).permutation(len(table)))
    (tmp_path / "many").mkdir()
    for n in range(3):
        write(tmp_path / f"many/{n}.parquet", shuffled.slice(n * 1700, 1700))
    first = both(split(tmp_path / "one.parquet", tmp_path / "a", by=by))
    expected = Counter(tuple(row.values()) for row in table.select(range(3 + (by == "last"))).to_pylist())
    assert first[0] + first[1] == expected
    assert both(split(tmp_path / "many", tmp_path / "b", by=by, threads=1)) == first
    assert both(split(shuffled, str(tmp_path / "c"), by=by)) == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "many", "one.parquet"]
    if by != "last":
        assert both(split(table, tmp_path / "a", by=by, seed=1)) != first  # and it replaces the first


def test_split__at_random_takes_a_share(table: pa.Table, tmp_path: Path) -> None:
    found = split(table, tmp_path / "a", test_size=0.3)
    assert found.n_test / 5000 == pytest.approx(0.3, abs=4 * np.sqrt(0.3 * 0.7 / 5000))
    assert found == (f"{tmp_path}/a/train", f"{tmp_path}/a/test", 5000 - found.n_test, found.n_test)


@pytest.mark.usefixtures("small")
def test_split__by_user_takes_a_share_of_each(table: pa.Table, tmp_path: Path) -> None:
    _, first = np.unique(100 * table["userId"].to_numpy() + table["movieId"].to_numpy(), return_index=True)
    table = table.take(first)  # one rating of each pair
    train, test = both(split(table, tmp_path / "a", by="user", test_size=0.25))
    per_user, of_test = Counter(), Counter()
    for row, n in test.items():
        of_test[row[0]] += n
    for row, n in (train + test).items():
        per_user[row[0]] += n
    for user, n in per_user.items():
        assert int(0.25 * n) <= of_test[user] <= int(0.25 * n) + 1
        assert of_test[user] < n
    assert test.total() / len(table) == pytest.approx(0.25, abs=0.01)  # rounding is right in the mean
    few = [user for user, n in per_user.items() if n in (2, 3)]
    assert 0 < sum(of_test[user] for user in few) < len(few)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("as_dates", [False, True])
def test_split__by_time_takes_the_last(as_dates: bool, table: pa.Table, tmp_path: Path) -> None:
    if as_dates:
        day = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
        times = [day + datetime.timedelta(hours=hours) for hours in table["timestamp"].to_pylist()]
        table = table.set_column(3, "date", pa.array(times))
    train, test = both(split(table, tmp_path / "a", by="last", test_size=2))
    users = {row[0] for row in train}
    assert {row[0] for row in test} <= users
    for user in users:
        before = [row[3] for row in train.elements() if row[0] == user]
        after = [row[3] for row in test.elements() if row[0] == user]
        assert len(after) == min(2, len(before) + len(after) - 1)
        assert not after or max(before) <= min(after)


@pytest.mark.usefixtures("small")
def test_split__on_a_cluster_is_the_same(table: pa.Table, tmp_path: Path) -> None:
    path = write(tmp_path / "r.parquet", table)
    here = both(split(path, tmp_path / "a", by="user"))
    with cluster(2, tmp_path) as client:
        assert both(split(path, tmp_path / "b", by="user", client=client)) == here


@pytest.mark.usefixtures("small")
def test_split__goes_on_where_it_was(table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "r.parquet", table)
    expected = both(split(path, tmp_path / "a", by="user"))
    calls: list[int] = []
    part = MODULE._split_part  # type: ignore[attr-defined]

    def failing(n: int, *args: Any) -> Any:
        calls.append(n)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return part(n, *args)

    monkeypatch.setattr(MODULE, "_split_part", failing)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on from there"):
        split(path, tmp_path / "b", by="user", threads=1)
    n_before = len(calls)
    assert both(split(path, tmp_path / "b", by="user", threads=1)) == expected
    assert len(calls) == n_before + 8 - 2  # of 8 parts, 2 were done


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("by", ["random", "user"])
def test_split__has_all_ratings_of_a_pair_on_one_side(by: Any, table: pa.Table, tmp_path: Path) -> None:
    train, test = both(split(table, tmp_path / "a", by=by, test_size=0.4))
    pairs = [{row[:2] for row in part} for part in (train, test)]
    assert len(pairs[0] | pairs[1]) < 5000  # there are some that repeat
    assert not pairs[0] & pairs[1]


def test_split__of_a_split_draws_anew(table: pa.Table, tmp_path: Path) -> None:
    for by in ("random", "user"):
        first = split(table, tmp_path / "a", by=by, test_size=0.5)  # type: ignore[arg-type]
        second = split(first.train, tmp_path / "b", by=by, test_size=0.5)  # type: ignore[arg-type]
        assert second.n_test / first.n_train == pytest.approx(0.5, abs=0.04)


def test_split__keeps_weights_and_refuses_what_it_would_overwrite(table: pa.Table, tmp_path: Path) -> None:
    path = write(tmp_path / "r.parquet", table.append_column("w", pa.array(np.arange(1.0, 5001))))
    found = split(path, tmp_path / "a", weight="w")
    weights = [pq.read_table(part)["w"].to_pylist() for part in (found.train, found.test)]
    assert sorted(weights[0] + weights[1]) == list(range(1, 5001))
    before = rows_of(found.train)
    for source in (found.train, tmp_path / "a"):
        with pytest.raises(StoreError, match="they are the same folder, or one is in the other"):
            split(source, tmp_path / "a")
    assert rows_of(found.train) == before
    with pytest.raises(ParameterError, match="time is 'timestamp', but it is for by='last' only"):
        split(path, tmp_path / "b", time="timestamp")


def test_split__reads_movielens_text(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1::10::5::7\n1::11::3::9\n2::10::4::5\n2::12::1::3\n3::10::1::1\n")
    train, test = both(split(tmp_path / "ratings.dat", tmp_path / "a", by="last"))
    assert sorted(test) == [(1, 11, 3.0, 9), (2, 10, 4.0, 5)]
    assert sorted(train) == [(1, 10, 5.0, 7), (2, 12, 1.0, 3), (3, 10, 1.0, 1)]


def test_split__refuses(table: pa.Table, tmp_path: Path) -> None:
    for size, by, message in (
        (0, "random", "test_size is 0; it can be a share between 0 and 1$"),
        (5, "random", "test_size is 5"),
        (0, "user", "a share between 0 and 1, or how many of each user, a whole number"),
        (1.5, "last", r"test_size is 1\.5"),
        ("x", "user", "test_size is 'x'"),
        (0.1, "week", "by is 'week'; it can be 'random', 'user' or 'last'"),
    ):
        with pytest.raises(ParameterError, match=message):
            split(table, tmp_path / "a", by=by, test_size=size)  # type: ignore[arg-type]
    with pytest.raises(RatingsError, match=r"no column 'timestamp'"):
        split(table.drop_columns("timestamp"), tmp_path / "a", by="last")
    single = table.filter(pa.array(np.arange(len(table)) < 1))
    with pytest.raises(RatingsError, match="of 1 rating none would be to test with"):
        split(single, tmp_path / "a", by="user")
    nulls = table.set_column(3, "timestamp", pa.array([None, *table["timestamp"].to_pylist()[1:]]))
    with pytest.raises(RatingsError, match="column 'timestamp' has 1 null time;"):
        split(nulls, tmp_path / "a", by="last")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine").write_text("")
    with pytest.raises(StoreError, match="is not only distmf split"):
        split(table, tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_split__command(table: pa.Table, tmp_path: Path) -> None:
    path = write(tmp_path / "r.parquet", table)
    found = as_json(
        run("split", path, tmp_path / "a", "--by", "last", "--test-size", 2, "--time", "timestamp", "--json")
    )
    expected = split(path, tmp_path / "b", by="last", test_size=2, time="timestamp")
    assert (found["n_train"], found["n_test"]) == (expected.n_train, expected.n_test)
    assert found["test"] == f"{tmp_path}/a/test"
    shown = run("split", path, tmp_path / "a", "--test-size", 0.2)
    assert f" ratings in {tmp_path}/a/train, " in shown.stdout
    refused = run("split", path, tmp_path / "a", "--test-size", 3)
    assert refused.exit_code == 2
    assert "--test-size is 3; it can be a share between 0 and 1" in refused.stderr


def test_split__by_time_as_text_takes_iso_dates_only(tmp_path: Path) -> None:
    columns = {"user_id": [1, 1, 1], "item_id": [1, 2, 3], "rating": [1.0, 2.0, 3.0]}
    dates = ["2020-12-31", "2021-01-02T10:00", "2020-01-01 09:00"]
    split(pa.table({**columns, "date": dates}), tmp_path / "a", by="last")
    assert pq.read_table(tmp_path / "a/test")["item_id"].to_pylist() == [2]
    match = r"column 'date' has \d times as text that is not ISO 8601 \(2026-11-27\)"
    for dates in (["31/12/2020", "2/1/2021", "10/2/2021"], ["8", "10", "2020-01-01"]):
        with pytest.raises(RatingsError, match=match):
            split(pa.table({**columns, "date": dates}), tmp_path / "b", by="last")
