"""Ratings from where people have them -> Parquet that every worker can read, and the names of its columns.

Parquet is read where it lies. Everything else is written as Parquet first, a part at a time: CSV and other text, Arrow
tables and datasets, what exports itself as an Arrow stream (pandas, polars, DuckDB), Dask DataFrames, matrices.
"""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from distmf.errors import ParameterError, RatingsError
from distmf.filesystem import display_name
from distmf.frames import batches_of, plain, plain_type
from distmf.guessing import columns_in
from distmf.matrix import IsSet, not_nan
from distmf.ratings import Columns, column_names, files_of, read_ids
from distmf.store import Folder, temporary_folder
from distmf.text import is_text, write_text


@contextlib.contextmanager
def as_parquet(
    source: Any,
    beside: str | Path | None,
    names: dict[str, str | None],
    is_set: IsSet = not_nan,
    client: Any = None,
) -> Iterator[tuple[str | Path, Columns]]:
    """Yield the path of ratings as Parquet, and their columns; what had to be written is gone afterwards.

    Parameters
    ----------
    source : str, Path, table or matrix
        A path or URL of Parquet or text; an Arrow table, reader or dataset; a pandas, polars or Dask DataFrame, or
        whatever else exports an Arrow stream; a SciPy sparse matrix; a dense matrix.
    beside : str, Path or None
        What ratings that have to be written are written beside; None is where temporary files go.
    names : dict
        Of the columns `user`, `item`, `rating`, `time` and `weight`, as far as they are needed; None for those to be
        guessed, and for no weight.
    is_set : callable
        For a dense matrix: which of its entries are set.
    client : distributed.Client, optional
        Whose workers write a Dask DataFrame.

    Raises
    ------
    RatingsError
        If there are no ratings there, they cannot be read, or it is not clear which columns they are in.
    """
    for what, name in names.items():
        if name is not None and not isinstance(name, str):
            raise ParameterError(f"{what} is {name!r}; it is the name of a column")
    if isinstance(source, str | Path):
        if kind := Folder.at(source).kind():
            parts = "; give its folder train or test" if kind == "distmf split" else ""
            raise RatingsError(f"{source}: ratings are needed, but this is of the kind {kind!r}{parts}")
        files = files_of(source)
        if not all(is_text(path) for _, path in files):
            yield source, columns_in(column_names(source), names, display_name(*files[0]))
            return
    beside = beside or Path(tempfile.gettempdir()) / "distmf-ratings"
    with temporary_folder(f"{str(beside).rstrip('/')}.source") as folder, _named(folder) as origins:
        if isinstance(source, str | Path):
            origins[:] = [display_name(fs, path) for fs, path in files]
            columns = write_text(files, folder, names)
        elif hasattr(source, "to_parquet") and hasattr(source, "npartitions"):
            source = source if source.index.name is None else source.reset_index()
            origins[:] = ["the Dask DataFrame"]
            columns = columns_in([str(name) for name in source.columns], names, "the Dask DataFrame")
            _write_dask(source[columns.names], folder, client)
        else:
            schema, batches, what = batches_of(source, is_set)
            origins[:] = [what]
            columns = _write_batches(schema, batches, what, folder, names)
        yield str(folder), columns


@contextlib.contextmanager
def _named(folder: Folder) -> Iterator[list[str]]:
    """Yield a list for what the files in a temporary folder are written from, and name that in errors, and not them."""
    origins: list[str] = []

    def origin(match: re.Match[str]) -> str:
        number = int(match["number"] or 0)
        return origins[number] if number < len(origins) else origins[0]

    try:
        yield origins
    except RatingsError as err:
        file = rf"{re.escape(str(folder))}(/part[-.](?P<number>\d+)\.parquet)?(, row group \d+)?"
        raise RatingsError(re.sub(file, origin, str(err))) from err


def ids_of(source: str | Path, what: Literal["user", "item"], column: str | None = None) -> pa.Array:
    """Return the ids of users or of items in Parquet or text, in memory.

    Raises
    ------
    RatingsError
        If they cannot be read, or it is not clear which column they are in.
    """
    with as_parquet(source, None, {what: column}) as (parquet, columns):
        return read_ids(parquet, columns)


def _write_batches(
    schema: pa.Schema, batches: Iterator[pa.RecordBatch], source: str, folder: Folder, names: dict[str, str | None]
) -> Columns:
    columns = columns_in(schema.names, names, source)
    kept = pa.schema([(name, plain_type(schema.field(name).type)) for name in columns.names])
    with folder.create("part-0.parquet") as file, pq.ParquetWriter(file, kept) as writer:
        for batch in batches:
            writer.write_batch(pa.record_batch([plain(batch[name]) for name in columns.names], schema=kept))
    return columns


def _write_dask(frame: Any, folder: Folder, client: Any) -> None:
    """Have the workers write the partitions of a Dask DataFrame, each its own."""
    # Whose values there are of categories, each partition says by itself.
    has_categories = any(str(kind) == "category" for kind in frame.dtypes)
    schema = None if has_categories else "infer"
    written = frame.to_parquet(str(folder), write_index=False, compute=False, schema=schema)
    if client is None:
        written.compute()
    else:
        client.compute(written).result()
