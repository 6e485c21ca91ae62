"""Tables and matrices in memory, of whatever library -> columns of Arrow: ratings, pairs, ids."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import compute

from distmf.errors import RatingsError
from distmf.filesystem import one_line
from distmf.guessing import INDEX, columns_in, pair_columns_in
from distmf.matrix import NUMBERS, IsSet, not_nan, set_entries
from distmf.ratings import Columns
from distmf.sizes import counted

ROWS_AT_ONCE = 1 << 20


def is_ratings(source: Any) -> bool:
    """Return whether something holds ratings as they are, which a dense matrix does not."""
    kinds = str | Path | pa.Table | pa.RecordBatch | pa.RecordBatchReader
    marks = "scanner", "__arrow_c_stream__", "npartitions", "tocoo", "iloc"  # of datasets, streams, Dask, SciPy, pandas
    return isinstance(source, kinds) or any(hasattr(source, mark) for mark in marks)


def gathered(frame: Any) -> Any:
    """Return what a DataFrame or a Series of Dask holds; all else is returned as it is."""
    return frame.compute() if hasattr(frame, "npartitions") and hasattr(frame, "compute") else frame


class Pairs(NamedTuple):
    """Users and items; and the columns that they were in, in a table."""

    users: pa.Array
    items: pa.Array
    names: tuple[str, ...] | None = None


def pairs_of(
    pairs: Any, user: str | None = None, item: str | None = None, known: tuple[str, ...] | None = None
) -> Pairs:
    """Return the users and the items of pairs: of a table with a column of each, or an array of shape (n, 2).

    Without `user` and `item`, the columns with the `known` names are taken, if they are there.

    Raises
    ------
    RatingsError
        If it is neither.
    """
    pairs = gathered(pairs)
    if hasattr(pairs, "columns") or hasattr(pairs, "__arrow_c_stream__"):
        schema, batches, what = batches_of(pairs, not_nan)
        if known is not None and set(known) <= set(schema.names):
            user, item = known
        columns = pair_columns_in(schema.names, {"user": user, "item": item}, what)
        table = pa.Table.from_batches(batches, schema)
        users, items = (_joined(table, name) for name in columns.ids)
        return Pairs(users, items, tuple(columns.ids))
    array = np.asarray(pairs)
    if array.ndim != 2 or array.shape[1] != 2:
        raise RatingsError(f"pairs are a table, or an array of shape (n, 2); this has the shape {array.shape}")
    return Pairs(pa.array(array[:, 0]), pa.array(array[:, 1]))


def column_of(frame: Any, what: str) -> pa.Array:
    """Return the ids in a table: in its only column, or the one that is called so."""
    schema, batches, source = batches_of(frame, not_nan)
    own = [name for name in schema.names if not name.startswith(INDEX)]
    name = own[0] if len(own) == 1 else columns_in(own, {what: None}, source).ids[0]
    return _joined(pa.Table.from_batches(batches, schema), name)


def _joined(table: pa.Table, name: str) -> pa.Array:
    column = table[name]
    return pa.chunked_array([plain(chunk) for chunk in column.chunks], plain_type(column.type)).combine_chunks()


def table_of(pairs: Pairs, ratings: Any, weights: Any = None) -> pa.Table:
    """Return ratings of pairs as a table, with weights in the column `weight`, if there are any: those above 0."""
    users, items, _ = pairs
    given = {"y": ratings} if weights is None else {"y": ratings, "sample_weight": weights}
    columns = {name: np.asarray(values) for name, values in given.items()}
    columns = {name: values[:, 0] if values.shape[1:] == (1,) else values for name, values in columns.items()}
    for name, values in columns.items():
        if values.shape != (len(users),):
            needed = f"(n,), for {counted(len(users), 'pair')}"
            raise RatingsError(f"{name} has the shape {values.shape}; it needs {needed}")
    names = [*Columns()[:3], "weight"][: 2 + len(columns)]
    table = pa.table(dict(zip(names, (users, items, *columns.values()), strict=True)))
    return table if weights is None else table.filter(pa.array(columns["sample_weight"] != 0))


def batches_of(source: Any, is_set: IsSet) -> tuple[pa.Schema, Iterator[pa.RecordBatch], str]:
    """Return what a table or a matrix holds, a part at a time, and what it is."""
    if hasattr(source, "scanner"):  # a dataset, whose module would import pandas
        return source.schema, source.to_batches(), "the dataset"
    if isinstance(source, pa.RecordBatch):
        source = pa.Table.from_batches([source])
    if isinstance(source, pa.Table):
        return source.schema, iter(source.to_batches(ROWS_AT_ONCE)), "the table"
    if hasattr(source, "__arrow_c_stream__"):
        what = f"the {type(source).__name__}"
        try:
            reader = pa.RecordBatchReader.from_stream(source)
        except (pa.ArrowException, ValueError, TypeError) as err:
            raise RatingsError(
                f"{what} cannot be read as a table of users, items and ratings: {one_line(err)}"
            ) from err
        return reader.schema, iter(reader), what
    if hasattr(source, "iloc"):  # a pandas DataFrame from before 2.2
        return batches_of(pa.Table.from_pandas(source, preserve_index=False), is_set)
    if hasattr(source, "tocoo"):
        matrix = source.tocoo()
        if matrix.dtype.kind not in NUMBERS:
            raise RatingsError(f"the matrix has entries of type {matrix.dtype.name}; a matrix of numbers is needed")
        rows, cols, values = matrix.row, matrix.col, matrix.data
    else:
        dense, mask = set_entries(source, is_set)
        rows, cols = np.nonzero(mask)
        values = dense[mask]
    columns = rows.astype(np.int64), cols.astype(np.int64), values
    return batches_of(pa.table(dict(zip(Columns()[:3], columns, strict=True))), is_set)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of a column when it is written: views of strings, also those of categories, as strings."""
    if pa.types.is_string_view(kind):
        return pa.large_string()
    is_encoded = pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind)
    return plain_type(kind.value_type) if is_encoded else kind


def plain(column: pa.Array) -> pa.Array:
    """Return a column in its plain type: neither as categories nor as runs, and no views of strings."""
    if pa.types.is_dictionary(column.type):
        return plain(column.dictionary).take(column.indices)
    if pa.types.is_run_end_encoded(column.type):
        return plain(compute.run_end_decode(column))
    return column.cast(plain_type(column.type))
