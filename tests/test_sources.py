"""Ratings from where people have them: each kind gives the blocks that Parquet gives."""

import bz2
import gzip
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from distributed import Client

import distmf
from distmf import MatrixFactorization, block_ratings
from distmf.errors import RatingsError
from tests.clusters import cluster
from tests.helpers import files, random_ratings, write
from tests.test_cli import run

for name in ("pandas", "polars", "scipy"):
    pytest.importorskip(name, reason=f"no {name}: pip install '.[frames]'")

import dask.dataframe as dd
import pandas
import polars as pl
from scipy import sparse

OPTIONS: dict[str, Any] = {"grid": (2, 2), "holdout": 0.1}


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return random_ratings(2000, 100, 50)


@pytest.fixture(scope="module")
def expected(table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("expected")
    write(folder / "r.parquet", table)
    block_ratings(folder / "r.parquet", folder / "b", **OPTIONS)
    return files(folder / "b")


TABLES = {
    "table": lambda table: table,
    "batch": lambda table: table.combine_chunks().to_batches()[0],
    "reader": lambda table: pa.RecordBatchReader.from_batches(table.schema, table.to_batches(300)),
    "dataset": ds.dataset,
    "pandas": lambda table: table.to_pandas(),
    "pandas with an index": lambda table: table.to_pandas().sample(frac=1, random_state=0),
    "polars": lambda table: pl.DataFrame(pl.from_arrow(table)),
    "dask": lambda table: dd.from_pandas(table.to_pandas(), npartitions=3),
    "sparse": lambda table: sparse.csr_matrix((table["rating"], (table["user_id"], table["item_id"]))),
}


@pytest.mark.parametrize("kind", TABLES)
def test_block_ratings__takes_tables(kind: str, table: pa.Table, expected: dict[str, bytes], tmp_path: Path) -> None:
    block_ratings(TABLES[kind](table), tmp_path / "b", **OPTIONS)
    assert files(tmp_path / "b") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["b"]  # nothing is left of what was written


def test_block_ratings__takes_a_dense_matrix(table: pa.Table, tmp_path: Path) -> None:
    matrix = np.full((100, 50), -1.0)
    matrix[table["user_id"], table["item_id"]] = table["rating"]
    block_ratings(matrix, tmp_path / "b", is_set=distmf.non_negative, **OPTIONS)
    holed = np.where(matrix < 0, np.nan, matrix)
    block_ratings(holed, tmp_path / "c", **OPTIONS)
    assert files(tmp_path / "b") == files(tmp_path / "c")
    assert distmf.open_blocks(tmp_path / "b").n_users == len(set(table["user_id"].to_pylist()))


def test_block_ratings__has_the_workers_write_a_dask_dataframe(
    table: pa.Table, expected: dict[str, bytes], tmp_path: Path
) -> None:
    with cluster(2, tmp_path) as client:
        assert isinstance(client, Client)
        block_ratings(dd.from_pandas(table.to_pandas(), npartitions=4), tmp_path / "b", client=client, **OPTIONS)
    assert files(tmp_path / "b") == expected


def lines(table: pa.Table, delimiter: str, *, header: bool) -> bytes:
    rows = zip(*(table[name].to_pylist() for name in ("user_id", "item_id", "rating")), strict=True)
    text = [delimiter.join(map(str, (*row, 978300760))) for row in rows]
    return "\n".join(
        [*([delimiter.join(["userId", "movieId", "rating", "timestamp"])] if header else []), *text]
    ).encode()


@pytest.mark.parametrize(
    ("name", "delimiter", "header"),
    [
        ("ratings.csv", ",", True),
        ("ratings.csv", ";", True),
        ("ratings.dat", "::", False),
        ("u.data", "\t", False),
        ("r.tsv", "\t", True),
        ("r.csv.gz", ",", True),
        ("r.dat.bz2", "::", False),
    ],
)
def test_block_ratings__takes_text(
    name: str, delimiter: str, header: bool, table: pa.Table, expected: dict[str, bytes], tmp_path: Path
) -> None:
    data = lines(table, delimiter, header=header)
    compress = {".gz": gzip.compress, ".bz2": bz2.compress}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(compress(data))
    block_ratings(tmp_path / name, tmp_path / "b", **OPTIONS)
    assert files(tmp_path / "b") == expected


def test_block_ratings__takes_several_files_of_text(
    table: pa.Table, expected: dict[str, bytes], tmp_path: Path
) -> None:
    for n in range(3):
        pc.write_csv(table.slice(700 * n, 700), tmp_path / f"r{n}.csv")
    block_ratings(f"{tmp_path}/r*.csv", tmp_path / "b", **OPTIONS)
    assert files(tmp_path / "b") == expected


@pytest.mark.parametrize(
    "names", [("userId", "movieId", "Rating"), ("user", "item", "stars"), ("User ID", "asin", "score")]
)
def test_columns__are_found_by_names_that_are_known(
    names: tuple[str, str, str],
    table: pa.Table,
    expected: dict[str, bytes],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = tmp_path / "r.parquet"
    pq.write_table(table.select(["user_id", "item_id", "rating"]).rename_columns(list(names)), source)
    with caplog.at_level(logging.INFO, "distmf"):
        block_ratings(source, tmp_path / "b", **OPTIONS)
    assert "users are in {!r}, items are in {!r}, ratings are in {!r}".format(*names) in caplog.text
    assert files(tmp_path / "b") == expected


def test_columns__that_are_not_clear_are_asked_for(table: pa.Table, tmp_path: Path) -> None:
    both = table.append_column("user", table["user_id"])
    with pytest.raises(RatingsError, match=r"the user may be in 'user_id' or 'user'; say in which by user= \(--user\)"):
        block_ratings(both, tmp_path / "b")
    block_ratings(both, tmp_path / "b", user="user")
    with pytest.raises(RatingsError, match="there is no column 'usr'; there are: .*did you mean user='user'"):
        block_ratings(both, tmp_path / "c", user="usr")
    with pytest.raises(RatingsError, match="there is no column 'rating'; there are: 'user_id', 'item_id'"):
        block_ratings(table.select(["user_id", "item_id"]), tmp_path / "c")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello\nworld\n", "there are no columns in its first line, 'hello'"),
        ("1,2\n3,4\n", "users, items and ratings need a column each; its first line is '1,2'"),
        ("user,item,rating\n1,2,3\n1,2\n", "line 3: 3 columns are expected, and there are 2"),
    ],
)
def test_text__that_is_none_is_refused_with_its_name(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(RatingsError, match=f"r.csv.*{message}"):
        block_ratings(tmp_path / "r.csv", tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["r.csv"]


@pytest.mark.parametrize("head", [",user_id,item_id,rating", "user_id,item_id,rating,"])
def test_text__may_have_columns_without_a_name(head: str, tmp_path: Path) -> None:
    """As an index that pandas writes."""
    rows = ["0,1,2,3", "1,1,3,4", "2,2,3,5"] if head.startswith(",") else ["1,2,3,", "1,3,4,", "2,3,5,"]
    (tmp_path / "r.csv").write_text("\n".join([head, *rows]) + "\n")
    blocks = block_ratings(tmp_path / "r.csv", tmp_path / "b")
    assert (blocks.ids("user")["id"].type, blocks.n_users, blocks.n_items) == (pa.int64(), 2, 2)


@pytest.mark.parametrize("late", [False, True])
def test_text__has_strings_where_an_id_is_no_integer(late: bool, tmp_path: Path) -> None:
    """However late it comes: 007 is not 7, and an ISBN may end in X."""
    ids = [*(str(n) for n in range(200_000 if late else 3)), "034545104X", "007", "2020-01-01", "true", "1e5", "NA"]
    (tmp_path / "r.csv").write_text("user,isbn,rating\n" + "".join(f"{n % 7},{id_},3\n" for n, id_ in enumerate(ids)))
    blocks = block_ratings(tmp_path / "r.csv", tmp_path / "b")
    assert blocks.ids("user")["id"].type == pa.int64()
    assert sorted(blocks.ids("item")["id"].to_pylist()) == sorted(ids)


def test_text__with_missing_ids_among_integers_or_with_fractions_is_refused(tmp_path: Path) -> None:
    for text, message in (("1,2,3\nNA,2,3\n", "column 'user_id' has 1 null id"), ("1.5,2,3\n", "has type double")):
        (tmp_path / "r.csv").write_text("user_id,item_id,rating\n" + text)
        with pytest.raises(RatingsError, match=message):
            block_ratings(tmp_path / "r.csv", tmp_path / "b")
    (tmp_path / "r.csv").write_bytes("user_id,item_id,rating\nJosé,2,3\n".encode("latin-1"))
    with pytest.raises(RatingsError, match=r"r\.csv is not text in UTF-8; save it as such"):
        block_ratings(tmp_path / "r.csv", tmp_path / "b")


def test_runs_of_ids__are_ids(tmp_path: Path) -> None:
    users = pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array([7, 8]))
    blocks = block_ratings(pa.table({"user": users, "item": [1, 2, 1], "rating": [1.0, 2.0, 3.0]}), tmp_path / "b")
    ids = blocks.ids("user")["id"].to_pylist()
    assert dict(zip(ids, blocks.counts("user").tolist(), strict=True)) == {7: 2, 8: 1}


@pytest.mark.parametrize("kind", [pl.String, pl.Categorical, pl.Enum(["a", "b", "c"])])
def test_strings_of_polars__are_strings_everywhere(kind: Any) -> None:
    frame = pl.DataFrame({"user_id": ["a", "a", "b", "c"], "item_id": [1, 2, 2, 1], "rating": [5.0, 3.0, 4.0, 2.0]})
    frame = frame.with_columns(pl.col("user_id").cast(kind))
    mf = MatrixFactorization(2, epochs=3).fit(frame)
    assert mf.user_ids_.tolist() == ["a", "b", "c"]
    pairs = frame.select("user_id", "item_id")
    np.testing.assert_array_equal(mf.predict(pairs), mf.predict(["a", "a", "b", "c"], [1, 2, 2, 1]))
    np.testing.assert_array_equal(mf.predict(frame["user_id"], frame["item_id"]), mf.predict(pairs))
    assert np.isfinite(mf.score(pairs, frame["rating"]))
    assert distmf.evaluate(mf, frame)["n_unseen"] == 0


def test_predict__takes_dask(table: pa.Table) -> None:
    frame = dd.from_pandas(table.to_pandas(), npartitions=3)
    mf = MatrixFactorization(2, epochs=3).fit(frame)
    expected = mf.predict(table["user_id"], table["item_id"])
    np.testing.assert_array_equal(mf.predict(frame[["user_id", "item_id"]]), expected)
    np.testing.assert_array_equal(mf.predict(frame["user_id"], frame["item_id"]), expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda d: pandas.concat([d, d[["rating"]]], axis=1),
        lambda d: d.set_index(["user_id", "item_id"])["rating"],
        lambda d: d.assign(user_id=[1, "a", *[2] * (len(d) - 2)]),
    ],
)
def test_frames__of_pandas_that_are_no_ratings_are_refused(make: Any, table: pa.Table) -> None:
    with pytest.raises(RatingsError, match="the (DataFrame|Series)"):
        MatrixFactorization(2).fit(make(table.to_pandas()))


