"""What is read from Parquet, and what is refused: every kind of bad input with file, column, row group and count."""

import decimal
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distmf import ratings as module
from distmf.errors import RatingsError
from distmf.ratings import Batch, Columns, open_ratings, read_ids, read_piece
from distmf.reading import Reading, narrowed, read_batches
from tests.helpers import random_ratings, write

COLUMNS = Columns()
WRITES_NO_VIEWS = int(pa.__version__.split(".")[0]) < 21


def read(source: Any, columns: Columns = COLUMNS) -> Batch:
    ratings = open_ratings(source, columns)
    batches = [batch for piece in ratings.pieces for batch in read_piece(ratings, piece)]
    user, item, rating, *_ = zip(*batches, strict=True)
    return Batch(pa.concat_arrays(user), pa.concat_arrays(item), np.concatenate(rating))


@pytest.fixture
def table() -> pa.Table:
    return random_ratings(100, 20, 10)


@pytest.fixture
def folder(tmp_path: Path, table: pa.Table) -> Path:
    """Return a folder with 100 ratings in three files, one in a folder below, and files that are no ratings."""
    root = tmp_path / "ratings"
    (root / "day=2").mkdir(parents=True)
    (root / "_temporary").mkdir()
    write(root / "a.parquet", table.slice(0, 40), row_group_size=15)
    write(root / "b.parquet", table.slice(40, 40))
    write(root / "day=2" / "c", table.slice(80))
    (root / "_SUCCESS").touch()
    (root / ".hidden").write_text("x")
    (root / "_temporary" / "d.parquet").write_text("x")
    return root


def check(found: Batch, table: pa.Table) -> None:
    assert found.user.to_pylist() == table["user_id"].to_pylist()
    assert found.item.to_pylist() == table["item_id"].to_pylist()
    np.testing.assert_array_equal(found.rating, table["rating"].to_numpy())


def test_read__takes_a_folder_and_skips_hidden_files(folder: Path, table: pa.Table) -> None:
    check(read(folder), table)
    assert [piece.n_rows for piece in open_ratings(folder, COLUMNS).pieces] == [15, 15, 10, 40, 20]


def test_read__takes_a_file_a_glob_and_home(folder: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    check(read(str(folder / "b.parquet")), table.slice(40, 40))
    check(read(str(folder / "*.parquet")), table.slice(0, 80))
    check(read(str(folder / "**" / "[ab].parquet")), table.slice(0, 80))
    check(read(str(folder / "*")), table)
    check(read(str(folder / "**")), table)
    check(read(str(folder / "day*")), table.slice(80))
    write(folder / ".a.parquet.tmp.parquet", table)
    check(read(str(folder / "*.parquet")), table.slice(0, 80))
    monkeypatch.setenv("HOME", str(folder.parent))
    check(read("~/ratings/b.parquet"), table.slice(40, 40))


def test_read__takes_urls(folder: Path, table: pa.Table) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(folder / "a.parquet"), "/in/a.parquet")
    memory.put(str(folder / "b.parquet"), "/in/b.parquet")
    try:
        check(read("memory://in"), table.slice(0, 80))
        check(read("memory://in/*.parquet"), table.slice(0, 80))
        check(read("memory://in/b.parquet"), table.slice(40, 40))
        check(read(f"file://{folder}"), table)
        with pytest.raises(RatingsError, match=r"memory:///in/a.parquet: there is no column 'stars'"):
            open_ratings("memory://in", Columns(rating="stars"))
    finally:
        memory.rm("/in", recursive=True)


