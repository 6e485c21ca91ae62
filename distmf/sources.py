"""Ratings from where people have them -> Parquet that every worker can read, and the names of its columns.

Parquet is read where it lies. Everything else is written as Parquet first, a part at a time: CSV and other text, Arrow
tables and datasets, what exports itself as an Arrow stream (pandas, polars, DuckDB), Dask DataFrames, matrices.
"""

import contextlib
import logging
import posixpath
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from distmf.errors import RatingsError
from distmf.filesystem import display_name, one_line, opened
from distmf.matrix import IsSet, not_nan, set_entries
from distmf.ratings import Columns, check_columns, column_names, files_of
from distmf.store import Folder, temporary_folder

logger = logging.getLogger(__name__)

# What columns are often called, in small letters and without what stands between words.
KNOWN = {
    "user": ("userid", "user", "uid", "customerid", "customer"),
    "item": ("itemid", "item", "iid", "movieid", "movie", "productid", "product", "bookid", "trackid", "asin"),
    "rating": ("rating", "ratings", "score", "stars"),
    "time": ("timestamp", "time", "date", "datetime", "ratedat"),
}
TEXT = ".csv", ".tsv", ".txt", ".dat", ".data"
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?")
ROWS_AT_ONCE = 1 << 20


@contextlib.contextmanager
def as_parquet(
    source: Any,
    beside: str | Path,
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
    beside : str or Path
        What ratings that have to be written are written beside.
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
    if isinstance(source, str | Path):
        files = files_of(source)
        if not all(_is_text(path) for _, path in files):
            yield source, _columns(column_names(source), names, str(source))
            return
    with temporary_folder(f"{str(beside).rstrip('/')}.source") as folder:
        if isinstance(source, str | Path):
            columns = _write_text(files, folder, names)
        elif hasattr(source, "to_parquet") and hasattr(source, "npartitions"):
            there = [str(name) for name in source.columns]
            columns = _columns(there, names, "the Dask DataFrame")
            check_columns(there, columns, "the Dask DataFrame")
            _write_dask(source[columns.names], folder, client)
        else:
            columns = _write_batches(*_batches(source, is_set), folder, names)
        yield str(folder), columns


def is_ratings(source: Any) -> bool:
    """Return whether something holds ratings as they are, which a dense matrix does not."""
    kinds = str | Path | pa.Table | pa.RecordBatch | pa.RecordBatchReader
    marks = "scanner", "__arrow_c_stream__", "npartitions", "tocoo", "iloc"  # of datasets, streams, Dask, SciPy, pandas
    return isinstance(source, kinds) or any(hasattr(source, mark) for mark in marks)


def pairs_of(pairs: Any) -> tuple[pa.Array, pa.Array]:
    """Return the users and the items of pairs: of a table with a column of each, or an array of shape (n, 2).

    Raises
    ------
    RatingsError
        If it is neither.
    """
    if hasattr(pairs, "columns") or hasattr(pairs, "__arrow_c_stream__"):
        schema, batches, what = _batches(pairs, not_nan)
        columns = _columns(schema.names, {"user": None, "item": None}, what)
        check_columns(schema.names, columns, what)
        table = pa.Table.from_batches(batches, schema)
        return tuple(table[name].combine_chunks() for name in columns.ids)
    array = np.asarray(pairs)
    if array.ndim != 2 or array.shape[1] != 2:
        raise RatingsError(f"pairs are a table, or an array of shape (n, 2); this has the shape {array.shape}")
    return pa.array(array[:, 0]), pa.array(array[:, 1])


def table_of(users: pa.Array, items: pa.Array, ratings: Any) -> pa.Table:
    """Return ratings of pairs as a table."""
    return pa.table(dict(zip(Columns()[:3], (users, items, np.asarray(ratings)), strict=True)))


def only_one_of(there: Sequence[str], known: Sequence[str], what: str, source: str) -> str | None:
    """Return the only column with one of some names, in small letters and without what stands between words.

    Raises
    ------
    RatingsError
        If there are several.
    """
    fitting = [other for other in there if re.sub(r"[^a-z0-9]", "", other.lower()) in known]
    if len(fitting) > 1:
        raise RatingsError(
            f"{source}: the {what} may be in {' or '.join(map(repr, fitting))}; say in which by {what}= (--{what})"
        )
    return fitting[0] if fitting else None


def _columns(there: Sequence[str], names: dict[str, str | None], source: str) -> Columns:
    """Return the columns to read: as they are named, or as the only one of a name that is known."""
    found: dict[str, Any] = {}
    for what, known in KNOWN.items():
        if names.get(what) is not None or what not in names:
            found[what] = names.get(what)
            continue
        found[what] = only_one_of(there, known, what, source) or getattr(Columns(), what) or "timestamp"
    columns = Columns(**found, weight=names.get("weight"))
    guessed = {what: name for what, name in found.items() if what in names and names[what] is None}
    if any(name != getattr(Columns(), what) for what, name in guessed.items()):
        logger.info("%s: %s", source, ", ".join(f"{what}s are in {name!r}" for what, name in guessed.items()))
    return columns


def _batches(source: Any, is_set: IsSet) -> tuple[pa.Schema, Iterator[pa.RecordBatch], str]:
    """Return what a table or a matrix holds, a part at a time, and what it is."""
    if hasattr(source, "scanner"):  # a dataset, whose module would import pandas
        return source.schema, source.to_batches(), "the dataset"
    if isinstance(source, pa.RecordBatch):
        source = pa.Table.from_batches([source])
    if isinstance(source, pa.Table):
        return source.schema, iter(source.to_batches(ROWS_AT_ONCE)), "the table"
    if hasattr(source, "__arrow_c_stream__"):
        reader = pa.RecordBatchReader.from_stream(source)
        return reader.schema, iter(reader), f"the {type(source).__name__}"
    if hasattr(source, "iloc"):  # a pandas DataFrame from before 2.2
        return _batches(pa.Table.from_pandas(source, preserve_index=False), is_set)
    if hasattr(source, "tocoo"):
        matrix = source.tocoo()
        rows, cols, values = matrix.row, matrix.col, matrix.data
    else:
        dense, mask = set_entries(source, is_set)
        rows, cols = np.nonzero(mask)
        values = dense[mask]
    columns = rows.astype(np.int64), cols.astype(np.int64), values
    return _batches(pa.table(dict(zip(Columns()[:3], columns, strict=True))), is_set)


def _write_batches(
    schema: pa.Schema, batches: Iterator[pa.RecordBatch], source: str, folder: Folder, names: dict[str, str | None]
) -> Columns:
    columns = _columns(schema.names, names, source)
    check_columns(schema.names, columns, source)
    kept = pa.schema([schema.field(name) for name in columns.names])
    with folder.create("part-0.parquet") as file, pq.ParquetWriter(file, kept) as writer:
        for batch in batches:
            writer.write_batch(batch.select(columns.names))
    return columns


def _write_dask(frame: Any, folder: Folder, client: Any) -> None:
    """Have the workers write the partitions of a Dask DataFrame, each its own."""
    written = frame.to_parquet(str(folder), write_index=False, compute=False)
    if client is None:
        written.compute()
    else:
        client.compute(written).result()


def _is_text(path: str) -> bool:
    return posixpath.splitext(_uncompressed(path))[1].lower() in TEXT


def _uncompressed(path: str) -> str:
    stem, extension = posixpath.splitext(path)
    return stem if extension.lower() in COMPRESSED else path


def _write_text(files: Sequence[tuple[Any, str]], folder: Folder, names: dict[str, str | None]) -> Columns:
    """Write files of text as Parquet, each as one file; return their columns, which are those of the first."""
    columns = None
    for n, (fs, path) in enumerate(files):
        where = display_name(fs, path)
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(opened(fs, path))
            compression = COMPRESSED.get(posixpath.splitext(path)[1].lower())
            text = stack.enter_context(pa.input_stream(pa.PythonFile(raw, mode="r"), compression=compression))
            first = text.read(1 << 16)
            head, _, _ = first.partition(b"\n")
            reader = stack.enter_context(_reader(_Rest(first, text), head.decode(errors="replace").strip(), where))
            columns = columns or _columns(reader.schema.names, names, where)
            check_columns(reader.schema.names, columns, where)
            schema = pa.schema([reader.schema.field(name) for name in columns.names])
            file = stack.enter_context(folder.create(f"part-{n}.parquet"))
            writer = stack.enter_context(pq.ParquetWriter(file, schema))
            try:
                for batch in reader:
                    writer.write_batch(batch.select(columns.names))
            except pa.ArrowInvalid as err:
                raise RatingsError(f"{where} cannot be read as text: {one_line(err)}") from err
    assert columns is not None
    return columns


class _Rest:
    """A stream of which the beginning has been read, from the beginning."""

    closed = False

    def __init__(self, first: bytes, rest: Any) -> None:
        self._first, self._rest = first, rest

    def read(self, n: int = -1) -> bytes:
        found, self._first = self._first, b""
        return found if found else bytes(self._rest.read(n))

    def readable(self) -> bool:
        return True

    def close(self) -> None: ...


def _reader(text: Any, head: str, where: str) -> Any:
    """Return a reader of text with columns, given its first line.

    Columns stand between "::", tabs, semicolons or commas. Without a line of names they are users, items and ratings,
    in this order, as in the files of MovieLens.
    """
    delimiter = next((mark for mark in ("::", "\t", ";", ",") if mark in head), None)
    if delimiter is None:
        raise RatingsError(f"{where}: there are no columns in its first line, {head[:80]!r}")
    fields = head.split(delimiter)
    if len(fields) < 3:
        raise RatingsError(f"{where}: users, items and ratings need a column each; its first line is {head[:80]!r}")
    step = len(delimiter)  # of "::", every other column is empty
    has_names = not all(NUMBER.fullmatch(field.strip('"')) for field in fields[:3])
    others = ["timestamp"] if len(fields) == 4 else [f"column {n}" for n in range(4, len(fields) + 1)]
    unnamed = ["user_id", "item_id", "rating", *others]
    columns = [field.strip().strip('"') for field in fields] if has_names else unnamed
    spread = [name for column in columns for name in (column, *[""] * (step - 1))][: step * (len(columns) - 1) + 1]
    options = {
        "read_options": pc.ReadOptions(column_names=_unique(spread), skip_rows=int(has_names), use_threads=False),
        "parse_options": pc.ParseOptions(delimiter=delimiter[0]),
        "convert_options": pc.ConvertOptions(include_columns=columns),
    }
    try:
        return pc.open_csv(pa.PythonFile(text, mode="r"), **options)
    except pa.ArrowInvalid as err:
        raise RatingsError(f"{where} cannot be read as text: {one_line(err)}") from err


def _unique(names: Sequence[str]) -> list[str]:
    """Return names of which the empty ones are told apart."""
    return [name or f"nothing {n}" for n, name in enumerate(names)]
