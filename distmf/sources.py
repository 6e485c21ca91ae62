"""Ratings from where people have them -> Parquet that every worker can read, and the names of its columns.

Parquet is read where it lies. Everything else is written as Parquet first, a part at a time: CSV and other text, Arrow
tables and datasets, what exports itself as an Arrow stream (pandas, polars, DuckDB), Dask DataFrames, matrices.
"""

import codecs
import contextlib
import logging
import posixpath
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
from pyarrow import compute

from distmf.errors import ParameterError, RatingsError
from distmf.filesystem import display_name, one_line, opened
from distmf.matrix import NUMBERS, IsSet, not_nan, set_entries
from distmf.ratings import TEXT, Columns, check_columns, check_distinct, column_names, files_of, read_ids
from distmf.sizes import counted
from distmf.store import Folder, temporary_folder

logger = logging.getLogger(__name__)

# What columns are often called, in small letters and without what stands between words.
KNOWN = {
    "user": ("userid", "user", "uid", "customerid", "customer"),
    "item": ("itemid", "item", "iid", "movieid", "movie", "productid", "product", "bookid", "trackid", "asin", "isbn"),
    "rating": ("rating", "ratings", "score", "stars", "bookrating"),
    "time": ("timestamp", "time", "date", "datetime", "ratedat"),
}
NEEDED = "user", "item", "rating"  # each in a column of its own
INDEX = "__index_level_"  # how the names of columns begin that pandas makes of an index without one
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?")
REFUSED = re.compile(r"(?:column #(\d+): )?Row #(\d+): (?:CSV conversion error to (\w+): invalid value )?(.*)")
INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
NOT_UTF8 = "{} is not text in UTF-8; save it as such"
MISSING = "", "NA", "N/A", "#N/A", "NaN", "nan", "NULL", "null", "None"  # among integers
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
    for what, name in names.items():
        if name is not None and not isinstance(name, str):
            raise ParameterError(f"{what} is {name!r}; it is the name of a column")
    if isinstance(source, str | Path):
        if kind := Folder.at(source).kind():
            parts = "; give its folder train or test" if kind == "distmf split" else ""
            raise RatingsError(f"{source}: ratings are needed, but this is of the kind {kind!r}{parts}")
        files = files_of(source)
        if not all(_is_text(path) for _, path in files):
            yield source, _columns(column_names(source), names, display_name(*files[0]))
            return
    with temporary_folder(f"{str(beside).rstrip('/')}.source") as folder, _named(folder) as origins:
        if isinstance(source, str | Path):
            origins[:] = [display_name(fs, path) for fs, path in files]
            columns = _write_text(files, folder, names)
        elif hasattr(source, "to_parquet") and hasattr(source, "npartitions"):
            source = source if source.index.name is None else source.reset_index()
            origins[:] = ["the Dask DataFrame"]
            columns = _columns([str(name) for name in source.columns], names, "the Dask DataFrame")
            _write_dask(source[columns.names], folder, client)
        else:
            schema, batches, what = _batches(source, is_set)
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


def is_ratings(source: Any) -> bool:
    """Return whether something holds ratings as they are, which a dense matrix does not."""
    kinds = str | Path | pa.Table | pa.RecordBatch | pa.RecordBatchReader
    marks = "scanner", "__arrow_c_stream__", "npartitions", "tocoo", "iloc"  # of datasets, streams, Dask, SciPy, pandas
    return isinstance(source, kinds) or any(hasattr(source, mark) for mark in marks)


def gathered(frame: Any) -> Any:
    """Return what a DataFrame or a Series of Dask holds; all else is returned as it is."""
    return frame.compute() if hasattr(frame, "npartitions") and hasattr(frame, "compute") else frame