@pytest.mark.parametrize("kind", ["pandas", "polars", "sparse", "dask"])
def test_fit__takes_tables(kind: str, table: pa.Table, tmp_path: Path) -> None:
    write(tmp_path / "r.parquet", table)
    found = MatrixFactorization(4, epochs=2).fit(TABLES[kind](table), grid=(2, 2))
    by_file = MatrixFactorization(4, epochs=2).fit(tmp_path / "r.parquet", grid=(2, 2))
    np.testing.assert_array_equal(found.user_factors_, by_file.user_factors_)


@pytest.mark.parametrize("text", ["user_id,item_id\n7,3\n8,3\n", "7,3\n8,3\n"])
def test_predict__takes_pairs_as_text(text: str, table: pa.Table, tmp_path: Path) -> None:
    mf = MatrixFactorization(2, epochs=3).fit(table)
    mf.save(tmp_path / "m")
    (tmp_path / "p.csv").write_text(text)
    assert run("predict", tmp_path / "m", tmp_path / "p.csv", tmp_path / "out.parquet").exit_code == 0
    np.testing.assert_array_equal(pq.read_table(tmp_path / "out.parquet")["prediction"], mf.predict([7, 8], [3, 3]))


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffuser,item,rating\n1,2,3\n2,3,4\n",
        "\ufeff1,2,3\n2,3,4\n",
        "userId, movieId, rating\n1, 2, 3\n 2 , 3, 4\n",
        "1, 2, 3\n2, 3, 4\n",
    ],
)
def test_text__may_begin_with_a_mark_and_have_spaces(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(text)
    blocks = block_ratings(tmp_path / "r.csv", tmp_path / "b")
    assert [sorted(blocks.ids(side)["id"].to_pylist()) for side in ("user", "item")] == [[1, 2], [2, 3]]


def test_text__without_names_may_have_strings(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("alice,matrix,5\nbob,alien,4\n")
    assert sorted(block_ratings(tmp_path / "r.csv", tmp_path / "b").ids("user")["id"].to_pylist()) == ["alice", "bob"]


def test_columns__are_told_of_when_they_are_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "r.csv").write_text("User ID,Title,Score\n1,2,3\n")
    with caplog.at_level("INFO", "distmf"):
        with pytest.raises(RatingsError, match="there is no column 'item_id'"):
            block_ratings(tmp_path / "r.csv", tmp_path / "b")
        assert "are in" not in caplog.text
        block_ratings(tmp_path / "r.csv", tmp_path / "b", item="Title")
    assert caplog.text.count("users are in 'User ID', ratings are in 'Score'") == 1


@pytest.mark.parametrize("known", [True, False])
def test_dask__may_have_categories_and_an_index(known: bool, table: pa.Table, tmp_path: Path) -> None:
    block_ratings(table.set_column(0, "user_id", names_of(table)), tmp_path / "expected")
    frame = table.set_column(0, "user_id", names_of(table)).to_pandas().astype({"user_id": "category"})
    if known:
        parts = dd.from_pandas(frame.set_index("item_id").sort_index(), npartitions=3)
    else:
        frame.to_parquet(tmp_path / "categories.parquet", row_group_size=1000)
        parts = dd.read_parquet(tmp_path / "categories.parquet", split_row_groups=True, categories=["user_id"])
        assert not parts["user_id"].cat.known
    block_ratings(parts, tmp_path / "b")
    assert files(tmp_path / "b") == files(tmp_path / "expected")


def names_of(table: pa.Table) -> pa.Array:
    return pa.array([f"user {user}" for user in table["user_id"].to_pylist()])


def test_ids__may_be_a_column_of_a_table(table: pa.Table, tmp_path: Path) -> None:
    mf = MatrixFactorization(2, epochs=2).fit(table)
    users, items = pandas.DataFrame({"who": [3, 5]}), pl.DataFrame({"title": ["a", "b"], "movieId": [7, 8]})
    expected = mf.recommend([3, 5], 1, among=[7, 8])
    np.testing.assert_array_equal(mf.recommend(users, 1, among=items).item_ids, expected.item_ids)
    np.testing.assert_array_equal(mf.similar_items(items).ids, mf.similar_items([7, 8]).ids)
    assert distmf.recommend_all(mf, tmp_path / "out", 1, users=users, among=items) == 2
    with pytest.raises(RatingsError, match=r"there is no column 'user_id'; there are: 'title', 'movieId'"):
        mf.recommend(items)


@pytest.mark.parametrize("kind", ["dense", "sparse", "pandas"])
def test_ratings__may_be_truth_values(kind: str) -> None:
    def made(matrix: Any) -> Any:
        rows, cols = np.nonzero(np.ones_like(matrix))
        if kind == "sparse":
            return sparse.coo_array((matrix.ravel(), (rows, cols)), shape=matrix.shape)
        columns = {"user": rows, "item": cols, "rating": matrix.ravel()}
        return matrix if kind == "dense" else pandas.DataFrame(columns)

    matrix = np.random.default_rng(0).random((30, 20)) < 0.5
    mf, expected = (
        MatrixFactorization(2, epochs=2, loss="logistic").fit(made(each)) for each in (matrix, matrix.astype(np.int64))
    )
    np.testing.assert_array_equal(mf.reconstruct(), expected.reconstruct())


def test_matrices__of_other_entries_are_refused() -> None:
    with pytest.raises(RatingsError, match="the matrix has entries of type complex128; a matrix of numbers is needed"):
        MatrixFactorization().fit(sparse.coo_array(np.array([[1j, 2]])))
    with pytest.raises(RatingsError, match=r"this is of type LazyFrame, which \.collect\(\) makes a table of"):
        MatrixFactorization().fit(pl.LazyFrame({"user": [1], "item": [2], "rating": [3.0]}))