@pytest.mark.parametrize(
    "id_type",
    [
        *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
        *(pa.string(), pa.large_string()),
        pytest.param(
            pa.string_view(), marks=pytest.mark.skipif(WRITES_NO_VIEWS, reason="pyarrow writes them from 21 on")
        ),
        *(pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int8(), pa.int64())),
    ],
    ids=str,
)
def test_read__takes_ids_of_every_type(id_type: pa.DataType, tmp_path: Path, table: pa.Table) -> None:
    values = id_type.value_type if pa.types.is_dictionary(id_type) else id_type
    ids = pa.array(table["user_id"].to_pylist()).cast(pa.string() if values == pa.string_view() else values)
    encoded = ids.dictionary_encode().cast(id_type) if pa.types.is_dictionary(id_type) else ids.cast(id_type)
    path = write(tmp_path / "r.parquet", {"user_id": encoded, "item_id": encoded, "rating": table["rating"]})
    found = read(path)
    assert found.user.to_pylist() == found.item.to_pylist() == ids.to_pylist()
    assert found.user.type == (values if pa.types.is_integer(values) else pa.large_string())


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1, 2, 3], type=pa.int8()),
        pa.array([1, 2, 3], type=pa.uint64()),
        pa.array(np.array([1, 2, 3], dtype=np.float16)),
        pa.array([1.0, 2.0, 3.0], type=pa.float64()),
        pa.array([decimal.Decimal("1.0"), decimal.Decimal("2.0"), decimal.Decimal("3.0")]),
        pa.array([1.0, 2.0, 3.0]).dictionary_encode(),
    ],
    ids=lambda values: str(values.type).replace("\n", ""),
)
def test_read__takes_ratings_of_every_numeric_type(values: pa.Array, tmp_path: Path) -> None:
    path = write(tmp_path / "r.parquet", {"user_id": [1, 2, 3], "item_id": [1, 2, 3], "rating": values})
    found = read(path)
    assert found.rating.dtype == np.float32
    assert found.rating.tolist() == [1, 2, 3]


def test_read__knows_one_zero(tmp_path: Path) -> None:
    path = write(tmp_path / "r.parquet", {"user_id": [1, 2], "item_id": [1, 2], "rating": [-0.0, 0.0]})
    assert not np.signbit(read(path).rating).any()


def test_read__takes_other_column_names_and_fewer_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "r.parquet", {"u": ["a", "b"], "i": [5, 6], "r": [1, 2], "x": [[1], None]})
    found = read(path, Columns("u", "i", "r"))
    assert (found.user.to_pylist(), found.item.to_pylist(), found.rating.tolist()) == (["a", "b"], [5, 6], [1, 2])
    pairs = open_ratings(path, Columns("u", "i", None))
    assert next(read_piece(pairs, pairs.pieces[0])).rating is None
    assert read_ids(path, Columns(None, "i", None)).to_pylist() == [5, 6]


def test_read_piece__needs_memory_for_a_batch_not_for_the_row_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_ROWS", 10_000)
    n = 2_000_000
    data = {"user_id": np.arange(n), "item_id": np.arange(n) % 1000, "rating": np.arange(n) % 5.0}
    path = write(tmp_path / "r.parquet", data, row_group_size=n, compression="none", use_dictionary=False)
    del data
    ratings = open_ratings(path, COLUMNS)
    pool, tracked = pa.default_memory_pool(), 0
    before = pool.bytes_allocated()
    tracemalloc.start()
    n_read = 0
    for batch in read_piece(ratings, ratings.pieces[0]):
        n_read += len(batch.rating)
        tracked = max(tracked, pool.bytes_allocated() - before + tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert n_read == n
    assert tracked < 16_000_000  # the row group takes 48 MB, in the file too


# What is refused.


def with_column(name: str, values: Any, **options: Any) -> pa.Table:
    table = pa.table({"user_id": [1, 2, 3, 4], "item_id": [1, 2, 3, 4], "rating": [1.0, 2.0, 3.0, 4.0]})
    return table.set_column(table.schema.get_field_index(name), name, pa.array(values, **options))


NULLS = [
    ("user_id", [1, 2, None, None], "column 'user_id' has 2 null ids"),
    ("item_id", ["a", "b", "c", None], "column 'item_id' has 1 null id;"),
    ("rating", [1.0, 2.0, None, None], "column 'rating' has 2 null ratings"),
    ("rating", [1.0, 2.0, np.nan, 1.0], "column 'rating' has 1 NaN rating;"),
    ("rating", [1.0, 2.0, np.inf, -np.inf], r"column 'rating' has 2 infinite ratings \(as float32\)"),
    ("rating", [1.0, 2.0, -3e38, 1.0], r"column 'rating' has 1 rating beyond ±1e\+30"),
    ("rating", [1.0, 2.0, 1e300, 1.0], "column 'rating' has 1 infinite rating "),
]


@pytest.mark.parametrize(("column", "values", "message"), NULLS, ids=[message[8:30] for *_, message in NULLS])
def test_read_piece__refuses_bad_values_with_place_and_count(
    column: str, values: list[Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_ROWS", 1)  # so that the count is over several batches
    path = write(tmp_path / "bad.parquet", with_column(column, values), row_group_size=2)
    with pytest.raises(RatingsError, match=rf"bad.parquet, row group 1: {message}"):
        read(path)


def test_read_piece__refuses_nulls_among_dictionary_encoded_ids(tmp_path: Path) -> None:
    ids = pa.array(["a", None, None, "b"]).dictionary_encode()
    path = write(tmp_path / "bad.parquet", with_column("user_id", ids))
    with pytest.raises(RatingsError, match="row group 0: column 'user_id' has 2 null ids"):
        read(path)


def test_open_ratings__names_the_columns_that_are_there(tmp_path: Path) -> None:
    path = write(tmp_path / "r.parquet", {"userId": [1], "movie": [1], "rating": [1.0]})
    with pytest.raises(RatingsError, match=r"r.parquet: there is no column 'user_id'.*'userId', 'movie', 'rating'"):
        open_ratings(path, COLUMNS)
    with pytest.raises(RatingsError, match="did you mean user='userId'"):
        open_ratings(path, Columns("userid"))
    with pytest.raises(RatingsError, match=r"no column 'item_id'.* name the right one by item= \(--item\)"):
        open_ratings(path, Columns("userId"))


def test_open_ratings__refuses_a_column_that_occurs_twice(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1])] * 4, names=["user_id", "item_id", "rating", "rating"])
    with pytest.raises(RatingsError, match="2 columns are called 'rating'"):
        open_ratings(write(tmp_path / "r.parquet", table), COLUMNS)