def pairs_of(pairs: Any, user: str | None = None, item: str | None = None) -> tuple[pa.Array, pa.Array]:
    """Return the users and the items of pairs: of a table with a column of each, or an array of shape (n, 2).

    Of a table of two columns, users are in the first, if their names do not say otherwise.

    Raises
    ------
    RatingsError
        If it is neither.
    """
    pairs = gathered(pairs)
    if hasattr(pairs, "columns") or hasattr(pairs, "__arrow_c_stream__"):
        schema, batches, what = _batches(pairs, not_nan)
        columns = _pair_columns(schema.names, {"user": user, "item": item}, what)
        found = list(batches)
        users, items = (
            pa.chunked_array([plain(batch[name]) for batch in found], _plain_type(schema.field(name).type))
            for name in columns.ids
        )
        return users.combine_chunks(), items.combine_chunks()
    array = np.asarray(pairs)
    if array.ndim != 2 or array.shape[1] != 2:
        raise RatingsError(f"pairs are a table, or an array of shape (n, 2); this has the shape {array.shape}")
    return pa.array(array[:, 0]), pa.array(array[:, 1])


def _pair_columns(there: Sequence[str], names: dict[str, str | None], source: str) -> Columns:
    own = [name for name in there if not name.startswith(INDEX)]
    if len(own) == 2 and not any(names.values()):
        user, item = (only_one_of(own, KNOWN[what], what, source) for what in names)
        if user is None and item is None:
            user, item = own
            logger.info("%s: users are taken from %r, and items from %r", source, user, item)
        names = {"user": user or own[own[0] == item], "item": item or own[own[0] == user]}
    try:
        return _columns(own, names, source)
    except RatingsError as err:
        raise RatingsError(f"{err}; or give a table of two columns, users first") from err


def column_of(table: Any, what: str) -> pa.Array:
    """Return the ids in a table: in its only column, or the one that is called so."""
    schema, batches, source = _batches(table, not_nan)
    own = [name for name in schema.names if not name.startswith(INDEX)]
    name = own[0] if len(own) == 1 else _columns(own, {what: None}, source).ids[0]
    found = pa.chunked_array([plain(batch[name]) for batch in batches], _plain_type(schema.field(name).type))
    return found.combine_chunks()


def ids_of(source: str | Path, what: Literal["user", "item"], column: str | None = None) -> pa.Array:
    """Return the ids of users or of items in Parquet or text, in memory.

    Raises
    ------
    RatingsError
        If they cannot be read, or it is not clear which column they are in.
    """
    with as_parquet(source, Path(tempfile.gettempdir()) / "distmf-ids", {what: column}) as (parquet, columns):
        return read_ids(parquet, columns)


def table_of(users: pa.Array, items: pa.Array, ratings: Any, weights: Any = None) -> pa.Table:
    """Return ratings of pairs as a table, with weights in the column `weight`, if there are any."""
    given = {"y": ratings} if weights is None else {"y": ratings, "sample_weight": weights}
    columns = {name: np.asarray(values) for name, values in given.items()}
    columns = {name: values[:, 0] if values.shape[1:] == (1,) else values for name, values in columns.items()}
    for name, values in columns.items():
        if values.shape != (len(users),):
            needed = f"(n,), for {counted(len(users), 'pair')}"
            raise RatingsError(f"{name} has the shape {values.shape}; it needs {needed}")
    names = [*Columns()[:3], "weight"][: 2 + len(columns)]
    return pa.table(dict(zip(names, (users, items, *columns.values()), strict=True)))


def only_one_of(there: Sequence[str], known: Sequence[str], what: str, source: str) -> str | None:
    """Return the only column with one of some names, in small letters and without what stands between words.

    Raises
    ------
    RatingsError
        If there are several.
    """
    fitting = list(dict.fromkeys(other for other in there if re.sub(r"[^a-z0-9]", "", other.lower()) in known))
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
    check_distinct(columns, source)
    check_columns(there, columns, source)
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
        what = f"the {type(source).__name__}"
        try:
            reader = pa.RecordBatchReader.from_stream(source)
        except (pa.ArrowException, ValueError, TypeError) as err:
            raise RatingsError(
                f"{what} cannot be read as a table of users, items and ratings: {one_line(err)}"
            ) from err
        return reader.schema, iter(reader), what
    if hasattr(source, "iloc"):  # a pandas DataFrame from before 2.2
        return _batches(pa.Table.from_pandas(source, preserve_index=False), is_set)
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
    return _batches(pa.table(dict(zip(Columns()[:3], columns, strict=True))), is_set)


def _write_batches(
    schema: pa.Schema, batches: Iterator[pa.RecordBatch], source: str, folder: Folder, names: dict[str, str | None]
) -> Columns:
    columns = _columns(schema.names, names, source)
    kept = pa.schema([(name, _plain_type(schema.field(name).type)) for name in columns.names])
    with folder.create("part-0.parquet") as file, pq.ParquetWriter(file, kept) as writer:
        for batch in batches:
            writer.write_batch(pa.record_batch([plain(batch[name]) for name in columns.names], schema=kept))
    return columns


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of a column when it is written: views of strings, also those of categories, as strings."""
    if pa.types.is_string_view(kind):
        return pa.large_string()
    is_encoded = pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind)
    return _plain_type(kind.value_type) if is_encoded else kind


def plain(column: pa.Array) -> pa.Array:
    """Return a column in its plain type: neither as categories nor as runs, and no views of strings."""
    if pa.types.is_dictionary(column.type):
        return plain(column.dictionary).take(column.indices)
    if pa.types.is_run_end_encoded(column.type):
        return plain(compute.run_end_decode(column))
    return column.cast(_plain_type(column.type))


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


def _is_text(path: str) -> bool:
    return posixpath.splitext(_uncompressed(path))[1].lower() in TEXT


def _uncompressed(path: str) -> str:
    stem, extension = posixpath.splitext(path)
    return stem if extension.lower() in COMPRESSED else path


class _TextError(Exception):
    """A column of ids, of which integers were expected, has some that are none."""


def _write_text(files: Sequence[tuple[Any, str]], folder: Folder, names: dict[str, str | None]) -> Columns:
    """Write files of text as Parquet, each as one file; return their columns, which are those of the first.

    Ids are integers where all of them are, as they are written; else all are strings: 007 is not 7.
    """
    strings: set[str] = set()
    while True:
        try:
            return _write_texts(files, folder, names, strings)
        except _TextError as err:
            strings.add(str(err))


def _write_texts(
    files: Sequence[tuple[Any, str]], folder: Folder, names: dict[str, str | None], strings: set[str]
) -> Columns:
    columns = None
    for n, (fs, path) in enumerate(files):
        where = display_name(fs, path)
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(opened(fs, path))
            compression = COMPRESSED.get(posixpath.splitext(path)[1].lower())
            text = stack.enter_context(pa.input_stream(pa.PythonFile(raw, mode="r"), compression=compression))
            first = text.read(1 << 16).removeprefix(codecs.BOM_UTF8)
            head, _, _ = first.partition(b"\n")
            if b"\0" in head:
                raise RatingsError(NOT_UTF8.format(where))
            lines = _Lines.of(head.decode(errors="replace").strip(), where, [what for what in NEEDED if what in names])
            columns = columns or _columns(lines.names, names, where)
            check_columns(lines.names, columns, where)
            reader = stack.enter_context(lines.reader(_Rest(first, text), columns))
            kinds = {name: pa.large_string() if name in strings else pa.int64() for name in columns.ids}
            schema = pa.schema([(name, kinds.get(name, reader.schema.field(name).type)) for name in columns.names])
            file = stack.enter_context(folder.create(f"part-{n}.parquet"))
            writer = stack.enter_context(pq.ParquetWriter(file, schema))
            try:
                for batch in reader:
                    arrays = {name: batch[name] for name in columns.names}
                    for name in columns.ids:
                        ids = compute.utf8_trim_whitespace(batch[name])
                        arrays[name] = ids if name in strings else _integers(ids, name, where)
                    writer.write_batch(pa.record_batch(list(arrays.values()), schema=schema))
            except pa.ArrowInvalid as err:
                raise lines.refused(err) from err
    assert columns is not None
    return columns


def _integers(ids: pa.Array, name: str, where: str) -> pa.Array:
    """Return ids as integers, null where they are missing.

    Raises
    ------
    RatingsError
        If they are numbers with a fraction.
    _TextError
        If there are others.
    """
    is_missing = compute.is_in(ids, pa.array(MISSING, ids.type))
    numbers = ids.filter(compute.invert(is_missing))
    if not compute.all(compute.match_substring_regex(numbers, INTEGER), min_count=0).as_py():
        is_number = compute.match_substring_regex(numbers, f"^{NUMBER.pattern}$")
        if compute.all(is_number).as_py() and compute.any(compute.match_substring(numbers, ".")).as_py():
            raise RatingsError(
                f"{where}: column {name!r} has type double; ids can be integers or strings, so convert them"
            )
        raise _TextError(name)
    return compute.if_else(is_missing, None, ids).cast(pa.int64())


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


class _Lines(NamedTuple):
    """Lines of text with columns, between which stand "::", tabs, semicolons or commas.

    Attributes
    ----------
    where : str
        The file, for messages.
    delimiter : str
        What stands between columns.
    has_names : bool
        Whether the first line has the names of the columns.
    names : list of str
        The names; without a line of them users, items and ratings, in this order, as in the files of MovieLens.
    """

    where: str
    delimiter: str
    has_names: bool
    names: list[str]

    @classmethod
    def of(cls, head: str, where: str, needed: Sequence[str]) -> Self:
        """Return what a first line says, which has a column at least for each of `user`, `item`, `rating` needed."""
        delimiter = next((mark for mark in ("::", "\t", ";", ",") if mark in head), "," if len(needed) == 1 else None)
        if delimiter is None:
            raise RatingsError(
                f"{where}: there are no columns in its first line, {head[:80]!r}; put commas, semicolons, tabs or :: "
                "between"
            )
        fields = head.split(delimiter)
        if len(fields) < len(needed):
            which = ", ".join(f"{what}s" for what in needed[:-1]) + f" and {needed[-1]}s"
            raise RatingsError(f"{where}: {which} need a column each; its first line is {head[:80]!r}")
        is_number = [bool(NUMBER.fullmatch(field.strip().strip('"'))) for field in fields]
        has_names = not (is_number[2] if len(needed) == len(NEEDED) else all(is_number[:3]))
        others = ["timestamp"] if len(fields) == 4 else [f"column {n}" for n in range(4, len(fields) + 1)]
        unnamed = ["user_id", "item_id", "rating", *others] if len(fields) > 1 else [f"{needed[0]}_id"]
        named = [field.strip().strip('"') for field in fields]
        return cls(where, delimiter, has_names, named if has_names else unnamed[: len(fields)])

    @property
    def fields(self) -> list[str]:
        """The names of all that stands between delimiters of one character: of "::", every other is empty."""
        others = [""] * (len(self.delimiter) - 1)
        return [name for column in self.names[:-1] for name in (column, *others)] + self.names[-1:]

    def reader(self, text: Any, columns: Columns) -> Any:
        """Return a reader of the text."""
        kinds = {
            **dict.fromkeys(columns.numbers.values(), pa.float64()),
            **dict.fromkeys(columns.ids, pa.large_string()),
        }
        read = pc.ReadOptions(column_names=_unique(self.fields), skip_rows=int(self.has_names), use_threads=False)
        parse = pc.ParseOptions(delimiter=self.delimiter[0])
        convert = pc.ConvertOptions(include_columns=columns.names, column_types=kinds)
        try:
            return pc.open_csv(pa.PythonFile(text, mode="r"), read, parse, convert)
        except pa.ArrowInvalid as err:
            raise self.refused(err) from err

    def refused(self, err: pa.ArrowInvalid) -> RatingsError:
        """Return an error that says what Arrow found, and in which line."""
        found = REFUSED.search(str(err))
        if "invalid UTF8" in str(err):
            return RatingsError(NOT_UTF8.format(self.where))
        if not found:
            return RatingsError(f"{self.where} cannot be read as text: {one_line(err)}")
        column, line, kind, what = found.groups()
        if column and kind:
            needed = "a number is needed" if kind == "double" else f"{kind} is the type of the lines before"
            what = f"column {self.fields[int(column)]!r} has {what}, but {needed}"
        what = re.sub(r"Expected (\d+) columns, got (\d+): .*", r"\1 columns are expected, and there are \2", what)
        return RatingsError(f"{self.where}, line {int(line):,}: {what}; mend the line, or remove it")


def _unique(names: Sequence[str]) -> list[str]:
    """Return names of which the empty ones are told apart."""
    return [name or f"nothing {n}" for n, name in enumerate(names)]