def test_open_ratings__refuses_one_column_for_two_things(folder: Path) -> None:
    match = r"'user_id' is taken for user and item, which need one each; name another by user= \(--user\) or item= "
    with pytest.raises(RatingsError, match=match):
        open_ratings(folder, Columns("user_id", "user_id"))


@pytest.mark.parametrize(
    ("values", "type_name"), [([b"1"] * 4, "binary"), (["1"] * 4, "string"), ([[1.0]] * 4, "list")], ids=str
)
def test_open_ratings__refuses_ratings_that_are_not_numbers(values: list[Any], type_name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "bad.parquet", with_column("rating", values))
    with pytest.raises(RatingsError, match=f"bad.parquet: column 'rating' has type {type_name}.*must be numbers"):
        open_ratings(path, COLUMNS)


@pytest.mark.parametrize(
    ("values", "type_name"), [([1.0] * 4, "double"), ([True] * 4, "bool"), ([b"x"] * 4, "binary")], ids=str
)
def test_open_ratings__refuses_ids_that_are_neither_integers_nor_strings(
    values: list[Any], type_name: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "bad.parquet", with_column("item_id", values))
    with pytest.raises(RatingsError, match=f"bad.parquet: column 'item_id' has type {type_name}; ids can be"):
        open_ratings(path, COLUMNS)


def test_open_ratings__refuses_ids_of_different_types_in_different_files(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", with_column("user_id", [1, 2, 3, 4]))
    write(tmp_path / "b.parquet", with_column("user_id", ["1", "2", "3", "4"]))
    with pytest.raises(RatingsError, match=r"b.parquet: column 'user_id' has type string, but int64 in .*a.parquet"):
        open_ratings(tmp_path, COLUMNS)
    write(tmp_path / "b.parquet", with_column("user_id", [1, 2, 3, 4], type=pa.int32()))
    with pytest.raises(RatingsError, match=r"b.parquet: column 'user_id' has type int32, but int64 in .*a.parquet"):
        open_ratings(tmp_path, COLUMNS)


def test_open_ratings__takes_strings_however_they_are_stored(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", with_column("user_id", ["a", "b", "c", "d"]))
    write(tmp_path / "b.parquet", with_column("user_id", ["a", "b", "c", "d"], type=pa.large_string()))
    write(tmp_path / "c.parquet", with_column("user_id", pa.array(["a", "b", "c", "d"]).dictionary_encode()))
    assert read(tmp_path).user.to_pylist() == ["a", "b", "c", "d"] * 3


def test_open_ratings__refuses_no_rating_at_all(tmp_path: Path) -> None:
    empty = with_column("rating", [1.0, 2.0, 3.0, 4.0]).slice(0, 0)
    path = write(tmp_path / "empty.parquet", empty)
    with pytest.raises(RatingsError, match="empty.parquet: there is no row in it"):
        open_ratings(path, COLUMNS)
    (tmp_path / "nothing").mkdir()
    for nothing in ("nothing", "missing", "missing.parquet", "*.csv"):
        with pytest.raises(RatingsError, match="no such file, or no file in it"):
            open_ratings(tmp_path / nothing, COLUMNS)


def test_open_ratings__skips_files_without_rows(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", with_column("user_id", ["1", "2", "3", "4"]).slice(0, 0))
    write(tmp_path / "b.parquet", with_column("user_id", [1, 2, 3, 4]))
    assert read(tmp_path).user.to_pylist() == [1, 2, 3, 4]


def test_open_ratings__refuses_what_is_not_parquet(folder: Path) -> None:
    (folder / "notes.txt").write_text("not ratings")
    with pytest.raises(RatingsError, match=r"notes.txt is not a Parquet file; .* choose files by a glob"):
        open_ratings(folder, COLUMNS)
    (folder / "notes.txt").write_bytes(b"")
    with pytest.raises(RatingsError, match=r"notes.txt is empty \(0 bytes\), so it is not a Parquet file"):
        open_ratings(folder, COLUMNS)


@pytest.mark.parametrize("left", [4, 100, -1])
def test_open_ratings__refuses_a_truncated_file(left: int, folder: Path) -> None:
    data = (folder / "b.parquet").read_bytes()[:left]
    (folder / "b.parquet").write_bytes(data)
    with pytest.raises(
        RatingsError, match=rf"b.parquet is a Parquet file that is truncated or damaged \({len(data):,}"
    ):
        open_ratings(folder, COLUMNS)


def test_read_piece__refuses_damaged_pages(tmp_path: Path, table: pa.Table) -> None:
    path = write(tmp_path / "bad.parquet", table, compression="zstd")
    data = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(0).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    with pytest.raises(RatingsError, match="bad.parquet, row group 0 cannot be read: .* damaged"):
        read(path)


def test_read_piece__says_when_a_file_is_gone(folder: Path) -> None:
    ratings = open_ratings(folder, COLUMNS)
    (folder / "b.parquet").unlink()
    with pytest.raises(RatingsError, match="b.parquet: the file is gone"):
        list(read_piece(ratings, ratings.pieces[3]))


def test_reading__keeps_what_there_is_room_for(tmp_path: Path) -> None:
    spans = []
    for number in range(3):
        table = random_ratings(1000, 100, 50, seed=number)
        table = table.set_column(
            0, "user_id", pa.array(table["user_id"].to_numpy() * 2**40)
        )  # which 32 bits do not hold
        write(tmp_path / f"{number}.parquet", table, row_group_size=300)
        spans.append(open_ratings(tmp_path / f"{number}.parquet", Columns()))
    expected = [list(read_batches(span, 400)) for span in spans]
    assert all(len(batches) > 1 for batches in expected)
    n_bytes = sum(narrowed(batch).n_bytes for batch in expected[0])
    assert sum(batch.n_bytes for batch in expected[0]) - n_bytes == pytest.approx(4 * 1000, abs=200)  # of item ids
    reading = Reading(2 * n_bytes + 100)
    for number, span in enumerate(spans):
        assert same(list(reading.first(number, span, 400)), expected[number])
    assert reading.shrink(10 * n_bytes) == 2 * n_bytes
    assert reading.shrink(n_bytes) == n_bytes
    copy = pickle.loads(pickle.dumps(reading))
    assert copy.shrink(10 * n_bytes) == 0
    for number in (0, 2):
        (tmp_path / f"{number}.parquet").unlink()
    assert same(list(reading.again(0, spans[0], 400)), expected[0])  # without the file
    assert same(list(reading.again(1, spans[1], 400)), expected[1])
    assert reading.shrink(10 * n_bytes) == 0
    for number in (0, 2):
        with pytest.raises(RatingsError, match="the file is gone"):
            list(reading.again(number, spans[number], 400))


def same(left: list[Batch], right: list[Batch]) -> bool:
    """Return whether batches hold the same ratings in the same order."""
    return len(left) == len(right) and all(
        a.user.equals(b.user) and a.item.cast(b.item.type).equals(b.item) and np.array_equal(a.rating, b.rating)
        for a, b in zip(left, right, strict=True)
    )


def test_string_bytes__is_that_of_the_longer_ids(tmp_path: Path) -> None:
    def string_bytes(users: list[Any], items: list[Any]) -> int:
        columns = {"user_id": users, "item_id": items, "rating": [1.0] * len(users)}
        return open_ratings(write(tmp_path / "r.parquet", columns), COLUMNS).string_bytes()

    assert string_bytes([1, 2, 3], [4, 5, 6]) == 0
    assert string_bytes([1, 2] * 500, ["a" * 20] * 1000) == 20 + 8
    assert string_bytes(["a" * 30] * 1000, ["a" * 20, "b" * 40] * 500) == 30 + 8
